"""Velocity field and time predictor for images (Linen modules, called with x [n, h, w, c])."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
from jax.typing import DTypeLike

from sinkflow.types import Array, Float, Int

TIME_SCALE = 1000.0  # the sines below were made for step numbers; flow time runs over [0, 1]
LONGEST_PERIOD = 10_000.0  # of the sines over 2 pi, in the same unit
EPSILON = 1e-6  # added to variances


class UNet(nn.Module):
    """Residual U-shaped network: x [n, h, w, c], t [n] and labels [n] to a velocity like x.

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
      num_classes: 0 for a field without labels.
      flash: on CUDA attend by cuDNN's fused kernel where it fits (see :func:`_fused`).
      dtype: of activations and products. Parameters, the embedding of time, statistics of
        normalisation, softmax and the result are float32 at any value.

    Raises:
      ValueError: at trace time, if images cannot be halved at every level, attention does not
        fit the heights or widths, or labels and ``num_classes`` do not go together.

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

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        t: Float[Array, "n"],
        labels: Int[Array, "n"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "n h w c"]:
        _check_image(x, self.multipliers, self.attention)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        condition = Condition(self.channels, self.num_classes)(t, labels)

        def residual(h, width):
            return ResidualBlock(width, self.dropout, self.dtype)(h, condition, train=train)

        def attend(h):
            return SelfAttention(self.head_dim, self.dtype, self.flash)(h)

        def block(h, width):
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


# The settings of METHOD.md; for CIFAR-10 35.7 million parameters, for MNIST 1.5.
CIFAR_UNET = functools.partial(
    UNet, channels=128, multipliers=(1, 2, 2, 2), num_blocks=2, attention=(16,), dropout=0.1
)
MNIST_UNET = functools.partial(UNet, channels=32, multipliers=(1, 2, 2), num_blocks=2)


class ConvTimePredictor(nn.Module):
    """Where between source and target an image lies: x [n, h, w, c] to t [n] in (0, 1).

    Attributes:
      widths: of the 3x3 convolutions; the resolution halves after all but the last.
      dtype: as in :class:`UNet`.

    Source: the phase-transition time predictor of arXiv:2401.14069.
    """

    widths: Sequence[int] = (32, 64, 128, 256)
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n"]:
        h = x
        for number, width in enumerate(self.widths):
            if number > 0:  # "SAME", so that an odd or tiny image keeps its last row
                h = nn.avg_pool(h, (2, 2), (2, 2), "SAME", count_include_pad=False)
            h = nn.silu(Conv(width, dtype=self.dtype)(h))
        h = jnp.mean(h, axis=(1, 2), dtype=jnp.float32)
        return nn.sigmoid(nn.Dense(1)(h)[:, 0])


class Condition(nn.Module):
    """What every residual block is told: t [n], and labels [n] if there are classes.

    Attributes:
      channels: number of sines and cosines together; the result is four times as wide.
      num_classes: 0 for none.
    """

    channels: int
    num_classes: int

    @nn.compact
    def __call__(
        self, t: Float[Array, "n"], labels: Int[Array, "n"] | None
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
            h = h + nn.Embed(self.num_classes, width)(labels)
        return nn.silu(h)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around x, the condition added between them.

    Attributes:
      width: channels of the result; x is projected where it differs.
      dropout: rate before the second convolution.
      dtype: as in :class:`UNet`.
    """

    width: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], condition: Float[Array, "n d"], *, train: bool
    ) -> Float[Array, "n h w width"]:
        # The convolution's bias and what the condition adds are constant over an image: the
        # normalisation takes them in, without a pass over the image for them or their gradients.
        h, bias = Conv(self.width, add_bias=False, dtype=self.dtype)(GroupNorm(silu=True)(x))
        told = nn.Dense(self.width, dtype=self.dtype)(condition).astype(jnp.float32)
        h = GroupNorm(silu=True)(h, told + bias[None, :])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.width, zero=True, dtype=self.dtype)(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype)(x)
        return x + h


class SelfAttention(nn.Module):
    """Every pixel reads from all pixels of its image; added to x.

    Attributes:
      head_dim: width of a head; it divides the channels of x.
      dtype, flash: as in :class:`UNet`.

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


class Conv(nn.Module):
    """3x3 convolution of x [n, h, w, c], zeros around it.

    The kernel [width, 3, 3, c] is kept as cuDNN takes it: in Flax's order every step would
    transpose every kernel and its gradient.

    Attributes:
      width: channels of the result.
      strides: 1, or 2 to halve the resolution.
      zero: start at zero.
      add_bias: without it the bias [width] is returned beside the result, to be added later.
      dtype: as in :class:`UNet`.
    """

    width: int
    strides: int = 1
    zero: bool = False
    add_bias: bool = True
    _: dataclasses.KW_ONLY
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]):
        zeros = nn.initializers.zeros_init()
        init = zeros if self.zero else nn.initializers.lecun_normal(in_axis=3, out_axis=0)
        kernel = self.param("kernel", init, (self.width, 3, 3, x.shape[-1]))
        bias = self.param("bias", zeros, (self.width,))
        h = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.strides, self.strides),
            # Explicit: with a stride "SAME" pads one side only, in a pass of its own on a GPU.
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "OHWI", "NHWC"),
        )
        return h + bias.astype(self.dtype)[None, None, None, :] if self.add_bias else (h, bias)


class GroupNorm(nn.Module):
    """x [n, h, w, c] normalised over groups of the channels of an image, as nn.GroupNorm does.

    Attributes:
      silu: apply silu to the result, in the same pass.

    Source: Wu & He 2018, arXiv:1803.08494.
    """

    silu: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], shift: Float[Array, "n c"] | None = None
    ) -> Float[Array, "n h w c"]:
        """Of x + shift; the result has the dtype of x, all between is float32."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        shift = jnp.zeros((x.shape[0], x.shape[-1])) if shift is None else shift
        return _normalized(x, shift, scale[None, :], bias[None, :], self.silu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalized(x, shift, scale, bias, silu):
    """GroupNorm of x + shift [n, c], then silu; scale and bias [1, c].

    Two passes over x, and three for the gradient: by itself JAX keeps float32 arrays of the
    size of x, and XLA reads them again for every sum.
    """
    return _normalized_forward(x, shift, scale, bias, silu)[0]


def _normalized_forward(x, shift, scale, bias, silu):
    h, pixels = x.astype(jnp.float32), x.shape[1] * x.shape[2]
    mean, square = (total / pixels for total in _sums(h, h * h))
    moved = mean + shift
    center = _group_means(moved)
    variance = _group_means(square + shift * (mean + moved)) - center**2
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + EPSILON)
    kept = (x, mean, shift - center, inverse, scale, bias)
    y = _affine(h, kept)
    return (nn.silu(y) if silu else y).astype(x.dtype), kept


def _normalized_backward(silu, kept, gradient):
    x, mean, shift, inverse, scale, bias = kept
    h, pixels = x.astype(jnp.float32), x.shape[1] * x.shape[2]
    if silu:
        y = _affine(h, kept)
        gate = nn.sigmoid(y)
        gradient = gradient.astype(jnp.float32) * gate * (1 + y * (1 - gate))
    # Kept between the passes, in the precision in which it came.
    gradient = jax.lax.optimization_barrier(gradient.astype(x.dtype)).astype(jnp.float32)
    plain, weighted = _sums(gradient, gradient * h)
    weighted = inverse * (weighted + shift * plain)  # by the normalized values
    # What moves the mean and the variance of a group moves all its pixels.
    slope = -(inverse**2) * _group_means(scale * weighted) / pixels
    constant = slope * shift - inverse * _group_means(scale * plain) / pixels
    factor = inverse * scale
    dx = _pixels(factor) * gradient + _pixels(slope) * h + _pixels(constant)
    dshift = factor * plain + pixels * (slope * mean + constant)
    dscale_dbias = jnp.sum(jnp.concatenate([weighted, plain], axis=1), axis=0, keepdims=True)
    return dx.astype(x.dtype), dshift, *jnp.split(dscale_dbias, 2, axis=1)


_normalized.defvjp(_normalized_forward, _normalized_backward)


def _affine(h, kept):
    """h [n, h, w, c] normalised and scaled: one multiplication and addition a value."""
    _, _, shift, inverse, scale, bias = kept
    factor = inverse * scale
    return h * _pixels(factor) + _pixels(shift * factor + bias)


def _pixels(values):
    """Values of images and channels [n, c], for all pixels."""
    return values[:, None, None, :]


def _sums(a, b):
    """Sums of two arrays [n, h, w, c] over pixels."""
    sums = jnp.sum(a, axis=(1, 2)), jnp.sum(b, axis=(1, 2))
    # Else XLA joins these sums and the later ones over channels or images: a pass for each.
    return jax.lax.optimization_barrier(sums)


def _group_means(values):
    """For each channel the mean of its group: [n, c] to [n, c]."""
    # At least four channels a group, for a group of one would subtract the shift added to it.
    channels = values.shape[1]
    counts = [count for count in range(1, 33) if channels % count == 0 and 4 * count <= channels]
    groups = max(counts, default=1)
    means = jnp.mean(values.reshape(-1, groups, channels // groups), axis=2)
    return jnp.repeat(means, channels // groups, axis=1)


def _fused(qkv):
    """Whether cuDNN attends: half precision on CUDA, whole tiles of pixels, heads that fit."""
    tokens, width = qkv.shape[1], qkv.shape[-1]
    fits = tokens % 64 == 0 and width % 8 == 0 and width <= 128
    half = qkv.dtype in (jnp.bfloat16, jnp.float16)
    # The attribute that jax itself looks at; asked last, for it starts the backend.
    return fits and half and "cuda" in jax.extend.backend.get_backend().platform_version


def _check_image(x, multipliers, attention):
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


def _sinusoids(t, count):
    """Cosines and sines of t, periods from 2 pi / TIME_SCALE geometrically up; float32."""
    half = count // 2
    rates = TIME_SCALE * LONGEST_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
    phase = t.astype(jnp.float32)[:, None] * rates[None, :]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1)


def _doubled(h):
    """Nearest-neighbour image of twice the size: broadcasts, which fuse, where resize gathers."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
