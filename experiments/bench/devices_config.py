"""Settings of the benchmark of several devices: what a worker is told."""

import dataclasses
from typing import Literal

from experiments.bench import unet_config


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device has to do; the same in all where the work is shared (strong scaling)."""

    batch: int = 512
    """unet: images of a training step."""
    clouds: int = 8
    """generator: clouds of each kind in a training step."""
    cloud_size: int = 1024
    """generator: generated samples of a cloud; twice as many real ones."""
    generator_channels: int = 64
    """generator: width of the network's finest level."""
    pool_clouds: int = 32
    """pool: simulated pairs of clouds."""
    clouds_per_call: int = 8
    """pool: most that a device simulates side by side."""
    num_particles: int = 4096
    """pool: particles of a cloud, at most the 4096 images that there are."""
    flow_steps: int = 5
    """pool: Euler steps of the flow."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How often, and how long anything may take."""

    repeats: int = 5
    """Timed repetitions of each row; their median counts."""
    compile_limit: float = 240.0
    """Seconds that the programs of a process may take to compile, side by side."""
    budget: float = 540.0
    """Seconds after which nothing is begun and what runs is stopped."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the workers are told, by name."""

    network: unet_config.Network = dataclasses.field(default_factory=unet_config.Network)
    training: unet_config.Training = dataclasses.field(default_factory=unet_config.Training)
    work: Work = dataclasses.field(default_factory=Work)
    limits: Limits = dataclasses.field(default_factory=Limits)
    device: Literal["cpu", "gpu"] = "cpu"
    """Where the workers run; on a CPU with virtual devices, which share its cores."""
    seed: int = 0
    """Everything random follows from it."""
