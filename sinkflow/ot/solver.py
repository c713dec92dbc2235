"""Log-domain Sinkhorn scaling for entropic optimal transport, with a certificate."""

import functools

import jax

from sinkflow.ot import _centred, _fused, _gradients, _inputs, _kernel
from sinkflow.ot._inputs import check_limits, check_problem
from sinkflow.ot._shapes import CloudM, CloudN, VectorM, VectorN
from sinkflow.ot._solves import STATIC, as_given, iterations_to_unroll, solve, solve_self, unroll
from sinkflow.ot.limits import Limits, Storage
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Float, Int, Scalar, ScalarLike

__all__ = ["sinkhorn", "sinkhorn_self"]


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
    :math:`s_i = \sum_j b_j e^{(f_i + g_j - C_{ij})/\varepsilon}`, and the same for g.
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
      in float32): the value is within marginal_error * (C + epsilon) + 16 r (C + abs(value)) of
      the true one. Barycentric images are, in the mean over particles, within (30 marginal_error +
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
    g_init = _inputs.as_potential("g_init", g_init, y, "y")
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
    f_init = _inputs.as_potential("f_init", f_init, x, "x")
    return _cloud_to_itself(x, epsilon, a, f_init, *limits, gradient, count)


@functools.partial(jax.jit, static_argnames=STATIC)
def _cloud_to_cloud(
    x: CloudN,
    y: CloudM,
    epsilon: Scalar,
    a: VectorN | None,
    b: VectorM | None,
    g_init: VectorM | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: Storage,
    gradient: str,
    count: int,
) -> SinkhornOutput:
    a, b = _inputs.distribution(a, x), _inputs.distribution(b, y)
    moved = _centred.centred(x, y, a, b)
    problem = _gradients.Problem(moved.x, moved.y, _inputs.positive(epsilon), a, b)
    limits = Limits(threshold, max_iterations, _fused.storage_for(storage, x, y))
    if count:
        out = unroll(problem, limits, count)
    else:
        cost = _kernel.make_cost(problem.x, problem.y, limits.storage)
        init = None if g_init is None else g_init - moved.of_y
        out = solve(problem, cost, init, limits, gradient)
    return as_given(out, moved, problem)


@functools.partial(jax.jit, static_argnames=STATIC)
def _cloud_to_itself(
    x: CloudN,
    epsilon: Scalar,
    a: VectorN | None,
    f_init: VectorN | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: Storage,
    gradient: str,
    count: int,
) -> SinkhornOutput:
    a = _inputs.distribution(a, x)
    x = _centred.centred(x, x, a, a).x
    problem = _gradients.Problem(x, x, _inputs.positive(epsilon), a, a)
    limits = Limits(threshold, max_iterations, _fused.storage_for(storage, x, x))
    if count:
        return unroll(problem, limits, count, same=True)
    return solve_self(problem, _kernel.make_cost(x, x, limits.storage), f_init, limits, gradient)
