"""Sinkhorn divergence and its velocity: where particles move to come closer to a target."""

from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp

from sinkflow import costs, kernel
from sinkflow.certificate import SinkhornOutput
from sinkflow.gradients import Problem
from sinkflow.sinkhorn import (
    check_problem,
    sinkhorn,
    sinkhorn_self,
    solve,
    solve_self,
)
from sinkflow.types import Array, Bool, Float, Int, PRNGKey, Scalar, ScalarLike

OFF_DIAGONAL = 1e-5  # mass of a row, less than which moves no particle visibly in float32


class Limits(TypedDict):
    """When a solve stops and what it stores: the keywords that every solve takes."""

    threshold: ScalarLike
    max_iterations: ScalarLike
    storage: str


class VelocityInfo(NamedTuple):
    """The two solves behind one velocity: their worse error, and each one's output.

    ``xy`` is cloud to target, ``xx`` cloud to its self reference. ``neighbours`` is the
    effective number of targets a particle is sent to, mean of 1 / sum_j pi~_ij^2 over
    particles, with pi~ the row-normalised plan (1: a matching, m: everything averaged).
    """

    converged: Bool[Array, ""]
    marginal_error: Scalar
    neighbours: Scalar
    xy: SinkhornOutput
    xx: SinkhornOutput


@jax.jit
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
      b: target weights, sum 1; default uniform.

    Returns:
      The images [n, d] [length] and each point's effective number of neighbours
      1 / sum_j pi~_ij^2 [n].

    Source:
      Peyre and Cuturi 2019, arXiv:1803.00567, remark 4.11; METHOD: T_xy.
    """
    weights = jnp.full(y.shape[0], 1 / y.shape[0], y.dtype) if b is None else b
    return _project(kernel.Cost(x, y, None), g, epsilon, weights)


@jax.jit
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
    weights = jnp.full(y.shape[0], 1 / y.shape[0], y.dtype) if b is None else b

    def row_fn(row, key):
        return jax.random.categorical(key, (g - row) / epsilon + jnp.log(weights))

    cost = kernel.Cost(x, y, None)
    return kernel.map_rows(row_fn, cost, jax.random.split(key, x.shape[0]))


@jax.jit
def _project(cost: kernel.Cost, g, epsilon, weights):
    """Images of ``cost.x`` and their numbers of neighbours."""

    def row_fn(row):
        plan = jax.nn.softmax((g - row) / epsilon + jnp.log(weights))
        return jnp.matmul(plan, cost.y, precision=jax.lax.Precision.HIGHEST), 1 / jnp.sum(plan**2)

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
    threshold: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 5_000,
    storage: str = "auto",
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
      threshold: L1 marginal error [mass, total 1] at which each solve stops.
      max_iterations: cap on the iterations of each solve.
      storage: what a solve keeps on the device, see :func:`sinkflow.sinkhorn`.

    Returns:
      The velocity [n, d] [length per unit flow time] and a :class:`VelocityInfo`.

    Raises:
      ValueError: as :func:`sinkflow.sinkhorn`.

    Source:
      Zhu et al., arXiv:2401.14069, eq. for the empirical velocity; the independent
      reference cloud: arXiv:2605.11755.
    """
    x, y, a, b = check_problem(x, y, epsilon, a, b)
    if self_cloud is not None:
        costs.check_clouds(x, self_cloud, names=("x", "self_cloud"))
    costs.check_positive("threshold", threshold)
    # The difference of two images keeps its digits only near the origin.
    centre = jnp.mean(y, axis=0, keepdims=True)
    x, y = x - centre, y - centre
    epsilon = jnp.asarray(epsilon, x.dtype)
    limits = Limits(threshold=threshold, max_iterations=max_iterations, storage=storage)
    towards_target, neighbours, xy = _images(Problem(x, y, epsilon, a, b), xy_init, limits)
    if self_cloud is None:
        towards_self, xx = _self_images(Problem(x, x, epsilon, a, a), xx_init, limits)
    else:
        other = jnp.asarray(self_cloud, x.dtype) - centre
        masses = jnp.full(other.shape[0], 1 / other.shape[0], x.dtype)
        problem = Problem(x, other, epsilon, a, masses)
        towards_self, _, xx = _images(problem, xx_init, limits)
    info = VelocityInfo(
        xy.converged & xx.converged,
        jnp.maximum(xy.marginal_error, xx.marginal_error),
        jnp.mean(neighbours),
        xy,
        xx,
    )
    return towards_target - towards_self, info


def _images(problem: Problem, g_init, limits):
    """Where a solve sends x, on one cost matrix for the solve and the projection."""
    x, y, epsilon, _, b = problem
    storage = kernel.storage_for(limits["storage"], x.shape[0], y.shape[0], x.dtype)
    cost = kernel.make_cost(x, y, storage)
    out = solve(problem, cost, g_init, **{**limits, "storage": storage})
    images, neighbours = _project(cost, out.g, epsilon, b)
    return images, neighbours, out


def _self_images(problem: Problem, f_init, limits):
    """The same for a cloud and itself, which the identity plan leaves where it is."""
    x, _, epsilon, a, _ = problem
    storage = kernel.storage_for(limits["storage"], x.shape[0], x.shape[0], x.dtype)
    cost = kernel.make_cost(x, x, storage)
    out = solve_self(problem, cost, f_init, **{**limits, "storage": storage})
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
    threshold: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 5_000,
    gradient: str = "envelope",
    storage: str = "auto",
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
    x, y, a, b = check_problem(x, y, epsilon, a, b)
    limits = Limits(threshold=threshold, max_iterations=max_iterations, storage=storage)
    xy = sinkhorn(x, y, epsilon, a=a, b=b, gradient=gradient, **limits)
    if self_cloud is None:
        xx = sinkhorn_self(x, epsilon, a=a, gradient=gradient, **limits)
    else:
        costs.check_clouds(x, self_cloud, names=("x", "self_cloud"))
        xx = sinkhorn(x, self_cloud, epsilon, a=a, gradient=gradient, **limits)
    yy = sinkhorn_self(y, epsilon, a=b, gradient=gradient, **limits)
    value = xy.value - 0.5 * (xx.value + yy.value)
    return value, xy.converged & xx.converged & yy.converged
