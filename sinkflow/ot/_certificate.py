"""Measures what certifies and describes a plan, on the potentials that a solve returns."""

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _cost, _kernel, _loops
from sinkflow.ot._shapes import VectorM, VectorN
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Float, Int, Scalar, ScalarLike

# Mean rounding of the exponents (f + g - C) / epsilon that a certificate puts up with: to first
# order it is the L1 error [mass] of the plan that no marginal shows.
RESOLVED = 1e-2


def certify(
    cost: _cost.Costs,
    f: VectorN,
    g: VectorM,
    epsilon: Scalar,
    a: VectorN,
    b: VectorM,
    threshold: ScalarLike,
    num_iterations: Int[Array, ""],
) -> SinkhornOutput:
    """The output of a solve that ended at potentials f and g.

    Everything is measured on these potentials, in full precision: what a solve believes of its
    last updates does not see what their sums were rounded by.
    """

    def row_fn(row: Array, f_i: Array) -> tuple[Array, Array, Array]:
        exponent = _kernel.log_density(row, f_i, g, epsilon)
        masses = b * jnp.exp(exponent)
        return jnp.sum(masses), jnp.sum(masses * exponent), jnp.sum(masses**2)

    sums, information, squares = _kernel.map_rows(row_fn, cost, f)
    column_sums = _kernel.column_sums(cost, f, g, epsilon, a)
    error = marginal_error(a, sums - 1, b, column_sums - 1)
    value = _value(cost, f, g, epsilon, a, b, jnp.sum(a * sums) - 1)
    k = min(cost.shape)
    diagonal = jnp.exp(_kernel.log_density(cost.diagonal(), f[:k], g[:k], epsilon))
    qualities = describe(sums, information, squares, diagonal, a, b)
    out = SinkhornOutput(f, g, value, error, num_iterations, error <= threshold, *qualities)
    return doubted(out, epsilon, a, b, cost.rounded(a, b))


def marginal_error(a: VectorN, excess: VectorN, b: VectorM, column_excess: VectorM) -> Scalar:
    """The larger L1 error [mass] from what the marginal densities have above 1."""
    return jnp.maximum(jnp.sum(jnp.abs(a * excess)), jnp.sum(jnp.abs(b * column_excess)))


def doubted(
    out: SinkhornOutput, epsilon: Scalar, a: VectorN, b: VectorM, mean_cost: ScalarLike
) -> SinkhornOutput:
    """The output, not converged where it is not finite or the dtype does not resolve the plan.

    ``mean_cost`` [length^2] stands for what rounds the costs. f + g = C where the plan has mass,
    so that the means of |f| and |g| bound those of the exponents' terms.
    """
    terms = jnp.sum(a * jnp.abs(out.f)) + jnp.sum(b * jnp.abs(out.g)) + mean_cost
    floats = (leaf for leaf in out if jnp.issubdtype(leaf.dtype, jnp.floating))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
    return out._replace(converged=out.converged & (rounding(terms, epsilon) <= RESOLVED) & finite)


def rounding(terms: Scalar, epsilon: Scalar) -> Scalar:
    """Mean rounding of exponents whose terms have this mean size in all [length^2]."""
    return 0.5 * jnp.finfo(terms.dtype).eps * terms / epsilon


def _value(
    cost: _cost.Costs,
    f: VectorN,
    g: VectorM,
    epsilon: Scalar,
    a: VectorN,
    b: VectorM,
    excess: Scalar,
) -> Scalar:
    r"""The dual objective, second order in the marginal error, in the form that rounds least.

    :math:`\langle a, f\rangle + \langle b, g\rangle - \varepsilon(\text{mass} - 1)` loses its
    digits where epsilon exceeds the costs, since the mass has a rounding. With z the exponents it
    equals :math:`\langle ab, C\rangle - \varepsilon\langle ab, e^z - 1 - z\rangle`, which loses
    them where epsilon is small, since both terms are then far above it.
    """
    mean = cost.mean(a, b)

    def gap_of(cost: _cost.Costs, f: Array, g: Array, epsilon: Array, a: Array, b: Array) -> Array:
        def row_fn(row: Array, f_i: Array) -> Array:
            exponent = _kernel.log_density(row, f_i, g, epsilon)
            return jnp.sum(b * (jnp.expm1(exponent) - exponent))

        return jnp.sum(a * _kernel.map_rows(row_fn, cost, f))

    # One more pass, which is made only where it is needed.
    gap = _loops.only_if(epsilon > mean, gap_of, jnp.zeros_like(mean), cost, f, g, epsilon, a, b)
    dual = jnp.sum(a * f) + jnp.sum(b * g) - epsilon * excess
    return jnp.where(epsilon > mean, mean - epsilon * gap, dual)


def describe(
    sums: VectorN,
    information: VectorN,
    squares: VectorN,
    diagonal: Float[Array, "k"],
    a: VectorN,
    b: VectorM,
) -> tuple[Scalar, Scalar, Scalar]:
    """Entropy, neighbours and diagonal mass of a plan, see :class:`SinkhornOutput`.

    From its density D with respect to a x b: over each row, with masses w_j = b_j D_ij, the
    sums of w, w log D and w^2; and the diagonal of D.
    """
    least = jnp.minimum(*(-jnp.sum(jax.scipy.special.xlogy(w, w)) for w in (a, b)))
    entropy = 1 - jnp.sum(a * information) / jnp.where(least > 0, least, jnp.inf)
    k = diagonal.shape[0]
    rows = sums**2 / jnp.where(squares > 0, squares, 1)
    return jnp.clip(entropy, 0, 1), _centred.mean(a, rows), jnp.sum(a[:k] * b[:k] * diagonal)
