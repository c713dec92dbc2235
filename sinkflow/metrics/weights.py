"""Weights of trained classifiers as files, and what such a classifier sees in images."""

import functools
import hashlib
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from sinkflow import _sums, checkpoint, files
from sinkflow.data import images
from sinkflow.nets.classifier import SHAPE, Classifier, MixerClassifier
from sinkflow.types import Array, Float

__all__ = ["BATCH", "MODEL", "Weights", "half", "look", "read_classifier", "write_classifier"]

Network = Classifier | MixerClassifier

MODEL = Classifier()
"""The network that files of weights are for unless another is named."""
BATCH = 250
"""Images of one call of the classifier; more take longer on a CPU."""


class Weights(NamedTuple):
    """Parameters of a trained classifier, and the record of its training."""

    params: Any
    record: dict[str, Any]


def half(params: Any) -> Any:
    """The parameters as files hold them: rounded to float16."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)


def write_classifier(
    folder: pathlib.Path, dataset: str, params: Any, record: Mapping[str, Any]
) -> None:
    """Writes {dataset}.npz, float16, {dataset}.json with its SHA-256, and {dataset}.sha256 of both.

    Each is written whole or not at all; ``sha256sum -c`` compares the last one's sums.

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
    about = {"dataset": dataset, "sha256": digest, **record}
    with checkpoint.whole_file(folder / f"{dataset}.json") as partial:
        partial.write_text(json.dumps(about, indent=1) + "\n")
    with checkpoint.whole_file(folder / f"{dataset}.sha256") as partial:
        _sums.write(partial, [f"{dataset}.json", f"{dataset}.npz"])


def read_classifier(
    folder: pathlib.Path,
    dataset: str,
    *,
    model: Network = MODEL,
    remedy: str = "write it with write_classifier",
) -> Weights:
    """The classifier of a data set, in float32.

    Args:
      folder: where :func:`write_classifier` wrote it.
      dataset: its name there.
      model: the network whose weights they are.
      remedy: what an error tells the user to do.

    Raises:
      FileNotFoundError: there is none in the folder.
      ValueError: a damaged file, weights that are not those of the record, or not of
        ``model``.
    """
    path, about = folder / f"{dataset}.npz", folder / f"{dataset}.json"
    for needed in (path, about):
        if not needed.exists():
            raise FileNotFoundError(f"there is no {needed}; {remedy}")
    _check_sums(folder / f"{dataset}.sha256", [path.name, about.name], remedy)
    record = files.read_object(about, {"sha256": str}, remedy=remedy)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != record["sha256"]:
        raise ValueError(
            f"{path} is altered or of another training: its SHA-256 is {digest}, "
            f"{about.name} says {record['sha256']}; {remedy}"
        )
    halves = files.read_arrays(path, _forms(model), remedy=remedy)
    arrays = {name: values.astype(np.float32) for name, values in halves.items()}
    return Weights(flax.traverse_util.unflatten_dict(arrays, sep="/"), record)


def _check_sums(path: pathlib.Path, names: list[str], remedy: str) -> None:
    """Raises ValueError that says which file is damaged."""
    if not path.exists():
        warnings.warn(
            f"there is no {path}: damage of {' or '.join(names)} would not be seen", stacklevel=2
        )
        return
    wrong = _sums.fault(path, names)
    if wrong is not None:
        raise ValueError(f"{path} does not fit its files ({wrong}); {remedy}")


@functools.cache
def _forms(model: Network = MODEL) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the network's parameters in a file, by name."""
    params: Any = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, np.float16)  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items()
    }


@functools.partial(jax.jit, static_argnames="model")
def _look(model: Network, params: Any, pixels: Array) -> tuple[Array, Array]:
    features: Any = model.apply(params, images.scale(pixels), method="features")
    logits: Any = model.apply(params, features, method="logits")
    return features, logits.argmax(axis=1)


def look(
    params: Any,
    pixels: UInt8[np.ndarray, "n 28 28 1"],
    *,
    model: Network = MODEL,
    progress: Callable[[range], Iterable[int]] = iter,
) -> tuple[Float[np.ndarray, "n features"], Int[np.ndarray, "n"]]:
    """What the classifier sees in images: features and classes.

    Args:
      params: from :func:`read_classifier`.
      pixels: grey images.
      model: the network whose parameters they are.
      progress: wraps the batches' first indices, for a progress bar.
    """
    starts = progress(range(0, len(pixels), BATCH))
    batches = [jax.device_get(_look(model, params, pixels[at : at + BATCH])) for at in starts]
    features, classes = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return features, classes
