"""What a plan's rows say of single points: barycentric images, and partners drawn."""

import functools

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _inputs, _kernel, _precision
from sinkflow.ot._projection import projection
from sinkflow.ot._shapes import CloudM, CloudN, VectorM, VectorN
from sinkflow.ot.limits import Storage
from sinkflow.types import Array, Float, Int, PRNGKey, Scalar, ScalarLike

__all__ = ["barycentric_map", "draw_partners"]


def barycentric_map(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    g: Float[Array, "m"],
    epsilon: ScalarLike,
    b: Float[Array, "m"] | None = None,
    storage: Storage = "auto",
) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    r"""Barycentric projection :math:`T(x_i) = \sum_j \tilde\pi_{ij} y_j` of an entropic plan.

    :math:`\tilde\pi_{ij} \propto b_j e^{(g_j - C_{ij})/\varepsilon}` with rows of sum 1, so ``x``
    may be any points, also ones that were not in the solve.

    Args:
      x: points to map [length].
      y: target particles [length].
      g: their potential [length^2], from :func:`sinkflow.sinkhorn`.
      epsilon: the regularisation ``g`` was solved with [length^2].
      b: target weights, sum 1; default uniform. Zeros are allowed.
      storage: that of the solve. A :class:`sinkflow.Sharded` spreads the points over its devices;
        nothing is stored whatever it says.

    Returns:
      The images [n, d] [length] and each point's effective number of neighbours
      1 / sum_j pi~_ij^2 [n], in the dtype of ``x``.

    Raises:
      ValueError: wrong shapes; outside a trace also epsilon <= 0 and weights that are
        negative, not finite or do not sum to 1. Traced ones give NaN.

    Numerics:
      Each row is computed for itself, from the targets around their weighted mean: no point is
      less exact because of another one, or because the clouds are far from the origin.

    Source:
      Peyre and Cuturi 2019, arXiv:1803.00567, remark 4.11.
    """
    dtype = _inputs.returned_dtype(x)
    _inputs.check_storage(storage)
    images, neighbours = _barycentric_map(*_plan_rows(x, y, g, epsilon, b), storage)
    return images.astype(dtype), neighbours.astype(dtype)


def draw_partners(
    key: PRNGKey,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    g: Float[Array, "m"],
    epsilon: ScalarLike,
    b: Float[Array, "m"] | None = None,
    storage: Storage = "auto",
) -> Int[Array, "n"]:
    r"""For every x_i the index j of one target, drawn from its row of an entropic plan.

    The pairs (x_i, y_j) are a sample of the plan, one for each x_i: what flow matching on
    optimal pairs needs, at any cloud size. Arguments are those of
    :func:`sinkflow.barycentric_map`.

    Source:
      Minibatch couplings: Tong et al. 2024, arXiv:2302.00482, sec. 3.3.
    """
    _inputs.check_storage(storage)
    return _draw_partners(key, *_plan_rows(x, y, g, epsilon, b), storage)


def _plan_rows(
    x: CloudN, y: CloudM, g: VectorM, epsilon: ScalarLike, b: VectorM | None
) -> tuple[CloudN, CloudM, VectorM, Scalar, VectorM | None]:
    """The arguments of :func:`barycentric_map` as arrays of one dtype."""
    x, y, epsilon, _, b = _inputs.check_problem(x, y, epsilon, None, b)
    potential = _inputs.as_potential("g", g, y, "y")
    if potential is None:
        raise ValueError("g is None; the potential of y is needed, for example out.g of a solve")
    return x, y, potential, epsilon, b


@functools.partial(jax.jit, static_argnames="storage")
def _barycentric_map(
    x: CloudN, y: CloudM, g: VectorM, epsilon: Scalar, b: VectorM | None, storage: Storage
) -> tuple[CloudN, VectorN]:
    near, y, g, beyond, weights, centre = _around_targets(x, y, g, b)
    epsilon = _inputs.positive(epsilon)

    def row_fn(row: Array, beyond: Array) -> tuple[Array, Array]:
        return projection(_logits(row, beyond, y, g, epsilon, weights), y)

    images, neighbours = _kernel.map_rows(row_fn, _kernel.recomputed(near, y, storage), beyond)
    return images + centre[1:] + centre[:1], neighbours


@functools.partial(jax.jit, static_argnames="storage")
def _draw_partners(
    key: PRNGKey,
    x: CloudN,
    y: CloudM,
    g: VectorM,
    epsilon: Scalar,
    b: VectorM | None,
    storage: Storage,
) -> Int[Array, "n"]:
    near, y, g, beyond, weights, _ = _around_targets(x, y, g, b)
    epsilon = _inputs.positive(epsilon)

    def row_fn(row: Array, beyond: Array, key: PRNGKey) -> Array:
        return jax.random.categorical(key, _logits(row, beyond, y, g, epsilon, weights))

    keys = jax.random.split(key, x.shape[0])
    return _kernel.map_rows(row_fn, _kernel.recomputed(near, y, storage), beyond, keys)


def _around_targets(
    x: CloudN, y: CloudM, g: VectorM, b: VectorM | None
) -> tuple[CloudN, CloudM, VectorM, CloudN, VectorM, Float[Array, "2 d"]]:
    """Clouds around the targets' mean, x cut off at their radius, and what that cuts off.

    With x = near + beyond, the costs are those of ``near`` minus <beyond, y_j>, up to a constant
    of each row: so a point far away does not round what tells its targets apart.
    """
    weights = _inputs.distribution(b, y)
    moved = _centred.centred(y, y, weights, weights)
    centre = moved.mean
    x, y = x - centre[:1] - centre[1:], moved.x
    radius = jnp.sqrt(jnp.max(jnp.where(weights > 0, jnp.sum(y**2, axis=1), 0)))
    length = jnp.sqrt(jnp.sum(x**2, axis=1))
    share = jnp.where(length > radius, radius / jnp.where(length > radius, length, 1), 1)
    near = share[:, None] * x
    return near, y, jnp.where(weights > 0, g, 0), x - near, weights, centre


def _logits(
    row: VectorM,
    beyond: Float[Array, "d"],
    y: CloudM,
    g: VectorM,
    epsilon: Scalar,
    weights: VectorM,
) -> VectorM:
    """Logarithms of a row of the plan, up to a constant, from its costs."""
    inner = _precision.matvec(y, beyond)
    return (g + inner - row) / epsilon + jnp.log(weights)
