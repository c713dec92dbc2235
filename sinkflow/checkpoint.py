"""Checkpoints: a state and the config that made it, and files, written whole or not at all."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

State = TypeVar("State")
KEPT = 2  # the last good one survives while the next is written


def save(directory: str | pathlib.Path, step: int, state: Any, config: Mapping[str, Any]) -> None:
    """Writes ``state`` under ``directory/step``; older checkpoints but one are removed.

    The files appear under their final name only when complete, so that a process killed
    at any moment leaves either the new checkpoint or the last one.

    Args:
      directory: folder of one run's checkpoints; made if missing.
      step: number of the checkpoint, a whole number from 0 up; beyond those that are there.
      state: pytree of arrays. Python numbers and typed PRNG keys are not arrays: save
        ``numpy.asarray`` of the ones and ``key_data`` of the others.
      config: JSON-serialisable settings, compared by :func:`restore`.

    Raises:
      ValueError: a checkpoint of that step or a later one exists, a step that is no whole number
        from 0 up, or a state with leaves that are no arrays; the message names them.
    """
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
        raise ValueError(f"step is {step!r}; checkpoints are numbered by whole numbers from 0 up")
    _check_arrays(state)
    newest = latest_step(directory)
    if newest is not None and newest > step:
        # Orbax would remove it at once, as the oldest, and say nothing.
        raise ValueError(
            f"{directory} holds a checkpoint of step {newest}, and {step} is before it; save under "
            "a larger step or into another folder"
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    with _manager(directory, options) as manager:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(np.asarray, jax.device_get(state))),
            config=ocp.args.JsonSave(_plain(config)),
        )
        if not manager.save(int(step), args=arguments):
            raise ValueError(f"{directory} already holds a checkpoint of step {step}")


def latest_step(directory: str | pathlib.Path) -> int | None:
    """Number of the newest complete checkpoint, or None."""
    if not pathlib.Path(directory).is_dir():
        return None
    with _manager(directory) as manager:
        return manager.latest_step()


def restore(directory: str | pathlib.Path, like: State, config: Mapping[str, Any]) -> State:
    """The newest checkpoint, on the local default device, whatever wrote it.

    Args:
      directory: as given to :func:`save`.
      like: a state of the same structure, shapes and dtypes; ``jax.ShapeDtypeStruct``s do.
      config: the settings of this run.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: it was written with another config; the message names the differences.
        Also shapes or dtypes that differ from those of ``like``, and leaves of it without any.
    """
    _check_arrays(like)
    step = latest_step(directory)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    with _manager(directory) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        check_config(directory, saved.config, config)
        _check_dtypes(directory, manager.item_metadata(step)["state"], like)
        # With a sharding Orbax compares shapes; into numpy arrays it restores any shape.
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like
        )
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return manager.restore(step, args=arguments).state


def load(directory: str | pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """The newest checkpoint without knowing its structure: state and config.

    The state comes as nested dicts and lists of numpy arrays; a named tuple is a dict of its
    fields.

    Raises:
      FileNotFoundError: no checkpoint there.
    """
    step = latest_step(directory)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    parts = {"state": ocp.args.StandardRestore(), "config": ocp.args.JsonRestore()}
    with _manager(directory) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(**parts))
    return saved.state, saved.config


def check_config(where, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
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
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _same(a, b):
    """Equality of what JSON holds, in which a NaN is itself."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b or (a != a and b != b)


def _check_arrays(state):
    """Raises ValueError that names the leaves that are no arrays, such as Python numbers."""
    wrong = [
        f"{_name(path)} is {type(leaf).__name__}"
        for path, leaf in jax.tree.leaves_with_path(state)
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
        or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    if wrong:
        raise ValueError(
            f"the state has leaves that are no arrays: {', '.join(wrong)}; save numpy.asarray of "
            "numbers and jax.random.key_data of keys"
        )


def _check_dtypes(where, saved, like):
    """Raises ValueError that names the leaves saved in another dtype: Orbax would convert them."""
    found = {_keys(path): np.dtype(leaf.dtype) for path, leaf in jax.tree.leaves_with_path(saved)}
    wanted = {_keys(path): (path, leaf) for path, leaf in jax.tree.leaves_with_path(like)}
    wrong = [
        f"{_name(path)} is {found[keys]} there, {np.dtype(leaf.dtype)} here"
        for keys, (path, leaf) in wanted.items()
        if keys in found and found[keys] != np.dtype(leaf.dtype)  # Orbax names what is missing
    ]
    if wrong:
        raise ValueError(f"{where} has other dtypes: {', '.join(wrong)}; restore in those there")


def _keys(path):
    """A leaf's path in words, the same for a named tuple and the dict that Orbax makes of it."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _name(path):
    return jax.tree_util.keystr(path) or "it"


def _plain(config):
    """The config as JSON returns it, so that tuples compare equal to lists."""
    return json.loads(json.dumps(dict(config)))


# A reader leaves everything as it is, also what another process is writing.
READING = ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=False)


def _manager(directory, options=READING):
    # Named here, so that the dtypes of a state can be asked for without restoring it.
    handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(
        pathlib.Path(directory).absolute(), options=options, item_handlers=handlers
    )
