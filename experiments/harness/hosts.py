"""Programs of several processes, on one host or many: joining them, and where each may write."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import jax

FLAG = "--distributed"
HELP = f"{FLAG} joins the processes of a cluster (docs/guide/devices.md)."
HEARTBEAT = 60
"""Seconds without a sign of life after which a process counts as dead."""


def join() -> None:
    """Joins the processes of this program if the command line has the flag, and takes it away.

    The cluster's environment tells where they meet: SLURM's, a TPU pod's, or else
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Only process 0 prints.

    Raises:
      ValueError: no cluster is found.
      RuntimeError: the other processes did not come.
    """
    if FLAG not in sys.argv[1:]:
        return
    sys.argv.remove(FLAG)
    own: dict[str, Any] = {
        name: int(os.environ[f"JAX_{name.upper()}"])
        for name in ("num_processes", "process_id")
        if f"JAX_{name.upper()}" in os.environ
    }
    heartbeat = int(os.environ.get("SINKFLOW_HEARTBEAT", HEARTBEAT))
    try:
        jax.distributed.initialize(**own, heartbeat_timeout_seconds=heartbeat)
    except ValueError as error:
        raise ValueError(
            f"{FLAG} finds no cluster ({error}); start it by srun or on a TPU pod, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)


def own_folder(out: pathlib.Path) -> pathlib.Path:
    """``out`` in process 0, and in others a folder that is removed when they end."""
    if jax.process_index() == 0:
        return out
    folder = tempfile.mkdtemp(prefix="sinkflow-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


def give_up(error: Exception) -> None:
    """Ends this process of several with a line; it cannot wait for the others, one may be dead."""
    said = " ".join(str(error).split())[:300]
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} gives up ({said}); start "
        "all of them again with the same command, which goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
