"""Devices over which one solve is spread."""

import jax
import numpy as np

from sinkflow import Sharded


def spread_over(count: int, storage: str) -> tuple[list[jax.Device], str | Sharded]:
    """The first ``count`` devices, and the storage of solves that are spread over them.

    Raises:
      ValueError: more devices than there are.
    """
    devices = jax.devices()[:count]
    if len(devices) < count:
        raise ValueError(
            f"devices is {count}; jax sees {len(devices)}. Of one CPU it makes {count} with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    if count == 1:
        return devices, storage
    return devices, Sharded(jax.sharding.Mesh(np.array(devices), ("rows",)), storage)
