"""When a solve stops and what it stores: what everything that solves takes as ``limits``."""

from typing import NamedTuple

from sinkflow.types import ScalarLike

__all__ = ["STORAGES", "Limits"]

STORAGES = ("auto", "full", "half", "chunks")
"""What :class:`Limits` takes as ``storage``."""


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
