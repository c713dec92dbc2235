"""Fields for vectors (Linen modules, called with x [n, d] and one time, two, or none)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from sinkflow.nets._layers import hidden_layers
from sinkflow.types import Array, Float, check_shape, widened

__all__ = ["FlowMapMLP", "TimePredictorMLP", "VelocityMLP"]


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
        h = hidden_layers(_inputs(x, {"t": t}, self.num_frequencies), self.hidden_dims)
        return nn.Dense(x.shape[1])(h)


class FlowMapMLP(nn.Module):
    """Mean velocity of particles at x from time s to time t: :class:`VelocityMLP` with two times.

    Attributes:
      hidden_dims: width of each hidden layer.
      num_frequencies: sines and cosines of s, and of t, see :class:`VelocityMLP`.

    Raises:
      ValueError: at trace time, if ``x`` is not [n, d], ``s`` or ``t`` not [n], or a width below 1.
    """

    hidden_dims: Sequence[int] = (256, 256, 256)
    num_frequencies: int = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "n d"], s: Float[Array, "n"], t: Float[Array, "n"]
    ) -> Float[Array, "n d"]:
        h = hidden_layers(_inputs(x, {"s": s, "t": t}, self.num_frequencies), self.hidden_dims)
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


def _inputs(
    x: Float[Array, "n d"], times: dict[str, Array], num_frequencies: int
) -> Float[Array, "n k"]:
    """x beside each of its times [n], their sines and cosines, in float32 at least."""
    _check_vectors(x)
    dtype = widened(x.dtype)
    columns = [x.astype(dtype)]
    for name, time in times.items():
        check_shape(name, time, x.shape[:1], "one time for each of x")
        t = time.astype(dtype)
        powers = 2.0 ** jnp.arange(num_frequencies, dtype=dtype)
        phase = t[:, None] * (0.5 * jnp.pi * powers)[None, :]
        columns += [t[:, None], jnp.sin(phase), jnp.cos(phase)]
    return jnp.concatenate(columns, axis=1)


def _check_vectors(x: Array) -> None:
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}; networks for vectors take [n, d]")
