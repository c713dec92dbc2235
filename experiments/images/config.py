"""Settings of the image models, in parts."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import jax

from experiments.harness.files import slug
from sinkflow import flow, parallel
from sinkflow.nets import unet

METHODS = {"nsgf++": "NSGF++", "fm": "FM", "ot-cfm": "OT-CFM", "flow-map": "Flow map"}
"""Labels of the methods."""
OF_FLOWS = ("nsgf++", "flow-map")
"""Methods that are trained on Sinkhorn flows."""
PURPOSES = (
    *("shuffle", "epsilon", "flows", "pairs", "noise"),
    *("velocity", "predictor", "straight", "first", "second", "map"),
)


class DataSet(NamedTuple):
    """What the drivers know of a data set."""

    name: str
    shape: tuple[int, int, int]
    """Height, width and channels of an image."""
    classifier: bool = True
    """Whether a classifier of it is shipped, to judge images by."""
    flip: bool = False
    """Whether mirrored images are images too."""

    def dim(self) -> int:
        """Pixels of an image."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Flow:
    """The particle flow, its pools, and pairs."""

    neighbours: float = 1.5
    """Effective number of target images among which a particle is averaged at the start of the
    flow; it decides epsilon. More than about 3, and the field learns averages."""
    step_size: float = 0.2
    """Euler step of the particle flow [flow time]; the last one is 1. While particles are pulled to
    averages of images they should not go far: after the first step nearly all have one target."""
    flow_steps: int = 5
    """Euler steps of the particle flow."""
    num_particles: int = 4096
    """Images in each simulated cloud."""
    num_clouds: int = 32
    """Pairs of clouds in the pool."""
    clouds_per_call: int = 8
    """Pairs of clouds simulated side by side; a divisor of all. More are quicker on a GPU and take
    more of its memory, some 16 bytes times num_particles squared for each."""
    refresh_every: int = 1_000
    """Optimiser steps on one pool; then new clouds are simulated (or paired)."""
    max_iterations: int = 20_000
    """Cap on the iterations of a Sinkhorn solve; a run that failed on it goes on with a larger."""
    pairs: Literal["independent", "exact", "sinkhorn"] = "independent"
    """Pairs of NSGF++'s straight flow: none, exact assignment, or drawn from a Sinkhorn plan.
    OT-CFM has exact ones unless Sinkhorn pairs are asked for."""
    pair_size: int = 256
    """Images in each exact or Sinkhorn pairing; may be larger than the batch."""

    def step_sizes(self) -> jax.Array:
        """Steps of the particle flow [flow time]."""
        return flow.step_sizes(self.step_size, self.flow_steps, full_last=True)


@dataclasses.dataclass(frozen=True)
class Network:
    """The UNet of the velocities."""

    channels: int = 64
    """Width of the UNet's first level."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Widths of its levels, in units of channels."""
    num_blocks: int = 2
    """Residual blocks of a level."""
    attention: tuple[int, ...] = ()
    """Heights of images at which the UNet attends [pixels]."""
    dropout: float = 0.0
    """Dropout rate of the UNet in training."""

    def velocity(self) -> unet.UNet:
        """The velocity field."""
        return unet.UNet(
            self.channels,
            self.multipliers,
            self.num_blocks,
            self.attention,
            dropout=self.dropout,
            axis_name=parallel.AXIS,
        )


@dataclasses.dataclass(frozen=True)
class Training:
    """How the networks are trained."""

    straight_start: float = 0.4
    """Time in [0, 1) from which NSGF++ trains its straight flow and its time predictor: below
    phase_end, as they are used from there on."""
    velocity_steps: int = 12_000
    """Optimiser steps of the Sinkhorn velocity."""
    predictor_steps: int = 1_000
    """Optimiser steps of the time predictor."""
    straight_steps: int = 7_000
    """Optimiser steps of the straight flow; the rivals add the other two."""
    split: float = 0.0
    """Time in (0, 1) at which FM and OT-CFM hand over from one UNet to a second, each trained on
    its own part of the time and for as large a share of the steps; 0 for one UNet."""
    batch_size: int = 256
    """Images of each optimiser step, over all devices."""
    row_power: float = 1.0
    """Rows of flows and of optimal pairs lie at u^row_power of the time, u uniform: above 1 more
    early rows."""
    learning_rate: float = 1e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    clip: float = 1.0
    """Largest norm of a gradient; the loss is a mean over pixels."""
    ema_decay: float = 0.999
    """Decay of the moving average of parameters that samples are drawn with; less in a stage of
    fewer than ten times as many steps as it spans."""
    steps_per_call: int = 100
    """Optimiser steps of one dispatched call."""
    checkpoint_every: int = 1_000
    """Optimiser steps between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn and scored."""

    nfe: tuple[int, ...] = (1, 2, 5, 10, 20, 60, 100)
    """Network evaluations for each sample, where the method has a scheme of so many."""
    stepper: Literal["euler", "ab2"] = "ab2"
    """How fields are integrated, one evaluation a step: Euler's method, or that of Adams and
    Bashforth, which is of second order."""
    phase_end: float = 0.5
    """Geodesic time in (0, 1] at which NSGF++'s first phase ends; it has as large a share of the
    steps."""
    num_samples: int = 10_000
    """Images to generate for each number of evaluations; as many of them as there are test images
    are compared with these."""
    sample_batch: int = 2_000
    """Images generated side by side."""
    keep: tuple[int, ...] = (60, 100)
    """Numbers of evaluations whose first images are kept in a small file too, to be published."""
    num_kept: int = 2_000
    """How many of them."""
    inception_weights: str = ""
    """torch-fidelity's file weights-inception-2015-12-05-*.pth, for FID and IS; by default they are
    not run."""


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Settings that every image model needs. Lengths are pixel values in [-1, 1]."""

    method: Literal["nsgf++", "fm", "ot-cfm", "flow-map"] = "nsgf++"
    """NSGF++ (three stages); flow matching with independent or optimal pairs; or the flow map of
    NSGF++'s flows. These train for as many steps as the three stages together."""
    stages: tuple[str, ...] = ()
    """Stages to train in this start: velocity, predictor, straight, which begins as the velocity;
    first and second of two UNets, of which the second begins as the first. By default all of the
    method; samples are drawn once all are there."""
    data_dir: str = ""
    """Folder with the published files; by default SINKFLOW_DATA, or else a download. Not for smoke
    runs, whose images come with scikit-learn."""
    flow: Flow = dataclasses.field(default_factory=Flow)
    network: Network = dataclasses.field(default_factory=Network)
    training: Training = dataclasses.field(default_factory=Training)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    """Everything random follows from it."""
    out: str = ""
    """Output folder; by default one under runs/, named after the run."""
    smoke: bool = False
    """Shrink the run to seconds, on enlarged 8x8 digits; its numbers then mean nothing."""
    tensorboard: bool = False
    """Write the log's scalars for TensorBoard too, into a folder tensorboard beside the log; takes
    pip install 'sinkflow[tensorboard]'."""

    SMOKE: ClassVar[dict] = {
        "num_particles": 32,
        "num_clouds": 2,
        "clouds_per_call": 1,
        "refresh_every": 10,
        "pair_size": 16,
        "channels": 8,
        "multipliers": (1,),
        "num_blocks": 1,
        "velocity_steps": 20,
        "predictor_steps": 10,
        "straight_steps": 20,
        "batch_size": 16,
        "steps_per_call": 10,
        "checkpoint_every": 10,
        "nfe": (2, 5),
        "keep": (5,),
        "num_kept": 20,
        "num_samples": 60,
        "sample_batch": 40,
    }
    SELECTION: ClassVar[tuple[str, ...]] = (
        *("stages", "data_dir", "nfe", "stepper", "phase_end", "num_samples", "sample_batch"),
        *("keep", "num_kept"),
        *("inception_weights", "max_iterations"),
    )
    """Settings of what is run and how it is sampled: a later start of the run may change them."""
    SHAPE: ClassVar[tuple[int, int, int]]
    CLASSIFIER: ClassVar[bool] = True
    FLIP: ClassVar[bool] = False
    """See :class:`DataSet`."""

    dataset: str = ""

    def folder(self) -> pathlib.Path:
        """``out``, or runs/NAME."""
        name = f"{self.dataset}-{slug(self.label())}"
        return pathlib.Path(self.out or f"runs/{name}{'-smoke' if self.smoke else ''}")

    def label(self) -> str:
        """The method's name in tables."""
        return label_of(self.method, self.flow.pairs, self.training.split)

    def data_set(self) -> DataSet:
        """What is known of the data set."""
        return DataSet(self.dataset, self.SHAPE, self.CLASSIFIER, self.FLIP)


@dataclasses.dataclass(frozen=True)
class MnistConfig(ImageConfig):
    """Every number of the run. Lengths are pixel values in [-1, 1]."""

    dataset: Literal["mnist", "fashion"] = "mnist"
    """Handwritten digits, or garments."""

    DRIVER: ClassVar[str] = "mnist"
    SHAPE: ClassVar[tuple[int, int, int]] = (28, 28, 1)


Keys = Mapping[str, jax.Array]


def keys_of(seed: int) -> Keys:
    """A PRNG key for each of :data:`PURPOSES`; no two are the same, whatever the seed."""
    key = jax.random.key(seed)
    return {name: jax.random.fold_in(key, number) for number, name in enumerate(PURPOSES)}


def stage_steps(method: str, training: Training) -> dict[str, int]:
    """Optimiser steps of each of the method's stages; the same in all for every method."""
    each = {
        "velocity": training.velocity_steps,
        "predictor": training.predictor_steps,
        "straight": training.straight_steps,
    }
    if method == "nsgf++":
        return each
    total, call = sum(each.values()), training.steps_per_call
    if method == "flow-map":
        return {"map": total}
    if not training.split:
        return {"straight": total}
    first = call * round(training.split * total / call)
    return {"first": first, "second": total - first}


def pairing(method: str, pairs: str) -> str:
    """Pairs of the method's straight flow; ``pairs`` are those asked for."""
    if method in ("fm", "flow-map"):
        return "independent"
    return "exact" if (method, pairs) == ("ot-cfm", "independent") else pairs


def label_of(method: str, pairs: str, split: float) -> str:
    """What tables call the method with these settings."""
    kind = pairing(method, pairs)
    usual = kind == pairing(method, "independent")
    words = "" if usual else f", {kind.replace('sinkhorn', 'Sinkhorn')} pairs"
    return f"{METHODS.get(method, method)}{words}{', two networks' if split else ''}"
