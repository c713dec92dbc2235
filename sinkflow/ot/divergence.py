"""Sinkhorn divergence and its velocity: where particles move to come closer to a target."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _cost, _fused, _inputs, _kernel, _loops
from sinkflow.ot._gradients import Problem
from sinkflow.ot._inputs import check_limits, check_problem
from sinkflow.ot._projection import project
from sinkflow.ot._shapes import CloudM, CloudN, VectorM, VectorN
from sinkflow.ot._solves import STATIC, as_given, iterations_to_unroll, solve, solve_self, unroll
from sinkflow.ot.limits import Limits, Storage
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Bool, Float, Int, Scalar, ScalarLike

__all__ = ["VelocityInfo", "sinkhorn_divergence", "sinkhorn_velocity"]

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
      The velocity [n, d] [length per unit flow time] and a
      :class:`sinkflow.ot.VelocityInfo`.

    Raises:
      ValueError: as :func:`sinkflow.sinkhorn`.

    Source:
      Zhu et al., arXiv:2401.14069, eq. for the empirical velocity; the independent
      reference cloud: arXiv:2605.11755.
    """
    dtype = _inputs.returned_dtype(x)
    x, y, epsilon, a, b = check_problem(x, y, epsilon, a, b)
    other = _as_self_cloud(self_cloud, x)
    limits = check_limits(limits, x.dtype)
    xy_init = _inputs.as_potential("xy_init", xy_init, y, "y")
    name = "x" if other is None else "self_cloud"
    xx_init = _inputs.as_potential("xx_init", xx_init, x if other is None else other, name)
    velocity, info = _velocity(x, y, epsilon, a, b, other, xy_init, xx_init, *limits)
    return velocity.astype(dtype), info


def _as_self_cloud(self_cloud: Float[Array, "k d"] | None, x: CloudN) -> Float[Array, "k d"] | None:
    """The second cloud in the dtype of the first, or None."""
    if self_cloud is None:
        return None
    return _inputs.as_clouds(x, self_cloud, ("x", "self_cloud"))[1].astype(x.dtype)


@functools.partial(jax.jit, static_argnames="storage")
def _velocity(
    x: CloudN,
    y: CloudM,
    epsilon: Scalar,
    a: VectorN | None,
    b: VectorM | None,
    other: Float[Array, "k d"] | None,
    xy_init: VectorM | None,
    xx_init: Float[Array, "self"] | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: Storage,
) -> tuple[Array, VelocityInfo]:
    a, b, epsilon = (
        _inputs.distribution(a, x),
        _inputs.distribution(b, y),
        _inputs.positive(epsilon),
    )
    limits = Limits(threshold, max_iterations, storage)
    towards_target, neighbours, xy, xy_given = _images(x, y, epsilon, a, b, xy_init, limits)
    if other is None:
        towards_self, xx = _self_images(x, epsilon, a, xx_init, limits)
        xx_given = xx
    else:
        uniform = _inputs.distribution(None, other)
        towards_self, _, xx, xx_given = _images(x, other, epsilon, a, uniform, xx_init, limits)
    # Both images are relative to x, and keep their digits far from the origin.
    velocity = towards_target - towards_self
    info = VelocityInfo(
        xy.converged & xx.converged & jnp.all(jnp.isfinite(velocity)),
        jnp.maximum(xy.marginal_error, xx.marginal_error),
        _centred.mean(a, neighbours),
        xy_given,
        xx_given,
    )
    return velocity, info


def _images(
    x: CloudN,
    y: CloudM,
    epsilon: Scalar,
    a: VectorN,
    b: VectorM,
    g_init: VectorM | None,
    limits: Limits,
) -> tuple[CloudN, VectorN, SinkhornOutput, SinkhornOutput]:
    """Where a solve sends x, seen from the mean of x; the solve as it was made, and as given.

    One cost matrix serves the solve and the projection.
    """
    moved = _centred.centred(x, y, a, b)
    problem = Problem(moved.x, moved.y, epsilon, a, b)
    limits = limits._replace(storage=_fused.storage_for(limits.storage, x, y))
    cost = _kernel.make_cost(moved.x, moved.y, limits.storage)
    init = None if g_init is None else g_init - moved.of_y
    out = solve(problem, cost, init, limits)
    images, neighbours = project(cost, out.g, epsilon, b)
    return images - moved.shift[None], neighbours, out, as_given(out, moved, problem)


def _self_images(
    x: CloudN, epsilon: Scalar, a: VectorN, f_init: VectorN | None, limits: Limits
) -> tuple[CloudN, SinkhornOutput]:
    """The same for a cloud and itself, which the identity plan leaves where it is."""
    x = _centred.centred(x, x, a, a).x
    limits = limits._replace(storage=_fused.storage_for(limits.storage, x, x))
    cost = _kernel.make_cost(x, x, limits.storage)
    out = solve_self(Problem(x, x, epsilon, a, a), cost, f_init, limits)
    return _self_project(cost, out.f, epsilon, a), out


@jax.jit
def _self_project(cost: _cost.Cost, f: VectorN, epsilon: Scalar, a: VectorN) -> CloudN:
    diagonal = a * jnp.exp(2 * f / epsilon)  # of the plan's rows, which sum to 1
    moved = ~jnp.all(diagonal > 1 - OFF_DIAGONAL)
    return _loops.only_if(moved, _own_images, cost.x, cost, f, epsilon, a)


def _own_images(cost: _cost.Cost, f: VectorN, epsilon: Scalar, a: VectorN) -> CloudN:
    return project(cost, f, epsilon, a)[0]


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
    other = _as_self_cloud(self_cloud, x)
    count = iterations_to_unroll(gradient, limits)
    limits = check_limits(limits, x.dtype)
    return _divergence(x, y, epsilon, a, b, other, *limits, gradient, count)


@functools.partial(jax.jit, static_argnames=STATIC)
def _divergence(
    x: CloudN,
    y: CloudM,
    epsilon: Scalar,
    a: VectorN | None,
    b: VectorM | None,
    other: Float[Array, "k d"] | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: Storage,
    gradient: str,
    count: int,
) -> tuple[Scalar, Bool[Array, ""]]:
    a, b, epsilon = (
        _inputs.distribution(a, x),
        _inputs.distribution(b, y),
        _inputs.positive(epsilon),
    )
    moved = _centred.centred(x, y, a, b)

    def solved(x: Array, y: Array, a: Array, b: Array, same: bool = False) -> SinkhornOutput:
        problem = Problem(x, y, epsilon, a, b)
        limits = Limits(threshold, max_iterations, _fused.storage_for(storage, x, y))
        if count:
            return unroll(problem, limits, count, same=same)
        cost = _kernel.make_cost(x, y, limits.storage)
        return (solve_self if same else solve)(problem, cost, None, limits, gradient)

    xy = solved(moved.x, moved.y, a, b)
    yy = solved(moved.y, moved.y, b, b, same=True)
    if other is None:
        xx, constant = solved(moved.x, moved.x, a, a, same=True), moved.constant
    else:
        uniform = _inputs.distribution(None, other)
        pair = _centred.centred(x, other, a, uniform)
        xx = solved(pair.x, pair.y, a, uniform)
        constant = moved.constant - 0.5 * pair.constant
    value = xy.value - 0.5 * (xx.value + yy.value) + constant
    converged = xy.converged & xx.converged & yy.converged
    return value, converged & jnp.isfinite(value)
