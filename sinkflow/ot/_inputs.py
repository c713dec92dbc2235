"""The door of the library: what callers hand over becomes arrays of one kind, or an error.

Values are looked at where they are known. Under a trace only shapes and dtypes are, so that wrong
weights and a wrong epsilon become NaN there: a solve of them ends as not converged.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.ot.limits import STORAGES, Limits, Sharded, Storage
from sinkflow.types import Array, Bool, Float, Scalar, widened

WEIGHTS_TOLERANCE = 1e-3  # by how much a sum of weights may miss 1; it is divided by


def check_problem(
    x: Any, y: Any, epsilon: Any, a: Any, b: Any
) -> tuple[Array, Array, Scalar, Array | None, Array | None]:
    """Clouds, epsilon and weights of :func:`sinkflow.sinkhorn` in one dtype, or ValueError.

    Weights that are None stay so; those given are still to be divided by their sum.
    """
    x, y = as_clouds(x, y)
    epsilon = as_scalar("epsilon", epsilon, x.dtype)
    return x, y, epsilon, as_weights("a", a, x), as_weights("b", b, y)


def check_limits(limits: Limits, dtype: Any) -> Limits:
    """The limits with arrays for numbers; a cap below 1 is one that is met at once.

    Raises:
      ValueError: no :class:`Limits`, a threshold that is not positive (if known), a cap that is no
        integer, an unknown storage.
    """
    if not isinstance(limits, Limits):
        raise ValueError(f"limits is {limits!r}; give sinkflow.Limits(threshold, ...)")
    threshold, cap, storage = limits
    check_storage(storage)
    if jnp.ndim(cap) or not jnp.issubdtype(jnp.asarray(cap).dtype, jnp.integer):
        raise ValueError(f"max_iterations is {cap}; it is one integer")
    return Limits(as_scalar("threshold", threshold, dtype), jnp.asarray(cap), storage)


def check_storage(storage: Storage) -> None:
    """Raises ValueError for an unknown storage."""
    if not isinstance(storage, Sharded) and storage not in STORAGES:
        raise ValueError(f"unknown storage {storage!r}; choose one of {', '.join(STORAGES)}")


def check_one_device(limits: Limits) -> None:
    """Raises ValueError for a storage of solves of clouds only: spread over devices, or fused."""
    if isinstance(limits.storage, Sharded):
        raise ValueError(
            f"storage is {limits.storage!r}; this solver works on one device: give it "
            f"{limits.storage.storage!r}"
        )
    if limits.storage == "fused":
        raise ValueError("storage is 'fused', which solves two clouds by their points: give 'auto'")


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


def as_matrix(value: Any) -> Array:
    """Costs [n, m] of a floating dtype, or ValueError."""
    cost = as_float("cost", value)
    if cost.ndim != 2 or not cost.size:
        raise ValueError(f"cost has shape {cost.shape}; it is [n, m], not empty")
    return cost


def as_cost(value: Any) -> Array:
    """Costs [n, m] for a solve: as :func:`as_matrix`, and finite where they are known.

    Raises:
      ValueError: no matrix, sharded over Explicit axes, or (if known) not finite.
    """
    cost = as_matrix(value)
    check_unsharded("cost", cost)
    if not isinstance(cost, jax.core.Tracer):
        count = int(jnp.sum(~jnp.isfinite(cost)))
        if count:
            raise ValueError(
                f"cost has {count} entries that are not finite; to forbid a pair, give it a "
                "finite cost far above all others"
            )
    return cost


def as_masses(a: Any, b: Any, cost: Array) -> tuple[Array | None, Array | None]:
    """Weights of the rows and columns of ``cost``, of one total mass; None stays.

    Raises:
      ValueError: as :func:`check_weights` with any sum, or (if known) two different sums.
    """
    arrays = []
    for name, weights, count in zip("ab", (a, b), cost.shape, strict=True):
        if weights is not None:
            weights = as_float(name, weights)
            check_weights(name, weights, count, any_sum=True)
        arrays.append(weights)
    if not any(weights is None or isinstance(weights, jax.core.Tracer) for weights in arrays):
        masses = [float(np.asarray(weights, np.float64).sum()) for weights in arrays]
        if abs(masses[0] - masses[1]) > WEIGHTS_TOLERANCE * sum(masses) / 2:
            raise ValueError(
                f"a sums to {masses[0]:g} and b to {masses[1]:g}; both must have one total mass: "
                f"multiply b by {masses[0] / masses[1]:g}, if that is what is meant"
            )
    a, b = (None if weights is None else weights.astype(cost.dtype) for weights in arrays)
    return a, b


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


def shares(
    a: Float[Array, "n"] | None, b: Float[Array, "m"] | None, cost: Float[Array, "n m"]
) -> tuple[Float[Array, "n"], Float[Array, "m"], Scalar]:
    """Weights of rows and columns divided by their sums, and their mass, the mean of the sums.

    NaN where traced weights are negative, not finite, without mass or of two different masses.
    """
    sums = [jnp.sum(weights) for weights in (a, b) if weights is not None]
    mass = jnp.mean(jnp.stack(sums)) if sums else jnp.ones((), cost.dtype)
    same = [jnp.abs(total - mass) <= 0.5 * WEIGHTS_TOLERANCE * mass for total in sums]
    right = functools.reduce(jnp.logical_and, same, (mass > 0) & jnp.isfinite(mass))

    def share(weights: Array | None, count: int) -> Array:
        if weights is None:
            return jnp.full(count, 1 / count, cost.dtype)
        total = jnp.sum(weights)
        return nan_unless(right & jnp.all(weights >= 0), weights / jnp.where(right, total, 1))

    return share(a, cost.shape[0]), share(b, cost.shape[1]), nan_unless(right, mass)


def positive(value: Scalar) -> Scalar:
    """``value``, or NaN where it (traced) is not positive and finite."""
    return nan_unless((value > 0) & jnp.isfinite(value), value)


def nan_unless(right: Bool[Array, ""], value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``value``, or NaN.

    Made only where it is wanted, so that a debugger of NaN does not stop in a right program.
    """
    one = jnp.ones((), value.dtype)
    return value * jnp.sqrt(jnp.where(right, one, -one))


def check_clouds(x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> None:
    """Raises ValueError unless both are non-empty ``[points, d]`` arrays of one dimension."""
    for name, cloud in zip(names, (x, y), strict=True):
        if jnp.ndim(cloud) != 2:
            raise ValueError(f"{name} has shape {jnp.shape(cloud)}; a cloud is [points, dimension]")
        if 0 in jnp.shape(cloud):
            raise ValueError(f"{name} has shape {jnp.shape(cloud)}: the cloud is empty")
        check_unsharded(name, cloud)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]} differ in dimension: {x.shape} and {y.shape}")


def check_unsharded(name: str, array: Any) -> None:
    """Raises ValueError for an array that is sharded over Explicit mesh axes."""
    spec = getattr(getattr(jax.typeof(array), "sharding", None), "spec", ())
    if any(axis is not None for axis in spec):
        raise ValueError(
            f"{name} is sharded as {spec} over Explicit mesh axes, along which jax sums and "
            "loops of no solve; use Auto axes, jax.shard_map, or jax.sharding.reshard"
        )


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
