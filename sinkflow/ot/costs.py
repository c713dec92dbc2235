"""The ground cost between particles."""

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _inputs
from sinkflow.ot._shapes import CloudM, CloudN, MatrixNM
from sinkflow.types import Array, Float

__all__ = ["squared_euclidean"]


def squared_euclidean(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    r"""Half squared Euclidean cost, :math:`C_{ij} = \tfrac12\|x_i - y_j\|^2`.

    Args:
      x: source particles [length].
      y: target particles [length].

    Returns:
      The cost matrix [length^2], non-negative, in the clouds' common dtype, float32 at least.

    Raises:
      ValueError: if ``x`` and ``y`` are not clouds ``[n, d]`` and ``[m, d]``.

    Numerics:
      Up to d = 5 the differences are formed directly. Above, the square is
      expanded around the mean of ``y``, so that clouds far from the origin keep
      their digits, and the matrix product runs in full float32 (accelerators
      otherwise round its inputs). Then one point far from all others costs the others digits.
    """
    return _squared_euclidean(*_inputs.as_clouds(x, y))


@jax.jit
def _squared_euclidean(x: CloudN, y: CloudM) -> MatrixNM:
    if x.shape[1] > _centred.MAX_DIFFERENCE_DIM:
        centre = jnp.mean(y, axis=0, keepdims=True)
        x, y = x - centre, y - centre
    return _centred.between_centred(x, y)
