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

import tyro

from experiments.generators import comparison, grid, measuring
from experiments.harness import cli, files, folders, tables
from experiments.images import scoring


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
    """Rows that are prepared and judged at one time; they train one after the other."""
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
    folders.opened(out)
    made = grid.rows(out, config.dataset, groups, config.seeds, smoke=config.smoke, **changes)
    todo = [row for row in made if grid.read(row) is None]
    print(f"{len(todo)} of {len(made)} rows to run")
    if todo or not (out / "references.json").exists():
        references = run(made[0], todo, config.side_by_side)
        files.write_json(out / "references.json", references)
    cells = [cell for row in made if (cell := grid.read(row)) is not None]
    files.write_json(out / "record.json", {"cells": cells})
    found = [comparison.table(config.dataset, group, cells) for group in groups]
    tables.write(out, found)
    for group in groups:
        comparison.draw(out, group, [row for row in made if row.group == group])
    return found


def run(one: grid.Row, todo: list[grid.Row], side_by_side: int) -> dict[str, Any]:
    """Runs the rows and returns what real images and traps score; ``one`` is any row."""
    first: Any = one.config
    train, test = scoring.load_splits(
        first.dataset, first.data_dir, smoke=first.smoke, shape=first.SHAPE
    )
    data = measuring.Data(train, scoring.Scorer(first.dataset, train, test, first.num_samples))
    device = threading.Lock()
    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        waiting = [pool.submit(grid.run, row, data, device) for row in todo]
        done = concurrent.futures.as_completed(waiting)
        try:
            for future in cli.progress("rows")(done, total=len(todo)):
                cell = future.result()
                names = cell["group"], cell["row"], str(cell["seed"])
                print(" ".join([*names, *comparison.described(cell)]))
        except BaseException:  # also SIGTERM: no row begins that nobody waits for
            pool.shutdown(cancel_futures=True)
            raise
    return data.scorer.references


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        main(tyro.cli(Config, description=cli.header(__doc__), prog=cli.program()))
