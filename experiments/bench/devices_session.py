"""The benchmark of several devices: a process for each number of devices; its table."""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from experiments.bench import processes
from experiments.bench.devices_config import Plan
from experiments.bench.record import Record, Row
from experiments.harness import tables
from experiments.harness.files import write_json
from experiments.harness.settings import flat
from sinkflow import checkpoint
from sinkflow.files import read_object

IDENTITY = ("task", "scaling", "devices")
SELECTION = {"tasks", "counts", "repeats", "compile_limit", "budget"}
"""Settings that another start may change without its rows being of other work."""
UNITS = {"unet": "images/s", "generator": "images/s", "pool": "particle steps/s"}


def rows(tasks: Sequence[str], counts: Sequence[int]) -> list[Row]:
    """All rows; on one device weak and strong scaling are the same."""
    return [
        {"task": task, "scaling": scaling, "devices": count}
        for count in counts
        for task in tasks
        for scaling in (("weak", "strong") if count > 1 else ("weak",))
    ]


def check_same(path: pathlib.Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if the folder's rows are of other work than ``settings`` ask for."""
    if not path.exists():
        return
    saved = read_object(path, {"config": dict})["config"]
    own = [{k: v for k, v in c.items() if k not in SELECTION} for c in (saved, settings)]
    checkpoint.check_config(path, *own)


def missing(record: Record, wanted: list[Row]) -> list[Row]:
    """Rows that the record does not have measured."""
    done = {record.name(row) for row in record.rows if "rate" in row}
    return [row for row in wanted if record.name(row) not in done]


def measure(record: Record, plan: Plan, count: int, wanted: list[Row], deadline: float) -> None:
    """The rows of one number of devices, in one process; what it reported is kept if it dies."""
    left = [row for row in wanted if row["devices"] == count]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "plan.json"
        write_json(file, {"plan": flat(plan), "devices": count, "rows": left})
        arguments = ["-m", "experiments.bench.devices_worker", str(file)]
        worker = processes.Worker(
            arguments, environment(plan.device, count, dict(os.environ)), deadline=deadline
        )
        for line in worker:
            line.pop("limit", None)
            if line:
                row = record.add({**line, "host_cores": os.cpu_count()})
                left = [other for other in left if record.name(other) != record.name(row)]
    for row in left:
        record.add({**row, "not_run": worker.reason or "its process told nothing of it"})


def environment(device: str, count: int, outer: dict[str, str]) -> dict[str, str]:
    """Variables of a process that sees so many devices, the first of those that ``outer`` names."""
    found = processes.environment(device)
    if device == "cpu":
        flags = f"{outer.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        return found | {"XLA_FLAGS": flags.strip(), "NPROC": "32"}
    names = outer.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return found | {"CUDA_VISIBLE_DEVICES": ",".join(names.split(",")[:count])}


def summary(row: Row) -> str:
    """What a row says in one line."""
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    return f"{row['rate']:.5g} {UNITS[row['task']]}, ready after {row['prepare_seconds']:.0f} s"


def compared(record: dict[str, Any]) -> list[Row]:
    """Rows in order, with ``speedup`` over one device and ``efficiency``, its share of ideal."""
    found = {tuple(row[name] for name in IDENTITY): row for row in record["rows"]}
    made = []
    for (task, _, count), row in sorted(found.items()):
        one = found.get((task, "weak", 1), {}).get("rate")
        if one and "rate" in row:
            speedup = row["rate"] / one
            row = {**row, "speedup": speedup, "efficiency": speedup / count}
        made.append(row)
    return made


def report(record: dict[str, Any]) -> str:
    """Markdown, from the record alone."""
    header = ["work", "scaling", "devices", "rate", "median of a call [s]", "from", "to"]
    header += ["times one device", "efficiency"]
    body = []
    for row in compared(record):
        cells = [row["task"], "" if row["devices"] == 1 else row["scaling"], str(row["devices"])]
        if "rate" not in row:
            cells += [f"not run: {row['not_run']}", *[""] * (len(header) - 4)]
        else:
            seconds = [row["seconds"], *row["fastest_slowest"]]
            cells += [f"{row['rate']:.5g} {UNITS[row['task']]}", *(f"{s:.4g}" for s in seconds)]
            known = "speedup" in row
            cells += [f"{row['speedup']:.2f}", f"{100 * row['efficiency']:.0f}%"] if known else []
        body.append(cells + [""] * (len(header) - len(cells)))
    made = tables.Table("Several devices", header, body)
    return "\n".join([tables.markdown(made), tables.origin(record["rows"]), record["precision"]])
