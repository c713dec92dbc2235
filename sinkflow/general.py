"""Other ground costs and marginals that may be missed at a price, solved by ott-jax.

The same calls as :func:`sinkflow.sinkhorn` and :func:`sinkflow.sinkhorn_divergence`, slower. The
solver is OTT's; potentials, certificate, value and gradient are ours, so that both agree where
both apply.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sinkflow import costs
from sinkflow.certificate import SinkhornOutput, describe
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
    threshold: ScalarLike = 1e-3,
    max_iterations: int = 5_000,
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
      threshold: stop when both L1 marginal errors [mass] are below it. With soft marginals
        they are measured against those that the potentials ask for, a exp(-f / rho).
      max_iterations: cap on iterations. Static.

    Returns:
      A :class:`sinkflow.SinkhornOutput`; ``value`` is differentiable in clouds, weights and
      epsilon at fixed potentials (envelope theorem). Its ``entropy`` supposes hard marginals.

    Raises:
      ValueError: as :func:`sinkflow.sinkhorn`; also a marginal_penalty <= 0, and with soft
        marginals an epsilon or marginal_penalty that is traced.

    Source:
      Chizat et al. 2018, arXiv:1607.05816; Sejourne et al. 2019, arXiv:1910.12958. Solver:
      ``ott.solvers.linear.solve``.
    """
    costs.check_clouds(x, y)
    costs.check_positive("epsilon", epsilon)
    costs.check_positive("threshold", threshold)
    x = jnp.asarray(x)
    if marginal_penalty is not None:
        costs.check_positive("marginal_penalty", marginal_penalty)
    weights = []
    for name, given, cloud in (("a", a, x), ("b", b, y)):
        count = cloud.shape[0]
        if given is None:
            given = jnp.full(count, 1 / count, x.dtype)
        elif marginal_penalty is None:
            costs.check_weights(name, given, count)
        weights.append(jnp.asarray(given, x.dtype))
    penalty = None if marginal_penalty is None else jnp.asarray(marginal_penalty, x.dtype)
    problem = (x, jnp.asarray(y, x.dtype), jnp.asarray(epsilon, x.dtype), *weights)
    fixed = jax.lax.stop_gradient((*problem, penalty))
    damping = 1.0 if penalty is None else _damping(fixed[2], fixed[5])
    f, g, iterations = _potentials(*fixed[:5], threshold, max_iterations, damping, cost_fn)
    return _output(f, g, iterations, *problem, penalty, threshold, cost_fn)


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
    with jax.numpy_rank_promotion("allow"):  # OTT relies on it
        out = linear.solve(
            geometry.Geometry(cost_matrix=absorbed, epsilon=epsilon),
            a=a,
            b=b,
            tau_a=damping,
            tau_b=damping,
            threshold=0.1 * threshold,  # of its own norms, which are not our marginal errors
            max_iterations=max_iterations,
        )

    def update(cost, g, weights):
        return -damping * epsilon * jax.nn.logsumexp((g[None, :] - cost) / epsilon, 1, weights)

    g = jnp.where(b > 0, out.g, 0.0)  # points of no mass get theirs from the update
    f = update(cost, g, b[None, :])
    return f, update(cost.T, f, a[None, :]), jnp.asarray(out.n_iters)


@functools.partial(jax.jit, static_argnames="cost_fn")
def _output(f, g, iterations, x, y, epsilon, a, b, penalty, threshold, cost_fn):
    """Certificate and value of potentials; the value's derivatives are at fixed potentials."""
    cost = _matrix(cost_fn, x, y)
    density = jnp.exp((f[:, None] + g[None, :] - cost) / epsilon)
    row_sums = jnp.sum(density * b[None, :], axis=1)
    column_sums = jnp.sum(density * a[:, None], axis=0)
    if penalty is None:
        gains = jnp.sum(a * f) + jnp.sum(b * g)
        wanted = jnp.ones_like(f), jnp.ones_like(g)
    else:
        wanted = jnp.exp(-f / penalty), jnp.exp(-g / penalty)
        gains = penalty * (jnp.sum(a * (1 - wanted[0])) + jnp.sum(b * (1 - wanted[1])))
    value = gains - epsilon * (jnp.sum(a * row_sums) - jnp.sum(a) * jnp.sum(b))
    errors = (
        jnp.sum(a * jnp.abs(row_sums - wanted[0])),
        jnp.sum(b * jnp.abs(column_sums - wanted[1])),
    )
    error = jnp.maximum(*errors)
    density, masses = jax.lax.stop_gradient((density, density * b[None, :]))
    qualities = describe(
        jnp.sum(masses, axis=1),
        jnp.sum(jax.scipy.special.xlogy(masses, density), axis=1),
        jnp.sum(masses**2, axis=1),
        jnp.diagonal(density),
        *jax.lax.stop_gradient((a, b)),
    )
    return SinkhornOutput(f, g, value, error, iterations, error <= threshold, *qualities)
