"""Every method on MNIST or Fashion-MNIST over several seeds, and the table of them all.

Several processes may share the work: start the same command once for each GPU
(CUDA_VISIBLE_DEVICES), or twice on one, where one judges on the host's cores while the other
trains (XLA_PYTHON_CLIENT_MEM_FRACTION=0.4 for both). Each takes the first run that nobody has, in
the order of its own --methods.

Command:  python -m experiments.grid_images --dataset mnist --seeds 0 1 2
Runtime:  not run on a GPU yet: some four minutes a run by the records of single runs, six for
          NSGF++; --smoke, in miniature, ten minutes on two CPU cores.
Expected: a folder for each run, as experiments.mnist leaves it; once all are finished, table.md,
          table.tex, fd.png and samples.png. A second start goes on where the first one ended.
Source:   as experiments/mnist.py.
"""

import dataclasses
import pathlib
from typing import Literal

import tyro

from experiments.harness import cli, folders, tables
from experiments.harness.run import recorded
from experiments.harness.settings import flat
from experiments.images import comparison, grid, pipeline
from experiments.images.checks import check


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs to make."""

    dataset: Literal["mnist", "fashion"] = "mnist"
    """What is generated."""
    methods: tuple[str, ...] = tuple(grid.RUNS)
    """Methods to run, in this order; settings are those of experiments.mnist, but for each one's
    own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every method."""
    data_dir: str = ""
    """Folder with the published files; by default SINKFLOW_DATA, or else a download."""
    out: str = ""
    """Folder of the runs' folders, the table and the pictures; by default runs/grid-DATASET."""
    smoke: bool = False
    """Shrink runs to seconds, images to enlarged 8x8 digits; numbers then mean nothing."""

    def folder(self) -> pathlib.Path:
        """``out``, or runs/grid-DATASET."""
        return pathlib.Path(self.out or f"runs/grid-{self.dataset}{'-smoke' * self.smoke}")


def main(config: Config) -> tables.Table | None:
    """Makes the runs that nobody has made; the table, once none is missing."""
    out = config.folder()
    shared = {"dataset": config.dataset, "data_dir": config.data_dir}
    made = grid.configs(out, config.methods, config.seeds, smoke=config.smoke, **shared)
    folders.opened(out, shared=True)
    finished = lambda one: grid.is_finished(one.folder(), recorded(flat(one)))
    missing = {name: one for name, one in made.items() if not finished(one)}
    print(f"{len(missing)} of {len(made)} runs to make")
    for one in missing.values():
        check(one)
    first = next(iter(made.values()))
    own = (first.data_set(), first.sampling, first.data_dir)
    material = pipeline.loaded(*own, smoke=first.smoke) if missing else None
    for name, one in missing.items():
        # Asked again: meanwhile another process may have made it.
        if grid.is_free(out, name) and not finished(one):
            print(f"{name}:")
            pipeline.main(one, material)
    if others := [name for name, one in made.items() if not finished(one)]:
        print(f"{', '.join(others)}: of another process; whichever ends last makes the table")
        return None
    return comparison.write([str(one.folder()) for one in made.values()], out)


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        main(tyro.cli(Config, description=cli.header(__doc__), prog=cli.program()))
