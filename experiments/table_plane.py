"""The synthetic tables: NSGF against its rivals on five tasks in the plane, and ablations of NSGF.

Command:  python -m experiments.table_plane                  (the table)
          python -m experiments.table_plane --grid ablations
Runtime:  six and a half minutes on two H200s, two processes on each, compilation included; on two
          CPU cores 195 s for NSGF, one task and seed. --smoke is a miniature. Several devices: a
          process on each (CUDA_VISIBLE_DEVICES), with tasks of its own (--tasks) and one and the
          same --out; then once more with all tasks, which makes tables and pictures.
Expected: NSGF at 1 evaluation 23-43% below OT-CFM n=256, at 5 about what OT-CFM reaches at 100; the
          record is experiments/results/table-plane.json.
Source:   arXiv:2401.14069, the 2-D table; methods as cited in experiments/methods.py.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import tyro

from experiments import common, methods, tables
from sinkflow import data, metrics, plotting

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


STYLES = ("-", "--", ":")
RIVAL = "OT-CFM n=256"  # whose many evaluations are compared with
FEW = 5  # evaluations of everyone else
NOT_RUN = ("JKO-Flow", "EPT")  # the paper's other rivals, of which we have no implementation


@dataclasses.dataclass(frozen=True)
class Config(common.FlowConfig):
    """Every number of the table. Lengths are the plane's: targets span about 10."""

    grid: Literal["methods", "ablations"] = "methods"
    """Methods on all tasks, or variants of NSGF."""
    tasks: tuple[str, ...] = tuple(data.TASKS)
    """Tasks to run."""
    only: tuple[str, ...] = ()
    """Methods to run; by default all of the grid."""
    seeds: int = 5
    """Training seeds, trained side by side."""
    num_particles: int = 2048
    """Particles in each cloud."""
    flow_steps: int = 5
    """Euler steps of the particle flow; the last one is 1."""
    epsilon: float = 0.005
    """Entropic regularisation [length^2]; GeomLoss's blur squared."""
    num_clouds: int = 32
    """Simulated pairs of clouds in the pool of a seed; other methods see as many pairs."""
    batch_size: int = 2048
    """Rows of each optimiser step."""
    train_steps: int = 10_000
    """Optimiser steps of every network."""
    learning_rate: float = 4e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    steps_per_call: int = 500
    """Optimiser steps of one dispatched call."""
    num_samples: int = 4096
    """Generated and target samples of each W2, both stratified."""
    stepper: Literal["euler", "ab2"] = "ab2"
    """How fields are integrated, one evaluation a step: Euler's method, or that of Adams and
    Bashforth, which is of second order. In flow time it is Euler's."""
    time_power: float = 1.5
    """Step k of K starts at (k/K)^time_power of the time, also with the rivals."""
    num_floors: int = 5
    """Independent draws behind each floor."""
    refreshes: int = 1
    """Pools built in the course of a training."""
    checkpoint_every: tyro.conf.Suppress[int] = 0
    """Of no use here: what is kept of a killed grid are its finished groups."""

    SMOKE: ClassVar[dict] = {
        "seeds": 2,
        "num_particles": 256,
        "num_clouds": 1,
        "hidden_dims": (16, 16),
        "batch_size": 64,
        "train_steps": 20,
        "steps_per_call": 10,
        "num_samples": 64,
        "num_floors": 1,
        "nfe": (1, 5),
    }
    SELECTION: ClassVar[tuple[str, ...]] = ("tasks", "only", "seeds")
    DIM: ClassVar[int] = 2

    def name(self) -> str:
        return f"table-plane-{self.grid}"

    def training_only(self) -> "Config":
        """The settings that training compiles with, so that pools of every kind share it."""
        return Config(
            hidden_dims=self.hidden_dims,
            batch_size=self.batch_size,
            row_power=self.row_power,
            train_steps=self.train_steps,
            steps_per_call=self.steps_per_call,
            learning_rate=self.learning_rate,
            ema_decay=self.ema_decay,
        )


def main(config: Config) -> list:
    """Runs what is missing of the grid, then makes tables and pictures from the cells alone."""
    tasks = {name: data.task(name) for name in config.tasks}
    run = common.Run(config)
    grid = variants(config)
    todo = [
        (label, name)
        for label in grid
        for name in tasks
        if not all(cell_path(run.out, label, name, seed).exists() for seed in range(config.seeds))
    ]
    print(f"{len(todo)} of {len(grid) * len(tasks)} groups of {config.seeds} seeds to run")
    threads = concurrent.futures.ThreadPoolExecutor
    with threads(os.cpu_count()) as executor, threads(1) as writer:
        # While the device trains one group, the host's cores measure those before it.
        truths = {name: targets(config, name, executor) for name in {name for _, name in todo}}
        written = []
        for label, name in common.progress("groups")(todo):
            method, settings = grid[label]
            finish = start_group(run, label, name, method, settings, truths[name], executor)
            written.append(writer.submit(finish))
        for future in common.progress("exact W2")(written):
            future.result()
    labels = list(grid)
    cells = read_cells(run.out, labels, config)
    made = make_tables(cells, labels, config)
    for variation, group in by_variation(labels).items():
        name = f"w2-{slug(variation)}.png" if variation else "w2.png"
        draw_curves(run.out / name, cells, group, config)
    tables.write(run.out, made)
    run.finish(cells=summaries(cells))
    return made


def variants(config) -> dict[str, tuple[Any, Config]]:
    """Rows of the grid: label to method and its settings."""
    changes = {label: {"method": label} for label in methods.METHODS}
    if config.grid == "ablations":
        changes = {
            f"{group}: {next(iter(entry.values()))}": entry
            for group, entries in ABLATIONS.items()
            for entry in entries
        }
    unknown = set(config.only) - changes.keys()
    if unknown:
        raise ValueError(f"only has {sorted(unknown)}; choose among {', '.join(changes)}")
    rows = {}
    for label in config.only or changes:
        entry = dict(changes[label])
        method, extra = methods.METHODS[entry.pop("method", "NSGF")]
        rows[label] = (method, dataclasses.replace(config, **{**extra, **entry}))
    return rows


def seed_keys(config, name: str):
    """Keys [seeds] for evaluation, and for data and fitting; the same for all methods of a task."""
    base = jax.random.fold_in(jax.random.key(config.seed), list(data.TASKS).index(name))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(base, np.arange(config.seeds))
    roles = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    return roles[:, 0], methods.Keys(roles[:, 1], roles[:, 2])


def targets(config, name: str, executor):
    """Source and target samples of every seed, and the floors, being computed."""
    task, n = data.task(name), config.num_samples
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(seed_keys(config, name)[0])
    x0 = jax.vmap(lambda key: data.STRATIFIED[task.source](key, n))(keys[:, 0])
    real = np.asarray(jax.vmap(lambda key: data.STRATIFIED[task.target](key, n))(keys[:, 1]))
    floors = []
    for seed in range(config.seeds):
        *fresh, last = jax.random.split(keys[seed, 2], config.num_floors + 1)
        draws = [data.SAMPLERS[task.target](key, n) for key in fresh]
        draws.append(data.STRATIFIED[task.target](last, n))
        floors.append(
            [executor.submit(metrics.wasserstein2, np.asarray(z), real[seed]) for z in draws]
        )
    return x0, real, floors


def start_group(run, label, name, method, settings, truth, executor):
    """Trains and samples all seeds; the returned function waits for W2 and writes the cells."""
    x0, real, floors = truth
    before, task = dict(run.times), data.task(name)
    learned = method(settings, task, seed_keys(settings, name)[1], run.timed)
    samples = {}
    with run.timed("sample"):
        for nfe in settings.nfe:
            drawn = learned.draw(x0, nfe)
            samples[nfe] = None if drawn is None else np.asarray(drawn)
    seconds = {phase: run.times[phase] - before.get(phase, 0.0) for phase in run.times}
    distances = {
        nfe: [
            executor.submit(metrics.wasserstein2, z, y) for z, y in zip(points, real, strict=True)
        ]
        for nfe, points in samples.items()
        if points is not None
    }
    draw_group(run.out, label, name, samples, learned, x0, real[0])

    def finish():
        for seed in range(settings.seeds):
            *fresh, stratified = [future.result() for future in floors[seed]]
            cell = {
                "row": label,
                "task": name,
                "seed": seed,
                "w2": {str(nfe): futures[seed].result() for nfe, futures in distances.items()},
                "floor": float(np.mean(fresh)),
                "stratified_floor": stratified,
                "seconds_of_all_seeds": {key: round(value, 2) for key, value in seconds.items()},
                "certificates": learned.certificates,
                "settings": common.recorded(dataclasses.asdict(settings)),
                **run.circumstances(),
            }
            path = cell_path(run.out, label, name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            common.write_json(path, cell)

    return finish


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("+", "p")).strip("-")


def cell_path(out: pathlib.Path, label: str, name: str, seed: int) -> pathlib.Path:
    return out / "cells" / slug(label) / f"{name}-{seed}.json"


def read_cells(out, labels, config) -> dict[tuple[str, str], list[dict]]:
    """Cells of the grid by row and task, one for each seed."""
    return {
        (label, name): [
            json.loads(cell_path(out, label, name, seed).read_text())
            for seed in range(config.seeds)
        ]
        for label in labels
        for name in config.tasks
    }


def summaries(cells) -> list[dict]:
    """The cells of a row and task in one entry; lists have a value for each seed."""
    return [
        {
            "row": label,
            "task": name,
            "w2": {nfe: [cell["w2"][nfe] for cell in group] for nfe in group[0]["w2"]},
            **{
                key: [cell[key] for cell in group]
                for key in ("floor", "stratified_floor", "commit")
            },
            **{key: group[0][key] for key in ("seconds_of_all_seeds", "certificates", "device")},
        }
        for (label, name), group in cells.items()
    ]


def by_variation(labels) -> dict[str, list[str]]:
    """Labels of one table: those of an ablation by what it varies, methods all together."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(label.rpartition(": ")[0], []).append(label)
    return groups


def make_tables(cells, labels, config) -> list[tables.Table]:
    """Tables from the cells alone: one for each task and variation, and paired differences."""
    made = [
        task_table(cells, group, variation, name, config)
        for name in config.tasks
        for variation, group in by_variation(labels).items()
    ]
    if RIVAL in labels and FEW in config.nfe:
        made.append(paired_table(cells, labels, config))
    return made


def task_table(cells, labels, variation, name, config) -> tables.Table:
    """W2 of a task's rows, and seconds of a seed."""
    rows = []
    for label in labels:
        group = cells[label, name]
        seconds = group[0]["seconds_of_all_seeds"]
        spent = [seconds.get(phase, 0) / len(group) for phase in ("pool", "train", "sample")]
        values = [mean_and_deviation(group, nfe) for nfe in config.nfe]
        rows.append([label.rpartition(": ")[2], *values, *(f"{value:.1f}" for value in spent)])
    times = ["pool [s]", "train [s]", "sample [s]"]
    header = [variation or "method", *(f"NFE {k}" for k in config.nfe), *times]
    if not variation:
        rows += [[label, "not run", *[""] * (len(header) - 2)] for label in NOT_RUN]
    floor, stratified = (
        np.mean([cell[key] for cell in cells[labels[0], name]])
        for key in ("floor", "stratified_floor")
    )
    title = (
        f"{name}: W2, in brackets the excess over the stratified floor {stratified:.3f} "
        f"(floor of independent samples {floor:.3f})"
    )
    return tables.Table(title, header, rows)


def mean_and_deviation(group, nfe) -> str:
    """W2 over seeds, and the mean excess over each seed's stratified floor in brackets."""
    pairs = [
        (cell["w2"][str(nfe)], cell["stratified_floor"]) for cell in group if str(nfe) in cell["w2"]
    ]
    if not pairs:
        return "n/a"
    values, excess = [pair[0] for pair in pairs], [metrics.excess(*pair) for pair in pairs]
    return f"{np.mean(values):.3f} ± {np.std(values):.3f} ({np.mean(excess):.3f})"


def paired_table(cells, labels, config) -> tables.Table:
    """W2 at FEW evaluations less that of the rival at most, of the same points and seed."""
    most = max(config.nfe)

    def difference(label, name):
        few, many = cells[label, name], cells[RIVAL, name]
        if str(FEW) not in few[0]["w2"]:
            return "n/a"
        values = [a["w2"][str(FEW)] - b["w2"][str(most)] for a, b in zip(few, many, strict=True)]
        return f"{np.mean(values):+.4f} ± {np.std(values):.4f}"

    rows = [[label, *(difference(label, name) for name in config.tasks)] for label in labels]
    title = f"W2 at NFE {FEW} less that of {RIVAL} at NFE {most}, same points and seed"
    return tables.Table(title, ["method", *config.tasks], rows)


def draw_group(out, label, name, samples, learned, x0, real):
    """Samples of the first seed at every NFE, and paths of a few particles."""
    panels = {f"NFE {nfe}": points[0] for nfe, points in samples.items() if points is not None}
    folder = out / "pictures" / slug(label)
    folder.mkdir(parents=True, exist_ok=True)
    fig = plotting.samples_against_target(panels, real)
    plotting.save(fig, folder / f"{name}-samples.png")
    paths = np.asarray(learned.paths(x0[:1, :64]))
    plotting.save(
        plotting.trajectories(paths, real, f"{label}, {name}"), folder / f"{name}-paths.png"
    )


def draw_curves(path, cells, labels, config):
    """W2 against NFE, one panel a task, one line a row.

    Grey, the floors: dotted of independent samples, dashed of stratified ones.
    """
    fig, axes = plotting.figure(len(config.tasks), size=4.0)
    for axis, name in zip(axes[0], config.tasks, strict=True):
        for index, label in enumerate(labels):
            counts = [nfe for nfe in config.nfe if str(nfe) in cells[label, name][0]["w2"]]
            means = [np.mean([c["w2"][str(nfe)] for c in cells[label, name]]) for nfe in counts]
            style = {"color": f"C{index}", "ls": STYLES[index // 10], "marker": "."}
            axis.plot(counts, means, label=label.rpartition(": ")[2], **style)
        for key, dashes in (("floor", ":"), ("stratified_floor", "--")):
            axis.axhline(np.mean([c[key] for c in cells[labels[0], name]]), color="0.5", ls=dashes)
        axis.set(title=name, xscale="log", yscale="log", xlabel="NFE", ylabel="W2")
        axis.set_xticks(config.nfe, map(str, config.nfe))
        axis.set_xticks([], minor=True)
        axis.set_ylim(top=min(axis.get_ylim()[1], 10.0))  # beyond the targets' span: diverged
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside right upper",
        title=labels[0].rpartition(": ")[0] or None,
        fontsize=7,
        title_fontsize=7,
    )
    plotting.save(fig, path)


if __name__ == "__main__":
    common.run_driver(main, Config, __doc__)
