"""One process of the benchmark: measures one peer's rows, one JSON line each.

Command:  started by experiments.bench_sinkhorn:
          python -m experiments.bench.sinkhorn_worker PEER FILE SKIP
Runtime:  as long as its rows.
Expected: lines {"begin": ...} and {"row": ...} on standard output, everything else on the other.
Source:   none.
"""

import functools
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from experiments.bench import peers, processes
from experiments.bench.measure import NotRunError, fixed, sweep
from experiments.bench.pools import sampled_pool, velocity_file, whole_pool
from experiments.bench.problems import FixedProblem, Problem, VelocityProblem, from_json
from experiments.bench.reference import REFERENCE, Reference

FAILED_ROW = 3  # exit status after a row that failed
WHOLE = "all clouds"
LEAST = 10.0  # seconds for a row that begins just before the end
COMPILE = 60.0  # seconds that a row may compile on top of its limit
LARGEST_TUNED = 64  # dimension above which one search for tiles is tried, within the row's time


def main(name: str, file: str, skip: int) -> None:
    """Measures all rows of the file but the first ``skip``."""
    say = processes.reporter()
    plan = json.loads(pathlib.Path(file).read_text())
    peer: peers.Peer
    try:
        peer = Reference() if name == REFERENCE else peers.PEERS[name]()
        about = {"device": peer.device(), "versions": peer.versions(), "precision": peer.PRECISION}
    except Exception as error:
        say(unavailable=processes.told(error))
        return
    if plan["device"] == "gpu" and "cpu" in peer.device():
        say(unavailable="it sees no GPU")
        return
    for task in itertools.islice(rows(name, peer, plan), skip, None):
        problem = task.problem
        key: dict[str, Any] = {
            "track": problem.track,
            "peer": name,
            "label": task.label,
            "problem": problem.key,
        }
        # Others on the machine show in the load, which is 1 for each busy core.
        key = {**key, **about, "load_before": os.getloadavg()[0]}
        left = float("inf") if plan["deadline"] is None else plan["deadline"] - time.time()
        if left < 0:
            say(row={**key, "not_run": processes.SPENT})
            continue
        say(begin=key, limit=min(task.seconds, max(left, LEAST)))
        try:
            peer.forget()
            before = peer.memory()
            measured = task.measure()
        except NotRunError as error:
            say(row={**key, "not_run": str(error)})
            continue
        except Exception as error:
            # A device may be left in a bad state: the rows that remain get a new process.
            say(row={**key, "not_run": processes.told(error)})
            sys.exit(FAILED_ROW)
        peak = peer.memory()
        # A peak that did not rise is an earlier row's, where the library cannot forget it.
        measured |= {"peak_bytes": peak, "peak_is_bound": peak is not None and peak == before}
        say(row={**key, **measured})


class Task(NamedTuple):
    """A row to measure: its label and problem, seconds until it is given up, what measures it."""

    label: str
    problem: Problem
    seconds: float
    measure: Callable[[], dict[str, Any]]


def rows(name: str, peer: peers.Peer, plan: dict) -> Iterator[Task]:
    """The rows of a plan, in a fixed order."""
    limit, folder = plan["limit"], pathlib.Path(plan["folder"])
    tried = False
    for problem in map(from_json, plan["problems"]):
        given = 4 * limit + COMPILE
        hard_to_tune = isinstance(peer, peers.TunedFlash) and problem.d > LARGEST_TUNED
        if hard_to_tune:
            if tried:
                continue
            given, tried = limit, True
        if isinstance(peer, Reference) and not isinstance(problem, FixedProblem):
            yield Task("", problem, 60 * limit, functools.partial(peer.solve, problem))
        elif isinstance(problem, FixedProblem):
            for label, solve in peer.fixed(problem.passes, problem.clouds, problem.n).items():
                task = functools.partial(fixed, peer, solve, problem, limit)
                yield Task(label, problem, given, task)
        elif isinstance(problem, VelocityProblem):
            yield Task("", problem, given, functools.partial(sweep, peer, problem, limit))
        elif isinstance(peer, peers.Sinkflow):
            for way, storage in peer.storages().items():
                task = functools.partial(whole_pool, problem, folder, limit, WHOLE + way, storage)
                yield Task(WHOLE + way, problem, 20 * limit + COMPILE, task)
        else:
            ways = peer.procedure(problem.epsilon, problem.scaling)
            for label, (batched, run) in ways.items():
                file = folder / velocity_file(problem.key, name, label)
                task = functools.partial(sampled_pool, peer, run, batched, problem, file, limit)
                yield Task(label, problem, given, task)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
