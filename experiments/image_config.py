"""Settings of the image models, and what is wrong with them."""

import dataclasses
import pathlib
from typing import ClassVar, Literal

import jax
import numpy as np

from experiments import common, judge
from sinkflow import flow

STAGES = {
    "nsgf++": ("velocity", "predictor", "straight"),
    "fm": ("straight",),
    "ot-cfm": ("straight",),
}


PURPOSES = (
    *("shuffle", "epsilon", "flows", "pairs", "noise"),
    *("velocity", "predictor", "straight"),
)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Settings that every image model needs. Lengths are pixel values in [-1, 1]."""

    method: Literal["nsgf++", "fm", "ot-cfm"] = "nsgf++"
    """NSGF++ (three stages), or flow matching with independent or optimal pairs, which trains
    for as many steps as the three stages together."""
    stages: tuple[str, ...] = ()
    """Stages to train in this start: velocity, predictor, straight, which begins as the velocity.
    By default all of the method; samples are drawn once all are there."""
    data_dir: str = ""
    """Folder with the published files; by default SINKFLOW_DATA, or else a download. Not for smoke
    runs, whose images come with scikit-learn."""
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
    """Pairs of NSGF++'s straight flow: none, exact assignment, or drawn from a Sinkhorn plan."""
    pair_size: int = 256
    """Images in each exact or Sinkhorn pairing; may be larger than the batch."""
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
    straight_start: float = 0.4
    """Time in [0, 1) from which NSGF++ trains its straight flow and its time predictor: below
    phase_end, as they are used from there on."""
    velocity_steps: int = 12_000
    """Optimiser steps of the Sinkhorn velocity."""
    predictor_steps: int = 1_000
    """Optimiser steps of the time predictor."""
    straight_steps: int = 7_000
    """Optimiser steps of the straight flow; the rivals add the other two."""
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
    inception_weights: str = ""
    """torch-fidelity's file weights-inception-2015-12-05-*.pth, for FID and IS; by default they are
    not run."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = ""
    """Output folder; by default one under runs/, named after the run."""
    smoke: bool = False
    """Shrink the run to seconds, on enlarged 8x8 digits; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {
        "num_particles": 32,
        "num_clouds": 2,
        "clouds_per_call": 1,
        "refresh_every": 10,
        "pair_size": 16,
        "channels": 8,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "velocity_steps": 20,
        "predictor_steps": 10,
        "straight_steps": 20,
        "batch_size": 16,
        "steps_per_call": 10,
        "checkpoint_every": 10,
        "nfe": (2, 5),
        "num_samples": 60,
        "sample_batch": 40,
    }
    SELECTION: ClassVar[tuple[str, ...]] = (
        *("stages", "data_dir", "nfe", "stepper", "phase_end", "num_samples", "sample_batch"),
        *("inception_weights", "max_iterations"),
    )
    """Settings of what is run and how it is sampled: a later start of the run may change them."""
    SHAPE: ClassVar[tuple[int, int, int]]
    """Height, width and channels of an image."""
    CLASSIFIER: ClassVar[bool] = True
    """Whether a classifier of the data set is shipped, to judge images by."""
    FLIP: ClassVar[bool] = False
    """Whether mirrored images are images too."""

    dataset: str = ""

    def folder(self) -> pathlib.Path:
        """``out``, or runs/NAME."""
        name = f"{self.dataset}-{self.method.replace('+', 'p')}"
        return pathlib.Path(self.out or f"runs/{name}{'-smoke' if self.smoke else ''}")

    def dim(self) -> int:
        """Pixels of an image."""
        return int(np.prod(self.SHAPE))

    def key(self, purpose: str) -> jax.Array:
        """The PRNG key of one of :data:`PURPOSES`; no other has it, whatever the seed."""
        return jax.random.fold_in(jax.random.key(self.seed), PURPOSES.index(purpose))

    def steps(self) -> dict[str, int]:
        """Optimiser steps of each stage; the same in all for every method."""
        each = {
            "velocity": self.velocity_steps,
            "predictor": self.predictor_steps,
            "straight": self.straight_steps,
        }
        if self.method == "nsgf++":
            return each
        return {"straight": sum(each.values())}

    def pairing(self) -> str:
        """Pairs of the method's straight flow."""
        return {"fm": "independent", "ot-cfm": "exact"}.get(self.method, self.pairs)

    def step_sizes(self) -> jax.Array:
        """Steps of the particle flow [flow time]."""
        return flow.step_sizes(self.step_size, self.flow_steps, full_last=True)


def check(config: ImageConfig) -> None:
    """Raises ValueError that names the first setting that cannot be."""
    common.check_batch(config.batch_size)
    common.check_positive_counts(
        num_clouds=config.num_clouds,
        num_particles=config.num_particles,
        clouds_per_call=config.clouds_per_call,
        pair_size=config.pair_size,
        num_samples=config.num_samples,
        sample_batch=config.sample_batch,
        **{f"nfe {nfe}": nfe for nfe in config.nfe},
    )
    common.check_steps(
        config.steps_per_call,
        checkpoint_every=config.checkpoint_every,
        refresh_every=config.refresh_every,
        **{f"{name}_steps": count for name, count in config.steps().items()},
    )
    if config.num_clouds % config.clouds_per_call:
        raise ValueError(
            f"clouds_per_call is {config.clouds_per_call}; it must divide {config.num_clouds}"
        )
    particles = config.num_clouds * config.num_particles
    shares = {"pair_size": config.pair_size, "the number of devices": jax.local_device_count()}
    for name, share in shares.items():
        if particles % share:
            raise ValueError(
                f"num_clouds {config.num_clouds} times num_particles {config.num_particles} is "
                f"{particles}; it must be a multiple of {name}, {share}"
            )
    ranges = {
        "neighbours": (1 < config.neighbours < config.num_particles, "(1, num_particles)"),
        "step_size": (0 < config.step_size <= 1, "(0, 1]"),
        "dropout": (0 <= config.dropout < 1, "[0, 1)"),
        "ema_decay": (0 <= config.ema_decay < 1, "[0, 1)"),
        "row_power": (config.row_power > 0, "(0, inf)"),
        "learning_rate": (config.learning_rate > 0, "(0, inf)"),
        "clip": (config.clip > 0, "(0, inf)"),
        "flow_steps": (config.flow_steps >= 1, "[1, inf)"),
        "num_samples": (config.num_samples >= judge.LEAST_IMAGES, f"[{judge.LEAST_IMAGES}, inf)"),
    }
    common.check_ranges(config, **ranges)
    common.check_positive_counts(channels=config.channels, num_blocks=config.num_blocks)
    common.check_widths("multipliers", config.multipliers)
    if not config.multipliers:
        raise ValueError("multipliers is empty; give the width of at least one level")
    if not config.nfe:
        raise ValueError("nfe is empty; give at least one number of network evaluations")
    if config.method != "nsgf++" and config.pairs != "independent":
        raise ValueError(
            f"pairs is {config.pairs!r}; {config.method} has its own, leave the setting away"
        )
    two_phases = config.method == "nsgf++"
    if two_phases and not 0 < config.phase_end <= 1:
        raise ValueError(f"phase_end is {config.phase_end}; geodesic time lies in (0, 1]")
    if two_phases and not 0 <= config.straight_start < config.phase_end:
        raise ValueError(
            f"straight_start is {config.straight_start}; it lies in [0, phase_end), below "
            f"{config.phase_end}"
        )
    for name in config.stages:
        if name not in STAGES[config.method]:
            raise ValueError(
                f"{config.method} has no stage {name!r}; it has {', '.join(STAGES[config.method])}"
            )


def check_data(config: ImageConfig, count: int) -> None:
    """Raises ValueError that names the cloud that ``count`` training images cannot fill."""
    sizes = {}
    if config.method == "nsgf++":
        sizes["num_particles"] = config.num_particles
    if config.pairing() != "independent":
        sizes["pair_size"] = config.pair_size
    for name, size in sizes.items():
        if size > count:
            raise ValueError(f"{name} is {size}; there are {count} training images")
