"""MNIST, Fashion-MNIST and CIFAR-10: files on disk or downloaded, and pixels for a train step."""

import os
import pathlib
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Shaped, UInt8

from sinkflow.data import _files
from sinkflow.data._files import (
    NUM_CLASSES,
    VARIABLE,
    Dataset,
    Images,
    Package,
    Split,
    read_cifar,
    read_idx,
)
from sinkflow.types import Array, Float, PRNGKey

__all__ = [
    "DATASETS",
    "NUM_CLASSES",
    "VARIABLE",
    "Images",
    "flip",
    "load",
    "read_cifar",
    "read_idx",
    "scale",
    "unscale",
]

Value = TypeVar("Value")


def load(name: str, data_dir: str | pathlib.Path | None = None, split: str = "train") -> Images:
    """One split of an image data set.

    Args:
      name: a key of :data:`DATASETS`.
      data_dir: folder with the files, packed as published or unpacked, there or in a subfolder
        named after the data set. Without it the environment variable SINKFLOW_DATA names the
        folder; without both, the files are downloaded once into pooch's cache.
      split: "train" or "test".

    Returns:
      The images and labels, in the order of the files. IDX files, packed or not, and CIFAR's
      archive have the published content, byte for byte; CIFAR's unpacked batches have its
      size and labels.

    Raises:
      ValueError: unknown name or split; a file that is truncated or altered.
      FileNotFoundError: a file is not in ``data_dir``.
      RuntimeError: a download failed; it leaves nothing behind.

    Source:
      LeCun, Cortes & Burges 1998 (MNIST); Xiao et al. 2017, arXiv:1708.07747 (Fashion-MNIST);
      Krizhevsky 2009, "Learning multiple layers of features from tiny images" (CIFAR-10).
    """
    dataset = _choose("data set", DATASETS, name)
    packages, shape = _choose("split", dataset.splits, split)
    data_dir = data_dir or os.environ.get(VARIABLE)
    try:
        files = [file for package in packages for file in _files.files(package, dataset, data_dir)]
        images = dataset.read(files)
        _files.check_images(images, shape, files)
        for file in files:
            _files.check_sum(file)
    except (FileNotFoundError, ValueError) as error:
        remedy = f"{_files.remedy(packages)}, or name no folder to have them downloaded"
        raise type(error)(f"{error}; {remedy}") from error
    return images


@jax.jit
def scale(pixels: UInt8[Array, "*batch h w c"]) -> Float[Array, "*batch h w c"]:
    """Pixels 0 to 255 as float32 from -1 to 1.

    Args:
      pixels: images, or one.

    Raises:
      ValueError: at trace time, if ``pixels`` are not uint8, which may be scaled already.

    Example:
      >>> import numpy as np
      >>> scale(np.array([[[0], [255]]], np.uint8)).ravel().tolist()
      [-1.0, 1.0]
    """
    if pixels.dtype != jnp.uint8:
        raise ValueError(f"pixels are {pixels.dtype}; scale takes uint8")
    # The numerator is exact, so that the ends are -1 and 1 and the grey levels symmetric.
    return (2 * pixels.astype(jnp.float32) - 255) / 255


@jax.jit
def unscale(x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """The nearest pixels 0 to 255 of images from -1 to 1; the inverse of :func:`scale`.

    Numerics:
      Values beyond the ends are clipped. NaN has no pixel: look for it before.
    """
    return jnp.clip(jnp.round((x.astype(jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)


@jax.jit
def flip(key: PRNGKey, x: Shaped[Array, "*batch h w c"]) -> Shaped[Array, "*batch h w c"]:
    """Each image mirrored left to right with probability one half.

    For photographs such as CIFAR's. Never for digits: a mirrored 2 is no digit.
    """
    mirrored = jax.random.bernoulli(key, shape=x.shape[:-3])
    return jnp.where(mirrored[..., None, None, None], x[..., ::-1, :], x)


def _choose(what: str, table: Mapping[str, Value], name: str) -> Value:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def _idx_dataset(
    folders: tuple[str, ...], url: str, train: tuple[str, ...], test: tuple[str, ...]
) -> Dataset:
    """``train`` and ``test``: SHA-256 of packed images, images, packed labels, labels."""

    def package(name: str, packed: str, content: str) -> Package:
        return Package(f"{url}{name}-ubyte.gz", packed, {f"{name}-ubyte": content})

    def split(prefix: str, checksums: tuple[str, ...], count: int) -> Split:
        images = package(f"{prefix}-images-idx3", *checksums[:2])
        return Split((images, package(f"{prefix}-labels-idx1", *checksums[2:])), (count, 28, 28, 1))

    splits = {"train": split("train", train, 60_000), "test": split("t10k", test, 10_000)}
    return Dataset(folders, splits, _files.read_pair)


def _cifar_dataset(
    folders: tuple[str, ...], url: str, checksum: str, **members: list[str]
) -> Dataset:
    splits = {
        name: Split(
            (Package(url, checksum, dict.fromkeys(names)),), (10_000 * len(names), 32, 32, 3)
        )
        for name, names in members.items()
    }
    return Dataset(folders, splits, _files.read_batches)


DATASETS = {
    "mnist": _idx_dataset(
        folders=("mnist",),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        train=(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        test=(
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion": _idx_dataset(
        folders=("fashion-mnist", "fashion"),
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        train=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        test=(
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "cifar10": _cifar_dataset(
        folders=("cifar10", "cifar10/cifar-10-batches-bin", "cifar-10-batches-bin"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        checksum="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        train=[f"data_batch_{number}.bin" for number in range(1, 6)],
        test=["test_batch.bin"],
    ),
}
"""Files, checksums and shapes of MNIST, Fashion-MNIST and CIFAR-10, by name."""
