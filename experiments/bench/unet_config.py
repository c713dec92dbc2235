"""Settings of the UNet's benchmark: what a worker is told."""

import dataclasses
from typing import Any, Literal

import numpy as np

from sinkflow.nets import unet

IMAGES = 4096  # of the data set, on the device


@dataclasses.dataclass(frozen=True)
class Network:
    """The UNet, and the images that it is for."""

    channels: int = 128
    """Width of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level, in units of ``channels``."""
    num_blocks: int = 2
    """Residual blocks of a level."""
    attention: int = 16
    """Height at which blocks attend [pixels]."""
    head_dim: int = 64
    """Width of an attention head."""
    dropout: float = 0.1
    """Rate within residual blocks."""
    image_size: int = 32
    """Height and width of the images, which have three channels."""

    def unet(self, **changes: Any) -> unet.UNet:
        """The network that is measured."""
        settings: dict[str, Any] = {
            "multipliers": self.multipliers,
            "num_blocks": self.num_blocks,
            "attention": (self.attention,),
            "head_dim": self.head_dim,
            "dropout": self.dropout,
        }
        return unet.UNet(self.channels, **{**settings, **changes})

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a batch of images [n, h, w, c]."""
        return (batch, self.image_size, self.image_size, 3)

    def images(self, seed: int) -> np.ndarray:
        """Smooth random images [n, h, w, c] of bytes, so that there is something to learn."""
        rng = np.random.default_rng(seed)
        coarse = rng.standard_normal((IMAGES, 4, 4, 3), np.float32)
        times = -(-self.image_size // 4)
        fine = coarse.repeat(times, axis=1).repeat(times, axis=2)
        fine = np.tanh(fine[:, : self.image_size, : self.image_size])
        return np.round(127.5 * (fine + 1)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Training:
    """A training step."""

    steps_per_call: int = 20
    """Training steps of a round; with sinkflow they are one dispatched call."""
    learning_rate: float = 2e-4
    """Of Adam, constant."""
    ema_decay: float = 0.9999
    """Of the moving average of parameters."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling."""

    sample_batch: int = 512
    """Images sampled together, by the row of the largest batch size; 0: do not sample."""
    nfe: int = 50
    """Network evaluations for each sample, by Euler's method."""


@dataclasses.dataclass(frozen=True)
class Ours:
    """Settings of sinkflow alone."""

    flat: bool = True
    """sinkflow: one vector for all parameters; clipping, Adam and average are then a few passes."""
    flash: bool = True
    """sinkflow: cuDNN's fused attention, on a GPU."""
    dropout_key: Literal["rbg", "threefry2x32", "philox4x32"] = "rbg"
    """sinkflow: generator of all random numbers of a step."""
    xla_flags: str = ""
    """sinkflow: appended to the XLA_FLAGS of its processes."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long anything may take [s]."""

    compile_limit: float = 150.0
    """Seconds that one program may take to compile."""
    time_limit: float = 4.0
    """Seconds of repeated rounds of each measurement."""
    budget: float = 600.0
    """Seconds after which nothing is begun and what runs is stopped."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the workers are told, by name."""

    network: Network = dataclasses.field(default_factory=Network)
    training: Training = dataclasses.field(default_factory=Training)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    ours: Ours = dataclasses.field(default_factory=Ours)
    limits: Limits = dataclasses.field(default_factory=Limits)
    device: Literal["cpu", "gpu"] = "cpu"
    """Where the workers run."""
    seed: int = 0
    """Everything random follows from it."""
