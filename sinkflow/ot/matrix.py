"""Entropic transport for a given cost matrix, by the library's own solver."""

import functools

import jax
import jax.numpy as jnp

from sinkflow.ot import _cost, _gradients, _inputs, _iterations, _kernel, _matrix_gradients
from sinkflow.ot._certificate import certify, doubted
from sinkflow.ot._inputs import check_limits, check_one_device
from sinkflow.ot._matrix_gradients import MatrixProblem
from sinkflow.ot._shapes import MatrixNM, Pair, VectorM, VectorN
from sinkflow.ot._solves import STATIC, iterations_to_unroll
from sinkflow.ot.limits import Limits
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Float, Int, Scalar, ScalarLike

__all__ = ["sinkhorn_matrix"]


def sinkhorn_matrix(
    cost: Float[Array, "n m"],
    epsilon: ScalarLike,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    *,
    g_init: Float[Array, "m"] | None = None,
    limits: Limits = Limits(),
    gradient: str = "envelope",
) -> SinkhornOutput:
    r"""Entropic optimal transport for a given cost matrix.

    Solves, for weights of one total mass :math:`M = \sum_i a_i = \sum_j b_j`,

    .. math:: W_\varepsilon = \min_{\pi 1 = a,\ \pi^\top 1 = b} \langle C, \pi\rangle
              + \varepsilon\,\mathrm{KL}\big(\pi \,\|\, \tfrac1M\, a \otimes b\big)

    by the iterations of :func:`sinkflow.sinkhorn`, whose problem it is where the costs are
    :func:`sinkflow.costs.squared_euclidean` and M is 1. Value and plan scale with the mass.

    Args:
      cost: any costs C [units of the cost], no factor added: negative, asymmetric and rectangular
        ones too. A pair is forbidden by a finite cost far above all others.
      epsilon: entropic regularisation [units of the cost].
      a: weights of the rows [mass]; default uniform, of the mass of ``b`` (1 without it). Any sum
        above 0. Zeros are allowed: such rows decide nothing, and their potentials are those of
        rows that join the solved problem.
      b: weights of the columns, likewise. Its sum is that of ``a``, to 1e-3 of it; both are
        brought to the mean of the two.
      g_init: potential of a nearby problem, as :func:`sinkflow.sinkhorn` takes it.
      limits: when to stop and what to store beside the costs, see :class:`sinkflow.Limits`. The
        threshold is a share of the mass. "half" and "chunks" save the densities, not the costs.
      gradient: derivative of ``value``, "envelope", "implicit" or "unrolled", as
        :func:`sinkflow.sinkhorn` has them.

    Returns:
      A :class:`sinkflow.SinkhornOutput`. The plan [mass] is a_i b_j exp((f_i + g_j - C_ij) /
      epsilon), whatever the mass, and 0 where a weight is; ``marginal_error`` and
      ``diagonal_mass`` are shares of the mass.
      At the solution ``value`` is <a, f> + <b, g> + epsilon M log M.

    Raises:
      ValueError: no matrix, an empty one, wrong shapes, an unknown gradient or storage; outside a
        trace also costs that are not finite, epsilon or threshold <= 0, weights that are negative,
        not finite, without mass or of different masses. Costs sharded over Explicit mesh axes.

    Numerics:
      Nothing is raised on device: what is wrong only there has ``converged=False``. Jitted as a
      whole; batched by :func:`jax.vmap`. Integers and half precision become the default float.
      Solved after the least cost of each row and then of each column is subtracted, which the
      plan does not depend on. The costs are held twice.

      Differentiable, forwards and backwards, in costs, weights and epsilon, a second time with
      moving potentials. With "envelope" the derivative of ``value`` in the costs is the plan;
      that in the weights is f and g, each up to a constant, for changes that keep the masses
      equal. ``f`` and ``g`` are differentiated implicitly (unrolled if asked).

    Errors:
      With ``converged``, C the largest absolute cost and r the rounding of the dtype: ``value`` is
      within M (marginal_error (C + epsilon) + 16 r C) + 16 r abs(value) of the true one.
      This bound is tested, not proven. Of :math:`\min \langle C, \pi\rangle` it is above by
      at most epsilon M min(H(a / M), H(b / M)).

    Source:
      Cuturi 2013, arXiv:1306.0895; the derivative is the envelope theorem's, as in Feydy et al.
      2019, arXiv:1810.08278, prop. 2 and sec. 3.2. The subtraction is that of the Hungarian
      method, Kuhn 1955.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> cost = jnp.array([[0.0, 2.0, 4.0], [5.0, 1.0, 3.0]])
      >>> a, b = jnp.array([3.0, 2.0]), jnp.array([3.0, 1.0, 1.0])
      >>> out = sinkhorn_matrix(cost, 0.1, a, b, limits=Limits(1e-5))
      >>> bool(out.converged)
      True
      >>> plan = jax.grad(lambda cost: sinkhorn_matrix(cost, 0.1, a, b).value)(cost)
      >>> plan.round(2).tolist()
      [[3.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    """
    cost = _inputs.as_cost(cost)
    epsilon = _inputs.as_scalar("epsilon", epsilon, cost.dtype)
    a, b = _inputs.as_masses(a, b, cost)
    count = iterations_to_unroll(gradient, limits)
    limits = check_limits(limits, cost.dtype)
    check_one_device(limits)
    g_init = _inputs.as_potential("g_init", g_init, cost.T, "cost")
    return _solve(cost, epsilon, a, b, g_init, *limits, gradient, count)


@functools.partial(jax.jit, static_argnames=STATIC)
def _solve(
    cost: MatrixNM,
    epsilon: Scalar,
    a: VectorN | None,
    b: VectorM | None,
    g_init: VectorM | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: str,
    gradient: str,
    count: int | None,
) -> SinkhornOutput:
    a, b, mass = _inputs.shares(a, b, cost)
    epsilon = _inputs.positive(epsilon)
    least = jax.lax.stop_gradient(_least(cost, a, b))
    reduced = cost - least[0][:, None] - least[1][None, :]
    problem = MatrixProblem(reduced, epsilon, a, b, None)
    seen = jax.lax.stop_gradient(problem)
    # Behind a barrier: the differences are not to be computed in every sum over the costs.
    kernel = _cost.MatrixCost(jax.lax.optimization_barrier(seen.cost))
    if count:
        f, g = _gradients.unrolled(_cost.MatrixCost(cost), epsilon, a, b, count)
        f, g = f - least[0], g - least[1]
        potentials, updates = jax.lax.stop_gradient((f, g)), jnp.asarray(count)
        out = certify(kernel, *potentials, seen.epsilon, seen.a, seen.b, threshold, updates)
    else:
        init = None if g_init is None else jax.lax.stop_gradient(g_init - least[1])
        kind = _kernel.kept(_kernel.storage_for(storage, cost, cost.T))
        wanted = init, threshold, max_iterations, kind
        out = _iterations.sinkhorn(kernel, seen.epsilon, seen.a, seen.b, *wanted)
        f, g = _matrix_gradients.moving((out.f, out.g), problem)
    through = jax.lax.stop_gradient((f, g)) if gradient == "envelope" else (f, g)
    value = _matrix_gradients.dual_value(out.value, *through, problem, gradient)
    return _as_given(out._replace(f=f, g=g, value=value), least, epsilon, a, b, mass)


def _least(cost: MatrixNM, a: VectorN, b: VectorM) -> Pair:
    """The least cost of each row [n], and then of each column [m], among those of mass.

    Where one cost is far above the others, subtracting means would cost the others digits.
    """
    rows = jnp.min(jnp.where(b[None, :] > 0, cost, jnp.inf), axis=1)
    rest = jnp.where(a[:, None] > 0, cost - rows[:, None], jnp.inf)
    return rows, jnp.min(rest, axis=0)


def _as_given(
    out: SinkhornOutput, least: Pair, epsilon: Scalar, a: VectorN, b: VectorM, mass: Scalar
) -> SinkhornOutput:
    """The output for the costs and weights as they were before they were reduced."""
    rows, columns = least
    value = mass * (out.value + jnp.sum(a * rows) + jnp.sum(b * columns))
    # The plan of mass 1 times M is a b exp(...) / M in the weights as they were.
    f, g = out.f + rows - epsilon * jnp.log(mass), out.g + columns
    out = out._replace(f=f, g=g, value=value)
    seen, epsilon, a, b = jax.lax.stop_gradient((out, epsilon, a, b))
    return out._replace(converged=doubted(seen, epsilon, a, b, 0.0).converged)
