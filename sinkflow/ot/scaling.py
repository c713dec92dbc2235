"""Matrix scaling as the textbook writes it: the reference of the log-domain solver."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.ot import _inputs, _loops
from sinkflow.ot._precision import matvec
from sinkflow.ot._shapes import MatrixNM, VectorM, VectorN
from sinkflow.types import Array, Bool, Float, Scalar, ScalarLike

__all__ = ["ScalingOutput", "entropic_objective", "entropy", "kl_divergence", "matrix_scaling"]


class ScalingOutput(NamedTuple):
    """Scalings after the last iteration, their plan, and whether to believe it.

    ``u`` [n] and ``v`` [m] scale the kernel into ``plan`` [n, m] = diag(u) K diag(v) [mass,
    total 1]. ``transport_cost`` is <C, plan> [units of the cost], without the entropy.
    ``marginal_error`` is the larger of the two L1 errors of the plan's marginals [mass].
    ``underflow`` says that the numbers are wrong however small that error is: something is
    not finite, or entries that the arithmetic lost would carry mass under these scalings.
    """

    u: Float[Array, "n"]
    v: Float[Array, "m"]
    plan: Float[Array, "n m"]
    transport_cost: Scalar
    marginal_error: Scalar
    underflow: Bool[Array, ""]


def matrix_scaling(
    cost: Float[Array, "n m"],
    epsilon: ScalarLike,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    *,
    num_iterations: int,
) -> ScalingOutput:
    r"""Sinkhorn's matrix scaling, without stabilisation, for a fixed number of iterations.

    With :math:`K = e^{-C/\varepsilon}` and :math:`u = v = 1` at the start, repeats

    .. math:: u \leftarrow a \oslash (K v), \qquad v \leftarrow b \oslash (K^\top u),

    whose limit :math:`\mathrm{diag}(u)\, K\, \mathrm{diag}(v)` minimises
    :math:`\langle C, \pi\rangle - \varepsilon H(\pi)`. To learn from, to test against and to
    differentiate through; :func:`sinkflow.sinkhorn` is the solver to use. Its potentials are
    related by :math:`u_i = a_i e^{f_i/\varepsilon}`, :math:`v_j = b_j e^{g_j/\varepsilon}`.

    Args:
      cost: any ground cost [length^2 where it is :func:`sinkflow.costs.squared_euclidean`].
      epsilon: entropic regularisation [units of the cost].
      a: source weights, sum 1; default uniform. Zeros are allowed.
      b: target weights, likewise.
      num_iterations: how many, each updating u and v; a new number recompiles.

    Returns:
      A :class:`ScalingOutput`.

    Raises:
      ValueError: wrong shapes or number of iterations; outside a trace also epsilon <= 0 and
        weights that are negative, not finite or do not sum to 1.

    Numerics:
      exp(-C / epsilon) leaves float32 where a cost exceeds 87 epsilon, float64 at 708.
      Nothing is repaired: see ``underflow``. Reverse-differentiable through all iterations,
      which takes memory for num_iterations pairs (u, v) besides the kernel.

    Source:
      Cuturi 2013, arXiv:1306.0895, algorithm 1; Peyre and Cuturi, arXiv:1803.00567, eq. 4.15;
      the gradient through the iterations: Genevay, Peyre, Cuturi 2018, arXiv:1706.00292.

    Example:
      >>> import jax.numpy as jnp
      >>> out = matrix_scaling(jnp.array([[0.0, 1.0], [1.0, 0.0]]), 0.5, num_iterations=10)
      >>> round(float(out.transport_cost), 3), bool(out.underflow)
      (0.119, False)
    """
    cost = _inputs.as_matrix(cost)
    epsilon = _inputs.as_scalar("epsilon", epsilon, cost.dtype)
    if not isinstance(num_iterations, int | np.integer) or num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}; it must be an integer, at least 1")
    a, b = (
        _inputs.as_weights(name, weights, cloud)
        for name, weights, cloud in (("a", a, cost), ("b", b, cost.T))
    )
    return _matrix_scaling(cost, epsilon, a, b, int(num_iterations))


@functools.partial(jax.jit, static_argnums=4)
def _matrix_scaling(
    cost: MatrixNM, epsilon: Scalar, a: VectorN | None, b: VectorM | None, num_iterations: int
) -> ScalingOutput:
    a, b = _inputs.distribution(a, cost), _inputs.distribution(b, cost.T)
    epsilon = _inputs.positive(epsilon)  # a wrong traced one shows
    kernel = jnp.exp(-cost / epsilon)

    def iteration(_: Array, scalings: tuple[Array, Array]) -> tuple[Array, Array]:
        _, v = scalings
        u = _scaled(a, matvec(kernel, v))
        return u, _scaled(b, matvec(u, kernel))

    start = _loops.varying_with((jnp.ones_like(a), jnp.ones_like(b)), (cost, epsilon, a, b))
    u, v = jax.lax.fori_loop(0, num_iterations, iteration, start)
    plan = u[:, None] * kernel * v[None, :]
    transport_cost = jnp.sum(plan * cost)
    row_error = jnp.sum(jnp.abs(jnp.sum(plan, axis=1) - a))
    column_error = jnp.sum(jnp.abs(jnp.sum(plan, axis=0) - b))
    # A kernel may lose entries and still be scaled to the marginals, but to another plan. What
    # they would hold, u_i K_ij v_j, exists as the exponential of a sum.
    exponent = jnp.log(u)[:, None] + jnp.log(v)[None, :] - cost / epsilon
    limits = jnp.finfo(cost.dtype)
    lost = jnp.sum(jnp.where(kernel < limits.tiny, jnp.exp(exponent), 0.0))
    # Scalings that are not finite make the transport cost so.
    trusted = jnp.isfinite(transport_cost) & (lost <= limits.eps)
    error = jnp.maximum(row_error, column_error)
    return ScalingOutput(u, v, plan, transport_cost, error, ~trusted)


def _scaled(weights: VectorN, sums: VectorN) -> VectorN:
    """weights / sums, and 0 where there is no mass, however small the sum."""
    massless = weights == 0
    return jnp.where(massless, 0, weights / jnp.where(massless, 1, sums))


@jax.jit
def entropy(plan: Float[Array, "*shape"]) -> Scalar:
    r"""Entropy :math:`H(\pi) = -\sum \pi \log \pi` [nat], with 0 log 0 = 0.

    Args:
      plan: a plan or weights, non-negative [mass]; anything else gives NaN.

    Numerics:
      The derivative is -log pi - 1, and 0 (not infinite) at entries that are 0.

    Source:
      Peyre and Cuturi, arXiv:1803.00567, eq. 4.1, whose H has the sum of pi added.
    """
    positive = jnp.where(plan == 0, 1.0, plan)
    return -jnp.sum(positive * jnp.log(positive))


@jax.jit
def kl_divergence(plan: Float[Array, "*shape"], reference: Float[Array, "*shape"]) -> Scalar:
    r"""Generalised :math:`\mathrm{KL}(\pi\|q) = \sum \pi\log(\pi/q) - \pi + q` [nat].

    Args:
      plan: non-negative, of any total mass.
      reference: likewise. Where it is 0 and the plan is not, the divergence is infinite.

    Raises:
      ValueError: different shapes.

    Source:
      Peyre and Cuturi, arXiv:1803.00567, eq. 4.6.
    """
    _check_shapes("plan", plan, "reference", reference)
    return jnp.sum(jax.scipy.special.kl_div(plan, reference))


@jax.jit
def entropic_objective(
    cost: Float[Array, "n m"], plan: Float[Array, "n m"], epsilon: ScalarLike
) -> Scalar:
    r"""What entropic transport minimises, :math:`\langle C, \pi\rangle - \varepsilon H(\pi)`.

    It equals :math:`\varepsilon\,(\mathrm{KL}(\pi\|K) + \sum\pi - \sum K)` with
    :math:`K = e^{-C/\varepsilon}`. On plans with marginals a and b, the objective of
    :func:`sinkflow.sinkhorn`, whose penalty is :math:`\mathrm{KL}(\pi\|a \otimes b)`, is
    higher by the constant :math:`\varepsilon\,(H(a) + H(b))`: the minimiser is the same.

    Args:
      cost: ground cost.
      plan: non-negative [mass].
      epsilon: entropic regularisation [units of the cost].

    Raises:
      ValueError: different shapes.

    Source:
      Cuturi 2013, arXiv:1306.0895; Peyre and Cuturi, arXiv:1803.00567, eq. 4.2 and 4.7.
    """
    _check_shapes("cost", cost, "plan", plan)
    return jnp.sum(cost * plan) - epsilon * entropy(plan)


def _check_shapes(name: str, array: Array, other_name: str, other: Array) -> None:
    if jnp.shape(array) != jnp.shape(other):
        shapes = f"{jnp.shape(array)} and {jnp.shape(other)}"
        raise ValueError(f"{name} and {other_name} differ in shape: {shapes}")
