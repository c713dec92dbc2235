"""Ground costs between particles."""

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.types import Array, Float, ScalarLike

# Up to this dimension coordinate differences cost less than a matrix product and do not cancel.
MAX_DIFFERENCE_DIM = 5


@jax.jit
def squared_euclidean(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    r"""Half squared Euclidean cost, :math:`C_{ij} = \tfrac12\|x_i - y_j\|^2`.

    Args:
      x: source particles [length].
      y: target particles [length].

    Returns:
      The cost matrix [length^2], non-negative.

    Raises:
      ValueError: if ``x`` and ``y`` are not clouds ``[n, d]`` and ``[m, d]``.

    Numerics:
      Up to d = 5 the differences are formed directly. Above, the square is
      expanded around the mean of ``y``, so that clouds far from the origin keep
      their digits, and the matrix product runs in full float32 (accelerators
      otherwise round its inputs).
    """
    check_clouds(x, y)
    if x.shape[1] <= MAX_DIFFERENCE_DIM:
        columns = ((x[:, k, None] - y[None, :, k]) ** 2 for k in range(x.shape[1]))
        return 0.5 * sum(columns, start=jnp.zeros((x.shape[0], y.shape[0]), x.dtype))
    centre = jnp.mean(y, axis=0, keepdims=True)
    x, y = x - centre, y - centre
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    half_squares = 0.5 * (jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :])
    return jnp.maximum(half_squares - product, 0.0)


def check_clouds(x, y, names: tuple[str, str] = ("x", "y")) -> None:
    """Raises ValueError unless both are non-empty ``[points, d]`` arrays of one dimension."""
    for name, cloud in zip(names, (x, y), strict=True):
        if jnp.ndim(cloud) != 2:
            raise ValueError(f"{name} has shape {jnp.shape(cloud)}; a cloud is [points, dimension]")
        if 0 in jnp.shape(cloud):
            raise ValueError(f"{name} has shape {jnp.shape(cloud)}: the cloud is empty")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]} differ in dimension: {x.shape} and {y.shape}")


def check_weights(name: str, weights, count: int) -> None:
    """Raises ValueError unless ``weights`` [count] are a distribution (if traced: its shape)."""
    if jnp.shape(weights) != (count,):
        raise ValueError(f"{name} has shape {jnp.shape(weights)}; there are {count} points")
    if isinstance(weights, jax.core.Tracer):
        return
    values = np.asarray(weights, np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(f"{name} contains {values[wrong][0]}; weights are finite, non-negative")
    if abs(values.sum() - 1) > 1e-3:
        raise ValueError(f"{name} sums to {values.sum()}; weights sum to 1")


def check_positive(name: str, value: ScalarLike) -> None:
    """Raises ValueError unless ``value`` is traced or positive and finite."""
    if isinstance(value, jax.core.Tracer):
        return
    if not np.all((np.asarray(value) > 0) & np.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be positive and finite")
