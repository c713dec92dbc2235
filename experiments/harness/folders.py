"""A run's folder: it can be written, has room, and belongs to one process at a time."""

import fcntl
import functools
import os
import pathlib
import socket
import tempfile
import warnings
from typing import TextIO

LOCK = ".lock"
ROOM = 2**20  # bytes; less is left on a full disk only


def opened(folder: pathlib.Path, *, shared: bool = False) -> None:
    """Makes the folder and takes it for this process until it ends, however that happens.

    Args:
      folder: the output folder of a driver.
      shared: other processes may share it; they take parts of it, see :func:`take`.

    Raises:
      ValueError: it cannot be written, the disk is full, or another process is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise ValueError(
            f"out is {folder}: cannot write there ({error.strerror}); make room, see to its "
            "permissions, or choose another --out"
        ) from None
    take(folder, shared=shared)


def take(folder: pathlib.Path, part: str = "", *, shared: bool = False) -> None:
    """Locks a folder that exists, or a part of its work that several processes share.

    The system lifts the lock when the process ends, however that happens.

    Raises:
      ValueError: another process has it.
    """
    file = _lock_file(folder.resolve(), part)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        other = file.read().strip() or "unknown"
        raise ValueError(
            f"out is {folder}: process {other} is at work there{f', on {part}' if part else ''}; "
            "wait until it has ended, or choose another --out"
        ) from None
    except OSError as error:  # file systems of clusters may have no locks
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}): start no second process there",
            stacklevel=2,
        )
        return
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}\n")
    file.flush()


@functools.cache
def _lock_file(folder: pathlib.Path, part: str) -> TextIO:
    """Open until the process ends: it may work in a folder several times, one after the other."""
    return (folder / (f"{LOCK}-{part}" if part else LOCK)).open("a+")
