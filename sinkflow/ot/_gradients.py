"""Derivatives of entropic transport that do not pass through the iterations of a solve.

Both rules hold at the solution; they are as accurate as the solve is converged.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.ot import _cost, _kernel, _loops, _precision
from sinkflow.ot._shapes import Pair, VectorM, VectorN
from sinkflow.ot.limits import Storage
from sinkflow.types import Array, Float, Scalar

GRADIENTS = ("envelope", "implicit", "unrolled")


class Problem(NamedTuple):
    """What a solve depends on: clouds at their means, epsilon [length^2] and weights."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    epsilon: Scalar
    a: Float[Array, "n"]
    b: Float[Array, "m"]


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def dual_value(
    value: Scalar,
    f: VectorN,
    g: VectorM,
    problem: Problem,
    gradient: str,
    same: bool,
    storage: Storage,
) -> Scalar:
    r"""``value``, the dual objective at (f, g), with its derivatives.

    .. math:: D = \langle a, f\rangle + \langle b, g\rangle
              - \varepsilon\Big(\sum_{ij} a_i b_j e^{(f_i + g_j - C_ij)/\varepsilon} - 1\Big)

    In f and g they are the errors of the marginals, which vanish at the solution: there the
    derivatives at fixed potentials are those of the optimal value (envelope theorem).
    The derivative in a is f, that in b is g, each up to a constant, and that in epsilon is
    KL(pi | a x b).

    Derivatives of these derivatives see that the potentials move (implicitly, or as unrolled):
    second ones are right too, at the price of a linear solve each. ``same`` says that the problem
    is that of a cloud and itself.

    Source: Feydy et al. 2019, arXiv:1810.08278, prop. 2 and sec. 3.2.
    """
    del f, g, problem, gradient, same, storage
    return value


@dual_value.defjvp
def _dual_value_jvp(
    gradient: str,
    same: bool,
    storage: Storage,
    primals: tuple[Scalar, Array, Array, Problem],
    tangents: tuple[Scalar, Array, Array, Problem],
) -> tuple[Scalar, Scalar]:
    value, f, g, problem = primals
    _, f_dot, g_dot, (x_dot, y_dot, epsilon_dot, a_dot, b_dot) = tangents
    if gradient != "unrolled":  # as they are, and for the next derivative as the problem moves them
        f, g = moving(f, g, problem, same, storage)
    x, y, epsilon, a, b = problem
    cost = _kernel.recomputed(x, y, storage)

    def moments(points: Array, weights: Array, other: Array) -> Callable:
        def row_fn(row: Array, f_i: Array) -> tuple[Array, Array, Array]:
            exponent = _kernel.log_density(row, f_i, other, epsilon)
            excess = jnp.expm1(exponent)  # keeps its digits where epsilon exceeds the costs
            density = 1 + excess
            mean = _precision.matmul(weights * density, points)
            # Of the last one the sum is KL(pi | a x b).
            return jnp.sum(weights * excess), mean, jnp.sum(weights * (density * exponent - excess))

        return row_fn

    excess, means, information = _kernel.map_rows(moments(y, b, g), cost, f)

    def column_fn(cost: _cost.Cost, x: Array, a: Array, f: Array) -> tuple[Array, ...]:
        return _kernel.map_rows(moments(x, a, f), cost.transposed, g)

    column_excess, column_means, _ = _kernel.over_columns(column_fn, cost, x, a, f)
    dot = (
        jnp.sum((a[:, None] * ((1 + excess)[:, None] * x - means)) * x_dot)
        + jnp.sum((b[:, None] * ((1 + column_excess)[:, None] * y - column_means)) * y_dot)
        + jnp.sum((f - epsilon * excess) * a_dot)
        + jnp.sum((g - epsilon * column_excess) * b_dot)
        + jnp.sum(a * information) * epsilon_dot
        - jnp.sum((a * excess) * f_dot)
        - jnp.sum((b * column_excess) * g_dot)
    )
    return value, dot


def moving(f: VectorN, g: VectorM, problem: Problem, same: bool, storage: Storage) -> Pair:
    """Potentials of a solve with their implicit derivatives; ``same`` is a cloud and itself."""
    # The linear solve of the derivative wants all it closes over to vary over the same mapped axes.
    f, g, problem = _loops.varying_with((f, g, problem), f, g, problem)
    if same:
        f = self_potential(f, problem, storage)
        return f, f
    return potentials((f, g), problem, storage)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def potentials(solution: Pair, problem: Problem, storage: Storage) -> Pair:
    r"""``solution`` = (f, g), with the derivative of the fixed point that it is (implicit).

    From f = softmin(C - g) and g = softmin(C^T - f): with the direct derivatives f', g' of
    the two right-hand sides and the plan's row- and column-normalised forms P and Q,

    .. math:: \dot g = g' - Q f' + Q P \dot g, \qquad \dot f = f' - P \dot g,

    a symmetric positive semi-definite system in the weights b, solved by conjugate
    gradients; its null space is the constant that potentials are free of.

    Source: Cuturi et al. 2020, arXiv:2002.03229; Eisenberger et al. 2022, arXiv:2205.06688.
    """
    del problem, storage
    return solution


@potentials.defjvp
def _potentials_jvp(
    storage: Storage,
    primals: tuple[Pair, Problem],
    tangents: tuple[Pair, Problem],
) -> tuple[Pair, Pair]:
    solution, problem = primals
    _, problem_dot = tangents
    f, g = potentials(solution, problem, storage)  # moving in their turn, for second derivatives

    def updates(problem: Problem) -> tuple[Array, Array]:
        x, y, epsilon, a, b = problem
        cost = _kernel.make_cost(x, y, storage)
        new_f = _kernel.softmin(cost, g, epsilon, b)
        return new_f, _kernel.column_softmin(cost, f, epsilon, a)

    _, (f_direct, g_direct) = jax.jvp(updates, (problem,), (problem_dot,))
    x, y, epsilon, a, b = problem
    rows, columns = _kernel.density(_kernel.make_cost(x, y, storage), f, g, epsilon, storage)
    row_sums, column_sums = rows(b), columns(a)
    masses = b * column_sums

    def average_targets(w: Array) -> Array:  # P
        return rows(b * w) / row_sums

    def average_sources(w: Array) -> Array:  # Q
        return columns(a * w) / column_sums

    constant = g_direct - average_sources(f_direct)
    mean = mass_mean(constant, masses)
    # With the mean added the system is definite: what rounding leaves of the constant stays small.
    g_dot = solve_symmetric(
        lambda w: masses * (w + mass_mean(w, masses)) - b * columns(a * average_targets(w)),
        masses * (constant - mean),
        masses,
    )
    # Once more, for the targets of no mass, which the system does not see.
    g_dot = constant + average_sources(average_targets(g_dot))
    return (f, g), (f_direct - average_targets(g_dot), g_dot)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def self_potential(solution: VectorN, problem: Problem, storage: Storage) -> VectorN:
    r"""The same for the one potential of a cloud and itself: :math:`(I + P)\dot f = f'`.

    Well conditioned at any epsilon, also where P is the identity.
    """
    del problem, storage
    return solution


@self_potential.defjvp
def _self_potential_jvp(
    storage: Storage, primals: tuple[Array, Problem], tangents: tuple[Array, Problem]
) -> tuple[Array, Array]:
    solution, problem = primals
    _, problem_dot = tangents
    f = self_potential(solution, problem, storage)

    def update(problem: Problem) -> Array:
        x, _, epsilon, a, _ = problem
        return _kernel.softmin(_kernel.make_cost(x, x, storage), f, epsilon, a)

    _, direct = jax.jvp(update, (problem,), (problem_dot,))
    x, _, epsilon, a, _ = problem
    rows, _ = _kernel.density(_kernel.make_cost(x, x, storage), f, f, epsilon, storage)
    masses = a * rows(a)
    f_dot = solve_symmetric(lambda w: masses * w + a * rows(a * w), masses * direct, masses)
    # Once more, for the points of no mass.
    return f, direct - rows(a * f_dot) / rows(a)


def mass_mean(values: VectorN, masses: VectorN) -> Scalar:
    """Mean of values by masses of any sum."""
    return jnp.sum(masses * values) / jnp.sum(masses)


def solve_symmetric(matvec: _kernel.Product, wanted: VectorN, masses: VectorN) -> VectorN:
    """Conjugate gradients, preconditioned by the masses, to the rounding of the dtype."""
    tolerance = 100 * float(jnp.finfo(wanted.dtype).eps)
    scale = jnp.where(masses > 0, masses, 1.0)

    def solve(matvec: _kernel.Product, wanted: Array) -> Array:
        start = 0 * (wanted * scale)  # zeros that vary over mapped axes as the solution does
        options = {"x0": start, "tol": tolerance, "maxiter": 1_000, "M": lambda w: w / scale}
        return jax.scipy.sparse.linalg.cg(matvec, wanted, **options)[0]

    return jax.lax.custom_linear_solve(matvec, wanted, solve, symmetric=True)


def unrolled(
    cost: _cost.Costs, epsilon: Scalar, a: VectorN, b: VectorM, num_iterations: int
) -> Pair:
    """Potentials after plain alternating updates from g = 0, each of them differentiated.

    Memory is that of the potentials of every iteration; costs are recomputed on the way back.
    """

    @jax.checkpoint
    def iteration(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        f = _kernel.softmin(cost, carry[1], epsilon, b)
        return (f, _kernel.column_softmin(cost, f, epsilon, a)), None

    start = _loops.varying_with((jnp.zeros_like(a), jnp.zeros_like(b)), (cost, epsilon, a, b))
    return jax.lax.scan(iteration, start, length=num_iterations)[0]


def unrolled_self(
    problem: Problem, num_iterations: int, relaxation: float, storage: Storage
) -> tuple[VectorN, VectorN]:
    """The same for a cloud and itself, by the damped update of its one potential."""
    x, _, epsilon, a, _ = problem
    cost = _kernel.make_cost(x, x, storage)

    @jax.checkpoint
    def iteration(f: Array, _: None) -> tuple[Array, None]:
        return f + relaxation * (_kernel.softmin(cost, f, epsilon, a) - f), None

    start = _loops.varying_with(jnp.zeros_like(a), problem)
    f = jax.lax.scan(iteration, start, length=num_iterations)[0]
    return f, f
