"""What the image drivers share: data sets, shipped classifiers, and the judge of images."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.harness import cli
from experiments.images import photographs
from sinkflow import data
from sinkflow.data import images
from sinkflow.metrics import judge, weights
from sinkflow.metrics.judge import QUALITY, indistinct, shares
from sinkflow.metrics.weights import MODEL, Network, Weights, half, write_classifier
from sinkflow.nets import classifier

__all__ = [
    "CLASSIFIERS",
    "MODEL",
    "NETWORKS",
    "QUALITY",
    "Judge",
    "flat",
    "half",
    "indistinct",
    "load",
    "look",
    "read_classifier",
    "shares",
    "smoke_images",
    "write_classifier",
]

CLASSIFIERS = pathlib.Path(__file__).parent.parent / "classifiers"  # the shipped ones
NETWORKS: dict[str, Network] = {"convolutional": MODEL, "mixer": classifier.MixerClassifier()}
"""Kinds of classifiers, each trained on its own; the first one judges by default."""
CONVOLUTIONAL, _ = NETWORKS
SMOKE_SPLITS = {"train": slice(0, 1280), "test": slice(1280, 1792)}
LEAST_IMAGES = 6  # coverage looks at five neighbours


def load(
    dataset: str,
    data_dir: str = "",
    split: str = "train",
    *,
    smoke: bool = False,
    shape=classifier.SHAPE,
) -> images.Images:
    """A split of a data set; in a smoke run without a folder :func:`smoke_images`.

    The photographs are their own in every run.
    """
    if dataset == photographs.NAME:
        return photographs.patches(split)
    if smoke and not data_dir:
        return smoke_images(split, shape)
    return images.load(dataset, data_dir or None, split)


def smoke_images(split: str, shape: tuple[int, int, int] = classifier.SHAPE) -> images.Images:
    """What stands in for a data set where there is none: scikit-learn's digits, enlarged.

    Args:
      split: "train" (1,280 images) or "test" (512 others).
      shape: height, width and channels of an image.
    """
    if split not in SMOKE_SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SMOKE_SPLITS)}")
    x, labels = (values[SMOKE_SPLITS[split]] for values in data.digits())
    pixels = np.asarray(images.unscale(x.reshape(-1, 8, 8, 1)))
    times = min(shape[:2]) // 8
    enlarged = pixels.repeat(times, axis=1).repeat(times, axis=2).repeat(shape[2], axis=3)
    margins = [((size - 8 * times) // 2, (size - 8 * times + 1) // 2) for size in shape[:2]]
    return images.Images(np.pad(enlarged, [(0, 0), *margins, (0, 0)]), labels.astype(np.uint8))


def file_stem(dataset: str, network: str) -> str:
    """What the files of a data set's classifier of one of :data:`NETWORKS` are called."""
    return dataset if network == CONVOLUTIONAL else f"{dataset}-{network}"


def read_classifier(
    dataset: str, folder: pathlib.Path = CLASSIFIERS, network: str = CONVOLUTIONAL
) -> Weights:
    """:func:`sinkflow.metrics.weights.read_classifier`, by default of a shipped one."""
    kind = "" if network == CONVOLUTIONAL else f" --network {network}"
    remedy = f"train it: python -m experiments.classifier --dataset {dataset}{kind} --ship"
    stem, model = file_stem(dataset, network), NETWORKS[network]
    return weights.read_classifier(folder, stem, model=model, remedy=remedy)


def look(
    params: Any, pixels: np.ndarray, network: str = CONVOLUTIONAL
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`sinkflow.metrics.weights.look`, with a bar."""
    bar = functools.partial(cli.progress("features"), leave=False)
    return weights.look(params, pixels, model=NETWORKS[network], progress=bar)


class Judge(judge.Judge):
    """Compares generated images with as many test images, in a classifier's features and in pixels.

    Args:
      dataset: "mnist" or "fashion", whose shipped classifier looks at the images; None: only
        pixels are compared.
      train: what the generator was trained on.
      test: what it has not seen.
      num_images: how many images are compared; at most all of ``test``.
      seed: of the training images behind the floor, and of the traps.
      folder: of the classifier.
      network: its kind, one of :data:`NETWORKS`.

    Raises:
      ValueError: more images than there are; an altered classifier.
    """

    def __init__(
        self,
        dataset: str | None,
        train: images.Images,
        test: images.Images,
        *,
        num_images: int = 10_000,
        seed: int = 0,
        folder: pathlib.Path = CLASSIFIERS,
        network: str = CONVOLUTIONAL,
    ):
        most = min(len(train.labels), len(test.labels))
        if not LEAST_IMAGES <= num_images <= most:
            raise ValueError(
                f"num_images is {num_images}; this data set allows {LEAST_IMAGES} to {most}"
            )
        self.weights = None if dataset is None else read_classifier(dataset, folder, network)
        sees = self.weights and functools.partial(
            look, jax.device_put(self.weights.params), network=network
        )
        super().__init__(train.pixels, test.pixels[:num_images], sees, vectors_fn=flat)
        self.random = np.random.default_rng(seed)
        self.floor_images = self.random.choice(self.train, num_images, replace=False)

    def quality(self, pixels: np.ndarray) -> dict[str, float]:
        """The scores of :data:`QUALITY`; none without a classifier."""
        if pixels.dtype != np.uint8 or pixels.shape != self.test.shape:
            raise ValueError(
                f"images are {pixels.dtype} of shape {pixels.shape}; they are compared with as "
                f"many: give uint8 (images.unscale) of shape {self.test.shape}"
            )
        return super().quality(pixels)

    @functools.cached_property
    def traps(self) -> dict[str, np.ndarray]:
        """What a metric must tell from real images: a Gaussian fitted to all pixels, shuffled ones.

        The Gaussian is clipped to the range of pixels; every image has a permutation of its own.
        """
        x, shape = self.train.reshape(len(self.train), -1).astype(np.float64), self.test.shape
        # Some pixels are always black: the covariance is singular, which eigh allows.
        options = {"method": "eigh", "check_valid": "ignore"}
        noise = judge.fitted_gaussian(self.random, x, len(self.test), **options)
        gaussian = np.clip(np.round(noise), 0, 255).astype(np.uint8)
        mixed = judge.shuffled(self.random, self.floor_images.reshape(gaussian.shape))
        return {"gaussian": gaussian.reshape(shape), "shuffled": mixed.reshape(shape)}

    def references(self) -> dict[str, dict[str, float]]:
        """Rows of every table: the floor and the traps."""
        traps = cli.progress("traps")(self.traps.items(), leave=False)
        floor = self.floor([self.floor_images])
        return {"floor": floor, **{name: self(pixels) for name, pixels in traps}}


def flat(pixels: np.ndarray) -> np.ndarray:
    """Images as vectors [n, d] in [-1, 1], in which distances are measured."""
    return np.asarray(images.scale(pixels)).reshape(len(pixels), -1)
