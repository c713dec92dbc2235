"""What the objectives of a generator share: its samples, a second cloud, and a goal for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinkflow.types import Array, Float, PRNGKey, Scalar

SELF_CLOUDS = ("second", "same", "diagonal")
"""What a self term may compare samples with."""


def normal(key: PRNGKey, z: Float[Array, "n *latent"]) -> Float[Array, "n *latent"]:
    """Standard normal latent points of the shape of z."""
    return jax.random.normal(key, z.shape, z.dtype)


def samples(apply_fn: Callable, params: Any, z: Float[Array, "n *latent"]) -> Float[Array, "n d"]:
    """What the generator makes of z, as vectors."""
    x = apply_fn(params, z)
    return x.reshape(x.shape[0], -1)


def second_cloud(
    apply_fn: Callable,
    params: Any,
    z: Float[Array, "n *latent"],
    key: PRNGKey | None,
    self_cloud: str,
    latent: Callable,
) -> Float[Array, "k d"] | None:
    """The self term's second cloud; None for the same one, with or without its diagonal."""
    if self_cloud not in SELF_CLOUDS:
        choices = ", ".join(SELF_CLOUDS)
        raise ValueError(f"unknown self_cloud {self_cloud!r}; choose one of {choices}")
    if self_cloud != "second":
        return None
    if key is None:
        raise ValueError("a second cloud needs a key; give one, or self_cloud='diagonal'")
    return samples(apply_fn, params, latent(key, z))


def towards(x: Float[Array, "n d"], v: Float[Array, "n d"]) -> Scalar:
    """Half the mean over samples of |x - sg(x + v)|^2."""
    goal = jax.lax.stop_gradient(x + v)
    return 0.5 * jnp.mean(jnp.sum((x - goal) ** 2, axis=1))
