"""What each choice of a one-step generator of images is worth: objective, self term, epsilon, ...

Command:  python -m experiments.table_generators --dataset mnist
          python -m experiments.table_generators --groups final --train-steps 12000 --seeds 1 2 3
Runtime:  a quarter of an hour on an H100 for the default groups, eleven minutes for the second
          command; --smoke, a miniature of the first group, two minutes on two CPU cores.
Expected: table.md, table.tex and samples-GROUP.png in the folder that --out names, and a cell for
          every row and seed, from which a second start goes on; the records are
          experiments/results/table-generators-*.json.
Source:   objectives as cited in sinkflow/generator.py and opponents.py; metrics as in metrics.py.
"""

import concurrent.futures
import dataclasses
import pathlib
import threading
from typing import Any, Literal

import numpy as np
import tyro

from experiments import common, imaging, tables
from experiments import generator_grid as grid
from sinkflow import plotting

HEADINGS = {
    "fd": "FD ↓",
    "kd": "KD ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "class_tv": "class TV ↓",
    "memorised": "memorised",
    "variance_ratio": "variance / data's",
    "classes_covered": "classes",
    "step_ms": "ms a step",
    "loss_ms": "of it objective",
    "memory_gb": "memory [GB]",
}
SHOWN = 12  # images of a row in a picture


@dataclasses.dataclass(frozen=True)
class Config:
    """Which rows to run, and how long each is trained."""

    dataset: Literal["mnist", "fashion"] = "mnist"
    """What is generated; its settings are those of experiments.generator, but for each row's."""
    groups: tuple[str, ...] = tuple(name for name in grid.GROUPS if name not in ("final", "labels"))
    """Tables to make, each of what its name says; final and labels: the best
    settings, for long trainings."""
    train_steps: int = 1_000
    """Optimiser steps of every row."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every row."""
    num_samples: int = 10_000
    """Samples to draw and measure."""
    side_by_side: int = 3
    """Rows that are prepared at one time; they train one after the other."""
    data_dir: str = ""
    """Folder with the published files; by default SINKFLOW_DATA, or else a download."""
    out: str = "runs/table-generators"
    """Folder of cells, tables and pictures."""
    smoke: bool = False
    """Shrink rows to seconds, images to enlarged 8x8 digits; numbers then mean nothing."""


def main(config: Config) -> list[tables.Table]:
    """Runs what is missing, then makes tables, pictures and a record from the cells alone."""
    out, groups = pathlib.Path(config.out), config.groups
    if unknown := sorted(set(groups) - grid.GROUPS.keys()):
        raise ValueError(f"groups has {unknown}; choose among {', '.join(grid.GROUPS)}")
    changes: dict[str, Any] = {"data_dir": config.data_dir}
    if config.smoke:
        groups = groups[:1]
    else:
        changes |= {"train_steps": config.train_steps, "num_samples": config.num_samples}
    made = grid.rows(out, config.dataset, groups, config.seeds, smoke=config.smoke, **changes)
    todo = [row for row in made if grid.read(row) is None]
    print(f"{len(todo)} of {len(made)} rows to run")
    references = run(todo, config.side_by_side) if todo else None
    if references is not None:
        common.write_json(out / "references.json", references)
    cells = [cell for row in made if (cell := grid.read(row)) is not None]
    common.write_json(out / "record.json", {"cells": cells})
    found = [table(config.dataset, group, cells) for group in groups]
    tables.write(out, found)
    for group in groups:
        draw(out, group, [row for row in made if row.group == group])
    return found


def run(todo: list[grid.Row], side_by_side: int) -> dict[str, Any]:
    """Runs the rows and returns what real images score."""
    first: Any = todo[0].config
    train, test = (imaging.load(first, split) for split in ("train", "test"))
    data = grid.Data(train, imaging.Scorer(first, train, test))
    locks = grid.Locks(threading.Lock(), threading.Lock())
    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        waiting = [pool.submit(grid.run, row, data, locks) for row in todo]
        done = concurrent.futures.as_completed(waiting)
        for future in common.progress("rows")(done, total=len(todo)):
            cell = future.result()
            print(" ".join([cell["group"], cell["row"], str(cell["seed"]), *described(cell)]))
    return data.scorer.judge.floor()


def described(cell: dict[str, Any]) -> list[str]:
    """The cell's numbers in a line."""
    return [cell.get("failed", ""), *(f"{k} {cell[k]:.4g}" for k in HEADINGS if k in cell)]


def table(dataset: str, group: str, cells: list[dict[str, Any]]) -> tables.Table:
    """A row for each of the group's, mean and deviation where there are several seeds."""
    own = [cell for cell in cells if cell["group"] == group]
    body = []
    for label in dict.fromkeys(cell["row"] for cell in own):
        same = [cell for cell in own if cell["row"] == label]
        failed = next((cell["failed"] for cell in same if "failed" in cell), None)
        values = [number(same, name) for name in HEADINGS]
        body.append([label, *([failed] + [""] * (len(HEADINGS) - 1) if failed else values)])
    kinds = sorted({cell["device"]["kind"] for cell in own})
    steps = sorted({cell["config"]["train_steps"] for cell in own})
    title = f"{dataset}, one evaluation, {steps} steps, {', '.join(kinds)}"
    return tables.Table(title, [group, *HEADINGS.values()], body)


def number(cells: list[dict[str, Any]], name: str) -> str:
    """Mean over seeds, with the deviation where there are several."""
    if any(name not in cell for cell in cells):
        return ""
    values = [cell[name] for cell in cells]
    spread = f" ± {np.std(values):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def draw(out: pathlib.Path, group: str, rows: list[grid.Row]) -> None:
    """The first images of each row, side by side."""
    files = {row.label: row.file.with_suffix(".npy") for row in reversed(rows)}
    shown = {
        label: imaging.scaled(np.load(file)[:SHOWN])
        for label, file in reversed(files.items())
        if file.is_file()
    }
    if shown:
        plotting.save(plotting.image_grid(shown, SHOWN), out / f"samples-{grid.slug(group)}.png")


if __name__ == "__main__":
    with common.clear_errors():
        main(tyro.cli(Config, description=common.header(__doc__), prog=common.program()))
