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

from sinkflow import costs, scaling
from sinkflow.divergence import sinkhorn_divergence, sinkhorn_velocity
from sinkflow.sinkhorn import sinkhorn
from sinkflow.types import Array, Float, Int, PRNGKey, Scalar, ScalarLike

DOMAINS = ("log", "scaling")
SELF_CLOUDS = ("second", "same")
TINY = 1e-12  # added to a mean square that is divided by


class Certificate(NamedTuple):
    """Whether to believe the solves behind a loss.

    ``unconverged`` counts solves that missed their threshold (or underflowed),
    ``marginal_error`` is the largest L1 error [mass, total 1], ``num_iterations`` the sum over
    solves where it is known, else -1.
    """

    unconverged: Int[Array, ""]
    marginal_error: Scalar
    num_iterations: Int[Array, ""]


def normal(key: PRNGKey, z: Float[Array, "n *latent"]) -> Float[Array, "n *latent"]:
    """Standard normal latent points of the shape of z."""
    return jax.random.normal(key, z.shape, z.dtype)


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
      ValueError: unknown domain; as :func:`sinkflow.sinkhorn`.

    Source:
      Genevay, Peyre, Cuturi 2018, arXiv:1706.00292, sec. 3.2; Peyre and Cuturi 2019,
      arXiv:1803.00567, sec. 9.4.
    """
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    x = samples(apply_fn, params, z)
    count = jnp.asarray(num_iterations)
    if domain == "scaling":
        cost = costs.squared_euclidean(x, y)
        out = scaling.matrix_scaling(cost, epsilon, num_iterations=num_iterations)
        bad = out.underflow.astype(int)
        return out.transport_cost, Certificate(bad, out.marginal_error, count)
    solved = sinkhorn(x, y, epsilon, max_iterations=num_iterations, gradient="unrolled")
    cost = costs.squared_euclidean(x, y)
    density = jnp.exp((solved.f[:, None] + solved.g[None, :] - cost) / epsilon)
    value = jnp.mean(density * cost)
    bad = (~jnp.isfinite(value)).astype(int)
    return value, Certificate(bad, solved.marginal_error, count)


def entropic_loss(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    y: Float[Array, "m d"],
    key: PRNGKey | None = None,
    *,
    epsilon: ScalarLike,
    gradient: str = "envelope",
    threshold: ScalarLike = 1e-2,
    max_iterations: ScalarLike = 100,
) -> tuple[Scalar, Certificate]:
    r"""Entropic cost :math:`W_\varepsilon(G(z), y)` [length^2], with its bias.

    Arguments, results and errors are those of :func:`divergence_loss`; ``key`` is not used.
    """
    x = samples(apply_fn, params, z)
    out = sinkhorn(
        x, y, epsilon, gradient=gradient, threshold=threshold, max_iterations=max_iterations
    )
    bad = (~out.converged).astype(int)
    return out.value, Certificate(bad, out.marginal_error, out.num_iterations)


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
    threshold: ScalarLike = 1e-2,
    max_iterations: ScalarLike = 100,
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
      self_cloud: what the self term compares G(z) with: "second", G(z') of independent z', of
        which each carries half of its gradient; or "same", G(z) itself, which in high
        dimension contracts the samples.
      gradient: "envelope", "implicit" or "unrolled", see :func:`sinkflow.sinkhorn`.
      threshold: L1 marginal error [mass, total 1] at which each solve stops.
      max_iterations: cap on the iterations of each solve.
      latent: ``(key, z) -> z'`` draws latent points like z; default standard normal.

    Returns:
      The loss [length^2] and its certificate: 1 unconverged if one of its solves is; their
      errors are not known (NaN).

    Raises:
      ValueError: unknown self cloud; no key for a second one; as :func:`sinkflow.sinkhorn`.

    Source:
      Genevay, Peyre, Cuturi 2018, arXiv:1706.00292; the second cloud: Salimans et al. 2018,
      arXiv:1803.05573.
    """
    x = samples(apply_fn, params, z)
    other = second_cloud(apply_fn, params, z, key, self_cloud, latent)
    value, converged = sinkhorn_divergence(
        x,
        y,
        epsilon,
        self_cloud=other,
        gradient=gradient,
        threshold=threshold,
        max_iterations=max_iterations,
    )
    unknown = jnp.asarray(jnp.nan, x.dtype)
    return value, Certificate((~converged).astype(int), unknown, jnp.asarray(-1))


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
    threshold: ScalarLike = 1e-2,
    max_iterations: ScalarLike = 100,
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
      self_cloud: "second" or "same", as in :func:`divergence_loss`.
      normalize: divide each epsilon's velocity by its root mean square over samples and
        coordinates.
      threshold: L1 marginal error [mass, total 1] at which each solve stops.
      max_iterations: cap on the iterations of each solve.
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
    total, infos = jnp.zeros_like(fixed), []
    for epsilon in epsilons:
        v, info = sinkhorn_velocity(
            fixed, y, epsilon, self_cloud=other, threshold=threshold, max_iterations=max_iterations
        )
        total = total + (_normalized(v) if normalize else v)
        infos.append(info)
    errors = jnp.stack([info.marginal_error for info in infos])
    solves = [solve for info in infos for solve in (info.xy, info.xx)]
    certificate = Certificate(
        jnp.sum(jnp.stack([~solve.converged for solve in solves])),
        jnp.max(errors),
        jnp.sum(jnp.stack([solve.num_iterations for solve in solves])),
    )
    return towards(x, total), jax.lax.stop_gradient(certificate)


def samples(apply_fn: Callable, params: Any, z: Float[Array, "n *latent"]) -> Float[Array, "n d"]:
    """What the generator makes of z, as vectors."""
    x = apply_fn(params, z)
    return x.reshape(x.shape[0], -1)


def second_cloud(apply_fn, params, z, key, self_cloud, latent):
    """The self term's second cloud; None for the same one."""
    if self_cloud not in SELF_CLOUDS:
        choices = ", ".join(SELF_CLOUDS)
        raise ValueError(f"unknown self_cloud {self_cloud!r}; choose one of {choices}")
    if self_cloud == "same":
        return None
    if key is None:
        raise ValueError("a second cloud needs a key; give one, or self_cloud='same'")
    return samples(apply_fn, params, latent(key, z))


def towards(x, v):
    """Half the mean over samples of |x - sg(x + v)|^2."""
    goal = jax.lax.stop_gradient(x + v)
    return 0.5 * jnp.mean(jnp.sum((x - goal) ** 2, axis=1))


def _normalized(v):
    return v * jax.lax.rsqrt(jnp.mean(v**2) + TINY)
