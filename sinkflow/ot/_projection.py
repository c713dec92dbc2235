"""Means of targets by the rows of a plan."""

import jax
import jax.numpy as jnp

from sinkflow.ot import _cost, _kernel, _precision
from sinkflow.ot._shapes import CloudM, CloudN, VectorM, VectorN
from sinkflow.types import Array, Float, Scalar


def projection(logits: VectorM, y: CloudM) -> tuple[Float[Array, "d"], Scalar]:
    """Mean of y by one row of a plan, and its number of neighbours."""
    plan = jax.nn.softmax(logits)
    return _precision.matmul(plan, y), 1 / jnp.sum(plan**2)


@jax.jit
def project(
    cost: _cost.Cost, g: VectorM, epsilon: Scalar, weights: VectorM
) -> tuple[CloudN, VectorN]:
    """Images of ``cost.x`` and their numbers of neighbours."""

    def row_fn(row: Array) -> tuple[Array, Array]:
        return projection((g - row) / epsilon + jnp.log(weights), cost.y)

    return _kernel.map_rows(row_fn, cost)
