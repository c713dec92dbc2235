"""Velocity fields for vectors (Linen modules, called with x [n, d] and t [n])."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from sinkflow.types import Array, Float


class VelocityMLP(nn.Module):
    """Multilayer perceptron of (x, time embedding) with residual hidden layers.

    Attributes:
      hidden_dims: width of each hidden layer.
      num_frequencies: sines and cosines of t at periods 4, 2, 1, 1/2, ... [flow time].
    """

    hidden_dims: Sequence[int] = (256, 256, 256)
    num_frequencies: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], t: Float[Array, "n"]) -> Float[Array, "n d"]:
        phase = t[:, None] * (0.5 * jnp.pi * 2.0 ** jnp.arange(self.num_frequencies))[None, :]
        time = jnp.concatenate([t[:, None], jnp.sin(phase), jnp.cos(phase)], axis=1)
        h = jnp.concatenate([x, time], axis=1)
        for width in self.hidden_dims:
            h_next = nn.silu(nn.Dense(width)(h))
            h = h + h_next if h.shape == h_next.shape else h_next
        return nn.Dense(x.shape[1])(h)
