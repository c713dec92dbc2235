"""The synthetic tables: NSGF against its rivals on five tasks in the plane, and ablations of NSGF.

Command:  python -m experiments.table_plane                  (the table)
          python -m experiments.table_plane --grid ablations
Runtime:  six and a half minutes on two H200s, two processes on each, compilation included; on two
          CPU cores 195 s for NSGF, one task and seed. --smoke is a miniature. Several devices: a
          process on each (CUDA_VISIBLE_DEVICES), with tasks of its own (--tasks) and one and the
          same --out; then once more with all tasks, which makes tables and pictures.
Expected: NSGF at 1 evaluation 23-43% below OT-CFM n=256, at 5 about what OT-CFM reaches at 100; the
          record is experiments/results/table-plane.json.
Source:   arXiv:2401.14069, the 2-D table; methods as cited in experiments/vectors/methods.py.
"""

import dataclasses
from typing import ClassVar, Literal

import tyro

from experiments.generators.seeds import generator
from experiments.harness import cli, folders, tables
from experiments.harness.run import Run
from experiments.harness.settings import flat, replaced
from experiments.vectors import cell_tables, methods
from experiments.vectors import config as parts
from experiments.vectors.cells import cell_path, read_cells, slug, summaries
from experiments.vectors.grid import Group, measure_groups, seed_keys, variants
from experiments.vectors.seeds import Sampling, Setting, Training
from sinkflow import data

METHODS = {**methods.METHODS, "Generator": (generator, {})}


@dataclasses.dataclass(frozen=True)
class Flow(parts.Flow):
    """The particle flow, and the pool of its states."""

    epsilon: float = 0.005
    """Entropic regularisation [length^2]; GeomLoss's blur squared."""
    flow_steps: int = 5
    """Euler steps of the particle flow; the last one is 1."""
    num_particles: int = 2048
    """Particles in each cloud."""
    num_clouds: int = 32
    """Simulated pairs of clouds in the pool of a seed; other methods see as many pairs."""


@dataclasses.dataclass(frozen=True)
class Config(parts.VectorConfig):
    """Every number of the table. Lengths are the plane's: targets span about 10."""

    flow: Flow = dataclasses.field(default_factory=Flow)
    training: Training = dataclasses.field(default_factory=Training)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    grid: Literal["methods", "ablations"] = "methods"
    """Methods on all tasks, or variants of NSGF."""
    tasks: tuple[str, ...] = tuple(data.TASKS)
    """Tasks to run."""
    only: tuple[str, ...] = ()
    """Methods to run; by default all of the grid."""
    seeds: int = 5
    """Training seeds, trained side by side."""
    tensorboard: tyro.conf.Suppress[bool] = False
    """Of no use here: seeds that train side by side have no log."""

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

    def name(self) -> str:
        return f"table-plane-{self.grid}"


def main(config: Config) -> list[tables.Table]:
    """Runs what is missing of the grid, then makes tables and pictures from the cells alone."""
    tasks, chosen = {name: data.task(name) for name in config.tasks}, config.sampling
    run = Run(config, shared=True)
    rows = variants(config.grid, config.only, METHODS)
    todo = [
        group(config, label, name, *rows[label])
        for label in rows
        for name in tasks
        if not all(cell_path(run.out, label, name, seed).exists() for seed in range(config.seeds))
    ]
    for one in todo:
        folders.take(run.out, f"{slug(one.label)}-{one.task}")
    print(f"{len(todo)} of {len(rows) * len(tasks)} groups of {config.seeds} seeds to run")
    keys = {name: seed_keys(config.seed, config.seeds, name) for name in tasks}
    measure_groups(run, todo, keys, chosen.num_samples, chosen.num_floors)
    cells = read_cells(run.out, list(rows), config.tasks, config.seeds)
    for variation, labels in cell_tables.by_variation(rows).items():
        name = f"w2-{slug(variation)}.png" if variation else "w2.png"
        cell_tables.draw_curves(run.out / name, cells, labels, config.tasks, chosen.nfe)
    made = cell_tables.make_tables(cells, list(rows), config.tasks, chosen.nfe)
    tables.write(run.out, made)
    run.finish(cells=summaries(cells))
    return made


def group(config: Config, label: str, name: str, method, changes: dict) -> Group:
    """A row of the grid on a task: the config with what the row changes."""
    own = replaced(config, **changes)
    setting = Setting(data.task(name), own.flow, own.network, own.training, own.sampling)
    return Group(label, name, method, setting, flat(own))


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
