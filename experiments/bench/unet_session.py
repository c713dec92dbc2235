"""The UNet's benchmark, one process for each row."""

import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.bench import processes
from experiments.bench.record import Record
from experiments.bench.unet_config import Ours, Plan
from experiments.bench.unet_report import rates
from experiments.harness.files import write_json
from experiments.harness.settings import flat


class Measured(NamedTuple):
    """A row to measure: library, its mode (of torch.compile), batch size, what is done once."""

    peer: str
    mode: str
    batch: int
    check: bool
    """Check the precision: once, for its networks take a while to compile."""
    sample: bool
    """Sample too."""


def rows(
    peers: Sequence[str], batch_sizes: Sequence[int], modes: Sequence[str], sample: bool
) -> list[Measured]:
    """First every library once, then the peer's other settings."""
    first, *others = modes

    def row(peer: str, mode: str, batch: int) -> Measured:
        largest = batch == max(batch_sizes)
        return Measured(peer, mode, batch, batch == min(batch_sizes), sample and largest)

    once = [
        row(peer, "" if peer == "sinkflow" else first, batch)
        for batch in batch_sizes
        for peer in peers
    ]
    again = [row("torchcfm", mode, batch) for mode in others for batch in batch_sizes]
    return once + (again if "torchcfm" in peers else [])


def measure(record: Record, plan: Plan, asked: Measured, flops: float, deadline: float) -> None:
    """One row; what its process reported is kept if it is stopped or dies."""
    setting = ours(plan.ours, plan.device) if asked.peer == "sinkflow" else asked.mode
    row: dict[str, Any] = {"peer": asked.peer, "setting": setting, "batch": asked.batch}
    row |= {"load_before": os.getloadavg()[0], "host_cores": os.cpu_count()}
    if time.time() > deadline:
        record.add({**row, "not_run": processes.SPENT})
        return

    def add(row: dict[str, Any]) -> dict[str, Any]:
        return record.add({**row, **(rates(row, flops) if "seconds" in row else {})})

    doing, reason = "start", ""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "plan.json"
        write_json(file, {"plan": flat(plan), **asked._asdict()})
        worker = worker_of(asked.peer, file, plan.device, plan.ours.xla_flags, deadline)
        for line in worker:
            doing, reason = line.pop("begin", doing), line.pop("failed", reason)
            line.pop("limit", None)
            if line:
                row = add({**row, **line})
    if worker.reason:
        reason = f"{doing}: {worker.reason}"
    if reason:
        add({**row, "stopped" if "seconds" in row else "not_run": reason})


def ours(settings: Ours, device: str) -> str:
    """What tells one setting of sinkflow from another."""
    parts = [
        "one vector" if settings.flat else "a tree",
        "cuDNN attention" if settings.flash and device == "gpu" else "plain attention",
        settings.dropout_key,
        settings.xla_flags,
    ]
    return ", ".join(filter(None, parts))


def worker_of(
    peer: str, plan: pathlib.Path, device: str, xla_flags: str, deadline: float
) -> processes.Worker:
    """The process that measures the plan's row."""
    environment = processes.environment(device)
    if peer == "sinkflow" and xla_flags:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {xla_flags}".strip()
    arguments = ["-m", "experiments.bench.unet_worker", peer, str(plan)]
    return processes.Worker(arguments, environment, deadline=deadline)
