"""One process of the UNet's benchmark: measures one row, JSON lines of what it has found so far.

Command:  started by experiments.bench_unet:
          python -m experiments.bench.unet_worker PEER FILE
Runtime:  as long as its row.
Expected: lines with numbers, {"begin": ...} before what takes long and {"failed": ...} on standard
          output, everything else on the other.
Source:   as experiments/bench_unet.py.
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench import processes
from experiments.bench.peers.sinkflow_unet import Sinkflow
from experiments.bench.peers.torchcfm import Torchcfm
from experiments.bench.timing import timed
from experiments.bench.unet_config import Plan
from experiments.harness.settings import from_record

LEAST = 3  # timed rounds, however long they take
FALL = 3  # rounds over which the loss must fall before anything is timed


def work(peer: str, file: str) -> None:
    """Measures one row; a line for each thing found, everything else on the other stream."""
    say = processes.reporter()
    asked = json.loads(pathlib.Path(file).read_text())
    plan, batch = from_record(Plan, asked["plan"]), asked["batch"]
    wait, limit = plan.limits.compile_limit, plan.limits.time_limit
    try:
        library = Sinkflow(plan) if peer == "sinkflow" else Torchcfm(plan, asked["mode"])
        if plan.device == "gpu" and library.device() == "cpu":
            raise RuntimeError("it sees no GPU")
        say(device=library.device(), versions=library.versions(), parameters=library.parameters())
        if asked["check"]:
            say(begin="checking the precision", limit=wait)
            say(**library.check())
        say(begin="compiling the training step", limit=wait)
        steps, found = library.prepare(batch)
        say(**found, begin="the first training steps", limit=wait)
        say(**first_rounds(steps))
        say(begin="training", limit=10 * limit + processes.SILENCE)
        library.forget()
        measured = repeat(lambda: steps(), limit)
        say(**per_step(measured, plan.training.steps_per_call), peak_bytes=library.memory())
        if asked["sample"]:
            count = plan.sampling.sample_batch
            say(begin="compiling the sampler", limit=wait)
            draw = library.sampler(count)
            _, first = timed(draw)
            say(begin="sampling", limit=10 * limit + processes.SILENCE)
            seconds = repeat(draw, limit)["seconds"]
            say(sampled_per_second=count / seconds, sampler_compile_seconds=first - seconds)
    except Exception as error:
        say(failed=processes.told(error))


def repeat(call: Callable[[], Any], limit: float) -> dict[str, Any]:
    """Median time of calls over ``limit`` seconds, at least the fewest."""
    times: list[float] = []
    while len(times) < LEAST or sum(times) < limit:
        times.append(timed(call)[1])
    spread = [min(times), max(times)]
    return {"seconds": statistics.median(times), "fastest_slowest": spread, "rounds": len(times)}


def per_step(measured: dict[str, Any], count: int) -> dict[str, Any]:
    """Times of rounds, divided by their steps."""
    spread = [seconds / count for seconds in measured["fastest_slowest"]]
    return {**measured, "seconds": measured["seconds"] / count, "fastest_slowest": spread}


def first_rounds(steps: Callable[[], float]) -> dict[str, Any]:
    """The mean loss of the first rounds.

    Raises:
      ValueError: it is not finite, or does not fall.
    """
    losses, seconds = [], []
    for _ in range(FALL):
        loss, once = timed(steps)
        losses.append(loss)
        seconds.append(once)
    if not np.all(np.isfinite(losses)) or not losses[-1] < losses[0]:
        raise ValueError(f"the loss of the first rounds is {losses}; it must be finite and fall")
    return {"losses": losses, "first_rounds_seconds": seconds}


if __name__ == "__main__":
    work(*sys.argv[1:])
