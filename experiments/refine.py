"""One-step samples carried on by a straight flow: does a generator gain by more evaluations?

A sample of the generator is taken back to time t, where the straight flow has a share 1 - t of
noise, and follows the flow from there: 1 + N evaluations.

Command:  python -m experiments.refine --generator runs/generator-mnist-regression-second \\
              --flow runs/mnist-fm
Runtime:  two minutes on a GPU; both runs are there.
Expected: table.md and table.tex with a row for each start and number of evaluations, samples.png,
          and result.json.
Source:   arXiv:2108.01073 (noise, then the flow back); arXiv:2401.14069 (a second phase that is
          a straight flow).
"""

import dataclasses
import pathlib
from typing import Any, ClassVar, Literal

import jax
import tyro

from experiments.generators import refinement, training
from experiments.harness import cli, tables
from experiments.harness.run import Run
from experiments.images import pictures, scoring, stages
from experiments.images.sampling import Drawing, title
from sinkflow import ode, plotting


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs are put together, and how they are sampled."""

    generator: str
    """Output folder of experiments.generator, of images."""
    flow: str
    """Output folder of experiments.mnist, of the same images; its stage straight is followed."""
    starts: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9)
    """Times in (0, 1) that samples are taken back to."""
    nfe: tuple[int, ...] = (1, 2, 4, 9)
    """Evaluations of the flow, besides the generator's one."""
    stepper: Literal["euler", "ab2"] = "ab2"
    """How the flow is integrated, one evaluation a step."""
    num_samples: int = 10_000
    """Images of each row; as many of them as there are test images are compared with these."""
    sample_batch: int = 2_000
    """Images generated side by side."""
    data_dir: str = ""
    """Folder with the published files; by default SINKFLOW_DATA, or else a download."""
    seed: int = 0
    """Of the noise."""
    out: str = "runs/refine"
    """Output folder."""

    DRIVER: ClassVar[str] = "refine"
    SELECTION: ClassVar[tuple[str, ...]] = ("starts", "nfe", "num_samples", "data_dir")

    def folder(self) -> pathlib.Path:
        """``out``."""
        return pathlib.Path(self.out)


def main(config: Config) -> tables.Table:
    """Samples every row, scores it, and writes table, picture and record."""
    for start in config.starts:
        if not 0 < start < 1:
            raise ValueError(f"starts has {start}; a time between noise, 0, and image, 1")
    for count in config.nfe:
        ode.num_steps(count, config.stepper)
    made = training.restored(pathlib.Path(config.generator))
    own: Any = made.config
    field = stages.restored(pathlib.Path(config.flow), "straight", own.SHAPE)
    train, test = scoring.load_splits(
        own.dataset, config.data_dir, smoke=own.smoke, shape=own.SHAPE
    )
    run = Run(config)
    score = scoring.Scorer(own.dataset, train, test, config.num_samples)

    schemes = refinement.schemes(made, field, config.starts, config.nfe, config.stepper)
    settings = {name: getattr(config, name) for name in ("stepper", "num_samples", "sample_batch")}
    size = own.dim() + train.pixels[0].size
    drawing = Drawing(
        jax.random.key(config.seed),
        size,
        own.SHAPE,
        config.num_samples,
        config.sample_batch,
        settings,
    )
    rows, drawn = [], {}
    for scheme in schemes:
        row, pixels = scoring.judged(run, drawing, scheme, score)
        rows.append(row)
        if pixels is not None:
            drawn[title(scheme)] = pictures.scaled(pixels[:10])
        print(scoring.row_line(row))
    table = refinement.table(own.dataset, rows)
    tables.write(run.out, [table])
    plotting.save(plotting.image_grid(drawn, 10), run.out / "samples.png")
    run.finish(rows=rows, references=score.references, dataset=own.dataset)
    return table


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        main(tyro.cli(Config, description=cli.header(__doc__), prog=cli.program()))
