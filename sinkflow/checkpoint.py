"""Checkpoints: a state and the config that made it, and files, written whole or not at all."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from sinkflow import _leaves, _sums

__all__ = ["check_config", "latest_step", "load", "restore", "save", "whole_file"]

State = TypeVar("State")
ARRAYS = "arrays.json"  # path, dtype, shape and SHA-256 of a checkpoint's arrays
PARTIAL = ".partial-"  # begins the names of what is not complete
UNFINISHED = ".orbax-checkpoint-tmp"  # ends the names of what Orbax has not completed
FULL, FULL_TEXT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}, "No space left on device"


def save(directory: str | pathlib.Path, step: int, state: Any, config: Mapping[str, Any]) -> None:
    """Writes ``state`` under ``directory/step``; older checkpoints but one are removed.

    The folder appears under its final name only when complete, so that a process killed at any
    moment leaves either the new checkpoint or the last one. It holds SHA-256 sums of its files,
    which ``sha256sum -c SHA256SUMS`` compares, and in arrays.json those of its arrays.

    Args:
      directory: folder of one run's checkpoints; made if missing.
      step: number of the checkpoint, a whole number from 0 up; beyond those that are there.
      state: pytree of arrays. Python numbers and typed PRNG keys are not arrays: save
        ``numpy.asarray`` of the ones and ``key_data`` of the others.
      config: JSON-serialisable settings, compared by :func:`restore`.

    Raises:
      ValueError: a checkpoint of that step or a later one exists, a step that is no whole number
        from 0 up, or a state with leaves that are no arrays; the message names them.
      OSError: it could not be written, for example on a full disk; the older ones are untouched.
    """
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
        raise ValueError(f"step is {step!r}; checkpoints are numbered by whole numbers from 0 up")
    _leaves.check_arrays(state)
    folder = pathlib.Path(directory).absolute()
    last, _ = _survey(folder)
    if last is not None and last > step:
        # It would have to be removed at once, as the oldest.
        raise ValueError(
            f"{directory} holds a checkpoint of step {last}, and {step} is before it; save under "
            "a larger step or into another folder"
        )
    if last == step:
        raise ValueError(f"{directory} already holds a checkpoint of step {step}")
    host = jax.tree.map(np.asarray, jax.device_get(state))
    with _written(folder, int(step)) as partial:
        parts = ocp.args.StandardSave(host), ocp.args.JsonSave(_plain(config))
        with _checkpointer() as orbax:
            orbax.save(partial, args=ocp.args.Composite(state=parts[0], config=parts[1]))
        (partial / ARRAYS).write_text(json.dumps(_leaves.sums(host)) + "\n")
        _sums.write(partial / _sums.SUMS, _sums.files_in(partial))
    # Also damaged ones: they were of no use, and the new one takes their place.
    for old in set(_steps(folder)) - {int(step), last}:
        _remove(folder / str(old))


def latest_step(directory: str | pathlib.Path) -> int | None:
    """Number of the newest checkpoint that is whole, or None where there is none.

    Its sums are compared. A damaged one is passed over, with a warning that names it.

    Raises:
      ValueError: there are checkpoints, but all of them are damaged.
    """
    step, faults = _survey(pathlib.Path(directory).absolute())
    if step is None and faults:
        raise ValueError(
            f"{directory} has no checkpoint that is whole ({'; '.join(faults)}): put a copy back, "
            "or remove that folder to have it made anew"
        )
    return step


def restore(directory: str | pathlib.Path, like: State, config: Mapping[str, Any]) -> State:
    """The newest checkpoint that is whole, on the local default device, whatever wrote it.

    Args:
      directory: as given to :func:`save`.
      like: a state of the same structure, shapes and dtypes. Leaves may be
        ``jax.ShapeDtypeStruct``.
      config: the settings of this run.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: it was written with another config; the message names the differences.
        Also shapes or dtypes that differ from those of ``like``, and leaves of it without any.
        Or all checkpoints are damaged.
    """
    _leaves.check_arrays(like)
    state, saved = load(directory)
    check_config(directory, saved, config)
    _leaves.check_like(directory, state, like)
    return _leaves.arranged(_leaves.by_path(state), like)


def load(directory: str | pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """The newest checkpoint that is whole, without knowing its structure: state and config.

    The state comes as nested dicts and lists of numpy arrays; a named tuple is a dict of its
    fields.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: all checkpoints are damaged.
    """
    step = latest_step(directory)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    return _read(pathlib.Path(directory).absolute() / str(step))


def check_config(
    where: str | pathlib.Path, saved: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Raises ValueError that names every setting in which the two differ; NaN equals NaN."""
    config = _plain(config)
    different = [
        f"{name}: {saved.get(name, 'absent')!r} there, {config.get(name, 'absent')!r} here"
        for name in sorted(saved.keys() | config.keys())
        if not _same(saved.get(name, "absent"), config.get(name, "absent"))
    ]
    if different:
        raise ValueError(
            f"{where} belongs to a run with another config ({'; '.join(different)}): "
            "use the same settings, another output folder, or remove that one"
        )


@contextlib.contextmanager
def whole_file(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A file to write instead; it takes the place of ``path`` once the block has succeeded."""
    path = pathlib.Path(path)
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno in FULL:  # which names no file
            said = f"{error.strerror}; make room, nothing was half written"
            raise OSError(error.errno, said, str(path)) from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def _same(a: Any, b: Any) -> bool:
    """Equality of what JSON holds, in which a NaN is itself."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b or (a != a and b != b))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON returns it, so that tuples compare equal to lists."""
    return json.loads(json.dumps(dict(config)))


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Orbax's, which logs pages of what it also raises: its log is silent meanwhile."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(own)
    if jax.process_count() > 1:  # else Orbax has all of them wait for one another
        alone = ocp.options.MultiprocessingOptions(own, {own}, f"process-{own}")
    settings = {"multiprocessing_options": alone}
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(**settings),
        state=ocp.StandardCheckpointHandler(**settings),
        config=ocp.JsonCheckpointHandler(**settings),
    )
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        with ocp.Checkpointer(handler, **settings) as orbax:
            yield orbax
    finally:
        log.disabled = before


def _steps(folder: pathlib.Path) -> list[int]:
    """Numbers of all checkpoints, whole or not, the newest first."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    # As save writes them: neither 007 nor digits of another script.
    return sorted(
        (int(name) for name in names if name.isdecimal() and str(int(name)) == name), reverse=True
    )


def _survey(folder: pathlib.Path) -> tuple[int | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with those after it."""
    faults: list[str] = []
    for step in _steps(folder):
        fault = _fault(folder / str(step))
        if fault is None:
            for earlier in faults:
                warnings.warn(f"{folder}/{earlier}; {step} is used in its place", stacklevel=1)
            return step, faults
        faults.append(f"{step} is damaged, {fault}")
    return None, faults


def _fault(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, or None; one from before there were sums is read."""
    sums = folder / _sums.SUMS
    if sums.exists():
        return _sums.fault(sums, _sums.files_in(folder))
    try:
        _read(folder)
    except ValueError as error:
        return str(error)
    warnings.warn(f"{folder} has no sums: it was written before there were any", stacklevel=1)
    return None


def _read(folder: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """State and config of one checkpoint."""
    parts = {"state": ocp.args.StandardRestore(), "config": ocp.args.JsonRestore()}
    try:
        with _checkpointer() as orbax:
            saved = orbax.restore(folder, args=ocp.args.Composite(**parts))
    except Exception as error:  # Orbax and tensorstore do not say what they raise, in pages
        raise ValueError(f"{folder} cannot be read ({_first_line(error)})") from None
    arrays = folder / ARRAYS
    if arrays.exists() and json.loads(arrays.read_text()) != _leaves.sums(saved.state):
        raise ValueError(f"{folder}: arrays were read that are not those of {ARRAYS}; try again")
    return saved.state, saved.config


@contextlib.contextmanager
def _written(folder: pathlib.Path, step: int) -> Iterator[pathlib.Path]:
    """A folder to write instead; once the block has succeeded it becomes the step's."""
    partial, final = folder / f"{PARTIAL}{step}", folder / str(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        yield partial
        if final.exists():  # a damaged one
            _remove(final)
        os.rename(partial, final)
    except Exception as error:  # Orbax and tensorstore do not say what they raise, in pages
        raise OSError(
            f"{folder}: the checkpoint of step {step} could not be written "
            f"({_first_line(error)}); those before it are untouched: make room, or see to the "
            "folder, and start again"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            _clean(folder)


def _remove(folder: pathlib.Path) -> None:
    """Removes a checkpoint; one that is half removed has no name that a reader looks at."""
    gone = folder.with_name(f"{PARTIAL}{folder.name}-old")
    os.rename(folder, gone)
    shutil.rmtree(gone)


def _clean(folder: pathlib.Path) -> None:
    """Removes what killed processes have left half written."""
    for path in folder.iterdir():
        if path.name.startswith(PARTIAL) or path.name.endswith(UNFINISHED):
            shutil.rmtree(path)


def _first_line(error: Exception) -> str:
    """What an error says, in one line of moderate length."""
    full = getattr(error, "errno", None) in FULL or FULL_TEXT in str(error)
    said = FULL_TEXT if full else " ".join(str(error).split()[:30])
    return said if full else f"{type(error).__name__}: {said}"[:300]
