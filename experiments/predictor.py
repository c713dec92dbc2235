"""Does position tell time? The time predictor of NSGF++ in the plane, and on 8x8 digits.

The predictor learns t from points (1 - t) x0 + t x1 of independent pairs, and is tried on fresh
ones. Between normal noise and 8gaussians it is computed too what any predictor misses at least.

Command:  python -m experiments.predictor
Runtime:  under a minute on two CPU cores.
Expected: in the plane it misses t by twice as much as on digits, on 8gaussians by as little as can
          be; the record is experiments/results/time-predictor.json.
Source:   arXiv:2401.14069, the phase-transition time predictor of NSGF++.
"""

import dataclasses
import pathlib
from typing import ClassVar

import jax
import numpy as np

from experiments.harness import cli
from experiments.harness.run import Run
from experiments.harness.settings import check_positive_counts
from experiments.vectors import predicting
from sinkflow import data, plotting


@dataclasses.dataclass(frozen=True)
class Config:
    """How the predictors are trained and tried. Times are of the straight flow, from 0 to 1."""

    tasks: tuple[str, ...] = ("8gaussians", "8gaussians-moons")
    """Tasks in the plane; the digits come after them."""
    hidden_dims: tuple[int, ...] = (128, 128, 128)
    """Widths of the predictor's hidden layers."""
    train_steps: int = 2_000
    """Optimiser steps of each predictor."""
    batch_size: int = 512
    """Points of each optimiser step."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    num_pairs: int = 20_000
    """Pairs that points are drawn from; as many fresh points, of uniform times, try a predictor."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = "runs/predictor"
    """Output folder."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {"train_steps": 20, "num_pairs": 500, "hidden_dims": (16, 16)}
    SELECTION: ClassVar[tuple[str, ...]] = ()

    def folder(self) -> pathlib.Path:
        """``out``, with -smoke behind it."""
        return pathlib.Path(f"{self.out}{'-smoke' if self.smoke else ''}")


def main(config: Config) -> dict:
    """Trains and tries a predictor of each; returns result.json's content."""
    check_positive_counts(train_steps=config.train_steps, num_pairs=config.num_pairs)
    places = {name: predicting.plane(data.task(name)) for name in config.tasks}
    places["8x8 digits"] = predicting.digits()
    run, rows, tried = Run(config), {}, {}
    settings = {
        name: getattr(config, name)
        for name in ("hidden_dims", "train_steps", "batch_size", "learning_rate")
    }
    for number, (name, place) in enumerate(places.items()):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        with run.timed(name):
            tried[name] = predicting.trial(key, place, config.num_pairs, **settings)
            rows[name] = {"dim": place.dim, **predicting.scores(tried[name])}
            if name == "8gaussians":
                rows[name]["least"] = predicting.least_missed(tried[name].x)
        print(name, "  ".join(f"{what} {value:.3f}" for what, value in rows[name].items()))
    plotting.save(predicting.picture(tried), run.out / "predictor.png")
    return run.finish(
        metric="root mean square of predicted less true time, uniform in [0, 1]",
        constant=float(np.sqrt(1 / 12)),  # what the mean time alone misses
        rows=rows,
    )


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
