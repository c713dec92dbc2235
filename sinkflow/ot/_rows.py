"""Functions of the rows of a problem: of all at once, or of each device's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sinkflow.ot.limits import Sharded
from sinkflow.types import Array


def spread(devices: Sharded | None, fn: Callable, *rows: Any) -> Any:
    """``fn(*rows)``, which has a row for each of theirs; each device computes its own.

    Results have the rows of :func:`_filled` ones: whoever wants n of them cuts.
    """
    if devices is None:
        return fn(*rows)
    spec = PartitionSpec(axis_of(devices))
    return jax.shard_map(fn, mesh=devices.mesh, in_specs=spec, out_specs=spec)(
        *_filled(devices, rows)
    )


def summed(devices: Sharded | None, fn: Callable, *rows: Any) -> Any:
    """``fn(*rows)``, sums over rows: each device sums its own, and what they have is added.

    Rows of zeros, which may be added, must not change the sums.
    """
    if devices is None:
        return fn(*rows)
    return reduced(devices, lambda *own: jax.lax.psum(fn(*own), axis_of(devices)), *rows)


def reduced(devices: Sharded, fn: Callable, *rows: Any) -> Any:
    """``fn`` of each device's rows, which reduces over the mesh's axis itself."""
    spec = PartitionSpec(axis_of(devices))
    return jax.shard_map(fn, mesh=devices.mesh, in_specs=spec, out_specs=PartitionSpec())(
        *_filled(devices, rows)
    )


def axis_of(devices: Sharded) -> str:
    """The name of the mesh's axis."""
    return devices.mesh.axis_names[0]


def _filled(devices: Sharded, rows: Any) -> Any:
    """Rows filled up to a multiple of the devices with zeros; keys of random numbers with a key."""

    def fill(leaf: Array) -> Array:
        missing = -leaf.shape[0] % devices.mesh.size
        if not missing:
            return leaf
        shape = (missing, *leaf.shape[1:])
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], shape)])
        return jnp.concatenate([leaf, jnp.zeros(shape, leaf.dtype)])

    return jax.tree.map(fill, rows)
