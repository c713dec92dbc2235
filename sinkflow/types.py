"""Array types shared by every module, and what is asked of shapes and precision everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

PRNGKey = Key[Array, ""]
Scalar = Float[Array, ""]
ScalarLike = float | int | np.ndarray | np.number | jax.Array

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "PRNGKey",
    "Scalar",
    "ScalarLike",
    "check_shape",
    "widened",
]


def check_shape(name: str, value, wanted: tuple[int, ...], of: str) -> None:
    """Raises ValueError unless ``value`` has the shape ``wanted``, which is that of ``of``.

    Shapes are known at trace time. Without the check NumPy's rules stretch one of two shapes that
    do not fit, and a mean over the result is a number that means nothing.
    """
    if jnp.shape(value) != wanted:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; it must be {wanted}, as {of}")


def widened(dtype):
    """What numbers of ``dtype`` are computed in: itself from float32 up, else the default float."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else jnp.zeros(()).dtype
