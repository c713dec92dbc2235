"""One process of the benchmark of several devices: the rows of one number of devices.

Command:  started by experiments.bench_devices:
          python -m experiments.bench.devices_worker FILE
Runtime:  as long as its rows.
Expected: lines with numbers of rows on standard output, everything else on the other.
Source:   as experiments/bench_devices.py.
"""

import concurrent.futures
import json
import pathlib
import statistics
import sys
import time

import jax

from experiments.bench import processes
from experiments.bench.devices_config import Plan
from experiments.bench.devices_tasks import TASKS
from experiments.bench.timing import timed
from experiments.harness import provenance
from experiments.harness.settings import from_record


def work(file: str) -> None:
    """Compiles the programs of all rows side by side, then measures one row after the other."""
    say = processes.reporter()
    asked = json.loads(pathlib.Path(file).read_text())
    plan, rows = from_record(Plan, asked["plan"]), asked["rows"]
    say(limit=plan.limits.compile_limit)
    try:
        found = [device.device_kind for device in jax.local_devices()]
        if len(found) != asked["devices"] or (plan.device == "gpu") == ("cpu" in found):
            raise RuntimeError(f"it sees {len(found)} devices ({found[0]})")
    except RuntimeError as error:
        for row in rows:
            say(**row, not_run=str(error))
        return
    facts = {"device": found[0], "versions": provenance.versions()}
    with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
        waiting = [pool.submit(prepared, plan, row) for row in rows]
        concurrent.futures.wait(waiting)  # nothing is timed while another row compiles
    for row, future in zip(rows, waiting, strict=True):
        try:
            repeat, amount, seconds = future.result()
            repeat()  # the first waits for what later ones have at hand
            times = [timed(repeat)[1] for _ in range(plan.limits.repeats)]
        except Exception as error:
            say(**row, **facts, not_run=processes.told(error))
            continue
        median = statistics.median(times)
        spread = {"seconds": median, "fastest_slowest": [min(times), max(times)]}
        say(**row, **facts, **spread, amount=amount, prepare_seconds=seconds, rate=amount / median)


def prepared(plan: Plan, row: dict) -> tuple:
    """What to repeat, its amount, and the seconds until it was ready."""
    begin = time.perf_counter()
    share = row["devices"] if row["scaling"] == "weak" else 1
    return *TASKS[row["task"]](plan, share), time.perf_counter() - begin


if __name__ == "__main__":
    work(*sys.argv[1:])
