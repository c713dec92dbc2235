"""Other ground costs and marginals that may be missed at a price, solved by ott-jax.

The same calls as :func:`sinkflow.sinkhorn` and :func:`sinkflow.sinkhorn_divergence`, slower. The
solver is OTT's; potentials, certificate, value and gradient are ours, so that both agree where
both apply. OTT does not run under :func:`jax.shard_map` with its defaults.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.ot import _cost, _inputs, _kernel, _matrix_gradients, _precision
from sinkflow.ot._certificate import describe, doubted, marginal_error
from sinkflow.ot._inputs import check_limits
from sinkflow.ot._matrix_gradients import MatrixProblem
from sinkflow.ot._shapes import CloudM, CloudN, MatrixNM, Pair, VectorM, VectorN
from sinkflow.ot.limits import Limits
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Bool, Float, Int, Scalar, ScalarLike

__all__ = ["GroundCost", "euclidean", "half_squares", "sinkhorn", "sinkhorn_divergence"]

GroundCost = Callable[[Array, Array], Array]
"""A ground cost ``(x_i [d], y_j [d]) -> scalar``."""

Problem = tuple[CloudN, CloudM, Scalar, VectorN, VectorM, Scalar | None]


def half_squares(x: Float[Array, "d"], y: Float[Array, "d"]) -> Scalar:
    r"""The library's own ground cost between two points, :math:`\tfrac12\|x-y\|^2` [length^2]."""
    return 0.5 * jnp.sum((x - y) ** 2)


def euclidean(x: Float[Array, "d"], y: Float[Array, "d"]) -> Scalar:
    r"""The distance :math:`\|x-y\|` [length], with derivative 0 where the points meet."""
    squares = jnp.sum((x - y) ** 2)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def sinkhorn(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    cost_fn: GroundCost = half_squares,
    marginal_penalty: ScalarLike | None = None,
    limits: Limits = Limits(),
) -> SinkhornOutput:
    r"""Entropic transport with any ground cost and, if wanted, soft marginals.

    .. math:: \min_{\pi \ge 0} \langle C, \pi\rangle + \varepsilon\,\mathrm{KL}(\pi\|a\otimes b)
              + \rho\,\mathrm{KL}(\pi 1\|a) + \rho\,\mathrm{KL}(\pi^\top 1\|b)

    Args:
      x: source particles [length].
      y: target particles [length].
      epsilon: entropic regularisation [units of the cost].
      a: source weights; default uniform. Sum 1, unless marginals are soft.
      b: target weights, likewise.
      cost_fn: ``(x_i [d], y_j [d]) -> scalar``; keep one function, each new one compiles.
      marginal_penalty: rho [units of the cost]; None for hard marginals (balanced). GeomLoss's
        reach is its root.
      limits: when to stop, see :class:`sinkflow.Limits`. With soft marginals the errors are
        measured against those that the potentials ask for, a exp(-f / rho). The cap is
        static, and matrices are stored in full.

    Returns:
      A :class:`sinkflow.SinkhornOutput`; ``value`` is differentiable in clouds, weights and
      epsilon at fixed potentials (envelope theorem), a second time with moving ones; ``f`` and
      ``g`` implicitly. Its ``entropy`` supposes hard marginals.

    Raises:
      ValueError: as :func:`sinkflow.sinkhorn`; also a marginal_penalty <= 0, and with soft
        marginals an epsilon or marginal_penalty that is traced.

    Source:
      Chizat et al. 2018, arXiv:1607.05816; Sejourne et al. 2019, arXiv:1910.12958. Solver:
      ``ott.solvers.linear.solve``.
    """
    x, y = _inputs.as_clouds(x, y)
    epsilon = _inputs.as_scalar("epsilon", epsilon, x.dtype)
    max_iterations = _static_cap(limits)
    threshold, *_ = check_limits(limits, x.dtype)
    if marginal_penalty is not None:
        marginal_penalty = _inputs.as_scalar("marginal_penalty", marginal_penalty, x.dtype)
    a, b = (
        _weights(name, given, cloud, soft=marginal_penalty is not None)
        for name, given, cloud in (("a", a, x), ("b", b, y))
    )
    problem = (x, y, _inputs.positive(epsilon), a, b, marginal_penalty)
    fixed = jax.lax.stop_gradient(problem)
    damping = 1.0 if fixed[5] is None else _damping(fixed[2], fixed[5])
    f, g, iterations = _potentials(fixed, threshold, max_iterations, damping, cost_fn)
    out = _certify((f, g), iterations, fixed, threshold, cost_fn)
    value, f, g = _differentiable(out.value, (f, g), problem, cost_fn)
    return out._replace(value=value, f=f, g=g)


def _static_cap(limits: Limits) -> int:
    """The cap as an integer that ott-jax can be compiled with."""
    if limits.storage not in ("auto", "full"):
        raise ValueError(f"storage is {limits.storage!r}; this solver stores its matrices in full")
    if not isinstance(limits.max_iterations, int | np.integer):
        raise ValueError(f"max_iterations is {limits.max_iterations}; it is a Python integer here")
    return int(limits.max_iterations)


def _weights(name: str, weights: VectorN | None, cloud: CloudN, *, soft: bool) -> VectorN:
    """Weights of a cloud: of sum 1 or, with soft marginals, of any sum."""
    if weights is None or not soft:
        return _inputs.distribution(_inputs.as_weights(name, weights, cloud), cloud)
    _inputs.check_weights(name, weights, cloud.shape[0], any_sum=True)
    weights = _inputs.as_float(name, weights).astype(cloud.dtype)
    return _inputs.nan_unless(jnp.all(weights >= 0) & jnp.all(jnp.isfinite(weights)), weights)


def sinkhorn_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    **options: Any,
) -> tuple[Scalar, Bool[Array, ""]]:
    r"""Sinkhorn divergence for the problems of :func:`sinkhorn`, whose ``options`` it takes.

    .. math:: S = W(x, y) - \tfrac12 W(x, x) - \tfrac12 W(y, y)
              + \tfrac\varepsilon2 \Big(\sum a - \sum b\Big)^2

    Returns:
      The divergence [units of the cost] and whether all three solves converged.

    Source:
      Sejourne et al. 2019, arXiv:1910.12958, definition 5.
    """
    xy = sinkhorn(x, y, epsilon, a=a, b=b, **options)
    xx = sinkhorn(x, x, epsilon, a=a, b=a, **options)
    yy = sinkhorn(y, y, epsilon, a=b, b=b, **options)
    value = xy.value - 0.5 * (xx.value + yy.value)
    if a is not None or b is not None:
        masses = [1.0 if weights is None else jnp.sum(weights) for weights in (a, b)]
        value += 0.5 * epsilon * (masses[0] - masses[1]) ** 2
    return value, xy.converged & xx.converged & yy.converged


def _damping(epsilon: Scalar, penalty: Scalar) -> float:
    """rho / (rho + epsilon), which OTT compiles in."""
    if isinstance(epsilon, jax.core.Tracer) or isinstance(penalty, jax.core.Tracer):
        raise ValueError(
            "epsilon or marginal_penalty is traced; ott-jax wants numbers for soft marginals: "
            "call outside jit and vmap"
        )
    return float(penalty / (penalty + epsilon))


def _matrix(cost_fn: GroundCost, x: CloudN, y: CloudM) -> MatrixNM:
    return jax.vmap(lambda point: jax.vmap(lambda other: cost_fn(point, other))(y))(x)


@functools.partial(jax.jit, static_argnames=("max_iterations", "damping", "cost_fn"))
def _potentials(
    problem: Problem, threshold: Scalar, max_iterations: int, damping: float, cost_fn: GroundCost
) -> tuple[Array, Array, Int[Array, ""]]:
    """OTT's potentials, brought up to date by one iteration more.

    OTT penalises -epsilon H(pi); with the weights' logarithms inside the cost that is
    epsilon KL(pi | a x b), and its potentials are ours.
    """
    from ott.geometry import geometry  # takes seconds to import
    from ott.solvers import linear

    x, y, epsilon, a, b, _ = problem
    cost = _matrix(cost_fn, x, y)
    log_a, log_b = (jnp.log(jnp.maximum(w, jnp.finfo(w.dtype).tiny)) for w in (a, b))
    absorbed = cost - epsilon * (log_a[:, None] + log_b[None, :])
    # OTT relies on both.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        out = linear.solve(
            geometry.Geometry(cost_matrix=absorbed, epsilon=epsilon),
            a=a,
            b=b,
            tau_a=damping,
            tau_b=damping,
            threshold=0.1 * threshold,  # of its own norms, which are not our marginal errors
            max_iterations=max_iterations,
        )

    g = jnp.where(b > 0, out.g, 0.0)  # points of no mass get theirs from the update
    kernel = _cost.MatrixCost(cost)
    f = damping * _kernel.softmin(kernel, g, epsilon, b)
    g = damping * _kernel.softmin(kernel.transposed, f, epsilon, a)
    return f, g, jnp.asarray(out.n_iters)


@functools.partial(jax.jit, static_argnames="cost_fn")
def _differentiable(
    value: Scalar, pair: Pair, problem: Problem, cost_fn: GroundCost
) -> tuple[Scalar, Array, Array]:
    """Value and potentials with their derivatives."""
    x, y, epsilon, a, b, penalty = problem
    in_costs = MatrixProblem(_matrix(cost_fn, x, y), epsilon, a, b, penalty)
    f, g = _matrix_gradients.moving(pair, in_costs)
    through = jax.lax.stop_gradient((f, g))
    return _matrix_gradients.dual_value(value, *through, in_costs, "envelope"), f, g


@functools.partial(jax.jit, static_argnames="cost_fn")
def _certify(
    pair: Pair, iterations: Int[Array, ""], problem: Problem, threshold: Scalar, cost_fn: GroundCost
) -> SinkhornOutput:
    """Certificate and value of potentials."""
    f, g = pair
    x, y, epsilon, a, b, penalty = problem
    cost = _matrix(cost_fn, x, y)
    exponent = _kernel.log_density(cost, f[:, None], g[None, :], epsilon)
    density = jnp.exp(exponent)
    row_sums, column_sums = _precision.matvec(density, b), _precision.matvec(a, density)
    wanted = (1.0, 1.0) if penalty is None else (jnp.exp(-f / penalty), jnp.exp(-g / penalty))
    error = marginal_error(a, row_sums - wanted[0], b, column_sums - wanted[1])
    value = _matrix_gradients.objective(f, g, MatrixProblem(cost, epsilon, a, b, penalty))
    masses = density * b[None, :]
    qualities = describe(
        row_sums,
        jnp.sum(masses * exponent, axis=1),
        jnp.sum(masses**2, axis=1),
        jnp.diagonal(density),
        a,
        b,
    )
    if penalty is None:  # as in the core: where epsilon exceeds the costs
        mean = _under(a, jnp.where(b > 0, cost, 0), b)
        gap = _under(a, jnp.expm1(exponent) - exponent, b)
        value = jnp.where(epsilon > mean, mean - epsilon * gap, value)
    out = SinkhornOutput(f, g, value, error, iterations, error <= threshold, *qualities)
    return doubted(out, epsilon, a, b, 0.0)


def _under(a: VectorN, matrix: MatrixNM, b: VectorM) -> Scalar:
    """The mean of a matrix under a x b."""
    return jnp.sum(a * _precision.matvec(matrix, b))
