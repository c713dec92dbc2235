"""The classifiers whose features judge generated images of a data set.

Command:  python -m experiments.classifier --dataset mnist|fashion [--network mixer]
Runtime:  less than ten minutes on two CPU cores; --smoke ends in half a minute.
Expected: test accuracy of 0.994 (mnist) or 0.92 (fashion), of shorter trained mixers 0.98 or 0.88;
          mnist.npz, the weights in float16, and mnist.json, their record, in the run's folder.
          --ship puts them where tables find them: tables made before can then not be compared.
Source:   LeCun et al. 1998, of convolutions; Tolstikhin et al. 2021, arXiv:2105.01601, the mixer.
"""

import dataclasses
import functools
import pathlib
from typing import ClassVar, Literal

import jax

from experiments.harness import cli
from experiments.harness.run import WITHOUT_EFFECT, Run
from experiments.harness.settings import check_batch, flat, made
from experiments.images import judge
from experiments.images.classify import accuracy, learn_classes


@dataclasses.dataclass(frozen=True)
class Training:
    """How it is trained."""

    batch_size: int = 128
    """Images of each optimiser step, over all devices."""
    train_steps: int = 6_000
    """Optimiser steps."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    steps_per_call: int = 100
    """Optimiser steps of one dispatched call."""
    checkpoint_every: int = 1_000
    """Optimiser steps between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the training."""

    dataset: Literal["mnist", "fashion"] = "mnist"
    """Data set to classify."""
    network: Literal["convolutional", "mixer"] = "convolutional"
    """Kind of network: the judge of all tables, or a second one without convolutions."""
    data_dir: str = ""
    """Folder with its files; without it they are downloaded."""
    shift: int = 2
    """Training images are moved by up to this along both axes [pixels]."""
    training: Training = dataclasses.field(default_factory=Training)
    seed: int = 0
    """Everything random follows from it."""
    ship: bool = False
    """Put the weights and their record into experiments/classifiers too."""
    out: str = ""
    """Output folder; by default one under runs/, named after the data set."""
    smoke: bool = False
    """Shrink the run to seconds, on enlarged 8x8 digits unless there is data_dir."""
    tensorboard: bool = False
    """Write the log's scalars for TensorBoard too, into a folder tensorboard beside the log; takes
    pip install 'sinkflow[tensorboard]'."""

    SMOKE: ClassVar[dict] = {"train_steps": 200, "steps_per_call": 50, "checkpoint_every": 100}
    SELECTION: ClassVar[tuple[str, ...]] = ("data_dir", "ship")

    def folder(self) -> pathlib.Path:
        """``out``, or runs/classifier-STEM."""
        smoke = "-smoke" if self.smoke else ""
        return pathlib.Path(self.out or f"runs/classifier-{self.stem()}{smoke}")

    def stem(self) -> str:
        """What its files are called."""
        return judge.file_stem(self.dataset, self.network)

    def command(self) -> str:
        """What a reader types for the same run; where data and results lie is the reader's."""
        usual = flat(made(Config, **self.SMOKE) if self.smoke else Config())
        words = ["python -m experiments.classifier", f"--dataset {self.dataset}"]
        for name, value in flat(self).items():
            said = name in ("dataset", "data_dir", *WITHOUT_EFFECT) or value == usual[name]
            if not said:
                flag = f"--{name.replace('_', '-')}"
                words.append(flag if value is True else f"{flag} {value}")
        return " ".join(words)


def main(config: Config) -> dict:
    """Trains, measures the rounded weights, writes them; returns result.json's content."""
    if config.ship and config.smoke:
        raise ValueError("ship is set in a smoke run, whose weights mean nothing; leave one out")
    if config.shift < 0:
        raise ValueError(f"shift is {config.shift}; it must be at least 0")
    check_batch(config.training.batch_size)
    load = functools.partial(judge.load, config.dataset, config.data_dir, smoke=config.smoke)
    rows, test = load(split="train"), load(split="test")
    run, key = Run(config), jax.random.key(config.seed)
    how = {"network": config.network, "shift": config.shift, **flat(config.training)}
    params = learn_classes(run, rows, key=key, **how)
    with run.timed("evaluate"):
        score = accuracy(judge.half(params), test, config.network)
    record = {
        "command": config.command(),
        "test_accuracy": score,
        "num_test": len(test.labels),
        "settings": run.settings,
        **run.circumstances(),
    }
    for folder in (folders := [run.out, *([judge.CLASSIFIERS] if config.ship else [])]):
        judge.write_classifier(folder, config.stem(), params, record)
    result = run.finish(test_accuracy=score)
    print(f"test accuracy {score:.4f}; seconds {result['times']}")
    print(f"{config.stem()}.npz and its record in {' and '.join(map(str, folders))}")
    return result


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
