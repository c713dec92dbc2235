"""Data parallelism over local devices; the only module that names pmap."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

__all__ = ["pmap_step", "replicate", "shard"]

AXIS = "devices"
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


def _sharding(*axes: str) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def pmap_step(step: Callable) -> Any:  # as jax.pmap, whose function has no type of its own
    """Maps ``step(state, batch, *, axis_name)`` over devices, state replicated and donated."""
    step = functools.partial(step, axis_name=AXIS)
    return jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0)
