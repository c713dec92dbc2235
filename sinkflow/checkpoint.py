"""Checkpoints: a state and the config that made it, and files, written whole or not at all."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

State = TypeVar("State")
KEPT = 2  # the last good one survives while the next is written


def save(directory: str | pathlib.Path, step: int, state: Any, config: Mapping[str, Any]) -> None:
    """Writes ``state`` under ``directory/step``; older checkpoints but one are removed.

    The files appear under their final name only when complete, so that a process killed
    at any moment leaves either the new checkpoint or the last one.

    Args:
      directory: folder of one run's checkpoints; made if missing.
      step: number of the checkpoint; must be new.
      state: pytree of arrays. Typed PRNG keys are not arrays: save their ``key_data``.
      config: JSON-serialisable settings, compared by :func:`restore`.

    Raises:
      ValueError: a checkpoint of that step exists.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    with _manager(directory, options) as manager:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.device_get(state)),
            config=ocp.args.JsonSave(_plain(config)),
        )
        if not manager.save(step, args=arguments):
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
        Also shapes that differ from those of ``like``.
    """
    step = latest_step(directory)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    with _manager(directory) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        check_config(directory, saved.config, config)
        # With a sharding Orbax compares shapes; into numpy arrays it restores any shape.
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like
        )
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return manager.restore(step, args=arguments).state


def check_config(where, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises ValueError that names every setting in which the two differ."""
    config = _plain(config)
    different = [
        f"{name}: {saved.get(name, 'absent')!r} there, {config.get(name, 'absent')!r} here"
        for name in sorted(saved.keys() | config.keys())
        if saved.get(name, "absent") != config.get(name, "absent")
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


def _plain(config):
    """The config as JSON returns it, so that tuples compare equal to lists."""
    return json.loads(json.dumps(dict(config)))


# A reader leaves everything as it is, also what another process is writing.
READING = ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=False)


def _manager(directory, options=READING):
    return ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options)
