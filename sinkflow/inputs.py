"""The door of the library: what callers hand over becomes arrays of one kind, or an error.

Values are looked at where they are known. Under a trace only shapes and dtypes are, so that wrong
weights and a wrong epsilon become NaN there: a solve of them ends as not converged.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.types import Array, Float, Scalar, widened

WEIGHTS_TOLERANCE = 1e-3  # by how much a sum of weights may miss 1; it is divided by


def as_float(name: str, value: Any) -> Array:
    """``value`` as an array of a floating dtype, float32 at least.

    Integers and booleans become the default floating dtype; so do float16 and bfloat16, whose
    digits no solve can do with.

    Raises:
      ValueError: not numbers, or complex ones.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {type(value).__name__}, no array of numbers") from error
    real = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in real):
        raise ValueError(f"{name} has dtype {array.dtype}; it must be real numbers")
    return array.astype(widened(array.dtype))


def as_clouds(x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> tuple[Array, Array]:
    """Two clouds in their common floating dtype.

    Raises:
      ValueError: as :func:`as_float` and :func:`check_clouds`.
    """
    x, y = (as_float(name, cloud) for name, cloud in zip(names, (x, y), strict=True))
    check_clouds(x, y, names)
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)


def as_scalar(name: str, value: Any, dtype: Any) -> Scalar:
    """A positive number, see :func:`check_positive`, of the clouds' dtype.

    Raises:
      ValueError: an array, or (if known) a number that is not positive and finite.
    """
    array = as_float(name, value)
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}; it is one number")
    check_positive(name, value)
    return array.astype(dtype)


def as_weights(name: str, weights: Any, cloud: Array) -> Array | None:
    """Weights of a cloud in its dtype, checked but not yet divided by their sum; None stays."""
    if weights is None:
        return None
    array = as_float(name, weights)
    check_weights(name, weights, cloud.shape[0])
    return array.astype(cloud.dtype)


def as_potential(name: str, values: Any, cloud: Array, of: str) -> Array | None:
    """A potential of the cloud called ``of``, in its dtype; None stays."""
    if values is None:
        return None
    array = as_float(name, values)
    if array.shape != cloud.shape[:1]:
        raise ValueError(f"{name} has shape {array.shape}; {of} needs {cloud.shape[:1]}")
    return array.astype(cloud.dtype)


def returned_dtype(cloud: Any) -> Any:
    """The dtype in which what has the shape of x goes back: that of x, if it is floating."""
    dtype = jnp.result_type(as_float("x", cloud) if not hasattr(cloud, "dtype") else cloud)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.zeros(()).dtype


def distribution(weights: Array | None, cloud: Float[Array, "n d"]) -> Float[Array, "n"]:
    """Weights of sum 1: uniform ones, or those given divided by their sum.

    NaN where traced weights are negative, not finite, or of a sum further from 1 than
    :data:`WEIGHTS_TOLERANCE`.
    """
    if weights is None:
        return jnp.full(cloud.shape[0], 1 / cloud.shape[0], cloud.dtype)
    total = jnp.sum(weights)
    right = jnp.all(weights >= 0) & (jnp.abs(total - 1) <= WEIGHTS_TOLERANCE)
    return nan_unless(right, weights / jnp.where(right, total, 1))


def positive(value: Scalar) -> Scalar:
    """``value``, or NaN where it (traced) is not positive and finite."""
    return nan_unless((value > 0) & jnp.isfinite(value), value)


def nan_unless(right, value):
    """``value``, or NaN.

    Made only where it is wanted, so that a debugger of NaN does not stop in a right program.
    """
    one = jnp.ones((), value.dtype)
    return value * jnp.sqrt(jnp.where(right, one, -one))


def check_clouds(x, y, names: tuple[str, str] = ("x", "y")) -> None:
    """Raises ValueError unless both are non-empty ``[points, d]`` arrays of one dimension."""
    for name, cloud in zip(names, (x, y), strict=True):
        if jnp.ndim(cloud) != 2:
            raise ValueError(f"{name} has shape {jnp.shape(cloud)}; a cloud is [points, dimension]")
        if 0 in jnp.shape(cloud):
            raise ValueError(f"{name} has shape {jnp.shape(cloud)}: the cloud is empty")
        spec = getattr(getattr(jax.typeof(cloud), "sharding", None), "spec", ())
        if any(axis is not None for axis in spec):
            raise ValueError(
                f"{name} is sharded as {spec} over Explicit mesh axes, along which jax sums and "
                "loops of no solve; use Auto axes, jax.shard_map, or jax.sharding.reshard"
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]} differ in dimension: {x.shape} and {y.shape}")


def check_weights(name: str, weights: Any, count: int, *, any_sum: bool = False) -> None:
    """Raises ValueError unless ``weights`` [count] are a distribution (if traced: its shape).

    With ``any_sum`` they may have any sum above 0.
    """
    if np.shape(weights) != (count,):
        raise ValueError(f"{name} has shape {np.shape(weights)}; there are {count} points")
    if isinstance(weights, jax.core.Tracer):
        return
    values = np.asarray(weights, np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(f"{name} contains {values[wrong][0]}; weights are finite, non-negative")
    if any_sum:
        if not values.sum() > 0:
            raise ValueError(f"{name} sums to 0; some weight must be positive")
    elif abs(values.sum() - 1) > WEIGHTS_TOLERANCE:
        raise ValueError(f"{name} sums to {values.sum()}; weights sum to 1")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is traced or positive and finite."""
    if isinstance(value, jax.core.Tracer):
        return
    if not np.all((np.asarray(value) > 0) & np.isfinite(np.asarray(value, np.float64))):
        raise ValueError(f"{name} is {value}; it must be positive and finite")
