"""Objectives of a one-step generator: losses of its samples, to be differentiated in its weights.

Each is a pure function of ``(apply_fn, params, z, y, key)``: ``apply_fn(params, z)`` maps latent
points z [n, ...] to samples, of which all but the first axis are flattened to x [n, d]; y [m, d]
are real samples; ``key`` draws the second cloud's latent points, of z's shape, where one is
asked for. Costs are half squared Euclidean. The target of all is the law of y.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sinkflow._generated import SELF_CLOUDS, normal, samples, second_cloud, towards
from sinkflow.ot import _loops, costs, scaling
from sinkflow.ot.barycentric import barycentric_map
from sinkflow.ot.divergence import sinkhorn_velocity
from sinkflow.ot.limits import Limits
from sinkflow.ot.offdiagonal import OffDiagonal, sinkhorn_offdiagonal
from sinkflow.ot.output import SinkhornOutput
from sinkflow.ot.solver import sinkhorn, sinkhorn_self
from sinkflow.types import Array, Float, Int, PRNGKey, Scalar, ScalarLike

__all__ = [
    "SELF_CLOUDS",
    "Certificate",
    "divergence_loss",
    "entropic_loss",
    "regression_loss",
    "transport_loss",
]

Solve = SinkhornOutput | OffDiagonal

DOMAINS = ("log", "scaling")
LIMITS = Limits(1e-2, 100)  # of the solves of a training step
TINY = 1e-12  # added to a mean square that is divided by


class Certificate(NamedTuple):
    """Whether to believe the solves behind a loss.

    Of ``num_solves`` solves ``unconverged`` missed their threshold (or underflowed).
    ``marginal_error`` is the largest L1 error [mass, total 1], ``num_iterations`` the sum over
    solves.
    """

    unconverged: Int[Array, ""]
    marginal_error: Scalar
    num_iterations: Int[Array, ""]
    num_solves: Int[Array, ""]


def transport_loss(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    y: Float[Array, "m d"],
    key: PRNGKey | None = None,
    *,
    epsilon: ScalarLike,
    num_iterations: int,
    domain: str = "log",
) -> tuple[Scalar, Certificate]:
    r"""The tutorial's loss: transport cost after L scalings, differentiated through them.

    .. math:: \hat E_L = \langle (C \odot K)^\top v_L, u_L \rangle = \langle C, \pi_L \rangle,
              \qquad K = e^{-C/\varepsilon}

    It is no optimum of anything: with the plan held fixed its gradient is another one, however
    many iterations, and unrolling is the way to differentiate it. Not debiased: its minimiser
    is a shrunken copy of the data.

    Args:
      apply_fn: generator.
      params: its parameters.
      z: latent points.
      y: real samples [length].
      key: not used.
      epsilon: entropic regularisation [length^2], of the half squared cost.
      num_iterations: L, each updating both scalings.
      domain: "scaling" multiplies matrices as written, and underflows; "log" iterates on
        potentials. Where the first is finite they agree.

    Returns:
      The loss [length^2] and its certificate, in which a marginal error says how far from
      a plan the L iterations have come; the solve counts as unconverged where the
      arithmetic has failed: underflow, or a loss that is not finite.

    Raises:
      ValueError: unknown domain; no whole number of iterations, at least 1; as
        :func:`sinkflow.scaling.matrix_scaling`.

    Source:
      Genevay, Peyre, Cuturi 2018, arXiv:1706.00292, sec. 3.2; Peyre and Cuturi 2019,
      arXiv:1803.00567, sec. 9.4.
    """
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    x = samples(apply_fn, params, z)
    if num_iterations < 1 or num_iterations != int(num_iterations):
        raise ValueError(f"num_iterations is {num_iterations}; it is a whole number, at least 1")
    cost = costs.squared_euclidean(x, y)
    if domain == "scaling":
        out = scaling.matrix_scaling(cost, epsilon, num_iterations=num_iterations)
        value, error, bad = out.transport_cost, out.marginal_error, out.underflow
    else:
        value, error = _log_scalings(cost, epsilon, num_iterations)
        bad = ~jnp.isfinite(value)
    count = jnp.asarray(num_iterations)
    return value, Certificate(bad.astype(int), error, count, jnp.asarray(1))


def _log_scalings(
    cost: Float[Array, "n m"], epsilon: ScalarLike, num_iterations: int
) -> tuple[Scalar, Scalar]:
    """Transport cost and marginal error after so many scalings of uniform marginals.

    On the costs as they are: the solver's own, of clouds at their means, start elsewhere, and
    differ as long as they have not converged.
    """
    log_n, log_m = (jnp.log(jnp.asarray(count, cost.dtype)) for count in cost.shape)

    def scale(potentials: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        f = (log_m - jax.nn.logsumexp((potentials[1][None, :] - cost) / epsilon, axis=1)) * epsilon
        g = (log_n - jax.nn.logsumexp((f[:, None] - cost) / epsilon, axis=0)) * epsilon
        return (f, g), None

    zeros = _loops.varying_with((jnp.zeros_like(cost[:, 0]), jnp.zeros_like(cost[0])), cost)
    (f, g), _ = jax.lax.scan(scale, zeros, length=num_iterations)
    density = jnp.exp((f[:, None] + g[None, :] - cost) / epsilon)
    excess = (jnp.mean(density, axis=axis) - 1 for axis in (0, 1))
    error = jnp.max(jnp.stack([jnp.mean(jnp.abs(each)) for each in excess]))
    return jnp.mean(density * cost), jax.lax.stop_gradient(error)


def entropic_loss(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    y: Float[Array, "m d"],
    key: PRNGKey | None = None,
    *,
    epsilon: ScalarLike,
    gradient: str = "envelope",
    limits: Limits = LIMITS,
) -> tuple[Scalar, Certificate]:
    r"""Entropic cost :math:`W_\varepsilon(G(z), y)` [length^2], with its bias.

    Arguments, results and errors are those of :func:`divergence_loss`; ``key`` is not used.
    """
    x = samples(apply_fn, params, z)
    out = sinkhorn(x, y, epsilon, gradient=gradient, limits=limits)
    return out.value, _certificate([out])


def divergence_loss(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    y: Float[Array, "m d"],
    key: PRNGKey | None = None,
    *,
    epsilon: ScalarLike,
    self_cloud: str = "second",
    gradient: str = "envelope",
    limits: Limits = LIMITS,
    latent: Callable = normal,
) -> tuple[Scalar, Certificate]:
    r"""Debiased :math:`S_\varepsilon(G(z), y)`, differentiated through the solver as asked.

    Args:
      apply_fn: generator.
      params: its parameters.
      z: latent points.
      y: real samples [length].
      key: of the second cloud.
      epsilon: entropic regularisation [length^2].
      self_cloud: what the self term compares G(z) with. "second": G(z') of independent z', of
        which each carries half of its gradient. "same": G(z) itself, which in high dimension
        contracts the samples, for a sample is matched with itself. "diagonal": G(z) itself, a
        sample not being matched with itself, see
        :func:`sinkflow.offdiagonal.sinkhorn_offdiagonal`; so are the real samples then in
        theirs.
      gradient: "envelope", "implicit" or "unrolled", see :func:`sinkflow.sinkhorn`; "diagonal"
        has no implicit one.
      limits: when each solve stops and what it stores, see :class:`sinkflow.Limits`.
      latent: ``(key, z) -> z'`` draws latent points like z; default standard normal.

    Returns:
      The loss [length^2] and the certificate of its three solves.

    Raises:
      ValueError: unknown self cloud; no key for a second one; as :func:`sinkflow.sinkhorn`.

    Source:
      Genevay, Peyre, Cuturi 2018, arXiv:1706.00292; the second cloud: Salimans et al. 2018,
      arXiv:1803.05573.
    """
    x = samples(apply_fn, params, z)
    other = second_cloud(apply_fn, params, z, key, self_cloud, latent)
    options: Any = {"limits": limits, "gradient": gradient}
    itself = sinkhorn_offdiagonal if self_cloud == "diagonal" else sinkhorn_self
    xy, yy = sinkhorn(x, y, epsilon, **options), itself(y, epsilon, **options)
    if other is None:
        xx: Any = itself(x, epsilon, **options)
    else:
        xx = sinkhorn(x, other, epsilon, **options)
    return xy.value - 0.5 * (xx.value + yy.value), _certificate([xy, xx, yy])


def regression_loss(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    y: Float[Array, "m d"],
    key: PRNGKey | None = None,
    *,
    epsilons: Sequence[ScalarLike],
    self_cloud: str = "second",
    normalize: bool = False,
    limits: Limits = LIMITS,
    latent: Callable = normal,
) -> tuple[Scalar, Certificate]:
    r"""Regression on the Sinkhorn velocity: no derivative passes through a solve.

    .. math:: \tfrac1{2n} \sum_i \|G(z_i) - \mathrm{sg}(G(z_i) + v(G(z_i)))\|^2,
              \qquad v = T_{xy} - T_{xx'}

    Its gradient is that of :func:`divergence_loss` with the envelope, the self term's whole
    gradient carried by G(z).

    Args:
      apply_fn: generator.
      params: its parameters.
      z: latent points.
      y: real samples [length]; as many as the second cloud, or the two pulls do not cancel
        where the generator's law is that of the data.
      key: of the second cloud.
      epsilons: entropic regularisations [length^2], whose velocities are added.
      self_cloud: "second", "same" or "diagonal", as in :func:`divergence_loss`.
      normalize: divide each epsilon's velocity by its root mean square over samples and
        coordinates.
      limits: when each solve stops and what it stores, see :class:`sinkflow.Limits`.
      latent: ``(key, z) -> z'`` draws latent points like z, of any count; default standard
        normal, as many.

    Returns:
      The loss, half the mean squared velocity [length^2], and its certificate.

    Raises:
      ValueError: no epsilon; as :func:`divergence_loss`.

    Source:
      arXiv:2401.14069 (the velocity); arXiv:2605.11755 (its regression by a generator).
    """
    if not len(epsilons):
        raise ValueError("epsilons is empty; give at least one")
    x = samples(apply_fn, params, z)
    fixed = jax.lax.stop_gradient(x)
    other = second_cloud(apply_fn, params, z, key, self_cloud, latent)
    other = jax.lax.stop_gradient(other)
    total = jnp.zeros_like(fixed)
    solves: list[Solve] = []
    for epsilon in epsilons:
        if self_cloud == "diagonal":
            v, made = _offdiagonal_velocity(fixed, y, epsilon, limits)
        else:
            v, info = sinkhorn_velocity(fixed, y, epsilon, self_cloud=other, limits=limits)
            made = [info.xy, info.xx]
        total = total + (_normalized(v) if normalize else v)
        solves += made
    return towards(x, total), _certificate(solves)


def _offdiagonal_velocity(
    x: Float[Array, "n d"], y: Float[Array, "m d"], epsilon: ScalarLike, limits: Limits
) -> tuple[Float[Array, "n d"], list[Solve]]:
    """T_xy - T_xx without the diagonal of the second plan, and the two solves."""
    xy = sinkhorn(x, y, epsilon, limits=limits)
    images, _ = barycentric_map(x, y, xy.g, epsilon)
    xx = sinkhorn_offdiagonal(x, epsilon, limits=limits)
    return images - xx.images, [xy, xx]


def _certificate(solves: Sequence[Solve]) -> Certificate:
    """What the outputs of several solves say together."""
    bad = jnp.sum(jnp.stack([~solve.converged for solve in solves]).astype(int))
    error = jnp.max(jnp.stack([solve.marginal_error for solve in solves]))
    iterations = jnp.sum(jnp.stack([solve.num_iterations for solve in solves]))
    count = jnp.asarray(len(solves))
    return jax.lax.stop_gradient(Certificate(bad, error, iterations, count))


def _normalized(v: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return v * jax.lax.rsqrt(jnp.mean(v**2) + TINY)
