"""What a solve returns: potentials, and what certifies and describes their plan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow import costs, kernel, loops
from sinkflow.types import Array, Bool, Float, Int, Scalar

# Mean rounding of the exponents (f + g - C) / epsilon that a certificate puts up with: to first
# order it is the L1 error [mass] of the plan that no marginal shows.
RESOLVED = 1e-2


class SinkhornOutput(NamedTuple):
    """Dual potentials of one solve and what certifies them.

    ``f`` [n] and ``g`` [m] are in cost units [length^2], defined up to one shared
    constant; the plan is pi_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon). ``value`` is the
    regularised cost W_epsilon [length^2]. ``marginal_error`` is the larger of the two L1
    errors of that plan's marginals [mass, total 1], measured on the returned potentials.

    ``converged`` says that the marginal error is within the threshold, that everything returned is
    finite, and that the dtype resolves the plan: the mean over the plan of the rounding of
    (f_i + g_j - C_ij) / epsilon is at most 0.01.

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

    sums, information, squares = kernel.map_rows(row_fn, cost, f)
    column_sums = kernel.column_sums(cost, f, g, epsilon, a)
    error = marginal_error(a, sums - 1, b, column_sums - 1)
    value = _value(cost, f, g, epsilon, a, b, jnp.sum(a * sums) - 1)
    k = min(a.shape[0], b.shape[0])
    row = 0.5 * jnp.sum((cost.x[:k] - cost.y[:k]) ** 2, axis=1)
    diagonal = jnp.exp(kernel.log_density(row, f[:k], g[:k], epsilon))
    qualities = describe(sums, information, squares, diagonal, a, b)
    out = SinkhornOutput(f, g, value, error, num_iterations, error <= threshold, *qualities)
    return doubted(out, epsilon, a, b, costs.mean_of_centred(cost.x, cost.y, a, b))


def marginal_error(a, excess, b, column_excess) -> Scalar:
    """The larger L1 error [mass] from what the marginal densities have above 1."""
    return jnp.maximum(jnp.sum(jnp.abs(a * excess)), jnp.sum(jnp.abs(b * column_excess)))


def doubted(out: SinkhornOutput, epsilon, a, b, mean_cost) -> SinkhornOutput:
    """The output, not converged where it is not finite or the dtype does not resolve the plan.

    ``mean_cost`` [length^2] stands for what rounds the costs. f + g = C where the plan has mass,
    so that the means of |f| and |g| bound those of the exponents' terms.
    """
    terms = jnp.sum(a * jnp.abs(out.f)) + jnp.sum(b * jnp.abs(out.g)) + mean_cost
    floats = (leaf for leaf in out if jnp.issubdtype(leaf.dtype, jnp.floating))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
    return out._replace(converged=out.converged & (rounding(terms, epsilon) <= RESOLVED) & finite)


def rounding(terms, epsilon) -> Scalar:
    """Mean rounding of exponents whose terms have this mean size in all [length^2]."""
    return 0.5 * jnp.finfo(terms.dtype).eps * terms / epsilon


def _value(cost, f, g, epsilon, a, b, excess):
    r"""The dual objective, second order in the marginal error, in the form that rounds least.

    :math:`\langle a, f\rangle + \langle b, g\rangle - \varepsilon(\text{mass} - 1)` loses its
    digits where epsilon exceeds the costs, since the mass has a rounding. With z the exponents it
    equals :math:`\langle ab, C\rangle - \varepsilon\langle ab, e^z - 1 - z\rangle`, which loses
    them where epsilon is small, since both terms are then far above it.
    """
    mean = costs.mean_of_centred(cost.x, cost.y, a, b)

    def gap_of(cost, f, g, epsilon, a, b):
        def row_fn(row, f_i):
            exponent = kernel.log_density(row, f_i, g, epsilon)
            return jnp.sum(b * (jnp.expm1(exponent) - exponent))

        return jnp.sum(a * kernel.map_rows(row_fn, cost, f))

    # One more pass, which is made only where it is needed.
    gap = loops.only_if(epsilon > mean, gap_of, cost, f, g, epsilon, a, b)
    dual = jnp.sum(a * f) + jnp.sum(b * g) - epsilon * excess
    return jnp.where(epsilon > mean, mean - epsilon * gap, dual)


def describe(sums, information, squares, diagonal, a, b) -> tuple[Scalar, Scalar, Scalar]:
    """Entropy, neighbours and diagonal mass of a plan, see :class:`SinkhornOutput`.

    From its density D with respect to a x b: over each row, with masses w_j = b_j D_ij, the
    sums of w, w log D and w^2; and the diagonal of D.
    """
    least = jnp.minimum(*(-jnp.sum(jax.scipy.special.xlogy(w, w)) for w in (a, b)))
    entropy = 1 - jnp.sum(a * information) / jnp.where(least > 0, least, jnp.inf)
    k = diagonal.shape[0]
    rows = sums**2 / jnp.where(squares > 0, squares, 1)
    return jnp.clip(entropy, 0, 1), costs.mean(a, rows), jnp.sum(a[:k] * b[:k] * diagonal)
