"""The solvers' benchmark, one worker process after another."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.bench import processes
from experiments.bench.inputs import save_pair
from experiments.bench.measure import relative_error
from experiments.bench.pools import velocity_file
from experiments.bench.problems import PoolProblem, Problem, VelocityProblem
from experiments.bench.record import Record, Row
from experiments.bench.reference import REFERENCE
from experiments.bench.sinkhorn_worker import FAILED_ROW
from experiments.harness.files import write_json

ALL = "all"  # the problem of a peer that could not start


class Session(NamedTuple):
    """Where workers run, what they share and how long they may take."""

    record: Record
    folder: pathlib.Path
    """Of clouds, plans and velocities."""
    device: str
    limit: float
    """Seconds of repeated calls of a row."""
    deadline: float | None = None
    """When the last row may begin [s since the epoch]."""


def run(session: Session, problems: Sequence[Problem], peers: Iterable[str]) -> None:
    """References first, then peers, sinkflow before all; last, what judges the pools."""
    judged = [problem for problem in problems if isinstance(problem, VelocityProblem)]
    failed = {}
    for row in run_worker(session, REFERENCE, judged):
        if "not_run" in row:
            failed[row["problem"]] = f"no reference: {row['not_run']}"
    problems = [with_reason(problem, failed) for problem in problems]
    # Ours comes first: its flow gives the states at which the others are timed.
    for peer in sorted(peers, key=lambda peer: peer != "sinkflow"):
        run_worker(session, peer, problems)
    for problem in problems:
        if isinstance(problem, PoolProblem):
            judge_pool(session._replace(deadline=None), problem)


def with_reason(problem: Problem, failed: dict[str, str]) -> Problem:
    """The problem, with the reason why it has no reference."""
    reason = failed.get(ALL) or failed.get(problem.key)
    if reason is None or not isinstance(problem, VelocityProblem):
        return problem
    return problem._replace(not_run=reason)


def run_worker(session: Session, peer: str, problems: Sequence[Problem]) -> list[Row]:
    """Rows of one peer; a worker that dies or hangs loses its row, and is replaced."""
    rows: list[Row] = []
    if not problems:
        return rows
    plan = session.folder / f"plan-{peer}.json"
    settings = {
        "limit": session.limit,
        "device": session.device,
        "folder": str(session.folder),
        "deadline": session.deadline,
    }
    write_json(plan, {**settings, "problems": [problem._asdict() for problem in problems]})
    add, begun = session.record.add, 0
    while True:
        worker = worker_of(peer, plan, begun, session.device)
        interrupted, missing = None, None
        for line in worker:
            missing = line.get("unavailable")
            if "begin" in line:
                interrupted, begun = line["begin"], begun + 1
            elif "row" in line:
                interrupted = None
                rows.append(add(line["row"]))
        if interrupted is not None:
            rows.append(add({**interrupted, "not_run": worker.reason}))
        elif worker.code != FAILED_ROW:
            missing = missing or worker.reason
            for track in sorted({problem.track for problem in problems}) if missing else ():
                key = {"track": track, "problem": ALL, "peer": peer, "label": ""}
                rows.append(add({**key, "not_run": missing}))
            return rows


def worker_of(peer: str, plan: pathlib.Path, skip: int, device: str) -> processes.Worker:
    """The process that measures a peer's rows of the plan but the first ``skip``."""
    environment = {**processes.environment(device), "TRITON_CACHE_AUTOTUNING": "1"}
    arguments = ["-m", "experiments.bench.sinkhorn_worker", peer, str(plan), str(skip)]
    return processes.Worker(arguments, environment)


def judge_pool(session: Session, problem: PoolProblem) -> None:
    """Adds every peer's velocity error at the sampled states of the first cloud."""
    states = session.folder / f"{problem.key}-x.npy"
    if not states.exists():
        return
    all_x = np.load(states, mmap_mode="r")[:, 0]
    y = np.load(session.folder / f"{problem.key}-y.npy", mmap_mode="r")[0]
    names = [f"C-{problem.key}-{k}" for k in range(len(all_x))]
    files = [save_pair(session.folder, name, (x, y)) for name, x in zip(names, all_x, strict=True)]
    references = [str(session.folder / f"{name}-reference.npy") for name in names]
    judged = problem._replace(files=files, references=references)
    (done,) = run_worker(session, REFERENCE, [judged])
    for row in session.record.rows if "not_run" not in done else ():
        if (row["track"], row["problem"]) != ("C", problem.key):
            continue
        found = session.folder / velocity_file(problem.key, row["peer"], row["label"])
        if found.exists():
            pairs = zip(np.load(found), map(np.load, references), strict=True)
            row["errors"] = [relative_error(*pair) for pair in pairs]
    session.record.write()
