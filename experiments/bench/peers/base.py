"""Sinkhorn solvers behind the same few calls, each imported only when it is made.

All take the cost ½‖x − y‖² and its epsilon. ``fixed`` and ``velocities`` return functions of
arrays that ``put`` has laid on the device; beside its answer each gives the number of passes (one
pass is one n x m softmin), as a number, an array or a function to call later, outside the clock.

Source: OTT, arXiv:2201.12324; GeomLoss, arXiv:1810.08278; FlashSinkhorn, arXiv:2602.03067; POT,
JMLR 22(78); the first author's velocity (two cold GeomLoss solves and autograd): arXiv:2401.14069.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

TINY = 1e-30  # a threshold that float32 does not reach: the number of passes is what is asked for
THRESHOLDS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)


class Sweep(NamedTuple):
    """Knobs from fast to slow, and (x, y, epsilon, knob) -> velocity, passes."""

    knobs: Sequence[float]
    velocity: Callable[..., tuple[Any, Any]]


class Peer:
    """What the benchmark asks of a library; the defaults are those of NumPy on a CPU."""

    PACKAGES: tuple[str, ...] = ()
    PRECISION = "float32"

    def fixed(self, passes: int, clouds: int, n: int) -> dict[str, Callable]:
        """Label to (x, y, epsilon) -> potentials, passes; stacked clouds if ``clouds`` > 1."""
        raise NotImplementedError

    def velocities(self, ratio: float, most: int) -> dict[str, Sweep]:
        """Label to the ways of reaching a velocity, within ``most`` iterations of a solve.

        ``ratio`` is the mean cost over epsilon.
        """
        raise NotImplementedError

    def procedure(self, epsilon: float, scaling: float) -> dict[str, tuple[bool, Callable]]:
        """Label to whether it takes stacked clouds, and (x, y) -> velocity, as NSGF calls it."""
        return {}

    def put(self, array: np.ndarray) -> Any:
        return np.ascontiguousarray(array)

    def wait(self, result: Any) -> None:
        """Returns when the result is there."""

    def forget(self) -> None:
        """Starts a new peak of memory, if the library can."""

    def memory(self) -> int | None:
        """Peak bytes on the device, None where they are not counted."""
        return None

    def device(self) -> str:
        return f"cpu ({platform.machine()})"

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.PACKAGES}


class JaxPeer(Peer):
    """JAX arrays."""

    def __init__(self):
        import jax

        self.jax = jax

    def put(self, array):
        return self.jax.device_put(array)

    def wait(self, result):
        self.jax.block_until_ready(result)

    def memory(self):
        return (self.jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def device(self):
        return self.jax.local_devices()[0].device_kind
