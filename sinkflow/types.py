"""Types shared by every module: arrays, functions; and what shapes and dtypes must be like."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

PRNGKey = Key[Array, ""]
"""One typed key of :func:`jax.random.key`."""
Scalar = Float[Array, ""]
"""One real number on the device."""
ScalarLike = float | int | np.ndarray | np.number | jax.Array
"""One real number of Python, NumPy or JAX, traced or not."""

__all__ = [
    "ApplyFn",
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "PRNGKey",
    "Sampler",
    "Scalar",
    "ScalarLike",
    "Step",
    "check_shape",
    "widened",
]


@runtime_checkable
class Sampler(Protocol):
    """``(key, n) -> [n, d]``: n points of a law; ``n`` is static."""

    def __call__(self, key: PRNGKey, n: int, /) -> Array: ...


@runtime_checkable
class ApplyFn(Protocol):
    """``(params, x [n, ...], t [n]) -> [n, ...]``: a velocity field with its parameters."""

    def __call__(self, params: Any, x: Array, t: Array, /) -> Array: ...


@runtime_checkable
class Step(Protocol):
    """``(state, rows, ..., *, axis_name=None) -> (state, info)``: a pure step of training.

    ``axis_name`` names the mapped axis over which gradients are averaged.
    """

    def __call__(self, *inputs: Any, **options: Any) -> tuple[Any, Any]: ...


def check_shape(name: str, value: Any, wanted: tuple[int, ...], of: str) -> None:
    """Raises ValueError unless ``value`` has the shape ``wanted``, which is that of ``of``.

    Shapes are known at trace time. Without the check NumPy's rules stretch one of two shapes that
    do not fit, and a mean over the result is a number that means nothing.
    """
    if jnp.shape(value) != wanted:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; it must be {wanted}, as {of}")


def widened(dtype: Any) -> Any:
    """What numbers of ``dtype`` are computed in: itself from float32 up, else the default float."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else jnp.zeros(()).dtype
