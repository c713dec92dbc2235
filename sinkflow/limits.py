"""When a solve stops and what it stores: what everything that solves takes as ``limits``."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from sinkflow import inputs
from sinkflow.types import ScalarLike

STORAGES = ("auto", "full", "half", "chunks")


class Limits(NamedTuple):
    """When a solve stops and what it keeps on the device.

    Attributes:
      threshold: a solve stops when both L1 marginal errors [mass, total 1] are below it.
      max_iterations: cap on the iterations of each solve (one updates f and g), checked every
        5; the annealing, 2 iterations a factor of 4, is always completed.
      storage: "full" keeps costs and plan densities on the device (8 bytes a pair in
        float32). "half" keeps the densities in float16 (6 bytes a pair); its sums carry a relative
        error of about 1e-4, so thresholds far below 1e-3 are out of reach, and said to be: the
        certificate is measured in full precision. "chunks" keeps nothing: rows are recomputed
        for every product, for clouds beyond memory. "auto" takes the first that fits.

    Numerics:
      A new threshold or cap does not recompile, a new storage does. To trace the first two under
      ``jax.jit``, make the tuple inside.

    Example:
      >>> Limits(1e-4)
      Limits(threshold=0.0001, max_iterations=5000, storage='auto')
    """

    threshold: ScalarLike = 1e-3
    max_iterations: ScalarLike = 5_000
    storage: str = "auto"


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
    return Limits(inputs.as_scalar("threshold", threshold, dtype), jnp.asarray(cap), storage)


def check_storage(storage: str) -> None:
    """Raises ValueError for an unknown storage."""
    if storage not in STORAGES:
        raise ValueError(f"unknown storage {storage!r}; choose one of {', '.join(STORAGES)}")
