"""Settings of the drivers of the plane and of digits, in parts."""

import dataclasses
import math
import pathlib
from typing import Any, ClassVar, Literal

import jax

from experiments.harness.settings import check_positive_counts, check_ranges, check_widths
from sinkflow import flow, nets, pool


@dataclasses.dataclass(frozen=True)
class Flow:
    """The particle flow, and the pool of its states."""

    time: Literal["geodesic", "flow"] = "geodesic"
    """Time label of pool rows: geodesic (s in [0, 1]) or flow (the paper's)."""
    epsilon: float = 0.02
    """Entropic regularisation [length^2]; GeomLoss's blur squared."""
    step_size: float = 0.5
    """Euler step of the particle flow [flow time]; in geodesic time the last step is 1."""
    flow_steps: int = 8
    """Euler steps of the particle flow."""
    num_particles: int = 1024
    """Particles in each cloud."""
    num_clouds: int = 64
    """Simulated pairs of clouds in the pool."""
    allow_unconverged: bool = False
    """Train on the pool even if some of its Sinkhorn solves did not converge."""

    def step_sizes(self) -> jax.Array:
        """Steps of the particle flow [flow time]."""
        full_last = self.time == "geodesic"
        return flow.step_sizes(self.step_size, self.flow_steps, full_last=full_last)

    def clouds_per_call(self) -> int:
        """Clouds simulated side by side: what 256 MiB of cost matrices hold, a divisor of all.

        On a CPU one cloud fills the machine, and side by side each waits for the slowest solve.
        """
        most = 1 if jax.default_backend() == "cpu" else max(1, 2**26 // self.num_particles**2)
        return max(k for k in range(1, min(most, self.num_clouds) + 1) if self.num_clouds % k == 0)

    def pool_settings(self) -> dict[str, Any]:
        """The keywords of :func:`sinkflow.pool.build` that these settings decide."""
        return {
            "num_clouds": self.num_clouds,
            "num_particles": self.num_particles,
            "epsilon": self.epsilon,
            "step_sizes": self.step_sizes(),
            "time": self.time,
            "clouds_per_call": self.clouds_per_call(),
            "allow_unconverged": self.allow_unconverged,
        }

    def horizon(self) -> float:
        """Time at which the field ends."""
        return pool.horizon(self.step_sizes(), self.time)


@dataclasses.dataclass(frozen=True)
class Network:
    """The velocity field's network."""

    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Widths of the velocity network's hidden layers."""

    def velocity(self) -> nets.VelocityMLP:
        """The velocity field."""
        return nets.VelocityMLP(self.hidden_dims)


@dataclasses.dataclass(frozen=True)
class Training:
    """How the field is trained."""

    batch_size: int = 1024
    """Rows of each optimiser step, over all devices."""
    train_steps: int = 4_000
    """Optimiser steps."""
    row_power: float = 2.0
    """A row's time is u^row_power of its path's, u uniform: above 1 early times are seen more
    often, where paths part. Flow time takes its stored states alike."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    ema_decay: float = 0.999
    """Decay of the moving average of parameters that samples are drawn with."""
    steps_per_call: int = 200
    """Optimiser steps of one dispatched call."""
    checkpoint_every: int = 1_000
    """Optimiser steps between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn and measured."""

    nfe: tuple[int, ...] = (1, 2, 5, 10, 100)
    """Network evaluations for each sample, one evaluation of the metrics each."""


@dataclasses.dataclass(frozen=True)
class VectorConfig:
    """Settings that every neural Sinkhorn gradient flow needs."""

    flow: Flow = dataclasses.field(default_factory=Flow)
    network: Network = dataclasses.field(default_factory=Network)
    training: Training = dataclasses.field(default_factory=Training)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    """Everything random follows from it."""
    out: str = ""
    """Output folder; by default one under runs/, named after the run."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""
    tensorboard: bool = False
    """Write the log's scalars for TensorBoard too, into a folder tensorboard beside the log; takes
    pip install 'sinkflow[tensorboard]'."""

    SMOKE: ClassVar[dict] = {}
    SELECTION: ClassVar[tuple[str, ...]] = ()
    """Settings that choose what to run, not how: a later start of the run may change them."""

    def folder(self) -> pathlib.Path:
        """``out``, or runs/NAME."""
        return pathlib.Path(self.out or f"runs/{self.name()}{'-smoke' if self.smoke else ''}")

    def name(self) -> str:
        """What distinguishes the run from its siblings."""
        raise NotImplementedError


def check_pool(flow: Flow) -> None:
    """Raises ValueError unless there are rows, and the local devices can share them evenly."""
    check_positive_counts(num_clouds=flow.num_clouds, num_particles=flow.num_particles)
    rows, count = flow.num_clouds * flow.num_particles, jax.local_device_count()
    if rows % count:
        raise ValueError(
            f"num_clouds {flow.num_clouds} times num_particles {flow.num_particles} is {rows} "
            f"rows; they must be a multiple of {count} devices"
        )


def check_training(network: Network, training: Training) -> None:
    """Raises ValueError that names the first number that no network or training can have."""
    check_widths("hidden_dims", network.hidden_dims)
    check_ranges(
        training,
        row_power=(0 < training.row_power < math.inf, "(0, inf)"),
        learning_rate=(0 < training.learning_rate < math.inf, "(0, inf)"),
        ema_decay=(0 <= training.ema_decay < 1, "[0, 1)"),
    )
