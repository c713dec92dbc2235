"""Log-domain Sinkhorn scaling for entropic optimal transport, with a certificate."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow import costs
from sinkflow.types import Array, Bool, Float, Int, Scalar, ScalarLike

ROUND = 5  # iterations between two exponentials of the cost matrix and two checks
ANNEALING = 0.25  # factor from one epsilon to the next on the way down to the wanted one
MAX_RELAXATION = 1.97  # over-relaxation stays below 2, where it would stop contracting
SELF_RELAXATION = 2 / 3  # centres the spectrum 1 - w(1 + p), p in [0, 1], of the (x, x) update
STALE = 0.5  # marginal error above which potentials are no use as a warm start
# Kernel times both scalings stays finite in float32, also where there is no mass. A potential
# that must move further than 23 epsilon does so over several rounds.
MAX_EXPONENT = 40.0
MAX_SCALING = 1e10


class SinkhornOutput(NamedTuple):
    """Dual potentials of one solve and what certifies them.

    ``f`` [n] and ``g`` [m] are in cost units [length^2], defined up to one shared
    constant; the plan is a_i b_j exp((f_i + g_j - C_ij) / epsilon). ``value`` is the
    regularised cost W_epsilon [length^2]. ``marginal_error`` is the larger of the two L1
    errors of that plan's marginals [mass, total 1], measured on the returned potentials.
    """

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    value: Scalar
    marginal_error: Scalar
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


class _Scaling(NamedTuple):
    """What one round hands to the next; epsilon is the annealed one."""

    f: Array
    g: Array
    epsilon: Array
    relaxation: Array
    mass: Array
    error: Array
    num_iterations: Array


def sinkhorn(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    g_init: Float[Array, "m"] | None = None,
    threshold: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 5_000,
) -> SinkhornOutput:
    r"""Entropic optimal transport between two weighted clouds.

    Solves, for :math:`C_{ij} = \tfrac12\|x_i - y_j\|^2`,

    .. math:: W_\varepsilon = \min_{\pi 1 = a,\ \pi^\top 1 = b}
              \langle C, \pi\rangle + \varepsilon\,\mathrm{KL}(\pi \,\|\, a \otimes b)

    by the alternating updates :math:`f_i \leftarrow f_i - \omega\varepsilon\log s_i`,
    :math:`s_i = \sum_j b_j e^{(f_i + g_j - C_ij)/\varepsilon}`, and the same for g.
    Epsilon is annealed from a bound on the largest cost; at its final value the relaxation
    :math:`\omega` is set from the measured decay of the error.

    Args:
      x: source particles [length].
      y: target particles [length].
      epsilon: entropic regularisation [length^2]; GeomLoss's blur is its root, OTT's
        epsilon (no factor one half in its cost) is twice ours.
      a: source weights, sum 1; default uniform. Zeros are allowed.
      b: target weights, likewise.
      g_init: potential of a nearby problem. It skips the annealing unless it turns
        out to be useless.
      threshold: stop when both L1 marginal errors [mass, total 1] are below it.
      max_iterations: cap on iterations (one iteration updates f and g), rounded up to
        a multiple of 5; the annealing, 5 iterations a factor of 4, is always completed.

    Returns:
      A :class:`SinkhornOutput`.

    Raises:
      ValueError: wrong shapes; outside a trace also epsilon or threshold <= 0 and weights
        that are negative, not finite or do not sum to 1.

    Numerics:
      Nothing is raised on device: a solve that ran out of iterations or met NaN has
      ``converged=False``. Jitted; new values of any argument do not recompile. Not
      reverse-differentiable. Runs in the dtype of ``x``.

    Source:
      Cuturi 2013, arXiv:1306.0895; absorption of the potentials into the kernel: Schmitzer
      2019, arXiv:1610.06519; over-relaxation: Thibault et al. 2017, arXiv:1711.01851.

    Example:
      >>> import jax.numpy as jnp
      >>> out = sinkhorn(jnp.zeros((2, 1)), jnp.ones((3, 1)), 0.1)
      >>> bool(out.converged), round(float(out.value), 3)
      (True, 0.5)
    """
    x, y, a, b = check_problem(x, y, epsilon, a, b)
    check_positive("threshold", threshold)
    if g_init is not None and jnp.shape(g_init) != b.shape:
        raise ValueError(f"g_init has shape {jnp.shape(g_init)}; y needs {b.shape}")
    return _sinkhorn(x, y, epsilon, a, b, g_init, threshold, max_iterations)


def sinkhorn_self(
    x: Float[Array, "n d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    f_init: Float[Array, "n"] | None = None,
    threshold: ScalarLike = 1e-3,
    max_iterations: ScalarLike = 5_000,
) -> SinkhornOutput:
    r"""Entropic optimal transport of a cloud to itself, with its one potential.

    By symmetry g = f, and the damped update :math:`f \leftarrow f - \tfrac23\varepsilon\log s`
    contracts at every epsilon: the kernel is positive semi-definite, so the linearised
    update has its spectrum in [-1/3, 1/3]. No annealing is needed.

    Arguments, errors and numerics are those of :func:`sinkhorn`; ``f_init`` is the
    potential of a nearby problem.

    Source:
      Feydy et al. 2019, arXiv:1810.08278, sec. 3.1 (damped symmetric update); the
      factor 2/3 is ours.
    """
    x, _, a, _ = check_problem(x, x, epsilon, a, a)
    check_positive("threshold", threshold)
    if f_init is not None and jnp.shape(f_init) != a.shape:
        raise ValueError(f"f_init has shape {jnp.shape(f_init)}; x needs {a.shape}")
    return _sinkhorn_self(x, epsilon, a, f_init, threshold, max_iterations)


@jax.jit
def _sinkhorn(x, y, epsilon, a, b, g_init, threshold, max_iterations) -> SinkhornOutput:
    cost = costs.squared_euclidean(x, y)
    epsilon = _positive(jnp.asarray(epsilon, cost.dtype))
    largest = _cost_bound(x, y)
    finite = jnp.isfinite(largest)
    start = jnp.where(finite, jnp.maximum(largest, epsilon), epsilon)
    # Clouds that are not finite get NaN potentials, and the first round is then the last.
    f, g = jnp.where(finite, jnp.zeros_like(a), jnp.nan), jnp.zeros_like(b)
    if g_init is not None:
        g_init = jnp.asarray(g_init, cost.dtype)
        f_init = softmin(cost - g_init[None, :], epsilon, b)
        useful = _is_useful(cost, f_init, g_init, epsilon, a, b)
        f, g = jnp.where(useful, f_init, f), jnp.where(useful, g_init, g)
        start = jnp.where(useful, epsilon, start)

    def scale(state):
        relaxation = jnp.where(state.epsilon > epsilon, 1.0, state.relaxation)
        kernel = _kernel(cost, state.f, state.g, state.epsilon)

        def iteration(_, scalings):
            u, v, _ = scalings
            u, _ = _rescale(u, _matvec(kernel, b * v), relaxation)
            return u, *_rescale(v, _matvec(a * u, kernel), relaxation)

        ones = jnp.ones_like(state.f), jnp.ones_like(state.g), jnp.ones_like(state.g)
        u, v, column_sums = jax.lax.fori_loop(0, ROUND, iteration, ones)
        row_sums = u * _matvec(kernel, b * v)
        column_error = jnp.sum(b * jnp.abs(column_sums - 1))
        error = jnp.maximum(jnp.sum(a * jnp.abs(row_sums - 1)), column_error)
        f, g = state.f + state.epsilon * jnp.log(u), state.g + state.epsilon * jnp.log(v)
        return f, g, relaxation, jnp.sum(a * row_sums), error

    return _iterate(scale, f, g, start, epsilon, a, b, threshold, max_iterations)


@jax.jit
def _sinkhorn_self(x, epsilon, a, f_init, threshold, max_iterations) -> SinkhornOutput:
    cost = costs.squared_euclidean(x, x)
    epsilon = _positive(jnp.asarray(epsilon, cost.dtype))
    f = jnp.zeros_like(a)
    if f_init is not None:
        f_init = jnp.asarray(f_init, cost.dtype)
        f = jnp.where(_is_useful(cost, f_init, f_init, epsilon, a, a), f_init, f)

    def scale(state):
        kernel = _kernel(cost, state.f, state.f, epsilon)

        def iteration(_, u):
            return _rescale(u, _matvec(kernel, a * u), SELF_RELAXATION)[0]

        u = jax.lax.fori_loop(0, ROUND, iteration, jnp.ones_like(state.f))
        row_sums = u * _matvec(kernel, a * u)
        f = state.f + epsilon * jnp.log(u)
        error = jnp.sum(a * jnp.abs(row_sums - 1))
        return f, f, jnp.ones_like(epsilon), jnp.sum(a * row_sums), error

    return _iterate(scale, f, f, epsilon, epsilon, a, a, threshold, max_iterations)


def _iterate(
    scale: Callable, f, g, start, epsilon, a, b, threshold, max_iterations
) -> SinkhornOutput:
    """Repeats ``scale`` while epsilon falls from ``start``, then until the error is met."""

    def advance(state):
        f, g, relaxation, mass, error = scale(state)
        final = ~(state.epsilon > epsilon)  # also for NaN, which ends the solve
        error = jnp.where(final, error, jnp.inf)
        relaxation = _relaxation(relaxation, error, state.error)
        lowered = jnp.maximum(state.epsilon * ANNEALING, epsilon)
        iterations = state.num_iterations + ROUND
        return _Scaling(f, g, lowered, relaxation, mass, error, iterations)

    one, infinite = jnp.ones_like(epsilon), jnp.full_like(epsilon, jnp.inf)
    initial = _Scaling(f, g, start, one, one, infinite, jnp.asarray(0))

    def unfinished(state):
        # Annealing is always completed: before its end there is no error to certify.
        annealing = jnp.isinf(state.error)
        return (state.error > threshold) & (annealing | (state.num_iterations < max_iterations))

    state = jax.lax.while_loop(unfinished, advance, initial)
    # Minus epsilon (mass - 1): the dual objective, second order in the marginal error.
    value = jnp.sum(a * state.f) + jnp.sum(b * state.g) - epsilon * (state.mass - 1)
    converged = state.error <= threshold
    return SinkhornOutput(state.f, state.g, value, state.error, state.num_iterations, converged)


def _relaxation(relaxation, error, previous):
    """Over-relaxation from the decay of the error over one round.

    An iteration with relaxation w that contracts by r comes from a plain one that contracts
    by rho = (r + w - 1)^2 / (r w^2), whose best relaxation is 2 / (1 + sqrt(1 - rho)) (Young's
    relation for successive over-relaxation). A growing error keeps the relaxation: the optimal
    one is not monotone. Far from the solution, or with nothing to compare, it is 1.
    """
    rate = jnp.clip((error / previous) ** (1 / ROUND), relaxation - 1, 1)
    plain = (rate + relaxation - 1) ** 2 / (rate * relaxation**2)
    best = jnp.minimum(2 / (1 + jnp.sqrt(jnp.maximum(1 - plain, 0))), MAX_RELAXATION)
    best = jnp.where(error < previous, best, relaxation)
    return jnp.where(jnp.isfinite(previous) & (error < STALE), best, 1.0)


def _is_useful(cost, f, g, epsilon, a, b):
    """Whether potentials nearly solve the problem. Others are dropped, not only annealed:
    far beyond the costs they underflow the kernel, and the solve never recovers."""
    error = jnp.sum(b * jnp.abs(_matvec(a, _kernel(cost, f, g, epsilon)) - 1))
    return error < STALE


def softmin(
    values: Float[Array, "n m"], epsilon: ScalarLike, weights: Float[Array, "m"]
) -> Float[Array, "n"]:
    """Row-wise -epsilon log sum_j w_j exp(-values_ij / epsilon) [units of values]."""
    epsilon = jnp.asarray(epsilon, values.dtype)
    return -epsilon * jax.nn.logsumexp(-values / epsilon, axis=1, b=weights[None, :])


def _positive(epsilon):
    """NaN for a wrong traced epsilon, which no check at the call sees: it ends the solve."""
    return jnp.where((epsilon > 0) & jnp.isfinite(epsilon), epsilon, jnp.nan)


def _cost_bound(x, y):
    """At least the largest cost, without a pass over the cost matrix: where annealing starts."""
    centre = jnp.mean(y, axis=0, keepdims=True)
    radii = [jnp.sqrt(jnp.max(jnp.sum((cloud - centre) ** 2, axis=1))) for cloud in (x, y)]
    return 0.5 * (radii[0] + radii[1]) ** 2


def _kernel(cost, f, g, epsilon):
    """Plan density exp((f_i + g_j - C_ij) / epsilon), finite also where nothing has mass."""
    exponent = (f[:, None] + g[None, :] - cost) * (1 / epsilon)
    return jnp.exp(jnp.minimum(exponent, MAX_EXPONENT))


def _matvec(left, right):
    """Kernel times vector, or vector times kernel, in full precision on every device."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _rescale(scaling, products, relaxation):
    """One relaxed update of a scaling, and the marginal density it leaves.

    Bounded, so that an underflowing sum costs iterations and not NaN.
    """
    sums = jnp.clip(scaling * products, 1e-30, 1e30)
    scaling = jnp.clip(scaling * sums**-relaxation, 1 / MAX_SCALING, MAX_SCALING)
    return scaling, scaling * products


def check_problem(x, y, epsilon, a, b):
    """Arrays of one floating dtype and default weights, or ValueError (see :func:`sinkhorn`)."""
    x = jnp.asarray(x)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    y = jnp.asarray(y, x.dtype)
    costs.check_clouds(x, y)
    check_positive("epsilon", epsilon)
    return x, y, _weights("a", a, x), _weights("b", b, y)


def check_positive(name: str, value: ScalarLike) -> None:
    """Raises ValueError unless ``value`` is traced or positive and finite."""
    if isinstance(value, jax.core.Tracer):
        return
    if not np.all((np.asarray(value) > 0) & np.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be positive and finite")


def _weights(name, weights, cloud):
    if weights is None:
        return jnp.full(cloud.shape[0], 1 / cloud.shape[0], cloud.dtype)
    if jnp.shape(weights) != cloud.shape[:1]:
        raise ValueError(f"{name} has shape {jnp.shape(weights)}; its cloud has {cloud.shape}")
    if not isinstance(weights, jax.core.Tracer):
        values = np.asarray(weights, np.float64)
        if not (np.all(np.isfinite(values)) and np.all(values >= 0)):
            worst = values[~(values >= 0) | ~np.isfinite(values)][0]
            raise ValueError(f"{name} contains {worst}; weights are finite and non-negative")
        if abs(values.sum() - 1) > 1e-3:
            raise ValueError(f"{name} sums to {values.sum()}; weights sum to 1")
    return jnp.asarray(weights, cloud.dtype)
