"""When a solve stops and what it stores: what everything that solves takes as ``limits``."""

import dataclasses
from typing import NamedTuple

import jax

from sinkflow.types import ScalarLike

__all__ = ["STORAGES", "Limits", "Sharded"]

STORAGES = ("auto", "full", "half", "chunks", "fused")
"""What :class:`Limits` takes as ``storage``; all but "fused" :class:`Sharded` for its rows."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sharded:
    """Storage of one solve that is spread over the devices of a mesh, by the rows of its costs.

    Each device has an equal share of the rows: points of ``x`` with their costs to all of ``y``.
    ``y`` and its potential are on every device. Only sums over columns [m] are reduced across
    devices, and single numbers. A cloud and itself is spread likewise.

    Where the devices do not divide the points, points of weight 0 are added within the solve.

    Attributes:
      mesh: devices along one axis. Its axis is taken as an Auto one.
      storage: what a device keeps of its rows, as :class:`Limits` says. "auto" takes the first
        that fits on a device.

    Raises:
      ValueError: no mesh, a mesh of several axes, an unknown storage. At the solve, from jax: a
        cloud that was put on other devices than the mesh's (put it on the mesh), or another mesh
        that is set by ``jax.set_mesh`` (leave that context).

    Numerics:
      The solve is that of one device, up to the order of sums. In float32 this may show in the
      sixth digit of single potentials. Clouds lie where jax made them or on the mesh; the results
      lie on the mesh.

    Example:
      >>> import numpy as np
      >>> mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
      >>> Limits(storage=Sharded(mesh)).storage.storage
      'auto'
    """

    mesh: jax.sharding.Mesh
    storage: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, jax.sharding.Mesh):
            raise ValueError(
                f"mesh is {self.mesh!r}; give jax.sharding.Mesh(np.array(devices), ('rows',))"
            )
        if len(self.mesh.axis_names) != 1:
            raise ValueError(
                f"mesh has the axes {self.mesh.axis_names}; rows are spread over one: give "
                "jax.sharding.Mesh(mesh.devices.ravel(), ('rows',))"
            )
        choices = [name for name in STORAGES if name != "fused"]
        if self.storage not in choices:
            raise ValueError(
                f"unknown storage {self.storage!r}; choose one of {', '.join(choices)}"
            )
        # Beside the sums over columns XLA decides how vectors are spread: with Explicit axes it
        # would be us.
        mesh = jax.sharding.Mesh(self.mesh.devices, self.mesh.axis_names)
        object.__setattr__(self, "mesh", mesh)


Storage = str | Sharded


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
        for every product, for clouds beyond memory. "fused" makes each whole solve of two clouds
        of up to 256 points in one kernel, with the digits of "half": in float32, on GPUs of
        compute capability 9.0 (H100, H200). "auto" takes the first of the others that fits, and
        "fused" where it is possible and was tried with this version of jax. A
        :class:`Sharded` spreads the solve over several devices.

    Numerics:
      A new threshold or cap does not recompile, a new storage does. To trace the first two under
      ``jax.jit``, make the tuple inside.

    Example:
      >>> Limits(1e-4)
      Limits(threshold=0.0001, max_iterations=5000, storage='auto')
    """

    threshold: ScalarLike = 1e-3
    max_iterations: ScalarLike = 5_000
    storage: Storage = "auto"
