"""The grid of the synthetic tables: its rows, and the training of a row on a task."""

import concurrent.futures
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness.cli import progress
from experiments.harness.files import write_json
from experiments.harness.run import Run, recorded
from experiments.vectors import methods
from experiments.vectors.cell_tables import draw_group
from experiments.vectors.cells import cell_path
from experiments.vectors.seeds import Keys, Setting
from sinkflow import data, metrics

ABLATIONS: dict[str, list[dict[str, Any]]] = {
    "particles per cloud (same number of paths)": [
        {"num_particles": n, "num_clouds": 2**16 // n} for n in (64, 256, 1024, 2048, 4096)
    ],
    "epsilon": [{"epsilon": epsilon} for epsilon in (0.005, 0.02, 0.1, 0.5)],
    "flow steps": [{"flow_steps": count} for count in (2, 3, 5, 8)],
    "step size": [{"step_size": size} for size in (0.2, 0.5, 0.8)],
    "time label": [{"time": "geodesic"}, methods.FLOW_TIME],
    "self cloud": [{"method": name} for name in ("NSGF", "NSGF independent self")],
    "clouds in the pool": [{"num_clouds": count} for count in (2, 8, 32)],
    "refreshed pools of 8 clouds": [{"refreshes": count, "num_clouds": 8} for count in (1, 4, 20)],
    "times of rows, u^power": [{"row_power": power} for power in (1.0, 2.0, 3.0)],
    "stepper": [{"stepper": name} for name in ("ab2", "euler")],
    "network width": [{"hidden_dims": (width,) * 3} for width in (64, 256, 512)],
}


class Group(NamedTuple):
    """A row of the grid on a task, all seeds of it."""

    label: str
    task: str
    method: Callable
    setting: Setting
    record: dict[str, Any]
    """The row's settings, flat."""


class Truth(NamedTuple):
    """Evaluation of a task: points [seeds, n, 2] of source and target, floors of each seed."""

    x0: jax.Array
    real: np.ndarray
    floors: list[list[Future]]


def variants(
    grid: str, only: Sequence[str] = (), known: Mapping[str, methods.Method] = methods.METHODS
) -> dict[str, methods.Method]:
    """Rows of the grid: label to method and the settings that it changes."""
    changes: dict[str, dict[str, Any]] = {label: {"method": label} for label in known}
    if grid == "ablations":
        changes = {
            f"{group}: {next(iter(entry.values()))}": entry
            for group, entries in ABLATIONS.items()
            for entry in entries
        }
    unknown = set(only) - changes.keys()
    if unknown:
        raise ValueError(f"only has {sorted(unknown)}; choose among {', '.join(changes)}")
    rows = {}
    for label in only or changes:
        entry = dict(changes[label])
        method, extra = known[entry.pop("method", "NSGF")]
        rows[label] = (method, {**extra, **entry})
    return rows


def seed_keys(seed: int, count: int, name: str) -> tuple[jax.Array, Keys]:
    """Keys [count] for evaluation, and for data and fitting; the same for all methods of a task."""
    base = jax.random.fold_in(jax.random.key(seed), list(data.TASKS).index(name))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(base, np.arange(count))
    roles = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    return roles[:, 0], Keys(roles[:, 1], roles[:, 2])


def measure_groups(
    run: Run,
    groups: Sequence[Group],
    keys: Mapping[str, tuple[jax.Array, Keys]],
    num_samples: int,
    num_floors: int,
) -> None:
    """Runs the groups one after the other and writes their cells; ``keys`` are of each task."""
    threads = concurrent.futures.ThreadPoolExecutor
    with threads(os.cpu_count()) as executor, threads(1) as writer:
        # While the device trains one group, the host's cores measure those before it.
        truths = {
            group.task: targets(
                group.setting.task, keys[group.task][0], num_samples, num_floors, executor
            )
            for group in {group.task: group for group in groups}.values()
        }
        written = []
        for group in progress("groups")(groups):
            finish = start_group(run, group, keys[group.task][1], truths[group.task], executor)
            written.append(writer.submit(finish))
        for future in progress("exact W2")(written):
            future.result()


def targets(
    task: data.Task, keys: jax.Array, num_samples: int, num_floors: int, executor: Executor
) -> Truth:
    """Source and target samples of every seed, and the floors, being computed."""
    n = num_samples
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    x0 = jax.vmap(lambda key: data.STRATIFIED[task.source](key, n))(keys[:, 0])
    real = np.asarray(jax.vmap(lambda key: data.STRATIFIED[task.target](key, n))(keys[:, 1]))
    floors = []
    for seed, points in enumerate(real):
        *fresh, last = jax.random.split(keys[seed, 2], num_floors + 1)
        draws = [data.SAMPLERS[task.target](key, n) for key in fresh]
        draws.append(data.STRATIFIED[task.target](last, n))
        floors.append([executor.submit(metrics.wasserstein2, np.asarray(z), points) for z in draws])
    return Truth(x0, real, floors)


def start_group(
    run: Run, group: Group, keys: Keys, truth: Truth, executor: Executor
) -> Callable[[], None]:
    """Trains and samples all seeds; the returned function waits for W2 and writes the cells."""
    before = dict(run.times)
    learned = group.method(group.setting, keys, run.timed)
    samples = {}
    with run.timed("sample"):
        for nfe in group.setting.sampling.nfe:
            drawn = learned.draw(truth.x0, nfe)
            samples[nfe] = None if drawn is None else np.asarray(drawn)
    seconds = {phase: run.times[phase] - before.get(phase, 0.0) for phase in run.times}
    distances = {
        nfe: [
            executor.submit(metrics.wasserstein2, z, y)
            for z, y in zip(points, truth.real, strict=True)
        ]
        for nfe, points in samples.items()
        if points is not None
    }
    draw_group(run.out, group.label, group.task, samples, learned, truth.x0, truth.real[0])

    def finish() -> None:
        for seed, floors in enumerate(truth.floors):
            *fresh, stratified = [future.result() for future in floors]
            cell = {
                "row": group.label,
                "task": group.task,
                "seed": seed,
                "w2": {str(nfe): futures[seed].result() for nfe, futures in distances.items()},
                "floor": float(np.mean(fresh)),
                "stratified_floor": stratified,
                "seconds_of_all_seeds": {key: round(value, 2) for key, value in seconds.items()},
                "certificates": learned.certificates,
                "settings": recorded(group.record),
                **run.circumstances(),
            }
            path = cell_path(run.out, group.label, group.task, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, cell)

    return finish
