"""Data parallelism over devices and processes; the only module that names pmap."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

__all__ = ["AXIS", "anywhere", "from_first", "pmap_step", "replicate", "shard", "spread"]

AXIS = "devices"
"""Name of the axis that devices are mapped over."""
Tree = TypeVar("Tree")  # of arrays


def shard(batch: Tree) -> Tree:
    """Splits the leading axis of every leaf evenly over the local devices and places it there.

    Raises:
      ValueError: a leading axis that the number of devices does not divide.
    """
    devices, sharding = jax.local_devices(), _sharding(AXIS)

    def split(leaf: jax.Array | np.ndarray) -> jax.Array:
        if leaf.shape[0] % len(devices):
            raise ValueError(
                f"a batch of {leaf.shape[0]} cannot be split evenly over {len(devices)} devices"
            )
        return jax.device_put(leaf.reshape(len(devices), -1, *leaf.shape[1:]), sharding)

    return jax.tree.map(split, batch)


def replicate(state: Tree) -> Tree:
    """Places a whole copy of every leaf on each local device.

    A state that comes as :func:`pmap_step` returns it saves the second call a compilation.
    """
    return jax.device_put(state, _sharding())


def spread(function: Callable, parts: Tree, whole: Any) -> Any:
    """``function(part, whole)`` of every local device; the results one after the other.

    Devices do not wait for one another. It may be traced by :func:`jax.jit`.

    Args:
      function: of arrays with a leading axis to such arrays.
      parts: from :func:`shard`.
      whole: what every device is given, from :func:`replicate`.
    """
    split, everywhere = jax.sharding.PartitionSpec(AXIS), jax.sharding.PartitionSpec()

    def own(part: Any, whole: Any) -> Any:
        return function(jax.tree.map(lambda leaf: leaf[0], part), whole)

    # Unchecked: the check knows no loop whose length the data decide.
    mapped = jax.shard_map(
        own, mesh=_mesh(), in_specs=(split, everywhere), out_specs=split, check_vma=False
    )
    return mapped(parts, whole)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_first(make: Callable[[], Tree], like: Any) -> Tree:
    """What ``make()`` gives in process 0, in every process; the others do not call it.

    Args:
      make: gives a tree of arrays.
      like: its shapes and dtypes, as arrays or ``jax.ShapeDtypeStruct``.
    """
    if jax.process_count() == 1:
        return make()
    from jax.experimental import multihost_utils

    empty = lambda: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return multihost_utils.broadcast_one_to_all(make() if jax.process_index() == 0 else empty())


def _sharding(*axes: str) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec(*axes))


def _mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))


def pmap_step(
    step: Callable, *, batch_axes: Any = 0, by: str = "pmap"
) -> Any:  # as jax.pmap, whose function has no type of its own
    """Maps ``step(state, batch, *, axis_name)`` over devices, state replicated and donated.

    Args:
      step: gives what is the same on all devices, as means over ``axis_name`` are.
      batch_axes: 0 for a batch from :func:`shard`, None for one from :func:`replicate`, or a tree
        of these for the parts of a batch. Some part has to be 0.
      by: "pmap", which spans the devices of all processes, or "shard_map", for one process.

    Returns:
      ``(state, batch) -> (state, info)``, compiled at the first call, with ``lower`` as
      :func:`jax.jit` has it.

    Raises:
      ValueError: another ``by``, or "shard_map" with several processes.
    """
    step = functools.partial(step, axis_name=AXIS)
    if by == "pmap":
        return jax.pmap(
            step, AXIS, in_axes=(None, batch_axes), out_axes=(None, None), donate_argnums=0
        )
    if by != "shard_map":
        raise ValueError(f"by is {by!r}; a step is mapped by 'pmap' or by 'shard_map'")
    if jax.process_count() > 1:
        raise ValueError(f"by is 'shard_map' in {jax.process_count()} processes; take 'pmap'")

    def share(axis: int | None, part: Any) -> Any:
        return part if axis is None else jax.tree.map(lambda leaf: leaf[0], part)

    def own(state: Any, batch: Any) -> Any:  # shard_map keeps the axis that pmap takes away
        return step(state, _by_part(share, batch_axes, batch))

    specs = _by_part(
        lambda axis: jax.sharding.PartitionSpec(*(() if axis is None else (AXIS,))), batch_axes
    )
    everywhere = jax.sharding.PartitionSpec()
    # Unchecked: with the check gradients would be summed over devices a second time.
    mapped = jax.shard_map(
        own, mesh=_mesh(), in_specs=(everywhere, specs), out_specs=everywhere, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=0)


def _by_part(function: Callable, axes: Any, *batch: Any) -> Any:
    """``function(axis, part of the batch)`` for every axis of the tree, None counted as one."""
    return jax.tree.map(function, axes, *batch, is_leaf=lambda axis: axis is None)
