"""MNIST, Fashion-MNIST and CIFAR-10: files on disk or downloaded, and pixels for a train step."""

import gzip
import hashlib
import io
import math
import os
import pathlib
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped, UInt8

from sinkflow.types import Array, Float, PRNGKey

Value = TypeVar("Value")
VARIABLE = "SINKFLOW_DATA"  # environment variable that stands in for data_dir
NUM_CLASSES = 10  # of each of the data sets
CIFAR_CHANNELS = (3, 32, 32)  # one colour after the other, row by row
IDX_BYTES = b"\0\0\x08"  # how an IDX file of unsigned bytes begins; its rank follows


class Images(NamedTuple):
    """Images and the classes of what they show."""

    pixels: UInt8[np.ndarray, "n h w c"]
    labels: UInt8[np.ndarray, "n"]


class File(NamedTuple):
    """Content of one unpacked file, where it came from, and its SHA-256 if that is known."""

    where: str
    content: bytes
    checksum: str | None


class Package(NamedTuple):
    """A file as published, and the files in it."""

    url: str
    checksum: str  # SHA-256 of the published file
    members: dict[str, str | None]  # names, with the SHA-256 of the content if that is known


class Split(NamedTuple):
    """What one part of a data set is made from, and the shape of its pixels."""

    packages: tuple[Package, ...]
    shape: tuple[int, int, int, int]


class Dataset(NamedTuple):
    """Subfolders in which the files are looked for, the splits, and how to read them."""

    folders: tuple[str, ...]
    splits: dict[str, Split]
    read: Callable[[Sequence[File]], Images]


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
        files = [file for package in packages for file in _files(package, dataset, data_dir)]
        images = dataset.read(files)
        _check_images(images, shape, files)
        for file in files:
            _check_sum(file)
    except (FileNotFoundError, ValueError) as error:
        remedy = f"{_remedy(packages)}, or name no folder to have them downloaded"
        raise type(error)(f"{error}; {remedy}") from error
    return images


def read_idx(content: bytes) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes; read-only, as it shares the memory.

    Raises:
      ValueError: another magic number, or a length other than the header says.
    """
    if len(content) < 4 or not content.startswith(IDX_BYTES):
        raise ValueError(
            f"has {len(content)} bytes that begin with 0x{content[:4].hex()}; the magic number of "
            f"an IDX file of bytes is 0x{IDX_BYTES.hex()}, with the number of axes after it"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"has {len(content)} bytes; the header alone has {start}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"has {len(content)} bytes; the shape {list(shape)} in its header makes "
            f"{start + math.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(content: bytes) -> Images:
    """The images of a CIFAR-10 batch in the binary version, of any number of records.

    Raises:
      ValueError: the length is not that of whole records, or is zero.
    """
    record = 1 + math.prod(CIFAR_CHANNELS)
    if not content or len(content) % record:
        raise ValueError(f"has {len(content)} bytes; a CIFAR-10 batch has records of {record}")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    channels = records[:, 1:].reshape(-1, *CIFAR_CHANNELS)
    return Images(np.ascontiguousarray(channels.transpose(0, 2, 3, 1)), records[:, 0].copy())


@jax.jit
def scale(pixels: UInt8[Array, "*batch h w c"]) -> Float[Array, "*batch h w c"]:
    """Pixels 0 to 255 as float32 from -1 to 1.

    Args:
      pixels: images, or one.

    Raises:
      ValueError: at trace time, if ``pixels`` are not uint8, which may be scaled already.

    Example:
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


def _remedy(packages):
    """What to do about files that cannot be used."""
    urls = " and ".join(package.url for package in packages)
    return f"put {urls} into a folder and name it with --data-dir or {VARIABLE}"


def _file_name(package):
    return package.url.rpartition("/")[2]


def _files(package, dataset, data_dir):
    """The members of a package, unpacked, from ``data_dir`` or else from pooch's cache."""
    if not data_dir:
        return _unpack(_download(package, dataset.folders[0]), package)
    folders = [pathlib.Path(data_dir, folder) for folder in (*dataset.folders, "")]
    missing: list[list[str]] = []
    for folder in folders:
        # Packed first: then the content of CIFAR's batches is verified too.
        if (folder / _file_name(package)).is_file():
            return _unpack(folder / _file_name(package), package)
        absent = [name for name in package.members if not (folder / name).is_file()]
        if not absent:
            return [
                File(str(folder / name), (folder / name).read_bytes(), checksum)
                for name, checksum in package.members.items()
            ]
        missing.append(absent)
    fewest = min(missing, key=len)
    raise FileNotFoundError(
        f"neither {_file_name(package)} nor {', '.join(fewest)} is in "
        f"{', '.join(map(str, folders))}"
    )


def _download(package, subfolder):
    """Path of a package in pooch's cache; it is there only whole and with its checksum."""
    import pooch  # here, because files on disk need neither pooch nor the time of its import

    # A folder each: the files of MNIST and Fashion-MNIST have the same names.
    folder = pooch.os_cache("sinkflow") / subfolder
    options = {"fname": _file_name(package), "path": folder, "progressbar": sys.stderr.isatty()}
    try:
        return pathlib.Path(pooch.retrieve(package.url, package.checksum, **options))
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        raise RuntimeError(
            f"{package.url} could not be downloaded into {folder} ({error}); {_remedy([package])}"
        ) from error


def _unpack(path, package):
    """The members of a packed file."""
    content = path.read_bytes()
    if path.name.endswith(".tar.gz"):
        _check_sum(File(str(path), content, package.checksum))
        return _untar(path, content, package)
    [checksum] = package.members.values()
    try:
        # The content is checked later, not this file: many copies were packed anew.
        return [File(str(path), gzip.decompress(content), checksum)]
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} of {len(content)} bytes cannot be unpacked: {error}") from error


def _untar(path, content, package):
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for info in archive:  # one pass: to go back in a tar.gz is to unpack it again
            name = pathlib.PurePosixPath(info.name).name
            if name in package.members and (file := archive.extractfile(info)):
                contents[name] = file.read()
    return [
        File(f"{path}: {name}", contents[name], checksum)
        for name, checksum in package.members.items()
    ]


def _parse(reader, file):
    """``reader`` of the file's content; its errors get the file's name."""
    try:
        return reader(file.content)
    except ValueError as error:
        raise ValueError(f"{file.where} {error}") from error


def _read_pair(files):
    """Images from an IDX file of images and one of labels."""
    pixels, labels = (_parse(read_idx, file) for file in files)
    return Images(pixels[..., None], labels)


def _read_batches(files):
    """Images from CIFAR batches, one after the other."""
    batches = [_parse(read_cifar, file) for file in files]
    return Images(*map(np.concatenate, zip(*batches, strict=True)))


def _check_images(images, shape, files):
    where = " and ".join(f"{file.where} ({len(file.content)} bytes)" for file in files)
    pixels, labels = images.pixels.shape, images.labels.shape
    if pixels != shape or labels != shape[:1]:
        raise ValueError(
            f"{where}: pixels of shape {pixels} and labels of shape {labels}; "
            f"published are {shape} and {shape[:1]}"
        )
    if images.labels.max() >= NUM_CLASSES:
        raise ValueError(f"{where}: a label is {images.labels.max()}; there are {NUM_CLASSES}")


def _check_sum(file):
    actual = hashlib.sha256(file.content).hexdigest()
    if file.checksum not in (None, actual):
        raise ValueError(
            f"{file.where} is altered or another file: the SHA-256 of its {len(file.content)} "
            f"bytes is {actual}, published is {file.checksum}"
        )


def _idx_dataset(folders, url, train, test):
    """``train`` and ``test``: SHA-256 of packed images, images, packed labels, labels."""

    def package(name, packed, content):
        return Package(f"{url}{name}-ubyte.gz", packed, {f"{name}-ubyte": content})

    def split(prefix, checksums, count):
        images = package(f"{prefix}-images-idx3", *checksums[:2])
        return Split((images, package(f"{prefix}-labels-idx1", *checksums[2:])), (count, 28, 28, 1))

    splits = {"train": split("train", train, 60_000), "test": split("t10k", test, 10_000)}
    return Dataset(folders, splits, _read_pair)


def _cifar_dataset(folders, url, checksum, **members):
    splits = {
        name: Split(
            (Package(url, checksum, dict.fromkeys(names)),), (10_000 * len(names), 32, 32, 3)
        )
        for name, names in members.items()
    }
    return Dataset(folders, splits, _read_batches)


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
