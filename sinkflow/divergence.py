"""Sinkhorn divergence and its velocity: where particles move to come closer to a target."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow import costs, inputs, kernel
from sinkflow.certificate import SinkhornOutput
from sinkflow.gradients import Problem
from sinkflow.limits import Limits, check_limits
from sinkflow.sinkhorn import (
    STATIC,
    as_given,
    check_problem,
    iterations_to_unroll,
    solve,
    solve_self,
    unroll,
)
from sinkflow.types import Array, Bool, Float, Int, PRNGKey, Scalar, ScalarLike

OFF_DIAGONAL = 1e-5  # mass of a row, less than which moves no particle visibly in float32


class VelocityInfo(NamedTuple):
    """The two solves behind one velocity: their worse error, and each one's output.

    ``xy`` is cloud to target, ``xx`` cloud to its self reference. ``converged`` is that of the
    velocity: both solves met their thresholds and no velocity is NaN. Between clouds far apart
    ``xy.converged`` may be False beside it, see :class:`sinkflow.SinkhornOutput`: then the
    returned potentials have lost digits that the velocity, from centred ones, has.

    ``neighbours`` is the effective number of targets a particle is sent to, mean of
    1 / sum_j pi~_ij^2 over particles by their weights, with pi~ the row-normalised plan
    (1: a matching, m: everything averaged).
    """

    converged: Bool[Array, ""]
    marginal_error: Scalar
    neighbours: Scalar
    xy: SinkhornOutput
    xx: SinkhornOutput


def barycentric_map(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    g: Float[Array, "m"],
    epsilon: ScalarLike,
    b: Float[Array, "m"] | None = None,
) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    r"""Barycentric projection :math:`T(x_i) = \sum_j \tilde\pi_{ij} y_j` of an entropic plan.

    :math:`\tilde\pi_{ij} \propto b_j e^{(g_j - C_ij)/\varepsilon}` with rows of sum 1, so ``x``
    may be any points, also ones that were not in the solve.

    Args:
      x: points to map [length].
      y: target particles [length].
      g: their potential [length^2], from :func:`sinkflow.sinkhorn`.
      epsilon: the regularisation ``g`` was solved with [length^2].
      b: target weights, sum 1; default uniform. Zeros are allowed.

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
      Peyre and Cuturi 2019, arXiv:1803.00567, remark 4.11; METHOD: T_xy.
    """
    dtype = inputs.returned_dtype(x)
    images, neighbours = _barycentric_map(*_plan_rows(x, y, g, epsilon, b))
    return images.astype(dtype), neighbours.astype(dtype)


def draw_partners(
    key: PRNGKey,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    g: Float[Array, "m"],
    epsilon: ScalarLike,
    b: Float[Array, "m"] | None = None,
) -> Int[Array, "n"]:
    r"""For every x_i the index j of one target, drawn from its row of an entropic plan.

    The pairs (x_i, y_j) are a sample of the plan, one for each x_i: what flow matching on
    optimal pairs needs, at any cloud size. Arguments are those of :func:`barycentric_map`.

    Source:
      Minibatch couplings: Tong et al. 2024, arXiv:2302.00482, sec. 3.3.
    """
    return _draw_partners(key, *_plan_rows(x, y, g, epsilon, b))


def _plan_rows(x, y, g, epsilon, b):
    """The arguments of :func:`barycentric_map` as arrays of one dtype."""
    x, y, epsilon, _, b = check_problem(x, y, epsilon, None, b)
    g = inputs.as_potential("g", g, y, "y")
    if g is None:
        raise ValueError("g is None; the potential of y is needed, for example out.g of a solve")
    return x, y, g, epsilon, b


@jax.jit
def _barycentric_map(x, y, g, epsilon, b):
    near, y, g, beyond, weights, centre = _around_targets(x, y, g, b)
    epsilon = inputs.positive(epsilon)

    def row_fn(row, beyond):
        return _projection(_logits(row, beyond, y, g, epsilon, weights), y)

    images, neighbours = kernel.map_rows(row_fn, kernel.Cost(near, y, None), beyond)
    return images + centre[1:] + centre[:1], neighbours


@jax.jit
def _draw_partners(key, x, y, g, epsilon, b):
    near, y, g, beyond, weights, _ = _around_targets(x, y, g, b)
    epsilon = inputs.positive(epsilon)

    def row_fn(row, beyond, key):
        return jax.random.categorical(key, _logits(row, beyond, y, g, epsilon, weights))

    keys = jax.random.split(key, x.shape[0])
    return kernel.map_rows(row_fn, kernel.Cost(near, y, None), beyond, keys)


def _around_targets(x, y, g, b):
    """Clouds around the targets' mean, x cut off at their radius, and what that cuts off.

    With x = near + beyond, the costs are those of ``near`` minus <beyond, y_j>, up to a constant
    of each row: so a point far away does not round what tells its targets apart.
    """
    weights = inputs.distribution(b, y)
    moved = costs.centred(y, y, weights, weights)
    centre = moved.mean
    x, y = x - centre[:1] - centre[1:], moved.x
    radius = jnp.sqrt(jnp.max(jnp.where(weights > 0, jnp.sum(y**2, axis=1), 0)))
    length = jnp.sqrt(jnp.sum(x**2, axis=1))
    share = jnp.where(length > radius, radius / jnp.where(length > radius, length, 1), 1)
    near = share[:, None] * x
    return near, y, jnp.where(weights > 0, g, 0), x - near, weights, centre


def _logits(row, beyond, y, g, epsilon, weights):
    """Logarithms of a row of the plan, up to a constant, from its costs."""
    inner = jnp.matmul(y, beyond, precision=jax.lax.Precision.HIGHEST)
    return (g + inner - row) / epsilon + jnp.log(weights)


def _projection(logits, y):
    """Mean of y by one row of a plan, and its number of neighbours."""
    plan = jax.nn.softmax(logits)
    return jnp.matmul(plan, y, precision=jax.lax.Precision.HIGHEST), 1 / jnp.sum(plan**2)


@jax.jit
def _project(cost: kernel.Cost, g, epsilon, weights):
    """Images of ``cost.x`` and their numbers of neighbours."""

    def row_fn(row):
        return _projection((g - row) / epsilon + jnp.log(weights), cost.y)

    return kernel.map_rows(row_fn, cost)


def sinkhorn_velocity(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    self_cloud: Float[Array, "k d"] | None = None,
    xy_init: Float[Array, "m"] | None = None,
    xx_init: Float[Array, "k"] | None = None,
    limits: Limits = Limits(),
) -> tuple[Float[Array, "n d"], VelocityInfo]:
    r"""Velocity of the Wasserstein gradient flow of the Sinkhorn divergence.

    .. math:: v(x_i) = T_{xy}(x_i) - T_{xx}(x_i)
              = -\tfrac1{a_i} \frac{\partial S_\varepsilon}{\partial x_i},

    pointing the way particles move, for the cost :math:`\tfrac12\|x - y\|^2`.

    Args:
      x: particles [length].
      y: target particles [length].
      epsilon: entropic regularisation [length^2].
      a: weights of ``x`` (sum 1, default uniform).
      b: weights of ``y``, likewise.
      self_cloud: reference of the self term. Default ``x`` itself: the exact gradient
        of the empirical divergence. A second independent cloud of the same law removes
        the contraction that the same cloud causes in high dimension.
      xy_init: potential g of a nearby cloud-to-target solve (``info.xy.g``).
      xx_init: the same for the self solve (``info.xx.g``).
      limits: when each solve stops and what it stores, see :class:`sinkflow.Limits`.

    Returns:
      The velocity [n, d] [length per unit flow time] and a :class:`VelocityInfo`.

    Raises:
      ValueError: as :func:`sinkflow.sinkhorn`.

    Source:
      Zhu et al., arXiv:2401.14069, eq. for the empirical velocity; the independent
      reference cloud: arXiv:2605.11755.
    """
    dtype = inputs.returned_dtype(x)
    x, y, epsilon, a, b = check_problem(x, y, epsilon, a, b)
    other = as_self_cloud(self_cloud, x)
    limits = check_limits(limits, x.dtype)
    xy_init = inputs.as_potential("xy_init", xy_init, y, "y")
    name = "x" if other is None else "self_cloud"
    xx_init = inputs.as_potential("xx_init", xx_init, x if other is None else other, name)
    velocity, info = _velocity(x, y, epsilon, a, b, other, xy_init, xx_init, *limits)
    return velocity.astype(dtype), info


def as_self_cloud(self_cloud, x):
    """The second cloud in the dtype of the first, or None."""
    if self_cloud is None:
        return None
    return inputs.as_clouds(x, self_cloud, ("x", "self_cloud"))[1].astype(x.dtype)


@functools.partial(jax.jit, static_argnames="storage")
def _velocity(
    x, y, epsilon, a, b, other, xy_init, xx_init, threshold, max_iterations, storage
) -> tuple[Array, VelocityInfo]:
    a, b, epsilon = inputs.distribution(a, x), inputs.distribution(b, y), inputs.positive(epsilon)
    limits = Limits(threshold, max_iterations, storage)
    towards_target, neighbours, xy, xy_given = _images(x, y, epsilon, a, b, xy_init, limits)
    if other is None:
        towards_self, xx = _self_images(x, epsilon, a, xx_init, limits)
        xx_given = xx
    else:
        uniform = inputs.distribution(None, other)
        towards_self, _, xx, xx_given = _images(x, other, epsilon, a, uniform, xx_init, limits)
    # Both images are relative to x, and keep their digits far from the origin.
    velocity = towards_target - towards_self
    info = VelocityInfo(
        xy.converged & xx.converged & jnp.all(jnp.isfinite(velocity)),
        jnp.maximum(xy.marginal_error, xx.marginal_error),
        costs.mean(a, neighbours),
        xy_given,
        xx_given,
    )
    return velocity, info


def _images(x, y, epsilon, a, b, g_init, limits):
    """Where a solve sends x, seen from the mean of x; the solve as it was made, and as given.

    One cost matrix serves the solve and the projection.
    """
    moved = costs.centred(x, y, a, b)
    problem = Problem(moved.x, moved.y, epsilon, a, b)
    limits = limits._replace(storage=kernel.storage_for(limits.storage, x, y))
    cost = kernel.make_cost(moved.x, moved.y, limits.storage)
    init = None if g_init is None else g_init - moved.of_y
    out = solve(problem, cost, init, limits)
    images, neighbours = _project(cost, out.g, epsilon, b)
    return images - moved.shift[None], neighbours, out, as_given(out, moved, problem)


def _self_images(x, epsilon, a, f_init, limits):
    """The same for a cloud and itself, which the identity plan leaves where it is."""
    x = costs.centred(x, x, a, a).x
    limits = limits._replace(storage=kernel.storage_for(limits.storage, x, x))
    cost = kernel.make_cost(x, x, limits.storage)
    out = solve_self(Problem(x, x, epsilon, a, a), cost, f_init, limits)
    return _self_project(cost, out.f, epsilon, a), out


@jax.jit
def _self_project(cost: kernel.Cost, f, epsilon, a):
    diagonal = a * jnp.exp(2 * f / epsilon)  # of the plan's rows, which sum to 1
    return jax.lax.cond(
        jnp.all(diagonal > 1 - OFF_DIAGONAL),
        lambda: cost.x,
        lambda: _project(cost, f, epsilon, a)[0],
    )


def sinkhorn_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    self_cloud: Float[Array, "k d"] | None = None,
    limits: Limits = Limits(),
    gradient: str = "envelope",
) -> tuple[Scalar, Bool[Array, ""]]:
    r"""Sinkhorn divergence: entropic cost without its bias, zero when the clouds agree.

    .. math:: S_\varepsilon = W_\varepsilon(x,y) - \tfrac12 W_\varepsilon(x,x)
              - \tfrac12 W_\varepsilon(y,y)

    Arguments and errors are those of :func:`sinkflow.sinkhorn`; ``gradient`` says how the
    divergence is differentiated. ``self_cloud`` is a second cloud x' of the law of x, for
    W(x, x') in place of W(x, x): let both depend on what is learnt, each carries half of the
    self term's gradient.

    Returns:
      The divergence [length^2] and whether all three solves converged.

    Source:
      Genevay, Peyre, Cuturi 2018, arXiv:1706.00292; Feydy et al. 2019, arXiv:1810.08278.
    """
    x, y, epsilon, a, b = check_problem(x, y, epsilon, a, b)
    other = as_self_cloud(self_cloud, x)
    count = iterations_to_unroll(gradient, limits)
    limits = check_limits(limits, x.dtype)
    return _divergence(x, y, epsilon, a, b, other, *limits, gradient, count)


@functools.partial(jax.jit, static_argnames=STATIC)
def _divergence(
    x, y, epsilon, a, b, other, threshold, max_iterations, storage, gradient, count
) -> tuple[Scalar, Bool[Array, ""]]:
    a, b, epsilon = inputs.distribution(a, x), inputs.distribution(b, y), inputs.positive(epsilon)
    moved = costs.centred(x, y, a, b)

    def solved(x, y, a, b, same=False):
        problem = Problem(x, y, epsilon, a, b)
        limits = Limits(threshold, max_iterations, kernel.storage_for(storage, x, y))
        if count:
            return unroll(problem, limits, count, same=same)
        cost = kernel.make_cost(x, y, limits.storage)
        return (solve_self if same else solve)(problem, cost, None, limits, gradient)

    xy = solved(moved.x, moved.y, a, b)
    yy = solved(moved.y, moved.y, b, b, same=True)
    if other is None:
        xx, constant = solved(moved.x, moved.x, a, a, same=True), moved.constant
    else:
        uniform = inputs.distribution(None, other)
        pair = costs.centred(x, other, a, uniform)
        xx = solved(pair.x, pair.y, a, uniform)
        constant = moved.constant - 0.5 * pair.constant
    value = xy.value - 0.5 * (xx.value + yy.value) + constant
    converged = xy.converged & xx.converged & yy.converged
    return value, converged & jnp.isfinite(value)
