"""Products with the density of an entropic plan: stored, stored in half precision, or recomputed.

Every quantity of a solve is a sum over one row (or column) of costs. How those rows come about is
decided here, so that the solver, the barycentric map and the gradients read the same at any size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _cost, _precision, _rows
from sinkflow.ot._inputs import check_storage
from sinkflow.ot._shapes import VectorM, VectorN
from sinkflow.ot.limits import Sharded, Storage
from sinkflow.types import Array, Float, Scalar, ScalarLike

CHUNK = 2**28  # costs alive at a time where they are recomputed: 1 GiB in float32
MEMORY_SHARE = 0.75  # of the device's memory, for what a solve keeps
CPU_MEMORY = 2**33  # bytes to count on where the device does not tell
# The density stays finite in float32, also where there is no mass, and in half precision.
MAX_EXPONENT = 40.0
MAX_HALF_EXPONENT = 11.0


Product = Callable[[Array], Array]  # of a matrix with vectors


def storage_for(storage: Storage, x: Any, y: Any) -> Storage:
    """What to keep for two clouds (or their shapes); anything but "auto" is kept as it is.

    "full" keeps costs and densities, "half" costs and densities in float16, "chunks"
    nothing: rows of costs are recomputed for every product.

    Raises:
      ValueError: unknown storage.
    """
    check_storage(storage)
    if kept(storage) != "auto":
        return storage
    memory = MEMORY_SHARE * _device_memory()
    n, m, itemsize = x.shape[0], y.shape[0], x.dtype.itemsize
    if isinstance(storage, Sharded):
        n = -(-n // storage.mesh.size)
    sizes = {"full": 2 * itemsize * n * m, "half": (itemsize + 2) * n * m}
    fitting = next((name for name, size in sizes.items() if size <= memory), "chunks")
    return _kept_as(storage, fitting)


def kept(storage: Storage) -> str:
    """What a device keeps: one of the storages that have a name."""
    return storage.storage if isinstance(storage, Sharded) else storage


def _kept_as(storage: Storage, name: str) -> Storage:
    """``storage`` on the same devices, each of which keeps ``name``."""
    return dataclasses.replace(storage, storage=name) if isinstance(storage, Sharded) else name


def _device_memory() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", CPU_MEMORY)


def recomputed(x: Float[Array, "n d"], y: Float[Array, "m d"], storage: Storage) -> _cost.Cost:
    """The cost without its matrix, on the devices of ``storage``."""
    return _cost.Cost(x, y, None, storage if isinstance(storage, Sharded) else None)


@functools.partial(jax.jit, static_argnames="storage")
def make_cost(x: Float[Array, "n d"], y: Float[Array, "m d"], storage: Storage) -> _cost.Cost:
    """The half squared Euclidean cost, as a matrix unless ``storage`` is "chunks"."""
    empty = recomputed(x, y, storage)
    if kept(storage) == "chunks":
        return empty
    if isinstance(storage, Sharded):
        kind = storage.storage
        matrix = _rows.spread(storage, lambda x: make_cost(x, y, kind).matrix, x)
        return empty._replace(matrix=matrix)
    if x.shape[0] * y.shape[0] <= CHUNK:
        # Behind a barrier: recomputed inside the sums that use it, it made XLA compile for minutes.
        return _cost.Cost(x, y, jax.lax.optimization_barrier(_centred.between_centred(x, y)))
    # In pieces: in one, expanding the square would need the matrix twice.
    return _cost.Cost(x, y, map_rows(lambda row: row, empty))


def map_rows(row_fn: Callable, cost: _cost.Costs, *leaves: Array) -> Any:
    """``row_fn(costs of x_i [m], leaf_i, ...)`` for every i, stacked; a few rows at a time."""
    if isinstance(cost, _cost.MatrixCost) or cost.devices is None:
        return _map_rows(row_fn, cost, *leaves)

    def own(x: Array, matrix: Array | None, *leaves: Array) -> Any:
        return _map_rows(row_fn, _cost.Cost(x, cost.y, matrix), *leaves)

    out = _rows.spread(cost.devices, own, cost.x, cost.matrix, *leaves)
    return jax.tree.map(lambda leaf: leaf[: cost.shape[0]], out)


def over_columns(column_fn: Callable, cost: _cost.Costs, *leaves: Array) -> Any:
    """``column_fn(cost, *leaves)``, sums over rows; with devices the sum of each one's share."""
    if isinstance(cost, _cost.MatrixCost) or cost.devices is None:
        return column_fn(cost, *leaves)

    def own(x: Array, matrix: Array | None, *leaves: Array) -> Any:
        return column_fn(_cost.Cost(x, cost.y, matrix), *leaves)

    return _rows.summed(cost.devices, own, cost.x, cost.matrix, *leaves)


def _map_rows(row_fn: Callable, cost: _cost.Costs, *leaves: Array) -> Any:
    """:func:`map_rows` on one device."""
    n, m = cost.shape
    batch_size = max(1, CHUNK // m)
    if isinstance(cost, _cost.MatrixCost) or cost.matrix is not None:
        if n * m <= CHUNK:
            return jax.vmap(row_fn)(cost.matrix, *leaves)
        return jax.lax.map(
            lambda item: row_fn(*item), (cost.matrix, *leaves), batch_size=batch_size
        )
    x, y = cost.x, cost.y
    if n * m <= CHUNK:
        return jax.vmap(row_fn)(_centred.between_centred(x, y), *leaves)

    def one(item: tuple[Array, ...]) -> Any:
        x_i, *rest = item
        return row_fn(_centred.between_centred(x_i[None], y)[0], *rest)

    return jax.lax.map(one, (x, *leaves), batch_size=batch_size)


def log_density(row: Array, f_i: Array, g: Array, epsilon: ScalarLike) -> Array:
    """(f_i + g_j - C_ij) / epsilon over a row (or all), bounded: its exponential is finite."""
    return jnp.minimum((f_i + g - row) * (1 / epsilon), MAX_EXPONENT)


def column_sums(
    cost: _cost.Costs, f: VectorN, g: VectorM, epsilon: ScalarLike, weights: VectorN
) -> VectorM:
    """sum_i w_i exp((f_i + g_j - C_ij) / epsilon) for every j."""

    def sums(cost: _cost.Costs, f: Array, weights: Array) -> Array:
        if cost.matrix is None or cost.matrix.size > CHUNK:
            return _recomputed(cost.transposed, g, f, epsilon)(weights)
        # Along the columns as they lie: transposing the costs takes longer than the sums.
        exponent = log_density(cost.matrix, f[:, None], g[None, :], epsilon)
        return _precision.matvec(weights, jnp.exp(exponent))

    return over_columns(sums, cost, f, weights)


def softmin(cost: _cost.Costs, g: VectorM, epsilon: Scalar, weights: VectorM) -> VectorN:
    """-epsilon log sum_j w_j exp((g_j - C_ij) / epsilon) for every x_i [length^2]."""

    def row_fn(row: Array) -> Array:
        return -epsilon * jax.nn.logsumexp((g - row) / epsilon, b=weights)

    return map_rows(row_fn, cost)


def column_softmin(cost: _cost.Costs, f: VectorN, epsilon: Scalar, weights: VectorN) -> VectorM:
    """-epsilon log sum_i w_i exp((f_i - C_ij) / epsilon) for every y_j [length^2]."""
    if isinstance(cost, _cost.MatrixCost) or cost.devices is None:
        return softmin(cost.transposed, f, epsilon, weights)
    axis = _rows.axis_of(cost.devices)

    def own(x: Array, matrix: Array | None, f: Array, weights: Array) -> Array:
        columns = _cost.Cost(x, cost.y, matrix).transposed

        def exponents(column: Array) -> Array:
            return jnp.where(weights > 0, (f - column) / epsilon, -jnp.inf)

        # One exponent for all devices, or a column that is far from a device's rows would
        # underflow there; it cancels, and so do its derivatives.
        largest = map_rows(lambda column: jnp.max(exponents(column)), columns)
        largest = jax.lax.pmax(jax.lax.stop_gradient(largest), axis)

        def column_fn(column: Array, largest: Array) -> Array:
            return jnp.sum(weights * jnp.exp(exponents(column) - largest))

        sums = jax.lax.psum(map_rows(column_fn, columns, largest), axis)
        return -epsilon * (largest + jnp.log(sums))

    return _rows.reduced(cost.devices, own, cost.x, cost.matrix, f, weights)


def density(
    cost: _cost.Costs, f: VectorN, g: VectorM, epsilon: ScalarLike, storage: Storage
) -> tuple[Product, Product]:
    """Products D w and D^T w with the plan's density D_ij = exp((f_i + g_j - C_ij) / epsilon)."""
    if cost.matrix is None:
        return _recomputed(cost, f, g, epsilon), functools.partial(column_sums, cost, f, g, epsilon)
    (n, m), devices = cost.shape, cost.devices
    full = kept(storage) != "half"
    shift = 0.0 if full else _half_shift(n, m)

    def stored(costs: Array, f: Array) -> Array:
        exponent = (f[:, None] + g[None, :] - costs) * (1 / epsilon)
        if full:
            return jax.lax.optimization_barrier(jnp.exp(jnp.minimum(exponent, MAX_EXPONENT)))
        half = jnp.exp(jnp.minimum(exponent - shift, MAX_HALF_EXPONENT)).astype(jnp.float16)
        return jax.lax.optimization_barrier(half)  # or XLA skips the rounding, and the saving

    matrix = _rows.spread(devices, stored, cost.matrix, f)
    unit = jnp.exp(jnp.asarray(shift, f.dtype))

    def rows(w: Array) -> Array:
        def own(matrix: Array) -> Array:
            if full:
                return _precision.matvec(matrix, w)
            return unit * jnp.sum(matrix.astype(w.dtype) * w[None, :], axis=1)

        return _rows.spread(devices, own, matrix)[:n]

    def columns(w: Array) -> Array:
        def own(matrix: Array, w: Array) -> Array:
            if full:
                return _precision.matvec(w, matrix)
            return unit * jnp.sum(matrix.astype(w.dtype) * w[:, None], axis=0)

        return _rows.summed(devices, own, matrix, w)

    return rows, columns


def _half_shift(n: int, m: int) -> float:
    """A feasible density is at most the number of points; over e^shift it must fit into float16."""
    return max(0.0, math.log(max(n, m)) - MAX_HALF_EXPONENT + 1)


def half_range(n: int, m: int) -> tuple[float, float]:
    """How far the sum of two potentials may move, down and up, for float16 to hold the density.

    In units of epsilon. Down, no feasible density was cut off at the largest exponent; up, none
    that was rounded to zero (below e^-16.6) has become larger than e^-10.
    """
    return MAX_HALF_EXPONENT + _half_shift(n, m) - math.log(max(n, m)) - 0.5, 6.0


def _recomputed(cost: _cost.Costs, f: VectorN, g: VectorM, epsilon: ScalarLike) -> Product:
    def product(w: Array) -> Array:
        def row_fn(row: Array, f_i: Array) -> Array:
            return jnp.sum(w * jnp.exp(log_density(row, f_i, g, epsilon)))

        return map_rows(row_fn, cost, f)

    return product
