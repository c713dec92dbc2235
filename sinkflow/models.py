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
        h = _hidden(h, self.hidden_dims)  # before the output layer: layers are named as they come
        return nn.Dense(x.shape[1])(h)


class TimePredictorMLP(nn.Module):
    """Where between source and target a point lies: x [n, d] to t [n] in (0, 1).

    Attributes:
      hidden_dims: width of each hidden layer.

    Source: the phase-transition time predictor of arXiv:2401.14069.
    """

    hidden_dims: Sequence[int] = (256, 256, 256)

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n"]:
        return nn.sigmoid(nn.Dense(1)(_hidden(x, self.hidden_dims))[:, 0])


def _hidden(h, widths):
    """Dense layers with SiLU, residual where the width stays; called inside a compact module."""
    for width in widths:
        h_next = nn.silu(nn.Dense(width)(h))
        h = h + h_next if h.shape == h_next.shape else h_next
    return h
