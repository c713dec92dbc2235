"""Files of image data sets: found or downloaded, unpacked, read, and compared with checksums."""

import gzip
import hashlib
import io
import itertools
import math
import pathlib
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

VARIABLE = "SINKFLOW_DATA"
"""Environment variable that stands in for ``data_dir``."""
NUM_CLASSES = 10
"""Classes of each of the data sets."""
LARGEST = 2**26
"""Bytes of an unpacked file at most; the largest published one has 47 million."""
PIECE = 2**20
CIFAR_CHANNELS = (3, 32, 32)  # one colour after the other, row by row
IDX_BYTES = b"\0\0\x08"  # how an IDX file of unsigned bytes begins; its rank follows

Content = TypeVar("Content")


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


def remedy(packages: Sequence[Package]) -> str:
    """What to do about files that cannot be used."""
    urls = " and ".join(package.url for package in packages)
    return f"put {urls} into a folder and name it with --data-dir or {VARIABLE}"


def _file_name(package: Package) -> str:
    return package.url.rpartition("/")[2]


def files(package: Package, dataset: Dataset, data_dir: str | pathlib.Path | None) -> list[File]:
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


def _download(package: Package, subfolder: str) -> pathlib.Path:
    """Path of a package in pooch's cache; it is there only whole and with its checksum."""
    import pooch  # here, because files on disk need neither pooch nor the time of its import

    # A folder each: the files of MNIST and Fashion-MNIST have the same names.
    folder = pooch.os_cache("sinkflow") / subfolder
    options = {"fname": _file_name(package), "path": folder, "progressbar": sys.stderr.isatty()}
    try:
        return pathlib.Path(pooch.retrieve(package.url, package.checksum, **options))
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        raise RuntimeError(
            f"{package.url} could not be downloaded into {folder} ({error}); {remedy([package])}"
        ) from error


def _unpack(path: pathlib.Path, package: Package) -> list[File]:
    """The members of a packed file."""
    content = path.read_bytes()
    if path.name.endswith(".tar.gz"):
        check_sum(File(str(path), content, package.checksum))
        return _untar(path, content, package)
    [checksum] = package.members.values()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            # In pieces: a buffer of all that may come would be taken at once.
            pieces = iter(lambda: file.read(PIECE), b"")
            unpacked = b"".join(itertools.islice(pieces, LARGEST // PIECE + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} of {len(content)} bytes cannot be unpacked: {error}") from error
    if len(unpacked) > LARGEST:
        raise ValueError(f"{path} unpacks to more than {LARGEST} bytes, which no data set has")
    # The content is checked later, not this file: many copies were packed anew.
    return [File(str(path), unpacked, checksum)]


def _untar(path: pathlib.Path, content: bytes, package: Package) -> list[File]:
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


def _parse(reader: Callable[[bytes], Content], file: File) -> Content:
    """``reader`` of the file's content; its errors get the file's name."""
    try:
        return reader(file.content)
    except ValueError as error:
        raise ValueError(f"{file.where} {error}") from error


def read_pair(files: Sequence[File]) -> Images:
    """Images from an IDX file of images and one of labels."""
    pixels, labels = (_parse(read_idx, file) for file in files)
    return Images(pixels[..., None], labels)


def read_batches(files: Sequence[File]) -> Images:
    """Images from CIFAR batches, one after the other."""
    batches = [_parse(read_cifar, file) for file in files]
    return Images(*map(np.concatenate, zip(*batches, strict=True)))


def check_images(images: Images, shape: tuple[int, int, int, int], files: Sequence[File]) -> None:
    where = " and ".join(f"{file.where} ({len(file.content)} bytes)" for file in files)
    pixels, labels = images.pixels.shape, images.labels.shape
    if pixels != shape or labels != shape[:1]:
        raise ValueError(
            f"{where}: pixels of shape {pixels} and labels of shape {labels}; "
            f"published are {shape} and {shape[:1]}"
        )
    if images.labels.max() >= NUM_CLASSES:
        raise ValueError(f"{where}: a label is {images.labels.max()}; there are {NUM_CLASSES}")


def check_sum(file: File) -> None:
    actual = hashlib.sha256(file.content).hexdigest()
    if file.checksum not in (None, actual):
        raise ValueError(
            f"{file.where} is altered or another file: the SHA-256 of its {len(file.content)} "
            f"bytes is {actual}, published is {file.checksum}"
        )
