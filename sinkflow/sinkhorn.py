"""Log-domain Sinkhorn scaling for entropic optimal transport, with a certificate."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow import costs, gradients, inputs, kernel, loops
from sinkflow.certificate import SinkhornOutput, certify, doubted, rounding
from sinkflow.limits import Limits, check_limits
from sinkflow.types import Array, Float, ScalarLike

ROUND = 5  # iterations between two exponentials of the cost matrix and two looks at the error
ANNEALING_ROUND = 2  # iterations at each epsilon on the way down
ANNEALING = 0.25  # factor from one epsilon to the next on the way down to the wanted one
MAX_RELAXATION = 1.97  # over-relaxation stays below 2, where it would stop contracting
SELF_RELAXATION = 2 / 3  # centres the spectrum 1 - w(1 + p), p in [0, 1], of the (x, x) update
MARGIN = 0.9  # of a threshold: rounds stop there, for rounding adds to what they see
HALF_ROUNDING = 2.5e-4  # marginal error of a matching from rounding its density to float16
STALE = 0.5  # marginal error above which updates are not over-relaxed
WARM = 0.5  # marginal error above which a warm start costs more than it saves
# Density times both scalings stays finite in float32, also where there is no mass. A potential
# that must move further than 23 epsilon does so over several rounds.
MAX_SCALING = 1e10


class _Scaling(NamedTuple):
    """What one round hands to the next; epsilon is the annealed one.

    A round ends on an update of f. The column sums that it leaves tell the error, and are
    what the next round updates g with: so no product is spent on the error alone.
    """

    f: Array
    g: Array
    column_sums: Array
    epsilon: Array
    relaxation: Array
    error: Array
    trusted: Array
    num_iterations: Array

    @classmethod
    def at(cls, f, g, epsilon, error):
        """Where a solve starts; with an infinite error it has to iterate at least once."""
        one, zero = jnp.ones_like(epsilon), jnp.zeros((), int)
        error = jnp.asarray(error, f.dtype)
        return cls(f, g, jnp.ones_like(g), epsilon, one, error, jnp.ones((), bool), zero)


class _Fixed(NamedTuple):
    """What a solve does not change; epsilon is the final one, goal the error to stop at."""

    cost: kernel.Cost
    epsilon: Array
    a: Array
    b: Array
    goal: Array
    max_iterations: Array


def sinkhorn(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    g_init: Float[Array, "m"] | None = None,
    limits: Limits = Limits(),
    gradient: str = "envelope",
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
      a: source weights; default uniform. A sum within 1e-3 of 1 is divided out. Zeros are
        allowed: such points decide nothing, wherever they are, and their potentials are those
        of points that join the solved problem (at most 1e12 from the mean in each coordinate).
        One that is NaN makes the solve fail.
      b: target weights, likewise.
      g_init: potential of a nearby problem. It skips the annealing unless it turns
        out to be useless.
      limits: when to stop and what to store, see :class:`sinkflow.Limits`.
      gradient: derivative of ``value``. "envelope" takes the potentials as constants, which
        is exact at the solution; "implicit" corrects it to first order in what is
        left to converge, at the price of a linear solve; "unrolled" makes
        ``max_iterations`` (a Python int) plain updates, no annealing, and differentiates them.

    Returns:
      A :class:`SinkhornOutput`.

    Raises:
      ValueError: wrong shapes, gradient or storage, or what is no real number; outside a trace
        also epsilon or threshold <= 0 and weights that are negative, not finite or do not sum
        to 1. A cloud sharded over Explicit mesh axes (use Auto axes or :func:`jax.shard_map`; a
        vmapped batch sharded over them is refused by jax itself).

    Numerics:
      Nothing is raised on device: a solve that ran out of iterations or met NaN, traced weights
      or a traced epsilon that are wrong, has ``converged=False``. Jitted as a whole; new values
      do not recompile, new shapes, ``gradient``, ``storage`` and, unrolled, ``max_iterations`` do.

      Each cloud is solved around its own weighted mean, for the plan does not depend on shifts.
      Integers and half precision are converted to the default float, in which everything is
      returned. Differentiable, forwards and backwards, in clouds, weights and epsilon: ``value``
      as ``gradient`` says, at second order with moving potentials; ``f`` and ``g`` implicitly
      (unrolled if asked); the certificate is a constant.

    Errors:
      With ``converged``, C the largest cost after centring and r the rounding of the dtype (1.2e-7
      in float32): the value is within marginal_error * (C + epsilon) + 16 r (C + |value|) of the
      true one. Barycentric images are, in the mean over particles, within (30 marginal_error +
      0.02) diameters of the targets of the true ones. Neither bound is proven; both are tested over
      random problems, zeros among the weights, duplicates, shifts and eight decades of epsilon.

    Source:
      Cuturi 2013, arXiv:1306.0895; absorption of the potentials into the kernel: Schmitzer
      2019, arXiv:1610.06519; over-relaxation: Thibault et al. 2017, arXiv:1711.01851.

    Example:
      >>> import jax.numpy as jnp
      >>> out = sinkhorn(jnp.zeros((2, 1)), jnp.ones((3, 1)), 0.1)
      >>> bool(out.converged), round(float(out.value), 3)
      (True, 0.5)
    """
    x, y, epsilon, a, b = check_problem(x, y, epsilon, a, b)
    count = iterations_to_unroll(gradient, limits)
    limits = check_limits(limits, x.dtype)
    g_init = inputs.as_potential("g_init", g_init, y, "y")
    return _cloud_to_cloud(x, y, epsilon, a, b, g_init, *limits, gradient, count)


def sinkhorn_self(
    x: Float[Array, "n d"],
    epsilon: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    f_init: Float[Array, "n"] | None = None,
    limits: Limits = Limits(),
    gradient: str = "envelope",
) -> SinkhornOutput:
    r"""Entropic optimal transport of a cloud to itself, with its one potential.

    By symmetry g = f, and the damped update :math:`f \leftarrow f - \tfrac23\varepsilon\log s`
    contracts at every epsilon: the kernel is positive semi-definite, so the linearised
    update has its spectrum in [-1/3, 1/3]. No annealing is needed. It starts from the
    potential of the identity plan, :math:`f_i = -\tfrac\varepsilon2\log a_i`, and ends there, after
    no iteration at all, where epsilon is so small that this is the solution. Where epsilon
    exceeds the mean cost it starts from that of the product plan, half the squared distances
    from the mean.

    Arguments, errors and numerics are those of :func:`sinkhorn`; ``f_init`` is the
    potential of a nearby problem, taken if it fits better than the identity's.

    Source:
      Feydy et al. 2019, arXiv:1810.08278, sec. 3.1 (damped symmetric update); the
      factor 2/3 is ours.
    """
    x, _, epsilon, a, _ = check_problem(x, x, epsilon, a, None)
    count = iterations_to_unroll(gradient, limits)
    limits = check_limits(limits, x.dtype)
    f_init = inputs.as_potential("f_init", f_init, x, "x")
    return _cloud_to_itself(x, epsilon, a, f_init, *limits, gradient, count)


STATIC = ("storage", "gradient", "count")


@functools.partial(jax.jit, static_argnames=STATIC)
def _cloud_to_cloud(
    x, y, epsilon, a, b, g_init, threshold, max_iterations, storage, gradient, count
):
    a, b = inputs.distribution(a, x), inputs.distribution(b, y)
    moved = costs.centred(x, y, a, b)
    problem = gradients.Problem(moved.x, moved.y, inputs.positive(epsilon), a, b)
    limits = Limits(threshold, max_iterations, kernel.storage_for(storage, x, y))
    if count:
        out = unroll(problem, limits, count)
    else:
        cost = kernel.make_cost(problem.x, problem.y, limits.storage)
        init = None if g_init is None else g_init - moved.of_y
        out = solve(problem, cost, init, limits, gradient)
    return as_given(out, moved, problem)


@functools.partial(jax.jit, static_argnames=STATIC)
def _cloud_to_itself(x, epsilon, a, f_init, threshold, max_iterations, storage, gradient, count):
    a = inputs.distribution(a, x)
    x = costs.centred(x, x, a, a).x
    problem = gradients.Problem(x, x, inputs.positive(epsilon), a, a)
    limits = Limits(threshold, max_iterations, kernel.storage_for(storage, x, x))
    if count:
        return unroll(problem, limits, count, same=True)
    return solve_self(problem, kernel.make_cost(x, x, limits.storage), f_init, limits, gradient)


def as_given(out: SinkhornOutput, moved: costs.Centred, problem) -> SinkhornOutput:
    """The output for the clouds as they were before they were centred.

    Their potentials carry the distance between the clouds. Far apart, float32 may not resolve the
    plan in these any more: then they are not converged, although the value still is right.
    """
    f, g, value = out.f + moved.of_x, out.g + moved.of_y, out.value + moved.constant
    out = out._replace(f=f, g=g, value=value)
    _, _, epsilon, a, b = problem
    seen, epsilon, a, b, constant = jax.lax.stop_gradient((out, epsilon, a, b, moved.constant))
    return out._replace(converged=doubted(seen, epsilon, a, b, constant).converged)


def solve(
    problem: gradients.Problem,
    cost: kernel.Cost,
    g_init: Float[Array, "m"] | None,
    limits: Limits,
    gradient: str = "envelope",
) -> SinkhornOutput:
    """:func:`sinkhorn` of centred clouds, on costs that the caller has and goes on using."""
    fixed = jax.lax.stop_gradient((cost, problem.epsilon, problem.a, problem.b, g_init))
    out = _sinkhorn(*fixed, *limits)
    return _differentiable(out, out.f, out.g, problem, gradient, False, limits.storage)


def solve_self(
    problem: gradients.Problem,
    cost: kernel.Cost,
    f_init: Float[Array, "n"] | None,
    limits: Limits,
    gradient: str = "envelope",
) -> SinkhornOutput:
    """The same for :func:`sinkhorn_self`."""
    fixed = jax.lax.stop_gradient((cost, problem.epsilon, problem.a, f_init))
    out = _sinkhorn_self(*fixed, *limits)
    return _differentiable(out, out.f, out.f, problem, gradient, True, limits.storage)


def unroll(
    problem: gradients.Problem, limits: Limits, count: int, *, same: bool = False
) -> SinkhornOutput:
    """``count`` plain updates with their derivatives, and the certificate that they deserve."""
    threshold, _, storage = limits
    if same:
        f, g = gradients.unrolled_self(problem, count, SELF_RELAXATION, storage)
    else:
        f, g = gradients.unrolled(problem, count, storage)
    x, y, epsilon, a, b = jax.lax.stop_gradient(problem)
    cost, fixed = kernel.make_cost(x, y, storage), jax.lax.stop_gradient((f, g))
    out = certify(cost, *fixed, epsilon, a, b, threshold, jnp.asarray(count))
    return _differentiable(out, f, g, problem, "unrolled", same, storage)


def iterations_to_unroll(gradient: str, limits: Limits) -> int:
    """How many, or 0 if ``gradient`` is another one."""
    if gradient not in gradients.GRADIENTS:
        choices = ", ".join(gradients.GRADIENTS)
        raise ValueError(f"unknown gradient {gradient!r}; choose one of {choices}")
    if gradient != "unrolled":
        return 0
    max_iterations = limits.max_iterations
    if not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(
            f"max_iterations is {max_iterations}; to unroll it must be a Python int, at least 1"
        )
    return max_iterations


def _differentiable(out, f, g, problem, gradient, same, storage) -> SinkhornOutput:
    """The output with derivatives in its potentials and its value."""
    if gradient != "unrolled":
        f, g = gradients.moving(f, g, problem, same, storage)
    through = jax.lax.stop_gradient((f, g)) if gradient == "envelope" else (f, g)
    value = gradients.dual_value(out.value, *through, problem, gradient, same, storage)
    return out._replace(f=f, g=g, value=value)


@functools.partial(jax.jit, static_argnames="storage")
def _sinkhorn(cost, epsilon, a, b, g_init, threshold, max_iterations, storage) -> SinkhornOutput:
    limits = _goal(threshold, storage, cost, epsilon, a, b), max_iterations
    problem = _Fixed(cost, epsilon, a, b, *map(jnp.asarray, limits))
    largest = _cost_bound(problem)
    finite = jnp.isfinite(largest)
    # The density of zero potentials at this epsilon lies between exp(-4) and 1.
    start = jnp.where(finite, jnp.maximum(ANNEALING * largest, epsilon), epsilon)
    # Clouds that are not finite get NaN potentials, and the first round is then the last.
    f, g = inputs.nan_unless(finite, jnp.zeros_like(a)), jnp.zeros_like(b)
    initial = _Scaling.at(f, g, start, jnp.inf)
    if g_init is not None:
        g_init = jnp.where(b > 0, g_init, 0)
        warm = _Scaling.at(kernel.softmin(cost, g_init, epsilon, b), g_init, epsilon, 0.0)
        _, columns = kernel.density(cost, warm.f, warm.g, epsilon, storage)
        sums = columns(a)
        warm = warm._replace(column_sums=sums, error=jnp.sum(b * jnp.abs(sums - 1)))
        # Potentials that do not nearly solve the problem are dropped, not only annealed: far
        # beyond the costs they underflow the density, and the solve never recovers.
        initial = _choose(warm.error < WARM, warm, initial)
    anneal = functools.partial(_anneal, storage, problem)
    initial = loops.varying_with(initial, problem, initial)
    state = jax.lax.while_loop(lambda state: state.epsilon > epsilon, anneal, initial)
    state = loops.while_loop(_unfinished, functools.partial(_advance, storage), problem, state)
    return _output(problem, state, threshold)


@functools.partial(jax.jit, static_argnames="storage")
def _sinkhorn_self(cost, epsilon, a, f_init, threshold, max_iterations, storage) -> SinkhornOutput:
    limits = _goal(threshold, storage, cost, epsilon, a, a), max_iterations
    problem = _Fixed(cost, epsilon, a, a, *map(jnp.asarray, limits))

    def measured(f):
        rows, _ = kernel.density(cost, f, f, epsilon, storage)
        sums = rows(a)
        state = _Scaling.at(f, f, epsilon, jnp.sum(a * jnp.abs(sums - 1)))
        return state._replace(column_sums=sums)

    state = measured(_self_start(cost.x, epsilon, a))
    if f_init is not None:
        warm = measured(jnp.where(a > 0, f_init, 0))
        state = _choose(warm.error < state.error, warm, state)
    advance = functools.partial(_advance_self, storage)
    state = loops.while_loop(_unfinished, advance, problem, state)
    return _output(problem, state, threshold)


def _self_start(x, epsilon, a):
    """The potential of the identity plan or, beyond the mean cost, that of the product plan.

    Each is the limit on its side. From the wrong one the last error in the value, which is of
    second order in the marginal error but has the factor epsilon, would be felt at a huge epsilon.
    """
    identity = -0.5 * epsilon * jnp.log(jnp.where(a > 0, a, jnp.max(a)))
    product = 0.5 * jnp.sum(x**2, axis=1)
    return jnp.where(epsilon > costs.mean_of_centred(x, x, a, a), product, identity)


def _scale(storage, problem: _Fixed, state: _Scaling, count: int) -> tuple[_Scaling, Array]:
    """``count`` iterations on one density, g before f, and the row sums they leave."""
    a, b = problem.a, problem.b
    rows, columns = kernel.density(problem.cost, state.f, state.g, state.epsilon, storage)
    u, v, products = jnp.ones_like(a), jnp.ones_like(b), state.column_sums
    for _ in range(count):  # a straight-line program: a GPU runs it as one graph
        v, _ = _rescale(v, products, state.relaxation)
        u, row_sums = _rescale(u, rows(b * v), state.relaxation)
        products = columns(a * u)
    f, g = state.f + state.epsilon * jnp.log(u), state.g + state.epsilon * jnp.log(v)
    total = state.num_iterations + count
    return state._replace(f=f, g=g, column_sums=v * products, num_iterations=total), row_sums


def _anneal(storage, problem: _Fixed, state: _Scaling) -> _Scaling:
    """A round at an epsilon on the way down, and the next one."""
    state, _ = _scale(storage, problem, state, ANNEALING_ROUND)
    v, _ = _rescale(jnp.ones_like(state.g), state.column_sums, 1.0)
    g = state.g + state.epsilon * jnp.log(v)
    epsilon, f = jnp.maximum(ANNEALING * state.epsilon, problem.epsilon), state.f
    if storage == "half":
        # Densities that the lower epsilon makes large would be cut off; those of this f are not.
        f = kernel.softmin(problem.cost, g, epsilon, problem.b)
    return state._replace(f=f, g=g, column_sums=jnp.ones_like(g), epsilon=epsilon)


def _advance(storage, problem: _Fixed, state: _Scaling) -> _Scaling:
    """One round at the final epsilon."""
    a, b = problem.a, problem.b
    after, row_sums = _scale(storage, problem, state, ROUND)
    errors = [(a, row_sums), (b, after.column_sums)]
    error = jnp.maximum(*(jnp.sum(weights * jnp.abs(sums - 1)) for weights, sums in errors))
    return after._replace(
        relaxation=_relaxation(state.relaxation, error, state.error),
        error=error,
        trusted=_trusted(storage, problem, state, after),
    )


def _advance_self(storage, problem: _Fixed, state: _Scaling) -> _Scaling:
    """One round of a cloud and itself."""
    a, epsilon = problem.a, problem.epsilon
    rows, _ = kernel.density(problem.cost, state.f, state.f, epsilon, storage)
    u, products = jnp.ones_like(a), state.column_sums
    for _ in range(ROUND):
        u, _ = _rescale(u, products, SELF_RELAXATION)
        products = rows(a * u)
    sums, f = u * products, state.f + epsilon * jnp.log(u)
    count = state.num_iterations + ROUND
    after = state._replace(f=f, g=f, column_sums=sums, num_iterations=count)
    trusted = _trusted(storage, problem, state, after)
    return after._replace(error=jnp.sum(a * jnp.abs(sums - 1)), trusted=trusted)


def _trusted(storage, problem: _Fixed, before: _Scaling, after: _Scaling):
    """Whether a round's error is that of the potentials it left.

    Half precision has the range for densities of nearby potentials only: a round that moved them
    further does not know what it left, and cannot be the last.
    """
    if storage != "half":
        return after.trusted
    moves = [
        jnp.where(weights > 0, new - old, 0)
        for weights, new, old in zip((problem.a, problem.b), after[:2], before[:2], strict=True)
    ]
    down, up = (-sum(map(jnp.min, moves)), sum(map(jnp.max, moves)))
    room_down, room_up = kernel.half_range(*(move.shape[0] for move in moves))
    return (down <= room_down * problem.epsilon) & (up <= room_up * problem.epsilon)


def _unfinished(problem: _Fixed, state: _Scaling):
    """Neither the error is met, nor the cap, nor NaN; an unknown error means at least one round."""
    unknown = jnp.isinf(state.error)
    below_cap = state.num_iterations < problem.max_iterations
    unmet = (state.error > problem.goal) | ~state.trusted
    return unmet & (unknown | below_cap)


def _output(problem: _Fixed, state: _Scaling, threshold) -> SinkhornOutput:
    weights, count = (problem.a, problem.b), state.num_iterations
    return certify(problem.cost, state.f, state.g, problem.epsilon, *weights, threshold, count)


def _choose(condition, one: _Scaling, other: _Scaling) -> _Scaling:
    return jax.tree.map(lambda *leaves: jnp.where(condition, *leaves), one, other)


def _goal(threshold, storage, cost: kernel.Cost, epsilon, a, b):
    """The error to iterate to: less than wanted, for rounding hides some of it."""
    hidden = rounding(costs.mean_of_centred(cost.x, cost.y, a, b), epsilon)
    if storage == "half":
        hidden = hidden + HALF_ROUNDING
    else:
        hidden = jnp.maximum(hidden, (1 - MARGIN) * threshold)
    return jnp.maximum(threshold - hidden, 0.5 * threshold)


def _relaxation(relaxation, error, previous):
    """Over-relaxation from the decay of the error over one round.

    An iteration with relaxation w that contracts by r comes from a plain one that contracts
    by rho = (r + w - 1)^2 / (r w^2), whose best relaxation is 2 / (1 + sqrt(1 - rho)) (Young's
    relation for successive over-relaxation). A growing error keeps the relaxation: the optimal
    one is not monotone. Far from the solution, or with nothing to compare, it is 1.
    """
    least = jnp.maximum(relaxation - 1, 1e-3)  # at 0, an error of 0 would make it NaN
    rate = jnp.clip((error / previous) ** (1 / ROUND), least, 1)
    plain = (rate + relaxation - 1) ** 2 / (rate * relaxation**2)
    best = jnp.minimum(2 / (1 + jnp.sqrt(jnp.maximum(1 - plain, 0))), MAX_RELAXATION)
    best = jnp.where(error < previous, best, relaxation)
    return jnp.where(jnp.isfinite(previous) & (error < STALE), best, 1.0)


def _cost_bound(problem: _Fixed):
    """At least the largest cost, without a pass over the cost matrix: where annealing starts.

    NaN where a point of the clouds is; points without mass count for nothing else.
    """
    radii = []
    for cloud, weights in ((problem.cost.x, problem.a), (problem.cost.y, problem.b)):
        squares = jnp.sum(cloud**2, axis=1)
        counted = jnp.where((weights > 0) | jnp.isnan(squares), squares, 0)
        radii.append(jnp.sqrt(jnp.max(counted)))
    return 0.5 * (radii[0] + radii[1]) ** 2


def _rescale(scaling, products, relaxation):
    """One relaxed update of a scaling, and the marginal density it leaves.

    Bounded, so that an underflowing sum costs iterations and not NaN.
    """
    sums = jnp.clip(scaling * products, 1e-30, 1e30)
    scaling = jnp.clip(scaling * sums**-relaxation, 1 / MAX_SCALING, MAX_SCALING)
    return scaling, scaling * products


def check_problem(x, y, epsilon, a, b):
    """Clouds, epsilon and weights as arrays of one dtype, or ValueError (see :func:`sinkhorn`).

    Weights that are None stay so; those given are still to be divided by their sum.
    """
    x, y = inputs.as_clouds(x, y)
    epsilon = inputs.as_scalar("epsilon", epsilon, x.dtype)
    return x, y, epsilon, inputs.as_weights("a", a, x), inputs.as_weights("b", b, y)
