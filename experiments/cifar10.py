"""NSGF++ on CIFAR-10, and its rivals: flow matching and OT-CFM.

Command:  python -m experiments.cifar10 --inception-weights FILE [--method fm|ot-cfm]
          python -m experiments.cifar10 --dataset photographs [--smoke]
Runtime:  not run on the data set yet; one to two hours of training on an H200, by the 16 ms of a
          step in experiments.bench_unet and the 30 ms of 200 steps with generated images; --smoke
          ends in under 90 seconds on two CPU cores.
Expected: samples/, scores/ and pictures/ for each number of evaluations, and result.json; 18 GB of
          device memory.
Source:   arXiv:2401.14069, the CIFAR-10 experiment.
"""

import dataclasses
from typing import ClassVar, Literal

from experiments.harness import cli
from experiments.images import config as parts
from experiments.images.pipeline import main


@dataclasses.dataclass(frozen=True)
class Network(parts.Network):
    """The UNet of the velocities."""

    channels: int = 128
    """Width of the UNet's first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Widths of its levels, in units of channels."""
    attention: tuple[int, ...] = (16,)
    """Heights of images at which the UNet attends [pixels]."""
    dropout: float = 0.1
    """Dropout rate of the UNet in training."""


@dataclasses.dataclass(frozen=True)
class Training(parts.Training):
    """How the networks are trained."""

    velocity_steps: int = 100_000
    """Optimiser steps of the Sinkhorn velocity."""
    predictor_steps: int = 40_000
    """Optimiser steps of the time predictor."""
    straight_steps: int = 100_000
    """Optimiser steps of the straight flow; the rivals add the other two."""
    batch_size: int = 128
    """Images of each optimiser step, over all devices."""
    learning_rate: float = 2e-4
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    ema_decay: float = 0.9999
    """Decay of the moving average of parameters that samples are drawn with."""
    checkpoint_every: int = 5_000
    """Optimiser steps between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Config(parts.ImageConfig):
    """Every number of the run. Lengths are pixel values in [-1, 1]."""

    network: Network = dataclasses.field(default_factory=Network)
    training: Training = dataclasses.field(default_factory=Training)
    dataset: Literal["cifar10", "photographs"] = "cifar10"
    """CIFAR-10, or patches of two photographs that come with scikit-learn: the same path without
    any file."""

    SMOKE: ClassVar[dict] = {**parts.ImageConfig.SMOKE, "attention": ()}  # its widths suit no head
    SHAPE: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    CLASSIFIER: ClassVar[bool] = False
    FLIP: ClassVar[bool] = True


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
