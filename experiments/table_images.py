"""Tables of the image models, from the results of their runs alone.

Command:  python -m experiments.table_images --runs runs/mnist-nsgfpp runs/mnist-fm ...
Runtime:  seconds.
Expected: table.md, table.tex, fd.png and, of runs that kept their samples, samples.png in the
          folder that --out names.
Source:   arXiv:2401.14069, the image tables; metrics as cited in sinkflow/metrics/.
"""

import dataclasses
import pathlib

import tyro

from experiments.harness import cli, tables
from experiments.images import comparison


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs to compare, and where to put the table."""

    runs: tuple[str, ...]
    """Output folders of mnist.py or cifar10.py, all of one data set, or their result.json. Runs of
    one method with other seeds are put together: mean, deviation, bars."""
    out: str = "runs/table-images"
    """Folder for tables and pictures."""


def main(config: Config) -> tables.Table:
    """Reads the results, writes the table and the picture."""
    return comparison.write(config.runs, pathlib.Path(config.out))


if __name__ == "__main__":
    with cli.clear_errors():
        main(tyro.cli(Config, description=cli.header(__doc__), prog=cli.program()))
