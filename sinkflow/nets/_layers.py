"""Layers: of vectors, and of images, where a training step is few passes over memory."""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sinkflow.types import Array, Float

EPSILON = 1e-6  # added to variances
Kept = tuple[Array, ...]  # x and the statistics of its groups, for the gradient


def hidden_layers(h: Float[Array, "n k"], widths: Sequence[int]) -> Float[Array, "n width"]:
    """Dense layers with SiLU, residual where the width stays; called inside a compact module."""
    if not all(width == int(width) and width >= 1 for width in widths):
        raise ValueError(
            f"hidden_dims is {tuple(widths)}; widths are whole numbers, at least 1 each"
        )
    for width in widths:
        h_next = nn.silu(nn.Dense(width)(h))
        h = h + h_next if h.shape == h_next.shape else h_next
    return h


class Dropout(nn.Module):
    """Sets entries of x to zero at random and scales up the others, with ``train=True`` only.

    Every device of the axis draws the mask of the whole batch and takes its part: what is dropped
    does not depend on their number. Without an axis it is Flax's layer, bit for bit.

    Attributes:
      rate: share of entries that are dropped.
      axis_name: mapped axis of devices that share a batch evenly; None for one device.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."], *, train: bool) -> Float[Array, "n ..."]:
        if not train or self.rate == 0.0:
            return x
        kept, key = 1.0 - self.rate, self.make_rng("dropout")
        count = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        mask = jax.random.bernoulli(key, kept, (count * x.shape[0], *x.shape[1:]))
        if count > 1:
            first = jax.lax.axis_index(self.axis_name) * x.shape[0]
            mask = jax.lax.dynamic_slice_in_dim(mask, first, x.shape[0])
        return jnp.where(mask, x / kept, jnp.zeros_like(x))


class Conv(nn.Module):
    """3x3 convolution of x [n, h, w, c], zeros around it.

    The kernel [width, 3, 3, c] is kept as cuDNN takes it: in Flax's order every step would
    transpose every kernel and its gradient.

    Attributes:
      width: channels of the result.
      strides: 1, or 2 to halve the resolution.
      zero: start at zero.
      add_bias: without it the bias [width] is returned beside the result, to be added later.
      dtype: of activations and products; parameters are float32.
    """

    width: int
    strides: int = 1
    zero: bool = False
    add_bias: bool = True
    _: dataclasses.KW_ONLY
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Any:
        zeros = nn.initializers.zeros_init()
        init = zeros if self.zero else nn.initializers.lecun_normal(in_axis=3, out_axis=0)
        kernel = self.param("kernel", init, (self.width, 3, 3, x.shape[-1]))
        bias = self.param("bias", zeros, (self.width,))
        convolve = shifted_products if jax.default_backend() == "cpu" else convolution
        h = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides)
        return h + bias.astype(self.dtype)[None, None, None, :] if self.add_bias else (h, bias)


def convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "width s s c"], strides: int = 1
) -> Float[Array, "n i j width"]:
    """x [n, h, w, c] with the kernel [width, size, size, c], zeros around it: XLA's own."""
    margin = kernel.shape[1] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        # Explicit: with a stride "SAME" pads one side only, in a pass of its own on a GPU.
        ((margin, margin), (margin, margin)),
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
    )


def shifted_products(
    x: Float[Array, "n h w c"], kernel: Float[Array, "width s s c"], strides: int = 1
) -> Float[Array, "n i j width"]:
    """:func:`convolution` as a sum of products with shifted copies of x.

    For CPUs: there XLA compiles a convolution well only outside of loops; inside of one its
    gradient took up to sixty times longer than these products.
    """
    size = kernel.shape[1]
    copies = zip(shifted_copies(x, size, strides), np.ndindex(size, size), strict=True)
    products = (jnp.einsum("nhwc,oc->nhwo", copy, kernel[:, i, j]) for copy, (i, j) in copies)
    return functools.reduce(operator.add, products)


def shifted_copies(x: Float[Array, "n h w c"], size: int, strides: int = 1) -> list[Array]:
    """x [n, h, w, c] moved to each place of a ``size`` x ``size`` kernel; zeros come in."""
    (height, width), margin = x.shape[1:3], size // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return [
        padded[:, i : i + height : strides, j : j + width : strides]
        for i, j in np.ndindex(size, size)
    ]


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
def _normalized(
    x: Float[Array, "n h w c"],
    shift: Float[Array, "n c"],
    scale: Float[Array, "1 c"],
    bias: Float[Array, "1 c"],
    silu: bool,
) -> Float[Array, "n h w c"]:
    """GroupNorm of x + shift [n, c], then silu; scale and bias [1, c].

    Two passes over x, and three for the gradient: by itself JAX keeps float32 arrays of the
    size of x, and XLA reads them again for every sum.
    """
    return _normalized_forward(x, shift, scale, bias, silu)[0]


def _normalized_forward(
    x: Float[Array, "n h w c"],
    shift: Float[Array, "n c"],
    scale: Float[Array, "1 c"],
    bias: Float[Array, "1 c"],
    silu: bool,
) -> tuple[Float[Array, "n h w c"], Kept]:
    h, pixels = x.astype(jnp.float32), x.shape[1] * x.shape[2]
    mean, square = (total / pixels for total in _sums(h, h * h))
    moved = mean + shift
    center = _group_means(moved)
    variance = _group_means(square + shift * (mean + moved)) - center**2
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + EPSILON)
    kept = (x, mean, shift - center, inverse, scale, bias)
    y = _affine(h, kept)
    return (nn.silu(y) if silu else y).astype(x.dtype), kept


def _normalized_backward(
    silu: bool, kept: Kept, gradient: Float[Array, "n h w c"]
) -> tuple[Array, ...]:
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


def _affine(h: Float[Array, "n h w c"], kept: Kept) -> Float[Array, "n h w c"]:
    """h [n, h, w, c] normalised and scaled: one multiplication and addition a value."""
    _, _, shift, inverse, scale, bias = kept
    factor = inverse * scale
    return h * _pixels(factor) + _pixels(shift * factor + bias)


def _pixels(values: Float[Array, "n c"]) -> Float[Array, "n 1 1 c"]:
    """Values of images and channels [n, c], for all pixels."""
    return values[:, None, None, :]


def _sums(
    a: Float[Array, "n h w c"], b: Float[Array, "n h w c"]
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Sums of two arrays [n, h, w, c] over pixels."""
    sums = jnp.sum(a, axis=(1, 2)), jnp.sum(b, axis=(1, 2))
    # Else XLA joins these sums and the later ones over channels or images: a pass for each.
    return jax.lax.optimization_barrier(sums)


def _group_means(values: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """For each channel the mean of its group: [n, c] to [n, c]."""
    # At least four channels a group, for a group of one would subtract the shift added to it.
    channels = values.shape[1]
    counts = [count for count in range(1, 33) if channels % count == 0 and 4 * count <= channels]
    groups = max(counts, default=1)
    means = jnp.mean(values.reshape(-1, groups, channels // groups), axis=2)
    return jnp.repeat(means, channels // groups, axis=1)
