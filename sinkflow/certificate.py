"""What a solve returns: potentials, and what certifies and describes their plan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow import kernel
from sinkflow.types import Array, Bool, Float, Int, Scalar


class SinkhornOutput(NamedTuple):
    """Dual potentials of one solve and what certifies them.

    ``f`` [n] and ``g`` [m] are in cost units [length^2], defined up to one shared
    constant; the plan is pi_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon). ``value`` is the
    regularised cost W_epsilon [length^2]. ``marginal_error`` is the larger of the two L1
    errors of that plan's marginals [mass, total 1], measured on the returned potentials.

    What the plan is like: ``entropy`` is 1 - KL(pi | a x b) / min(H(a), H(b)), from 0 (each point
    of the cloud with the smaller entropy determines its partner's) to 1 (the product plan);
    ``neighbours`` the mean over x_i, weighted by a, of 1 / sum_j pi~_ij^2 with rows
    pi~ of sum 1 (1: each is sent to one target, m: to all); ``diagonal_mass`` the mass
    sum_i pi_ii, which near 1 says of a cloud's plan with itself that it only cancels x.
    """

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    value: Scalar
    marginal_error: Scalar
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    entropy: Scalar
    neighbours: Scalar
    diagonal_mass: Scalar


def certify(cost: kernel.Cost, f, g, epsilon, a, b, threshold, num_iterations) -> SinkhornOutput:
    """The output of a solve that ended at potentials f and g.

    Everything is measured on these potentials, in full precision: what a solve believes of its
    last updates does not see what their sums were rounded by.
    """

    def row_fn(row, f_i):
        exponent = kernel.log_density(row, f_i, g, epsilon)
        masses = b * jnp.exp(exponent)
        return jnp.sum(masses), jnp.sum(masses * exponent), jnp.sum(masses**2)

    def column_fn(column, g_j):
        return jnp.sum(a * jnp.exp(kernel.log_density(column, g_j, f, epsilon)))

    sums, information, squares = kernel.map_rows(row_fn, cost, f)
    column_sums = kernel.map_rows(column_fn, cost.transposed, g)
    errors = jnp.sum(a * jnp.abs(sums - 1)), jnp.sum(b * jnp.abs(column_sums - 1))
    error, mass = jnp.maximum(*errors), jnp.sum(a * sums)
    # Minus epsilon (mass - 1): the dual objective, second order in the marginal error.
    value = jnp.sum(a * f) + jnp.sum(b * g) - epsilon * (mass - 1)
    k = min(a.shape[0], b.shape[0])
    row = 0.5 * jnp.sum((cost.x[:k] - cost.y[:k]) ** 2, axis=1)
    diagonal = jnp.exp(kernel.log_density(row, f[:k], g[:k], epsilon))
    qualities = describe(sums, information, squares, diagonal, a, b)
    return SinkhornOutput(f, g, value, error, num_iterations, error <= threshold, *qualities)


def describe(sums, information, squares, diagonal, a, b) -> tuple[Scalar, Scalar, Scalar]:
    """Entropy, neighbours and diagonal mass of a plan, see :class:`SinkhornOutput`.

    From its density D with respect to a x b: over each row, with masses w_j = b_j D_ij, the
    sums of w, w log D and w^2; and the diagonal of D.
    """
    least = jnp.minimum(*(-jnp.sum(jax.scipy.special.xlogy(w, w)) for w in (a, b)))
    entropy = 1 - jnp.sum(a * information) / jnp.where(least > 0, least, jnp.inf)
    k = diagonal.shape[0]
    neighbours = jnp.sum(a * sums**2 / squares)
    return jnp.clip(entropy, 0, 1), neighbours, jnp.sum(a[:k] * b[:k] * diagonal)
