"""Objectives of a one-step generator that need no solver, to compare those of transport with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinkflow._generated import normal, samples, second_cloud, towards
from sinkflow.ot import costs
from sinkflow.ot._precision import matmul
from sinkflow.types import Array, Bool, Float, PRNGKey, Scalar, ScalarLike

__all__ = ["drift_loss", "energy_loss"]

TINY = 1e-12  # added to squares before their root, whose slope at 0 is infinite
FAR = 1e6  # distance at which a sample no longer repels itself [length]


def energy_loss(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    y: Float[Array, "m d"],
    key: PRNGKey | None = None,
    *,
    self_cloud: str = "second",
    latent: Callable = normal,
) -> tuple[Scalar, Bool[Array, ""]]:
    r"""Energy distance, an opponent without a solver: mean distances instead of plans.

    .. math:: E|x - y| - \tfrac12 E|x - x'| - \tfrac12 E|y - y'|

    Arguments and errors are those of :func:`sinkflow.generator.divergence_loss`. The means are
    over all pairs; with the "diagonal" cloud over all pairs of different points, of y too.

    Returns:
      The distance [length] and whether it is finite.

    Source:
      Szekely and Rizzo 2013, "Energy statistics"; as a generator's loss with one kernel of
      Riesz: Hertrich et al. 2024, arXiv:2305.11463.
    """
    x = samples(apply_fn, params, z)
    other = second_cloud(apply_fn, params, z, key, self_cloud, latent)
    other = x if other is None else other
    pairs = ((x, y), (x, other), (y, y))
    across, within, real = (jnp.mean(_distances(*pair)) for pair in pairs)
    if self_cloud == "diagonal":  # its distances are 0: what remains is the sum of the others
        within, real = (mean * (n / (n - 1)) for mean, n in ((within, len(x)), (real, len(y))))
    value = across - 0.5 * (within + real)
    return value, jnp.isfinite(value)


def drift_loss(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    y: Float[Array, "m d"],
    key: PRNGKey | None = None,
    *,
    temperature: ScalarLike,
    self_cloud: str = "second",
    latent: Callable = normal,
) -> tuple[Scalar, Bool[Array, ""]]:
    r"""Regression on the drift of the drifting models: softmaxes over both sides, no solver.

    Logits are minus the distances over the temperature, for real and own samples together. A is
    the geometric mean of their softmax over rows and over columns. Real ones attract by their
    share of A times the own ones' total, and the other way round.

    Args:
      apply_fn: generator.
      params: its parameters.
      z: latent points.
      y: real samples [length].
      key: of the second cloud.
      temperature: of the softmaxes [length].
      self_cloud: as in :func:`sinkflow.generator.divergence_loss`; with "diagonal" a sample
        does not repel itself.
      latent: ``(key, z) -> z'`` draws latent points like z, of any count; default standard
        normal, as many.

    Returns:
      The loss, half the mean squared drift [length^2], and whether it is finite.

    Raises:
      ValueError: as :func:`sinkflow.generator.divergence_loss`.

    Source:
      Deng et al. 2026, arXiv:2602.04770, algorithm 2, in which the cloud is the "diagonal" one:
      compared with descriptions and implementations of that algorithm by others, with which
      it agrees; the paper's print itself was not at hand. Its normalisations of features and
      of the drift are left out.
    """
    x = samples(apply_fn, params, z)
    fixed = jax.lax.stop_gradient(x)
    other = second_cloud(apply_fn, params, z, key, self_cloud, latent)
    repelled = _distances(fixed, fixed if other is None else other)
    if self_cloud == "diagonal":
        repelled = repelled + FAR * jnp.eye(x.shape[0], dtype=x.dtype)
    other = fixed if other is None else other
    logits = -jnp.concatenate([_distances(fixed, y), repelled], axis=1) / temperature
    both = 0.5 * (jax.nn.log_softmax(logits, axis=1) + jax.nn.log_softmax(logits, axis=0))
    attract, repel = jnp.split(jnp.exp(both), [y.shape[0]], axis=1)
    pull = attract * jnp.sum(repel, axis=1, keepdims=True)
    push = repel * jnp.sum(attract, axis=1, keepdims=True)
    value = towards(x, jax.lax.stop_gradient(matmul(pull, y) - matmul(push, other)))
    return value, jnp.isfinite(value)


def _distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Euclidean distances [n, m], with a finite slope at 0."""
    return jnp.sqrt(2 * costs.squared_euclidean(x, y) + TINY)
