"""Products with the density of an entropic plan: stored, stored in half precision, or recomputed.

Every quantity of a solve is a sum over one row (or column) of costs. How those rows come about is
decided here, so that the solver, the barycentric map and the gradients read the same at any size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred
from sinkflow.ot._inputs import check_storage
from sinkflow.ot._shapes import VectorM, VectorN
from sinkflow.types import Array, Float, Scalar, ScalarLike

CHUNK = 2**28  # costs alive at a time where they are recomputed: 1 GiB in float32
MEMORY_SHARE = 0.75  # of the device's memory, for what a solve keeps
CPU_MEMORY = 2**33  # bytes to count on where the device does not tell
# The density stays finite in float32, also where there is no mass, and in half precision.
MAX_EXPONENT = 40.0
MAX_HALF_EXPONENT = 11.0


Product = Callable[[Array], Array]  # of a matrix with vectors


class Cost(NamedTuple):
    """Clouds around the origin and, unless its rows are recomputed, their costs [length^2]."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    matrix: Float[Array, "n m"] | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    @property
    def transposed(self) -> "Cost":
        return Cost(self.y, self.x, None if self.matrix is None else self.matrix.T)

    def mean(self, a: VectorN, b: VectorM) -> Scalar:
        """Mean cost under a x b [length^2]."""
        return _centred.mean_of_centred(self.x, self.y, a, b)

    def rounded(self, a: VectorN, b: VectorM) -> Scalar:
        """Mean size [length^2] of the terms that a cost is computed from, which rounds it."""
        return self.mean(a, b)

    def bound(self, a: VectorN, b: VectorM) -> Scalar:
        """At least the largest cost, without a pass over the cost matrix: where annealing starts.

        NaN where a point of the clouds is; points without mass count for nothing else.
        """
        radii = []
        for cloud, weights in ((self.x, a), (self.y, b)):
            squares = jnp.sum(cloud**2, axis=1)
            counted = jnp.where((weights > 0) | jnp.isnan(squares), squares, 0)
            radii.append(jnp.sqrt(jnp.max(counted)))
        return 0.5 * (radii[0] + radii[1]) ** 2

    def diagonal(self) -> Array:
        """The costs of x_i and y_i."""
        k = min(self.shape)
        return 0.5 * jnp.sum((self.x[:k] - self.y[:k]) ** 2, axis=1)


class MatrixCost(NamedTuple):
    """Costs that are given [units of the cost], none negative where there is mass."""

    matrix: Float[Array, "n m"]

    @property
    def shape(self) -> tuple[int, int]:
        n, m = self.matrix.shape
        return n, m

    @property
    def transposed(self) -> "MatrixCost":
        return MatrixCost(self.matrix.T)

    def mean(self, a: VectorN, b: VectorM) -> Scalar:
        """Mean cost under a x b."""
        counted = jnp.where(b[None, :] > 0, b[None, :] * self.matrix, 0)
        return _centred.mean(a, jnp.sum(counted, axis=1))

    def rounded(self, a: VectorN, b: VectorM) -> Scalar:
        """Nothing: the costs are exact as they are given."""
        return jnp.zeros((), self.matrix.dtype)

    def bound(self, a: VectorN, b: VectorM) -> Scalar:
        """The largest cost between points of mass; NaN where any cost is not finite."""
        massive = (a > 0)[:, None] & (b > 0)[None, :]
        largest = jnp.max(jnp.where(massive, self.matrix, 0))
        return jnp.where(jnp.all(jnp.isfinite(self.matrix)), largest, jnp.nan)

    def diagonal(self) -> Array:
        """The costs of equal row and column."""
        return jnp.diagonal(self.matrix)


Costs = Cost | MatrixCost


def storage_for(storage: str, x: Any, y: Any) -> str:
    """What to keep for two clouds (or their shapes); anything but "auto" is kept as it is.

    "full" keeps costs and densities, "half" costs and densities in float16, "chunks"
    nothing: rows of costs are recomputed for every product.

    Raises:
      ValueError: unknown storage.
    """
    check_storage(storage)
    if storage != "auto":
        return storage
    memory = MEMORY_SHARE * _device_memory()
    n, m, itemsize = x.shape[0], y.shape[0], x.dtype.itemsize
    sizes = {"full": 2 * itemsize * n * m, "half": (itemsize + 2) * n * m}
    return next((name for name, size in sizes.items() if size <= memory), "chunks")


def _device_memory() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", CPU_MEMORY)


@functools.partial(jax.jit, static_argnames="storage")
def make_cost(x: Float[Array, "n d"], y: Float[Array, "m d"], storage: str) -> Cost:
    """The half squared Euclidean cost, as a matrix unless ``storage`` is "chunks"."""
    empty = Cost(x, y, None)
    if storage == "chunks":
        return empty
    if x.shape[0] * y.shape[0] <= CHUNK:
        # Behind a barrier: recomputed inside the sums that use it, it made XLA compile for minutes.
        return Cost(x, y, jax.lax.optimization_barrier(_centred.between_centred(x, y)))
    # In pieces: in one, expanding the square would need the matrix twice.
    return Cost(x, y, map_rows(lambda row: row, empty))


def map_rows(row_fn: Callable, cost: Costs, *leaves: Array) -> Any:
    """``row_fn(costs of x_i [m], leaf_i, ...)`` for every i, stacked; a few rows at a time."""
    n, m = cost.shape
    batch_size = max(1, CHUNK // m)
    if isinstance(cost, MatrixCost) or cost.matrix is not None:
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
    cost: Costs, f: VectorN, g: VectorM, epsilon: ScalarLike, weights: VectorN
) -> VectorM:
    """sum_i w_i exp((f_i + g_j - C_ij) / epsilon) for every j."""
    if cost.matrix is None or cost.matrix.size > CHUNK:
        return _recomputed(cost.transposed, g, f, epsilon)(weights)
    # Along the columns as they lie: transposing the costs takes longer than the sums.
    exponent = log_density(cost.matrix, f[:, None], g[None, :], epsilon)
    return _matvec(weights, jnp.exp(exponent))


def softmin(cost: Costs, g: VectorM, epsilon: Scalar, weights: VectorM) -> VectorN:
    """-epsilon log sum_j w_j exp((g_j - C_ij) / epsilon) for every x_i [length^2]."""

    def row_fn(row: Array) -> Array:
        return -epsilon * jax.nn.logsumexp((g - row) / epsilon, b=weights)

    return map_rows(row_fn, cost)


def density(
    cost: Costs, f: VectorN, g: VectorM, epsilon: ScalarLike, storage: str
) -> tuple[Product, Product]:
    """Products D w and D^T w with the plan's density D_ij = exp((f_i + g_j - C_ij) / epsilon)."""
    if cost.matrix is None:
        return _recomputed(cost, f, g, epsilon), _recomputed(cost.transposed, g, f, epsilon)
    exponent = (f[:, None] + g[None, :] - cost.matrix) * (1 / epsilon)
    if storage == "full":
        matrix = jax.lax.optimization_barrier(jnp.exp(jnp.minimum(exponent, MAX_EXPONENT)))
        return lambda w: _matvec(matrix, w), lambda w: _matvec(w, matrix)
    shift = _half_shift(*exponent.shape)
    half = jnp.exp(jnp.minimum(exponent - shift, MAX_HALF_EXPONENT)).astype(jnp.float16)
    half = jax.lax.optimization_barrier(half)  # or XLA skips the rounding, and the saving
    unit = jnp.exp(jnp.asarray(shift, f.dtype))
    return (
        lambda w: unit * jnp.sum(half.astype(w.dtype) * w[None, :], axis=1),
        lambda w: unit * jnp.sum(half.astype(w.dtype) * w[:, None], axis=0),
    )


def _half_shift(n: int, m: int) -> float:
    """A feasible density is at most the number of points; over e^shift it must fit into float16."""
    return max(0.0, math.log(max(n, m)) - MAX_HALF_EXPONENT + 1)


def half_range(n: int, m: int) -> tuple[float, float]:
    """How far the sum of two potentials may move, down and up, for float16 to hold the density.

    In units of epsilon. Down, no feasible density was cut off at the largest exponent; up, none
    that was rounded to zero (below e^-16.6) has become larger than e^-10.
    """
    return MAX_HALF_EXPONENT + _half_shift(n, m) - math.log(max(n, m)) - 0.5, 6.0


def _recomputed(cost: Costs, f: VectorN, g: VectorM, epsilon: ScalarLike) -> Product:
    def product(w: Array) -> Array:
        def row_fn(row: Array, f_i: Array) -> Array:
            return jnp.sum(w * jnp.exp(log_density(row, f_i, g, epsilon)))

        return map_rows(row_fn, cost, f)

    return product


def _matvec(left: Array, right: Array) -> Array:
    """Matrix times vector, or vector times matrix, in full precision on every device."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
