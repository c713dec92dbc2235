"""Velocity field and time predictor for images (Linen modules, called with x [n, h, w, c])."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
from jax.typing import DTypeLike

from sinkflow.nets._layers import Conv, Dropout, GroupNorm
from sinkflow.types import Array, Float, Int, check_shape

__all__ = ["CIFAR_UNET", "Condition", "ConvTimePredictor", "ResidualBlock", "SelfAttention", "UNet"]

TIME_SCALE = 1000.0  # the sines below were made for step numbers; flow time runs over [0, 1]
LONGEST_PERIOD = 10_000.0  # of the sines over 2 pi, in the same unit


class UNet(nn.Module):
    """Residual U-shaped network: x [n, h, w, c], t [n] and labels [n] to a velocity like x.

    t is [n, 2] for a field of two times, see :mod:`sinkflow.flow_map`.
    Levels halve the resolution; what every block and every halving of the way down returns
    is joined to the block of the same resolution on the way up. Zero at initialisation.
    Differentiable backwards only: normalisation and fused attention have rules of their own.

    Attributes:
      channels: width of the first level.
      multipliers: width of each level, in units of ``channels``.
      num_blocks: residual blocks of a level on the way down; one more on the way up.
      attention: heights at which blocks are followed by self-attention [pixels]; unless
        empty, the middle of the network attends too.
      head_dim: width of an attention head.
      dropout: rate within residual blocks, with ``train=True`` only, which then needs
        ``rngs={"dropout": key}`` (a key of ``impl="rbg"`` is the cheap one on a GPU).
      axis_name: with ``train=True``, the mapped axis of devices that share a batch evenly; each
        takes its part of the whole batch's dropout mask. None for one device.
      num_classes: 0 for a field without labels, which lie in 0 .. num_classes - 1. Others raise an
        error; traced ones, whose values are not known then, make their images NaN.
      flash: on CUDA attend by cuDNN's fused kernel, where the images have a multiple of 64 pixels.
      dtype: of activations and products. Parameters, the embedding of time, statistics of
        normalisation, softmax and the result are float32 at any value.

    Raises:
      ValueError: at trace time, if images cannot be halved at every level, attention does not
        fit the heights or widths, t or labels are not one for each image, or labels and
        ``num_classes`` do not go together.

    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, appendix B, with the halving, heads and
    labels of Dhariwal & Nichol 2021, arXiv:2105.05233; the network of arXiv:2401.14069.
    """

    channels: int
    multipliers: Sequence[int]
    num_blocks: int = 2
    attention: Sequence[int] = ()
    head_dim: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    flash: bool = True
    dtype: DTypeLike = jnp.bfloat16
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        t: Float[Array, "n *times"],
        labels: Int[Array, "n"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "n h w c"]:
        _check_image(x, self.multipliers, self.attention)
        check_shape("t", t, (*x.shape[:1], *t.shape[1:2]), "one time for each image of x, or two")
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        condition = Condition(self.channels, self.num_classes)(t, labels)

        def residual(h: Array, width: int) -> Array:
            block = ResidualBlock(width, self.dropout, self.dtype, self.axis_name)
            return block(h, condition, train=train)

        def attend(h: Array) -> Array:
            return SelfAttention(self.head_dim, self.dtype, self.flash)(h)

        def block(h: Array, width: int) -> Array:
            h = residual(h, width)
            return attend(h) if h.shape[1] in self.attention else h

        h = Conv(self.channels, dtype=self.dtype)(x)
        kept = [h]
        for level, width in enumerate(widths):
            if level > 0:
                h = Conv(h.shape[-1], strides=2, dtype=self.dtype)(h)
                kept.append(h)
            for _ in range(self.num_blocks):
                h = block(h, width)
                kept.append(h)

        h = residual(h, widths[-1])
        h = attend(h) if self.attention else h
        h = residual(h, widths[-1])

        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.num_blocks + 1):
                h = block(jnp.concatenate([h, kept.pop()], axis=-1), width)
            if level > 0:
                h = Conv(width, dtype=self.dtype)(_doubled(h))

        h = GroupNorm(silu=True)(h)
        return Conv(x.shape[-1], zero=True, dtype=self.dtype)(h).astype(jnp.float32)


CIFAR_UNET = functools.partial(
    UNet, channels=128, multipliers=(1, 2, 2, 2), num_blocks=2, attention=(16,), dropout=0.1
)
"""The network for CIFAR-10 of the first author's code, with 35.7 million parameters."""


class ConvTimePredictor(nn.Module):
    """Where between source and target an image lies: x [n, h, w, c] to t [n] in (0, 1).

    Attributes:
      widths: of the 3x3 convolutions; the resolution halves after all but the last.
      dtype: as in :class:`UNet`.

    Raises:
      ValueError: at trace time, if ``x`` are no images [n, h, w, c].

    Source: the phase-transition time predictor of arXiv:2401.14069.
    """

    widths: Sequence[int] = (32, 64, 128, 256)
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n"]:
        _check_rank(x)
        h = x
        for number, width in enumerate(self.widths):
            if number > 0:  # "SAME", so that an odd or tiny image keeps its last row
                h = nn.avg_pool(h, (2, 2), (2, 2), "SAME", count_include_pad=False)
            h = nn.silu(Conv(width, dtype=self.dtype)(h))
        h = jnp.mean(h, axis=(1, 2), dtype=jnp.float32)
        return nn.sigmoid(nn.Dense(1)(h)[:, 0])


class Condition(nn.Module):
    """What every residual block is told: t [n] or [n, 2], and labels [n] if there are classes.

    Attributes:
      channels: number of sines and cosines together; the result is four times as wide.
      num_classes: 0 for none.
    """

    channels: int
    num_classes: int

    @nn.compact
    def __call__(
        self, t: Float[Array, "n *times"], labels: Int[Array, "n"] | None
    ) -> Float[Array, "n width"]:
        if (labels is None) != (self.num_classes == 0):
            given = "no labels" if labels is None else "labels"
            raise ValueError(
                f"{given} given and num_classes is {self.num_classes}; pass labels exactly "
                "when num_classes is positive"
            )
        # In float32 at any dtype: phases need the digits, and so small a network costs nothing.
        width = 4 * self.channels
        h = nn.Dense(width)(nn.silu(nn.Dense(width)(_sinusoids(t, self.channels))))
        if labels is not None:
            check_shape("labels", labels, t.shape[:1], "one label for each t")
            h = h + self._embedded(labels, width)
        return nn.silu(h)

    def _embedded(self, labels: Int[Array, "n"], width: int) -> Float[Array, "n width"]:
        """Rows of the table of classes; an index beyond its ends would wrap or be clipped."""
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"labels have dtype {labels.dtype}; classes are numbered by integers")
        known = (labels >= 0) & (labels < self.num_classes)
        rows = nn.Embed(self.num_classes, width)(jnp.where(known, labels, 0))
        if isinstance(known, jax.core.Tracer):
            return jnp.where(known[:, None], rows, jnp.nan)
        if not known.all():
            raise ValueError(
                f"labels contain {labels[~known][0]}; they lie in 0 .. {self.num_classes - 1}"
            )
        return rows


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around x, the condition added between them.

    Attributes:
      width: channels of the result; x is projected where it differs.
      dropout: rate before the second convolution.
      dtype, axis_name: as in :class:`UNet`.
    """

    width: int
    dropout: float
    dtype: DTypeLike
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], condition: Float[Array, "n d"], *, train: bool
    ) -> Float[Array, "n h w width"]:
        # The convolution's bias and what the condition adds are constant over an image: the
        # normalisation takes them in, without a pass over the image for them or their gradients.
        h, bias = Conv(self.width, add_bias=False, dtype=self.dtype)(GroupNorm(silu=True)(x))
        told = nn.Dense(self.width, dtype=self.dtype)(condition).astype(jnp.float32)
        h = GroupNorm(silu=True)(h, told + bias[None, :])
        h = Dropout(self.dropout, self.axis_name)(h, train=train)
        h = Conv(self.width, zero=True, dtype=self.dtype)(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype)(x)
        return x + h


class SelfAttention(nn.Module):
    """Every pixel reads from all pixels of its image; added to x.

    Attributes:
      head_dim: width of a head; it divides the channels of x.
      dtype: as in :class:`UNet`.
      flash: as in :class:`UNet`.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """

    head_dim: int
    dtype: DTypeLike
    flash: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, height, width, channels = x.shape
        if channels % self.head_dim:
            raise ValueError(
                f"attention over {channels} channels with head_dim {self.head_dim}; "
                "choose a head_dim that divides the width of every level that attends"
            )
        qkv = nn.Dense(3 * channels, dtype=self.dtype)(GroupNorm(silu=False)(x))
        qkv = qkv.reshape(n, height * width, 3, channels // self.head_dim, self.head_dim)
        query, key, value = (qkv[:, :, k] for k in range(3))
        h = jax.nn.dot_product_attention(
            query, key, value, implementation="cudnn" if self.flash and _fused(qkv) else "xla"
        )
        zeros = nn.initializers.zeros_init()
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=zeros)(h.reshape(x.shape))


def _fused(qkv: Float[Array, "n tokens 3 heads width"]) -> bool:
    """Whether cuDNN attends: half precision on CUDA, whole tiles of pixels, heads that fit."""
    tokens, width = qkv.shape[1], qkv.shape[-1]
    fits = tokens % 64 == 0 and width % 8 == 0 and width <= 128
    half = qkv.dtype in (jnp.bfloat16, jnp.float16)
    # The attribute that jax itself looks at; asked last, for it starts the backend.
    return fits and half and "cuda" in jax.extend.backend.get_backend().platform_version


def _check_rank(x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}; images are [n, h, w, c]")


def _check_image(x: Array, multipliers: Sequence[int], attention: Sequence[int]) -> None:
    _check_rank(x)
    size, factor = x.shape[1:3], 2 ** (len(multipliers) - 1)
    if size[0] % factor or size[1] % factor:
        raise ValueError(
            f"images of {size[0]}x{size[1]} with {len(multipliers)} levels; pad height and "
            f"width to multiples of {factor} or use fewer multipliers"
        )
    heights = [size[0] // 2**level for level in range(len(multipliers))]
    if not set(attention) <= set(heights):
        raise ValueError(
            f"attention at heights {tuple(attention)} with levels of heights {heights}; "
            "choose among these"
        )


def _sinusoids(t: Float[Array, "n *times"], count: int) -> Float[Array, "n k"]:
    """Cosines and sines of each time, periods from 2 pi / TIME_SCALE geometrically up; float32."""
    half = count // 2
    rates = TIME_SCALE * LONGEST_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
    phase = t.astype(jnp.float32).reshape(-1, 1) * rates[None, :]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1).reshape(t.shape[0], -1)


def _doubled(h: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
    """Nearest-neighbour image of twice the size: broadcasts, which fuse, where resize gathers."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
