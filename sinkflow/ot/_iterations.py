"""What one round of a solve does: scaling, relaxation, annealing, and when it is the last."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _cost, _inputs, _kernel, _loops
from sinkflow.ot._certificate import certify, rounding
from sinkflow.ot._shapes import CloudN, VectorM, VectorN
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Bool, Float, Int, Scalar, ScalarLike

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

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    column_sums: Float[Array, "m"]
    epsilon: Scalar
    relaxation: Scalar
    error: Scalar
    trusted: Bool[Array, ""]
    num_iterations: Int[Array, ""]

    @classmethod
    def at(cls, f: VectorN, g: VectorM, epsilon: Scalar, error: ScalarLike) -> "_Scaling":
        """Where a solve starts; with an infinite error it has to iterate at least once."""
        one, zero = jnp.ones_like(epsilon), jnp.zeros((), int)
        error = jnp.asarray(error, f.dtype)
        return cls(f, g, jnp.ones_like(g), epsilon, one, error, jnp.ones((), bool), zero)


class _Fixed(NamedTuple):
    """What a solve does not change; epsilon is the final one, goal the error to stop at."""

    cost: _cost.Costs
    epsilon: Scalar
    a: Float[Array, "n"]
    b: Float[Array, "m"]
    goal: Scalar
    max_iterations: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="storage")
def sinkhorn(
    cost: _cost.Costs,
    epsilon: Scalar,
    a: VectorN,
    b: VectorM,
    g_init: VectorM | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: str,
) -> SinkhornOutput:
    limits = _goal(threshold, storage, cost, epsilon, a, b), max_iterations
    problem = _Fixed(cost, epsilon, a, b, *map(jnp.asarray, limits))
    largest = cost.bound(a, b)
    finite = jnp.isfinite(largest)
    # The density of zero potentials at this epsilon lies between exp(-4) and 1.
    start = jnp.where(finite, jnp.maximum(ANNEALING * largest, epsilon), epsilon)
    # Clouds that are not finite get NaN potentials, and the first round is then the last.
    f, g = _inputs.nan_unless(finite, jnp.zeros_like(a)), jnp.zeros_like(b)
    initial = _Scaling.at(f, g, start, jnp.inf)
    if g_init is not None:
        g_init = jnp.where(b > 0, g_init, 0)
        warm = _Scaling.at(_kernel.softmin(cost, g_init, epsilon, b), g_init, epsilon, 0.0)
        _, columns = _kernel.density(cost, warm.f, warm.g, epsilon, storage)
        sums = columns(a)
        warm = warm._replace(column_sums=sums, error=jnp.sum(b * jnp.abs(sums - 1)))
        # Potentials that do not nearly solve the problem are dropped, not only annealed: far
        # beyond the costs they underflow the density, and the solve never recovers.
        initial = _choose(warm.error < WARM, warm, initial)
    anneal = functools.partial(_anneal, storage, problem)
    initial = _loops.varying_with(initial, problem, initial)
    state = jax.lax.while_loop(lambda state: state.epsilon > epsilon, anneal, initial)
    state = _loops.while_loop(_unfinished, functools.partial(_advance, storage), problem, state)
    return _output(problem, state, threshold)


@functools.partial(jax.jit, static_argnames="storage")
def sinkhorn_self(
    cost: _cost.Cost,
    epsilon: Scalar,
    a: VectorN,
    f_init: VectorN | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: str,
) -> SinkhornOutput:
    limits = _goal(threshold, storage, cost, epsilon, a, a), max_iterations
    problem = _Fixed(cost, epsilon, a, a, *map(jnp.asarray, limits))

    def measured(f: Array) -> _Scaling:
        rows, _ = _kernel.density(cost, f, f, epsilon, storage)
        sums = rows(a)
        state = _Scaling.at(f, f, epsilon, jnp.sum(a * jnp.abs(sums - 1)))
        return state._replace(column_sums=sums)

    state = measured(_self_start(cost.x, epsilon, a))
    if f_init is not None:
        warm = measured(jnp.where(a > 0, f_init, 0))
        state = _choose(warm.error < state.error, warm, state)
    advance = functools.partial(_advance_self, storage)
    state = _loops.while_loop(_unfinished, advance, problem, state)
    return _output(problem, state, threshold)


def _self_start(x: CloudN, epsilon: Scalar, a: VectorN) -> VectorN:
    """The potential of the identity plan or, beyond the mean cost, that of the product plan.

    Each is the limit on its side. From the wrong one the last error in the value, which is of
    second order in the marginal error but has the factor epsilon, would be felt at a huge epsilon.
    """
    identity = -0.5 * epsilon * jnp.log(jnp.where(a > 0, a, jnp.max(a)))
    product = 0.5 * jnp.sum(x**2, axis=1)
    return jnp.where(epsilon > _centred.mean_of_centred(x, x, a, a), product, identity)


def _scale(storage: str, problem: _Fixed, state: _Scaling, count: int) -> tuple[_Scaling, VectorN]:
    """``count`` iterations on one density, g before f, and the row sums they leave."""
    a, b = problem.a, problem.b
    rows, columns = _kernel.density(problem.cost, state.f, state.g, state.epsilon, storage)
    u, v, products = jnp.ones_like(a), jnp.ones_like(b), state.column_sums
    for _ in range(count):  # a straight-line program: a GPU runs it as one graph
        v, _ = _rescale(v, products, state.relaxation)
        u, row_sums = _rescale(u, rows(b * v), state.relaxation)
        products = columns(a * u)
    f, g = state.f + state.epsilon * jnp.log(u), state.g + state.epsilon * jnp.log(v)
    total = state.num_iterations + count
    return state._replace(f=f, g=g, column_sums=v * products, num_iterations=total), row_sums


def _anneal(storage: str, problem: _Fixed, state: _Scaling) -> _Scaling:
    """A round at an epsilon on the way down, and the next one."""
    state, _ = _scale(storage, problem, state, ANNEALING_ROUND)
    v, _ = _rescale(jnp.ones_like(state.g), state.column_sums, 1.0)
    f, g = state.f, state.g + state.epsilon * jnp.log(v)
    if isinstance(problem.cost, _cost.MatrixCost):
        # A few costs may be far above the others. The constant that potentials are free of would
        # be of their size after annealing from there, and take the digits of the rest.
        shift = 0.5 * (_centred.mean(problem.a, f) - _centred.mean(problem.b, g))
        f, g = f - shift, g + shift
    epsilon = jnp.maximum(ANNEALING * state.epsilon, problem.epsilon)
    if storage == "half":
        # Densities that the lower epsilon makes large would be cut off; those of this f are not.
        f = _kernel.softmin(problem.cost, g, epsilon, problem.b)
    return state._replace(f=f, g=g, column_sums=jnp.ones_like(g), epsilon=epsilon)


def _advance(storage: str, problem: _Fixed, state: _Scaling) -> _Scaling:
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


def _advance_self(storage: str, problem: _Fixed, state: _Scaling) -> _Scaling:
    """One round of a cloud and itself."""
    a, epsilon = problem.a, problem.epsilon
    rows, _ = _kernel.density(problem.cost, state.f, state.f, epsilon, storage)
    u, products = jnp.ones_like(a), state.column_sums
    for _ in range(ROUND):
        u, _ = _rescale(u, products, SELF_RELAXATION)
        products = rows(a * u)
    sums, f = u * products, state.f + epsilon * jnp.log(u)
    count = state.num_iterations + ROUND
    after = state._replace(f=f, g=f, column_sums=sums, num_iterations=count)
    trusted = _trusted(storage, problem, state, after)
    return after._replace(error=jnp.sum(a * jnp.abs(sums - 1)), trusted=trusted)


def _trusted(storage: str, problem: _Fixed, before: _Scaling, after: _Scaling) -> Bool[Array, ""]:
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
    room_down, room_up = _kernel.half_range(*(move.shape[0] for move in moves))
    return (down <= room_down * problem.epsilon) & (up <= room_up * problem.epsilon)


def _unfinished(problem: _Fixed, state: _Scaling) -> Bool[Array, ""]:
    """Neither the error is met, nor the cap, nor NaN; an unknown error means at least one round."""
    unknown = jnp.isinf(state.error)
    below_cap = state.num_iterations < problem.max_iterations
    unmet = (state.error > problem.goal) | ~state.trusted
    return unmet & (unknown | below_cap)


def _output(problem: _Fixed, state: _Scaling, threshold: Scalar) -> SinkhornOutput:
    weights, count = (problem.a, problem.b), state.num_iterations
    return certify(problem.cost, state.f, state.g, problem.epsilon, *weights, threshold, count)


def _choose(condition: Bool[Array, ""], one: _Scaling, other: _Scaling) -> _Scaling:
    return jax.tree.map(lambda *leaves: jnp.where(condition, *leaves), one, other)


def _goal(
    threshold: Scalar, storage: str, cost: _cost.Costs, epsilon: Scalar, a: VectorN, b: VectorM
) -> Scalar:
    """The error to iterate to: less than wanted, for rounding hides some of it."""
    hidden = rounding(cost.mean(a, b), epsilon)
    if storage == "half":
        hidden = hidden + HALF_ROUNDING
    else:
        hidden = jnp.maximum(hidden, (1 - MARGIN) * threshold)
    return jnp.maximum(threshold - hidden, 0.5 * threshold)


def _relaxation(relaxation: Scalar, error: Scalar, previous: Scalar) -> Scalar:
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


def _rescale(
    scaling: VectorN, products: VectorN, relaxation: ScalarLike
) -> tuple[VectorN, VectorN]:
    """One relaxed update of a scaling, and the marginal density it leaves.

    Bounded, so that an underflowing sum costs iterations and not NaN.
    """
    sums = jnp.clip(scaling * products, 1e-30, 1e30)
    scaling = jnp.clip(scaling * sums**-relaxation, 1 / MAX_SCALING, MAX_SCALING)
    return scaling, scaling * products
