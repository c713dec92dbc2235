"""The judge: compares generated samples with real ones that the generator has not seen.

Beside every score belong two kinds of reference. The *floor* is what fresh real samples score. A
*trap* is a negative control: samples that a metric must tell from real ones.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sinkflow.metrics.distances import frechet_distance, kernel_distance, total_variation
from sinkflow.metrics.neighbours import memorised, nearest, precision_recall_coverage

__all__ = [
    "QUALITY",
    "Judge",
    "Seen",
    "feature_scores",
    "fitted_gaussian",
    "indistinct",
    "shares",
    "shuffled",
]

QUALITY = {"fd": -1, "kd": -1, "precision": 1, "recall": 1, "coverage": 1, "class_tv": -1}
"""Scores of :func:`feature_scores`; the sign says whether more or less of it is better."""
FAR = 2.0  # ratio of trap and floor from which they count as told apart
NUM_CLASSES = 10

FeaturesFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Seen(NamedTuple):
    """Samples as vectors [length], and what ``features_fn`` sees in them."""

    vectors: Float[np.ndarray, "n d"]
    features: Float[np.ndarray, "n k"]
    classes: Int[np.ndarray, "n"]


def shares(classes: Int[np.ndarray, "n"], num_classes: int = NUM_CLASSES) -> np.ndarray:
    """Share of each class [num_classes]."""
    return np.bincount(classes, minlength=num_classes) / len(classes)


def feature_scores(real: Seen, generated: Seen) -> dict[str, float]:
    """How far generated samples are from real ones, in features and classes.

    Returns:
      The scores by their names:

      - ``fd``: squared Fréchet distance of features, which is not an FID.
      - ``kd``: kernel distance of features, the formula of KID.
      - ``precision``, ``recall``, ``coverage``: of features, in [0, 1].
      - ``class_tv``: total variation of the classes to the uniform distribution over ten.
    """
    uniform = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
    return {
        "fd": frechet_distance(generated.features, real.features),
        "kd": kernel_distance(generated.features, real.features),
        **precision_recall_coverage(real.features, generated.features)._asdict(),
        "class_tv": total_variation(shares(generated.classes), uniform),
    }


def _as_vectors(samples: np.ndarray) -> np.ndarray:
    """Samples [n, ...] as vectors [n, d]."""
    return samples.reshape(len(samples), -1)


class Judge:
    """Scores samples against real ones that the generator has not seen.

    Args:
      train: real samples [N, ...] that the generator was trained on.
      test: others [n, ...], in number as many as will be compared with them.
      features_fn: ``samples [n, ...] -> (features [n, k], classes [n])``; None: only distances to
        the training samples are measured.
      scores_fn: ``(real, generated) -> scores`` of two :class:`Seen`.
      vectors_fn: samples to vectors [n, d] [length], in which distances are measured.
    """

    def __init__(
        self,
        train: np.ndarray,
        test: np.ndarray,
        features_fn: FeaturesFn | None,
        *,
        scores_fn: Callable[[Seen, Seen], dict[str, float]] = feature_scores,
        vectors_fn: Callable[[np.ndarray], np.ndarray] = _as_vectors,
    ):
        self.train, self.test = train, test
        self.features_fn, self.scores_fn, self.vectors_fn = features_fn, scores_fn, vectors_fn

    def __call__(self, samples: np.ndarray) -> dict[str, float]:
        """Scores of samples [n, ...]: those of ``quality`` and those of ``memory``."""
        return {**self.quality(samples), **self.memory(self.nearest(samples)[0])}

    def see(self, samples: np.ndarray) -> Seen:
        """The samples as vectors, with features and classes."""
        assert self.features_fn is not None
        return Seen(self.vectors_fn(samples), *self.features_fn(samples))

    @functools.cached_property
    def real(self) -> Seen:
        """The test samples."""
        return self.see(self.test)

    def quality(self, samples: np.ndarray) -> dict[str, float]:
        """The scores of ``scores_fn``; none without features."""
        return {} if self.features_fn is None else self.scores_fn(self.real, self.see(samples))

    def nearest(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance [length] of every sample to its nearest training sample, and its index."""
        return nearest(self.vectors_fn(samples), self.train_vectors)

    @functools.cached_property
    def train_vectors(self) -> np.ndarray:
        """The training samples as vectors."""
        return self.vectors_fn(self.train)

    @functools.cached_property
    def test_distances(self) -> np.ndarray:
        """Distance [length] of every test sample to its nearest training sample."""
        return self.nearest(self.test)[0]

    def memory(self, distances: np.ndarray) -> dict[str, float]:
        """What distances to the training samples say.

        Returns:
          Two scores by their names:

          - ``nearest``: their mean [length].
          - ``memorised``: share of samples nearer to a training sample than all but 1% of test
            samples.
        """
        share = memorised(distances, self.test_distances)
        return {"nearest": float(np.mean(distances)), "memorised": share}

    def floor(self, draws: Sequence[np.ndarray]) -> dict[str, float]:
        """What a perfect generator scores: mean over draws of training samples [n, ...].

        To the training samples distances are measured from the test samples instead.
        """
        scores = [self.quality(samples) for samples in draws]
        means = {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}
        return {**means, **self.memory(self.test_distances)}


def fitted_gaussian(
    random: np.random.Generator, samples: np.ndarray, count: int, **options: Any
) -> np.ndarray:
    """A trap: draws [count, d] from the Gaussian fitted to samples [N, d].

    Args:
      random: NumPy's generator, which is advanced.
      samples: vectors.
      count: how many are drawn.
      options: of :meth:`numpy.random.Generator.multivariate_normal`.
    """
    mean, covariance = samples.mean(axis=0), np.cov(samples, rowvar=False)
    return random.multivariate_normal(mean, covariance, count, **options)


def shuffled(random: np.random.Generator, samples: np.ndarray) -> np.ndarray:
    """A trap: samples [n, d] in which each has its coordinates permuted on its own."""
    return random.permuted(samples, axis=1)


def indistinct(references: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Scores of :data:`QUALITY` that a table leaves out, as they miss a trap.

    Args:
      references: scores of "floor" and of the traps. Told apart are floor and trap if the trap is
        worse by a factor of 2.
    """
    floor = references["floor"]

    def missed(name: str, trap: Mapping[str, float]) -> bool:
        large, small = (floor, trap) if QUALITY[name] > 0 else (trap, floor)
        return large[name] <= FAR * max(small[name], 0.0)

    traps = [row for label, row in references.items() if label != "floor"]
    return [name for name in QUALITY if name in floor and any(missed(name, t) for t in traps)]
