"""Velocity fields for vectors (Linen modules, called with x [n, d] and t [n])."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from sinkflow.nets._layers import hidden_layers
from sinkflow.types import Array, Float, check_shape, widened

__all__ = ["TimePredictorMLP", "VelocityMLP"]


class VelocityMLP(nn.Module):
    """Multilayer perceptron of (x, time embedding) with residual hidden layers.

    Attributes:
      hidden_dims: width of each hidden layer.
      num_frequencies: sines and cosines of t at periods 4, 2, 1, 1/2, ... [flow time].

    Raises:
      ValueError: at trace time, if ``x`` is not [n, d], ``t`` not [n], or a width below 1.
    """

    hidden_dims: Sequence[int] = (256, 256, 256)
    num_frequencies: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], t: Float[Array, "n"]) -> Float[Array, "n d"]:
        _check_vectors(x)
        check_shape("t", t, x.shape[:1], "one time for each of x")
        x, t = (leaf.astype(widened(x.dtype)) for leaf in (x, t))
        powers = 2.0 ** jnp.arange(self.num_frequencies, dtype=t.dtype)
        phase = t[:, None] * (0.5 * jnp.pi * powers)[None, :]
        time = jnp.concatenate([t[:, None], jnp.sin(phase), jnp.cos(phase)], axis=1)
        h = jnp.concatenate([x, time], axis=1)
        h = hidden_layers(
            h, self.hidden_dims
        )  # before the output layer: layers are named as they come
        return nn.Dense(x.shape[1])(h)


class TimePredictorMLP(nn.Module):
    """Where between source and target a point lies: x [n, d] to t [n] in (0, 1).

    Attributes:
      hidden_dims: width of each hidden layer.

    Raises:
      ValueError: at trace time, if ``x`` is not [n, d], or a width below 1.

    Source: the phase-transition time predictor of arXiv:2401.14069.
    """

    hidden_dims: Sequence[int] = (256, 256, 256)

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n"]:
        _check_vectors(x)
        return nn.sigmoid(nn.Dense(1)(hidden_layers(x, self.hidden_dims))[:, 0])


def _check_vectors(x: Array) -> None:
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}; networks for vectors take [n, d]")
