"""Derivatives of entropic transport in its cost matrix, for hard marginals and for soft ones.

As :mod:`sinkflow.ot._gradients`, whose rules are those in the clouds and store no matrix.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.ot import _cost, _gradients, _kernel, _loops
from sinkflow.ot._shapes import Pair, VectorM, VectorN
from sinkflow.types import Array, Float, Scalar


class MatrixProblem(NamedTuple):
    """What a solve depends on; ``penalty`` is that of soft marginals, None for hard ones."""

    cost: Float[Array, "n m"]
    epsilon: Scalar
    a: Float[Array, "n"]
    b: Float[Array, "m"]
    penalty: Scalar | None

    @property
    def kept(self) -> Scalar | float:
        """The share of an update that a soft marginal makes: rho / (rho + epsilon)."""
        return 1.0 if self.penalty is None else self.penalty / (self.penalty + self.epsilon)


Inputs = tuple[Scalar, Array, Array, MatrixProblem]  # of dual_value, or their tangents


def objective(f: VectorN, g: VectorM, problem: MatrixProblem) -> Scalar:
    """The dual objective at (f, g)."""
    cost, epsilon, a, b, penalty = problem
    exponent = _kernel.log_density(cost, f[:, None], g[None, :], epsilon)
    # The plan's mass beyond that of a x b, which keeps its digits where epsilon exceeds the costs.
    excess = jnp.sum(a * jnp.sum(b[None, :] * jnp.expm1(exponent), axis=1))
    if penalty is None:
        gains = jnp.sum(a * f) + jnp.sum(b * g)
    else:
        gains = -penalty * (
            jnp.sum(a * jnp.expm1(-f / penalty)) + jnp.sum(b * jnp.expm1(-g / penalty))
        )
    return gains - epsilon * excess


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def dual_value(
    value: Scalar, f: VectorN, g: VectorM, problem: MatrixProblem, gradient: str
) -> Scalar:
    """``value``, the dual objective at (f, g), with its derivatives.

    The derivative in the costs is the plan; those in f and g vanish at the solution. Derivatives of
    these derivatives see that the potentials move.
    """
    del f, g, problem, gradient
    return value


@dual_value.defjvp
def _dual_value_jvp(gradient: str, primals: Inputs, tangents: Inputs) -> tuple[Scalar, Scalar]:
    value, f, g, problem = primals
    if gradient != "unrolled":
        f, g = moving((f, g), problem)
    _, dot = jax.jvp(objective, (f, g, problem), tangents[1:])
    return value, dot


def moving(solution: Pair, problem: MatrixProblem) -> Pair:
    """Potentials of a solve with their implicit derivatives."""
    # The linear solve of the derivative wants all it closes over to vary over the same mapped axes.
    return _moving(*_loops.varying_with((solution, problem), solution, problem))


def updates(f: VectorN, g: VectorM, problem: MatrixProblem) -> Pair:
    """The potentials that (g, f) ask for."""
    cost, epsilon, a, b, _ = problem
    kernel = _cost.MatrixCost(cost)
    new_f = _kernel.softmin(kernel, g, epsilon, b)
    return problem.kept * new_f, problem.kept * _kernel.softmin(kernel.transposed, f, epsilon, a)


@jax.custom_jvp
def _moving(solution: Pair, problem: MatrixProblem) -> Pair:
    """The rule of :func:`sinkflow.ot._gradients.potentials`, each average times what is kept."""
    del problem
    return solution


@_moving.defjvp
def _moving_jvp(
    primals: tuple[Pair, MatrixProblem], tangents: tuple[Pair, MatrixProblem]
) -> tuple[Pair, Pair]:
    solution, problem = primals
    f, g = _moving(solution, problem)  # moving in their turn, for second derivatives
    at_fixed = lambda problem: updates(f, g, problem)
    _, (f_direct, g_direct) = jax.jvp(at_fixed, (problem,), tangents[1:])
    cost, epsilon, a, b, penalty = problem
    rows, columns = _kernel.density(_cost.MatrixCost(cost), f, g, epsilon, "full")
    row_sums, column_sums = rows(b), columns(a)
    masses = b * column_sums

    def average_targets(w: Array) -> Array:
        return problem.kept * rows(b * w) / row_sums

    def average_sources(w: Array) -> Array:
        return problem.kept * columns(a * w) / column_sums

    constant = g_direct - average_sources(f_direct)
    # Balanced potentials are free of a constant, which the system does not determine.
    free = 1.0 if penalty is None else 0.0

    def matvec(w: Array) -> Array:
        mean = free * _gradients.mass_mean(w, masses)
        return masses * (w + mean - average_sources(average_targets(w)))

    wanted = masses * (constant - free * _gradients.mass_mean(constant, masses))
    g_dot = _gradients.solve_symmetric(matvec, wanted, masses)
    # Once more, for the targets of no mass, which the system does not see.
    g_dot = constant + average_sources(average_targets(g_dot))
    return (f, g), (f_direct - average_targets(g_dot), g_dot)
