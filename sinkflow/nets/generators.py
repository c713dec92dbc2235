"""Generators: networks that map latent points to samples in one evaluation (Linen modules)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from sinkflow.nets._layers import Conv, GroupNorm, hidden_layers
from sinkflow.nets.unet import ResidualBlock
from sinkflow.types import Array, Float, Int

__all__ = ["ConvGenerator", "GeneratorMLP"]

MAPPING = 256  # width of what residual blocks are told of the latent point


class GeneratorMLP(nn.Module):
    """Multilayer perceptron from latent points z [n, k] to samples [n, dim].

    Attributes:
      dim: dimension of a sample.
      hidden_dims: width of each hidden layer; residual where the width stays.
    """

    dim: int
    hidden_dims: Sequence[int] = (256, 256, 256)

    @nn.compact
    def __call__(self, z: Float[Array, "n k"]) -> Float[Array, "n dim"]:
        h = hidden_layers(z, self.hidden_dims)
        return nn.Dense(self.dim)(h)


class ConvGenerator(nn.Module):
    """Residual upsampling network from latent points z [n, k] to images [n, h, w, c].

    A latent of far fewer dimensions than pixels cannot carry independent noise for every pixel,
    so that none is left in the images. Differentiable backwards only, as
    :class:`sinkflow.nets.unet.UNet` is.

    Attributes:
      shape: height, width and channels of an image.
      channels: width of the finest level.
      multipliers: width of each level, coarsest first, in units of ``channels``; the
        resolution doubles from each to the next.
      num_blocks: residual blocks of a level; each is told z.
      head: "tanh" ends in (-1, 1), the range of pixels; "linear" is not bounded.
      num_classes: 0 for a generator without labels.
      dtype: of activations and products; parameters and the result are float32.

    Raises:
      ValueError: at trace time, if the image cannot be halved often enough, the head is unknown,
        or labels and ``num_classes`` do not go together.

    Source: upsampling by residual blocks: Miyato et al. 2018, arXiv:1802.05957, appendix B; z
      told to every block: Brock et al. 2019, arXiv:1809.11096, sec. 3.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    channels: int = 64
    multipliers: Sequence[int] = (4, 2, 1)
    num_blocks: int = 1
    head: str = "tanh"
    num_classes: int = 0
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, z: Float[Array, "n k"], labels: Int[Array, "n"] | None = None
    ) -> Float[Array, "n h w c"]:
        height, width = _coarsest(self.shape, self.multipliers)
        if self.head not in ("tanh", "linear"):
            raise ValueError(f"unknown head {self.head!r}; choose tanh or linear")
        if (labels is None) != (self.num_classes == 0):
            given = "no labels" if labels is None else "labels"
            raise ValueError(
                f"{given} given and num_classes is {self.num_classes}; pass labels exactly "
                "when num_classes is positive"
            )
        told = nn.Dense(MAPPING)(z)
        if labels is not None:
            told = told + nn.Embed(self.num_classes, MAPPING)(labels)
        told = nn.silu(nn.Dense(MAPPING)(nn.silu(told)))
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        start = jnp.concatenate([z, told], axis=1)
        h = nn.Dense(height * width * widths[0], dtype=self.dtype)(start)
        h = h.reshape(-1, height, width, widths[0])
        for level, level_width in enumerate(widths):
            if level > 0:
                doubled = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = Conv(level_width, dtype=self.dtype)(doubled)
            for _ in range(self.num_blocks):
                h = ResidualBlock(level_width, 0.0, self.dtype)(h, told, train=False)
        h = Conv(self.shape[2], dtype=self.dtype)(GroupNorm(silu=True)(h)).astype(jnp.float32)
        return jnp.tanh(h) if self.head == "tanh" else h


def _coarsest(shape: Sequence[int], multipliers: Sequence[int]) -> tuple[int, int]:
    """Height and width of the coarsest level."""
    factor = 2 ** (len(multipliers) - 1)
    if shape[0] % factor or shape[1] % factor:
        raise ValueError(
            f"images of {shape[0]}x{shape[1]} with {len(multipliers)} levels; pad height and "
            f"width to multiples of {factor} or use fewer multipliers"
        )
    return shape[0] // factor, shape[1] // factor
