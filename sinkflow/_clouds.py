"""Clouds drawn from samplers, side by side, and whether they are fit to flow."""

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.types import Array, Bool, Float, Int, PRNGKey, Sampler

SAMPLED = ("source", "target")


def draw_clouds(
    key: PRNGKey,
    source: Sampler,
    target: Sampler,
    indices: Int[Array, "clouds"],
    num_particles: int,
) -> tuple[Float[Array, "clouds n d"], Float[Array, "clouds n d"]]:
    """Source and target clouds of these numbers, as :func:`sinkflow.pool.build` starts from.

    Raises:
      ValueError: a sampler that gives something else than ``[num_particles, d]``.
    """

    def one(index: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, index))
        x, y = (
            _checked_cloud(name, sampler(key, num_particles), num_particles)
            for name, sampler, key in zip(SAMPLED, (source, target), keys, strict=True)
        )
        return x, y

    return jax.vmap(one)(indices)


def _checked_cloud(name: str, cloud: Array, num_particles: int) -> Array:
    if jnp.ndim(cloud) != 2 or len(cloud) != num_particles:
        raise ValueError(
            f"{name} gave shape {jnp.shape(cloud)} for {num_particles} particles; a sampler gives "
            f"[{num_particles}, dimension]"
        )
    return cloud


@jax.jit
def all_finite(
    x: Float[Array, "clouds n d"], y: Float[Array, "clouds m d"]
) -> Bool[Array, "clouds 2"]:
    """Which clouds [clouds, 2], source and target, are finite throughout."""
    return jnp.stack([jnp.all(jnp.isfinite(cloud), axis=(1, 2)) for cloud in (x, y)], axis=1)


def check_finite(finite: Bool[np.ndarray, "clouds 2"]) -> None:
    """Raises ValueError that names the samplers of the clouds [clouds, 2] that are not finite."""
    bad = [
        f"{name} gave points that are not finite in {np.sum(~drawn)} of {len(drawn)} clouds, "
        f"first in cloud {np.argmin(drawn)}"
        for name, drawn in zip(SAMPLED, finite.T, strict=True)
        if not drawn.all()
    ]
    if bad:
        raise ValueError(f"{'; '.join(bad)}: mend the sampler, the flow only passes them on")
