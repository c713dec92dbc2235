"""Clouds moved to their means, and the costs between these."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.ot import _precision
from sinkflow.ot._shapes import CloudM, CloudN, VectorM, VectorN
from sinkflow.types import Array, Float, Scalar

# Up to this dimension coordinate differences cost less than a matrix product and do not cancel.
MAX_DIFFERENCE_DIM = 5
FAR = 1e12  # coordinates of points without mass are cut off here, so that no cost overflows


class Centred(NamedTuple):
    r"""Two clouds, each moved so that its weighted mean is the origin.

    With ``mean`` that of x, in two parts to be added, and ``shift`` the vector :math:`\delta` from
    the mean of y to it, the costs of the clouds as they were are

    .. math:: C_{ij} = C'_{ij} + \langle x'_i - y'_j, \delta\rangle + \tfrac12\|\delta\|^2,

    so that the plan is the same, and potentials differ by ``of_x`` [n] (f - f') and ``of_y``
    [m] (g - g') [length^2]. ``constant`` is what the transport cost has beyond that of x' and y'.
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    mean: Float[Array, "2 d"]
    shift: Float[Array, "d"]
    of_x: Float[Array, "n"]
    of_y: Float[Array, "m"]
    constant: Scalar


def centred(x: CloudN, y: CloudM, a: VectorN, b: VectorM) -> Centred:
    """The clouds at their means; points without mass move along and decide nothing."""
    (x, *means_x), (y, *means_y) = _at_mean(x, a), _at_mean(y, b)
    # Part by part: far from the origin a sum of parts would lose what the second one adds.
    shift = (means_x[0] - means_y[0]) + (means_x[1] - means_y[1])
    of_x, of_y = _precision.matvec(x, shift) + 0.5 * jnp.sum(shift**2), -_precision.matvec(y, shift)
    return Centred(x, y, jnp.stack(means_x), shift, of_x, of_y, mean(a, of_x) + mean(b, of_y))


def _at_mean(
    cloud: CloudN, weights: VectorN
) -> tuple[CloudN, Float[Array, "d"], Float[Array, "d"]]:
    """The cloud around its mean, and the mean in two parts.

    The second is what the first, rounded far from the origin, missed.
    """
    massive = weights[:, None] > 0
    first = _precision.matvec(jnp.where(massive, cloud, 0).T, weights)
    cloud = cloud - first[None]
    second = _precision.matvec(jnp.where(massive, cloud, 0).T, weights)
    cloud = cloud - second[None]
    return jnp.where(massive, cloud, jnp.clip(cloud, -FAR, FAR)), first, second


def mean(weights: VectorN, values: VectorN) -> Scalar:
    """Weighted mean; 0 times what a point without mass has, be it infinite, is 0."""
    return jnp.sum(weights * jnp.where(weights > 0, values, 0))


def mean_of_centred(x: CloudN, y: CloudM, a: VectorN, b: VectorM) -> Scalar:
    """Mean cost of two clouds whose weighted means are the origin [length^2]."""
    return 0.5 * (mean(a, jnp.sum(x**2, axis=1)) + mean(b, jnp.sum(y**2, axis=1)))


@jax.jit
def between_centred(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """:func:`sinkflow.ot.costs.squared_euclidean` of clouds near the origin already."""
    if x.shape[1] <= MAX_DIFFERENCE_DIM:
        columns = ((x[:, k, None] - y[None, :, k]) ** 2 for k in range(x.shape[1]))
        return 0.5 * sum(columns, start=jnp.zeros((x.shape[0], y.shape[0]), x.dtype))
    product = _precision.matmul(x, y.T)
    half_squares = 0.5 * (jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :])
    return jnp.maximum(half_squares - product, 0.0)
