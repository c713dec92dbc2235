"""What a number depends on besides its config: commit, versions, device."""

import contextlib
import importlib.metadata
import os
import pathlib
import subprocess
from typing import Any

import jax

PACKAGES = ("sinkflow", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "POT", "numpy")


def commit() -> str:
    """The checkout's commit, marked when files differ from it, or "unknown" outside one.

    SINKFLOW_COMMIT goes before it: a copy of the files knows its commit from nowhere else.
    """
    if "SINKFLOW_COMMIT" in os.environ:
        return os.environ["SINKFLOW_COMMIT"]
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=12", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def device() -> dict[str, Any]:
    """Kind and number of the devices that ran, and the host's cores."""
    kinds = sorted({d.device_kind for d in jax.local_devices()})
    count = jax.local_device_count()
    return {"kind": ", ".join(kinds), "count": count, "host_cores": os.cpu_count()}


def peak_memory() -> float | None:
    """Largest number of bytes that the first device has held [GB], where it tells."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else round(peak / 1e9, 2)
