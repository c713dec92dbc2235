"""Entropic transport of a cloud to itself in which no point is matched with itself."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _inputs, _loops, _precision
from sinkflow.ot._certificate import describe, doubted, marginal_error
from sinkflow.ot._inputs import check_limits, check_one_device
from sinkflow.ot._shapes import CloudN, VectorN
from sinkflow.ot._solves import iterations_to_unroll
from sinkflow.ot.limits import Limits
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Bool, Float, Int, Scalar, ScalarLike

__all__ = ["OffDiagonal", "sinkhorn_offdiagonal"]

GRADIENTS = ("envelope", "unrolled")
RELAXATION = 0.5  # of the symmetric update, whose spectrum 1 - w(1 + p), p in [-1, 1], it bounds
ANNEALING = 0.25  # factor from one epsilon to the next on the way down
ANNEALING_ROUND = 2  # updates at each of them
MARGIN = 0.9  # of a threshold: the loop stops there, for rounding adds to what it sees


class OffDiagonal(NamedTuple):
    """Potential, value and images of one solve, and what certifies them.

    The plan is pi_ij = exp((f_i + f_j - C_ij) / epsilon) / n^2 for i != j and 0 for i = j.
    ``value`` is its regularised cost [length^2]. ``images`` [n, d] are the barycentric images
    sum_j pi_ij x_j / sum_j pi_ij [length], constants for differentiation.
    ``marginal_error`` is the L1 error [mass, total 1] of the marginal of that plan, measured on
    the returned potential; its rows and columns have the same sums. ``converged`` means the
    same as in :class:`sinkflow.SinkhornOutput`.
    """

    f: Float[Array, "n"]
    value: Scalar
    images: Float[Array, "n d"]
    marginal_error: Scalar
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    neighbours: Scalar


def sinkhorn_offdiagonal(
    x: Float[Array, "n d"],
    epsilon: ScalarLike,
    *,
    limits: Limits = Limits(),
    gradient: str = "envelope",
) -> OffDiagonal:
    r"""Transport of a cloud to itself with the pairs (i, i) left out of the plan.

    .. math:: \min_{\pi 1 = \pi^\top 1 = 1/n,\ \pi_{ii} = 0}
              \langle C, \pi\rangle + \varepsilon\,\mathrm{KL}(\pi \,\|\, a \otimes a)

    By symmetry there is one potential. Its update
    :math:`f \leftarrow f - \tfrac12 \varepsilon \log s`,
    :math:`s_i = \tfrac1n \sum_{j \ne i} e^{(f_i + f_j - C_{ij})/\varepsilon}`, averages the
    point with its nonexpansive Sinkhorn update, so it converges whatever the kernel. Without
    its diagonal the kernel is not positive semi-definite, which
    :func:`sinkflow.sinkhorn_self` relies on. Epsilon is annealed from a bound on the largest
    cost. Costs are stored: 4 n^2 bytes in float32.

    Args:
      x: particles [length], at least two, of equal weights.
      epsilon: entropic regularisation [length^2].
      limits: when the solve stops, see :class:`sinkflow.Limits`. Its cap counts the updates at
        the wanted epsilon, and its storage is not looked at: costs are stored.
      gradient: derivative of ``value`` in x: "envelope" takes the potential as constant, which
        is exact at the solution; "unrolled" makes ``max_iterations`` (a Python int) updates
        from a constant start, no annealing, and differentiates them.

    Returns:
      An :class:`OffDiagonal`.

    Raises:
      ValueError: a cloud of one point; an unknown gradient; as :func:`sinkflow.sinkhorn`.

    Source:
      The mask of the diagonal: arXiv:2605.11755; the averaged update: Feydy et al. 2019,
      arXiv:1810.08278, sec. 3.1.
    """
    if gradient not in GRADIENTS:
        raise ValueError(
            f"unknown gradient {gradient!r} of a plan without its diagonal; choose one of "
            f"{', '.join(GRADIENTS)}"
        )
    x, _ = _inputs.as_clouds(x, x, ("x", "x"))
    if x.shape[0] < 2:
        raise ValueError("x has 1 point, which has no other one to be matched with; give more")
    epsilon = _inputs.as_scalar("epsilon", epsilon, x.dtype)
    count = iterations_to_unroll(gradient, limits)
    limits = check_limits(limits, x.dtype)
    check_one_device(limits)
    threshold, max_iterations, _ = limits
    return _solve(x, epsilon, threshold, max_iterations, count)


@functools.partial(jax.jit, static_argnames="count")
def _solve(
    x: CloudN, epsilon: Scalar, threshold: Scalar, max_iterations: Int[Array, ""], count: int
) -> OffDiagonal:
    weights, epsilon = _inputs.distribution(None, x), _inputs.positive(epsilon)
    moved = _centred.centred(x, x, weights, weights)
    cost = _centred.between_centred(moved.x, moved.x)
    fixed = jax.lax.stop_gradient((cost, epsilon))
    if count:
        f, iterations = _unrolled(cost, epsilon, count), jnp.asarray(count)
    else:
        f, iterations = _iterate(*fixed, threshold, max_iterations)
    # The dual objective, whose derivative at fixed f is that of the value (envelope theorem).
    value = 2 * jnp.mean(f) - epsilon * (jnp.mean(jnp.exp(_log_sums(cost, f, epsilon))) - 1)
    seen = jax.lax.stop_gradient((f, value, moved.x, weights))
    images, out = _certify(*fixed, *seen, threshold, iterations)
    return OffDiagonal(
        f=f,
        value=value,
        images=images + jax.lax.stop_gradient(moved.mean[:1] + moved.mean[1:]),
        marginal_error=out.marginal_error,
        num_iterations=out.num_iterations,
        converged=out.converged & jnp.all(jnp.isfinite(images)),
        neighbours=out.neighbours,
    )


def _exponents(cost: Float[Array, "n n"], f: VectorN, epsilon: Scalar) -> Float[Array, "n n"]:
    """(f_i + f_j - C_ij) / epsilon, and minus infinity on the diagonal."""
    own = jnp.eye(f.shape[0], dtype=bool)
    return jnp.where(own, -jnp.inf, (f[:, None] + f[None, :] - cost) / epsilon)


def _log_sums(cost: Float[Array, "n n"], f: VectorN, epsilon: Scalar) -> VectorN:
    """Logarithms of n times the sums of the plan's rows [n]: 0 where the marginal is met."""
    sums = jax.nn.logsumexp(_exponents(cost, f, epsilon), axis=1)
    return sums - jnp.log(jnp.asarray(f.shape[0], f.dtype))


def _iterate(
    cost: Float[Array, "n n"], epsilon: Scalar, threshold: Scalar, max_iterations: Int[Array, ""]
) -> tuple[VectorN, Int[Array, ""]]:
    """The first potential whose marginal error is within the threshold, and the updates made."""
    largest = jnp.max(cost)
    # Clouds that are not finite are not annealed, and their error, NaN, ends the loop.
    start = jnp.where(jnp.isfinite(largest), jnp.maximum(ANNEALING * largest, epsilon), epsilon)

    def anneal(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        f, at, count = carry
        for _ in range(ANNEALING_ROUND):
            f = f - RELAXATION * at * _log_sums(cost, f, at)
        return f, ANNEALING * at, count + ANNEALING_ROUND

    def unmet(carry: tuple[Array, Array, Array]) -> Array:
        _, logs, count = carry
        error = jnp.mean(jnp.abs(jnp.expm1(logs)))
        return (error > MARGIN * threshold) & (count < max_iterations)

    def update(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        f, logs, count = carry
        f = f - RELAXATION * epsilon * logs
        return f, _log_sums(cost, f, epsilon), count + 1

    carry = jnp.zeros_like(cost[0]), start, jnp.zeros((), int)
    carry = _loops.varying_with(carry, (cost, epsilon, threshold, max_iterations))
    zero = carry[2]
    f, _, made = jax.lax.while_loop(lambda carry: carry[1] > epsilon, anneal, carry)
    f, _, count = jax.lax.while_loop(unmet, update, (f, _log_sums(cost, f, epsilon), zero))
    return f, made + count


def _unrolled(cost: Float[Array, "n n"], epsilon: Scalar, count: int) -> VectorN:
    """The potential after ``count`` updates from 0, with its derivatives."""

    def update(f: Array, _: None) -> tuple[Array, None]:
        return f - RELAXATION * epsilon * _log_sums(cost, f, epsilon), None

    start = _loops.varying_with(jnp.zeros_like(cost[0]), (cost, epsilon))
    return jax.lax.scan(update, start, length=count)[0]


def _certify(
    cost: Float[Array, "n n"],
    epsilon: Scalar,
    f: VectorN,
    value: Scalar,
    x: CloudN,
    weights: VectorN,
    threshold: Scalar,
    iterations: Int[Array, ""],
) -> tuple[CloudN, SinkhornOutput]:
    """Barycentric images of centred x, and the certificate of the plan of f."""
    exponents = _exponents(cost, f, epsilon)
    density = jnp.exp(exponents)
    sums = _precision.matvec(density, weights)
    images = _precision.matmul(density, x)
    error = marginal_error(weights, sums - 1, weights, sums - 1)
    masses = density * weights[None, :]
    qualities = describe(
        sums,
        jnp.sum(masses * jnp.where(density > 0, exponents, 0), axis=1),
        jnp.sum(masses**2, axis=1),
        jnp.zeros_like(f),
        weights,
        weights,
    )
    found = SinkhornOutput(f, f, value, error, iterations, error <= threshold, *qualities)
    mean = _centred.mean_of_centred(x, x, weights, weights)
    return images / jnp.sum(density, axis=1, keepdims=True), doubted(
        found, epsilon, weights, weights, mean
    )
