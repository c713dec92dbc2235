"""Matrix products in the precision of float32, at the speed that a device has for them."""

import functools

import jax
import jax.numpy as jnp

from sinkflow.types import Array

SPLIT_DIM = 64  # length of both sides of a matrix from which splitting is faster than float32
SPLIT = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
TENSOR_CORES = 8.0  # compute capability that TF32 begins with


def matmul(left: Array, right: Array) -> Array:
    """``left @ right``, with an error of float32 relative to the lengths of rows and columns.

    NVIDIA's tensor cores multiply TF32, which keeps 11 bits of a number. Three products of the high
    and the low parts of both factors have 22, and together are faster than one in float32. What is
    left out, low times low, is below 2^-20 of the product of the lengths.
    """
    wide = right.ndim == 2 and min(right.shape) >= SPLIT_DIM
    if not (wide and right.dtype == left.dtype == jnp.float32 and _has_tensor_cores()):
        return matvec(left, right)
    split = functools.partial(jnp.matmul, precision=SPLIT)
    return jax.lax.platform_dependent(left, right, cuda=split, default=matvec)


def matvec(left: Array, right: Array) -> Array:
    """Matrix times vector, or vector times matrix, in full precision on every device.

    JAX's default takes TF32 alone on a GPU, an error of 1e-3 that a certificate would not see.
    """
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _has_tensor_cores() -> bool:
    """Whether the local device is an NVIDIA GPU that multiplies TF32."""
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    try:
        return float(capability or 0) >= TENSOR_CORES
    except ValueError:  # AMD's have names
        return False
