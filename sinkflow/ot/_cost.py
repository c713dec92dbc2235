"""The costs of a problem: of clouds, or given; stored, or to be recomputed by rows."""

from typing import NamedTuple

import jax.numpy as jnp

from sinkflow.ot import _centred
from sinkflow.ot._shapes import VectorM, VectorN
from sinkflow.ot.limits import Sharded
from sinkflow.types import Array, Float, Scalar


class Cost(NamedTuple):
    """Clouds around the origin and, unless its rows are recomputed, their costs [length^2].

    With ``devices`` the rows are spread over them; the matrix then has rows for the points that
    they do not divide evenly.
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    matrix: Float[Array, "rows m"] | None
    devices: Sharded | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    @property
    def transposed(self) -> "Cost":
        """The costs of y and x, on one device."""
        assert self.devices is None, "columns are no rows of a device: see over_columns"
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

    @property
    def devices(self) -> None:
        """Costs that are given lie on one device."""

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
