"""What the image drivers share: data sets, shipped classifiers, and the judge of images."""

import functools
import hashlib
import importlib
import json
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from experiments import common
from sinkflow import checkpoint, classifier, data, images, metrics

CLASSIFIERS = pathlib.Path(__file__).parent / "classifiers"  # the shipped ones
MODEL = classifier.Classifier()
BATCH = 250  # images of one call of the classifier; more take longer on a CPU
SMOKE_SPLITS = {"train": slice(0, 1280), "test": slice(1280, 1792)}
QUALITY = {"fd": -1, "kd": -1, "precision": 1, "recall": 1, "coverage": 1, "class_tv": -1}
"""Metrics of the quality of images; the sign says whether more or less of it is better."""
LEAST_IMAGES = 6  # coverage looks at five neighbours
FAR = 2.0  # ratio of trap and floor from which they count as told apart


def load(
    dataset: str,
    data_dir: str = "",
    split: str = "train",
    *,
    smoke: bool = False,
    shape=classifier.SHAPE,
) -> images.Images:
    """A split of a data set; in a smoke run without a folder :func:`smoke_images`."""
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


class Weights(NamedTuple):
    """Parameters of a trained classifier, and the record of its training."""

    params: Any
    record: dict[str, Any]


def half(params: Any) -> Any:
    """The parameters as files hold them: rounded to float16."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)


def write_classifier(folder: pathlib.Path, dataset: str, params: Any, record: Mapping) -> None:
    """Writes {dataset}.npz, float16, and {dataset}.json with its SHA-256, each whole or not at all.

    Raises:
      ValueError: parameters that float16 cannot hold.
    """
    arrays = flax.traverse_util.flatten_dict(half(params), sep="/")
    bad = [name for name, values in arrays.items() if not np.isfinite(values).all()]
    if bad:
        raise ValueError(f"not finite in float16: {', '.join(bad)}; lower learning_rate")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dataset}.npz"
    with checkpoint.whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    common.write_json(folder / f"{dataset}.json", {"dataset": dataset, "sha256": digest, **record})


def read_classifier(dataset: str, folder: pathlib.Path = CLASSIFIERS) -> Weights:
    """The classifier of a data set, in float32.

    Raises:
      FileNotFoundError: there is none in the folder.
      ValueError: the weights are not those of the record.
    """
    path, about = folder / f"{dataset}.npz", folder / f"{dataset}.json"
    remedy = f"train it: python -m experiments.classifier --dataset {dataset} --ship"
    for needed in (path, about):
        if not needed.exists():
            raise FileNotFoundError(f"there is no {needed}; {remedy}")
    record = json.loads(about.read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != record["sha256"]:
        raise ValueError(
            f"{path} is altered or of another training: its SHA-256 is {digest}, "
            f"{about.name} says {record['sha256']}; {remedy}"
        )
    with np.load(path) as file:
        arrays = {name: file[name].astype(np.float32) for name in file.files}
    return Weights(flax.traverse_util.unflatten_dict(arrays, sep="/"), record)


@jax.jit
def _look(params, pixels):
    features = MODEL.apply(params, images.scale(pixels), method="features")
    logits: Any = MODEL.apply(params, features, method="logits")
    return features, logits.argmax(axis=1)


def look(params: Any, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier sees in images: features [n, 128] and classes [n].

    Args:
      params: from :func:`read_classifier`.
      pixels: images [n, 28, 28, 1] uint8.
    """
    starts = common.progress("features")(range(0, len(pixels), BATCH), leave=False)
    batches = [jax.device_get(_look(params, pixels[at : at + BATCH])) for at in starts]
    features, classes = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return features, classes


def shares(classes: np.ndarray) -> np.ndarray:
    """Share of each class [10]."""
    return np.bincount(classes, minlength=images.NUM_CLASSES) / len(classes)


class Judge:
    """Compares generated images with as many test images, in a classifier's features and in pixels.

    Args:
      dataset: "mnist" or "fashion", whose shipped classifier looks at the images; None: only
        pixels are compared.
      train: what the generator was trained on.
      test: what it has not seen.
      num_images: how many images are compared; at most all of ``test``.
      seed: of the training images behind the floor, and of the traps.
      folder: of the classifier.

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
    ):
        most = min(len(train.labels), len(test.labels))
        if not LEAST_IMAGES <= num_images <= most:
            raise ValueError(
                f"num_images is {num_images}; this data set allows {LEAST_IMAGES} to {most}"
            )
        self.train, self.test = train.pixels, test.pixels[:num_images]
        self.random = np.random.default_rng(seed)
        self.floor_images = self.random.choice(self.train, num_images, replace=False)
        self.weights = None if dataset is None else read_classifier(dataset, folder)
        if self.weights is not None:
            self.params = jax.device_put(self.weights.params)
            self.features = look(self.params, self.test)[0]

    def __call__(self, pixels: np.ndarray) -> dict[str, float]:
        """Scores of images [num_images, h, w, c] uint8; without a classifier the last two alone.

        Returns:
          fd: squared Fréchet distance of features, which is not an FID.
          kd: kernel distance of features, the formula of KID.
          precision, recall, coverage: of features, in [0, 1].
          class_tv: total variation of the classifier's answers to the uniform distribution.
          nearest: mean distance to the nearest training image [length, pixels in [-1, 1]].
          memorised: share of images nearer to a training image than all but 1% of test images.
        """
        return {**self.quality(pixels), **self.memory(self.nearest(pixels)[0])}

    def quality(self, pixels: np.ndarray) -> dict[str, float]:
        """The metrics of :data:`QUALITY`; none without a classifier."""
        if pixels.dtype != np.uint8 or pixels.shape != self.test.shape:
            raise ValueError(
                f"images are {pixels.dtype} of shape {pixels.shape}; they are compared with as "
                f"many: give uint8 (images.unscale) of shape {self.test.shape}"
            )
        if self.weights is None:
            return {}
        features, classes = look(self.params, pixels)
        uniform = np.full(images.NUM_CLASSES, 1 / images.NUM_CLASSES)
        return {
            "fd": metrics.frechet_distance(features, self.features),
            "kd": metrics.kernel_distance(features, self.features),
            **metrics.precision_recall_coverage(self.features, features)._asdict(),
            "class_tv": metrics.total_variation(shares(classes), uniform),
        }

    def nearest(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance [length] of every image to its nearest training image, and that one's index."""
        return metrics.nearest(flat(pixels), self.flat_train)

    @functools.cached_property
    def flat_train(self) -> np.ndarray:
        """The training images as vectors."""
        return flat(self.train)

    @functools.cached_property
    def test_distances(self) -> np.ndarray:
        """Distance [length] of every test image to its nearest training image."""
        return self.nearest(self.test)[0]

    def memory(self, distances: np.ndarray) -> dict[str, float]:
        """What distances to the training images say."""
        share = metrics.memorised(distances, self.test_distances)
        return {"nearest": float(np.mean(distances)), "memorised": share}

    def floor(self) -> dict[str, float]:
        """What a perfect generator scores: training images, drawn once, against the test images.

        To the training images distances are measured from the test images instead.
        """
        return {**self.quality(self.floor_images), **self.memory(self.test_distances)}

    @functools.cached_property
    def traps(self) -> dict[str, np.ndarray]:
        """What a metric must tell from real images: a Gaussian fitted to all pixels, shuffled ones.

        The Gaussian is clipped to the range of pixels; every image has a permutation of its own.
        """
        x = self.train.reshape(len(self.train), -1).astype(np.float64)
        mean, covariance = x.mean(axis=0), np.cov(x, rowvar=False)
        # Some pixels are always black: the covariance is singular, which eigh allows.
        noise = self.random.multivariate_normal(
            mean, covariance, len(self.test), method="eigh", check_valid="ignore"
        )
        gaussian = np.clip(np.round(noise), 0, 255).astype(np.uint8)
        shuffled = self.random.permuted(self.floor_images.reshape(gaussian.shape), axis=1)
        shape = self.test.shape
        return {"gaussian": gaussian.reshape(shape), "shuffled": shuffled.reshape(shape)}

    def references(self) -> dict[str, dict[str, float]]:
        """Rows of every table: the floor and the traps."""
        traps = common.progress("traps")(self.traps.items(), leave=False)
        return {"floor": self.floor(), **{name: self(pixels) for name, pixels in traps}}


def flat(pixels: np.ndarray) -> np.ndarray:
    """Images as vectors [n, d] in [-1, 1], in which distances are measured."""
    return np.asarray(images.scale(pixels)).reshape(len(pixels), -1)


def indistinct(references: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Metrics of :data:`QUALITY` that a table leaves out, as they miss a trap.

    Args:
      references: from :meth:`Judge.references`. Told apart are floor and trap if the trap is
        worse by a factor of :data:`FAR`.
    """
    floor = references["floor"]

    def missed(name, trap):
        large, small = (floor, trap) if QUALITY[name] > 0 else (trap, floor)
        return large[name] <= FAR * max(small[name], 0.0)

    traps = [row for label, row in references.items() if label != "floor"]
    return [name for name in QUALITY if name in floor and any(missed(name, t) for t in traps)]


def open_inception(weights_path: str | pathlib.Path) -> tuple[pathlib.Path, Any, Any]:
    """The weights' path and the modules torch and torch_fidelity; raises as :func:`inception`."""
    path = pathlib.Path(weights_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no Inception weights in {path}; download weights-inception-2015-12-05 "
            "from torch-fidelity's releases and give its path"
        )
    try:
        torch, fidelity = map(importlib.import_module, ("torch", "torch_fidelity"))
    except ImportError as error:
        raise RuntimeError(f"{error}; FID and IS need pip install 'sinkflow[eval]'") from error
    # torch-fidelity unpickles the file, which could run anything; this refuses all but tensors.
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} holds something else than a PyTorch state_dict") from error
    return path, torch, fidelity


def inception(
    pixels: np.ndarray, real: np.ndarray, weights_path: str | pathlib.Path, *, split: str = "test"
) -> dict[str, Any]:
    """FID and Inception score through torch-fidelity, with what they depend on.

    Args:
      pixels: generated images [n, h, w, c] uint8; grey ones are shown in three equal channels.
      real: real images of the same shape.
      weights_path: torch-fidelity's Inception weights, a file (weights-inception-2015-12-05).
      split: where ``real`` is from; recorded.

    Raises:
      ValueError: other types or shapes; a file that is no ``state_dict``.
      FileNotFoundError: no such file.
      RuntimeError: torch-fidelity is not installed.

    Source:
      Heusel et al. 2017, arXiv:1706.08500 (FID); Salimans et al. 2016, arXiv:1606.03498 (IS).
    """
    if not pixels.dtype == real.dtype == np.uint8 or pixels.shape != real.shape:
        raise ValueError(
            f"images are {pixels.dtype} {pixels.shape} and {real.dtype} {real.shape}; "
            "give uint8 of one shape, as many generated as real"
        )
    path, torch, fidelity = open_inception(weights_path)
    values = fidelity.calculate_metrics(
        input1=_torch_images(torch, pixels),
        input2=_torch_images(torch, real),
        isc=True,
        fid=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(path),
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,  # no worker processes: forked beside JAX's threads they may hang
        verbose=False,
    )
    return {
        "fid": values["frechet_inception_distance"],
        "inception_score": values["inception_score_mean"],
        "inception_score_std": values["inception_score_std"],
        "split": split,
        "count": len(pixels),
        "resize": "bilinear to 299x299 as in TensorFlow 1, by torch-fidelity",
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "torch_fidelity": fidelity.__version__,
    }


def _torch_images(torch, pixels):
    """A torch data set of uint8 images [3, h, w]."""
    channels = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).transpose(0, 3, 1, 2)
    return torch.utils.data.Subset(torch.from_numpy(channels.copy()), range(len(pixels)))
