"""Other ground costs and marginals that may be missed at a price, solved by ott-jax.

The same calls as :func:`sinkflow.sinkhorn` and :func:`sinkflow.sinkhorn_divergence`, slower. The
solver is OTT's; potentials, certificate, value and gradient are ours, so that both agree where
both apply. OTT does not run under :func:`jax.shard_map` with its defaults.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow import gradients, inputs, kernel
from sinkflow.certificate import SinkhornOutput, describe, doubted, marginal_error
from sinkflow.limits import Limits, check_limits
from sinkflow.types import Array, Bool, Float, Scalar, ScalarLike

GroundCost = Callable[[Array, Array], Array]


def half_squares(x: Float[Array, "d"], y: Float[Array, "d"]) -> Scalar:
    """The library's own ground cost between two points, |x - y|^2 / 2 [length^2]."""
    return 0.5 * jnp.sum((x - y) ** 2)


def euclidean(x: Float[Array, "d"], y: Float[Array, "d"]) -> Scalar:
    """The distance |x - y| [length], with derivative 0 where the points meet."""
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
    x, y = inputs.as_clouds(x, y)
    epsilon = inputs.as_scalar("epsilon", epsilon, x.dtype)
    max_iterations = _static_cap(limits)
    threshold, *_ = check_limits(limits, x.dtype)
    if marginal_penalty is not None:
        marginal_penalty = inputs.as_scalar("marginal_penalty", marginal_penalty, x.dtype)
    weights = [
        _weights(name, given, cloud, soft=marginal_penalty is not None)
        for name, given, cloud in (("a", a, x), ("b", b, y))
    ]
    penalty = marginal_penalty
    problem = (x, y, inputs.positive(epsilon), *weights)
    fixed = jax.lax.stop_gradient((*problem, penalty))
    damping = 1.0 if penalty is None else _damping(fixed[2], fixed[5])
    f, g, iterations = _potentials(*fixed[:5], threshold, max_iterations, damping, cost_fn)
    out = _certify(f, g, iterations, *fixed, threshold, cost_fn)
    f, g = _moving((f, g), (*problem, penalty), cost_fn)
    through = jax.lax.stop_gradient((f, g))
    value = _value(out.value, *through, (*problem, penalty), cost_fn)
    return out._replace(value=value, f=f, g=g)


def _static_cap(limits: Limits) -> int:
    """The cap as an integer that ott-jax can be compiled with."""
    if limits.storage not in ("auto", "full"):
        raise ValueError(f"storage is {limits.storage!r}; this solver stores its matrices in full")
    if not isinstance(limits.max_iterations, int | np.integer):
        raise ValueError(f"max_iterations is {limits.max_iterations}; it is a Python integer here")
    return int(limits.max_iterations)


def _weights(name, weights, cloud, *, soft: bool):
    """Weights of a cloud: of sum 1 or, with soft marginals, of any sum."""
    if weights is None or not soft:
        return inputs.distribution(inputs.as_weights(name, weights, cloud), cloud)
    inputs.check_weights(name, weights, cloud.shape[0], any_sum=True)
    weights = inputs.as_float(name, weights).astype(cloud.dtype)
    return inputs.nan_unless(jnp.all(weights >= 0) & jnp.all(jnp.isfinite(weights)), weights)


def sinkhorn_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    **options,
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


def _damping(epsilon, penalty) -> float:
    """rho / (rho + epsilon), which OTT compiles in."""
    if isinstance(epsilon, jax.core.Tracer) or isinstance(penalty, jax.core.Tracer):
        raise ValueError(
            "epsilon or marginal_penalty is traced; ott-jax wants numbers for soft marginals: "
            "call outside jit and vmap"
        )
    return float(penalty / (penalty + epsilon))


def _matrix(cost_fn, x, y):
    return jax.vmap(lambda point: jax.vmap(lambda other: cost_fn(point, other))(y))(x)


@functools.partial(jax.jit, static_argnames=("max_iterations", "damping", "cost_fn"))
def _potentials(x, y, epsilon, a, b, threshold, max_iterations, damping, cost_fn):
    """OTT's potentials, brought up to date by one iteration more.

    OTT penalises -epsilon H(pi); with the weights' logarithms inside the cost that is
    epsilon KL(pi | a x b), and its potentials are ours.
    """
    from ott.geometry import geometry  # takes seconds to import
    from ott.solvers import linear

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
    f = _update(cost, g, epsilon, b, damping)
    return f, _update(cost.T, f, epsilon, a, damping), jnp.asarray(out.n_iters)


@functools.partial(jax.jit, static_argnames="cost_fn")
def _objective(f, g, problem, cost_fn):
    """The dual objective at (f, g)."""
    x, y, epsilon, a, b, penalty = problem
    exponent = _exponents(_matrix(cost_fn, x, y), f, g, epsilon)
    excess = jnp.sum(a * (jnp.exp(exponent) @ b)) - jnp.sum(a) * jnp.sum(b)
    if penalty is None:
        gains = jnp.sum(a * f) + jnp.sum(b * g)
    else:
        gains = -penalty * (
            jnp.sum(a * jnp.expm1(-f / penalty)) + jnp.sum(b * jnp.expm1(-g / penalty))
        )
    return gains - epsilon * excess


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _value(value, f, g, problem, cost_fn):
    """``value``, the dual objective, with its derivatives at fixed potentials (envelope theorem).

    The derivatives of these see the potentials move.
    """
    del f, g, problem, cost_fn
    return value


@_value.defjvp
def _value_jvp(cost_fn, primals, tangents):
    value, f, g, problem = primals
    f, g = _moving((f, g), problem, cost_fn)
    _, dot = jax.jvp(lambda problem: _objective(f, g, problem, cost_fn), (problem,), tangents[3:])
    return value, dot


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _moving(solution, problem, cost_fn):
    """Potentials with their implicit derivatives, as :func:`sinkflow.gradients.potentials`."""
    del problem, cost_fn
    return solution


@_moving.defjvp
def _moving_jvp(cost_fn, primals, tangents):
    solution, problem = primals
    f, g = _moving(solution, problem, cost_fn)

    def updates(problem):
        x, y, epsilon, a, b, penalty = problem
        cost = _matrix(cost_fn, x, y)
        kept = 1.0 if penalty is None else penalty / (penalty + epsilon)
        return _update(cost, g, epsilon, b, kept), _update(cost.T, f, epsilon, a, kept)

    _, (f_direct, g_direct) = jax.jvp(updates, (problem,), tangents[1:])
    x, y, epsilon, a, b, penalty = problem
    kept = 1.0 if penalty is None else penalty / (penalty + epsilon)
    density = jnp.exp(_exponents(_matrix(cost_fn, x, y), f, g, epsilon))
    rows, columns = density @ b, a @ density
    masses = b * columns

    def average_targets(w):
        return kept * (density @ (b * w)) / rows

    def average_sources(w):
        return kept * ((a * w) @ density) / columns

    constant = g_direct - average_sources(f_direct)
    # Balanced potentials are free of a constant, which the system does not determine.
    free = 1.0 if penalty is None else 0.0

    def matvec(w):
        mean = free * gradients.mass_mean(w, masses)
        return masses * (w + mean - average_sources(average_targets(w)))

    wanted = masses * (constant - free * gradients.mass_mean(constant, masses))
    g_dot = gradients.solve_symmetric(matvec, wanted, masses)
    g_dot = constant + average_sources(average_targets(g_dot))
    return (f, g), (f_direct - average_targets(g_dot), g_dot)


def _exponents(cost, f, g, epsilon):
    """(f + g - C) / epsilon, bounded: between points without mass it may be anything."""
    return jnp.minimum((f[:, None] + g[None, :] - cost) / epsilon, kernel.MAX_EXPONENT)


def _update(cost, g, epsilon, weights, kept):
    """The potential that the other one asks for."""
    return -kept * epsilon * jax.nn.logsumexp((g[None, :] - cost) / epsilon, 1, weights[None, :])


@functools.partial(jax.jit, static_argnames="cost_fn")
def _certify(f, g, iterations, x, y, epsilon, a, b, penalty, threshold, cost_fn):
    """Certificate and value of potentials."""
    cost = _matrix(cost_fn, x, y)
    exponent = _exponents(cost, f, g, epsilon)
    density = jnp.exp(exponent)
    row_sums, column_sums = density @ b, a @ density
    wanted = (1.0, 1.0) if penalty is None else (jnp.exp(-f / penalty), jnp.exp(-g / penalty))
    error = marginal_error(a, row_sums - wanted[0], b, column_sums - wanted[1])
    value = _objective(f, g, (x, y, epsilon, a, b, penalty), cost_fn)
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
        mean = a @ jnp.where(b > 0, cost, 0) @ b
        gap = a @ ((jnp.expm1(exponent) - exponent) @ b)
        value = jnp.where(epsilon > mean, mean - epsilon * gap, value)
    out = SinkhornOutput(f, g, value, error, iterations, error <= threshold, *qualities)
    return doubted(out, epsilon, a, b, 0.0)
