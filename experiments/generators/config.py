"""Settings of the one-step generators."""

import dataclasses
import math
import pathlib
from typing import Any, ClassVar, Literal

import jax

from sinkflow import data
from sinkflow.data import images

PURPOSES = ("shuffle", "epsilon", "train", "noise", "evaluate")


SOLVED = ("transport", "entropic", "divergence", "regression")  # objectives with a solver


IMAGES = ("mnist", "fashion")


SHAPES = {"digits": (8, 8, 1), **dict.fromkeys(IMAGES, (28, 28, 1))}


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Every number of the run. Lengths: the plane's targets span about 10, pixels are -1 to 1."""

    dataset: Literal[
        "8gaussians",
        "8gaussians-moons",
        "moons",
        "scurve",
        "checkerboard",
        "digits",
        "mnist",
        "fashion",
    ] = "8gaussians-moons"
    """A task in the plane, whose source z is drawn from; 8x8 digits; MNIST or Fashion-MNIST. It
    decides the defaults of the other settings."""
    objective: Literal["transport", "entropic", "divergence", "regression", "energy", "drift"] = (
        "regression"
    )
    """The tutorial's cost after num_iterations scalings; entropic cost; Sinkhorn divergence;
    regression on its velocity; energy distance; drift of the drifting models."""
    self_cloud: Literal["second", "same", "diagonal"] = "second"
    """What the self term compares samples with: a second generated cloud, themselves, or
    themselves without the pair of a sample with itself."""
    gradient: Literal["envelope", "implicit", "unrolled"] = "envelope"
    """Gradient of the entropic cost and of the divergence, at the solution (envelope), corrected to
    first order in what is left to converge (implicit), or through num_iterations (unrolled)."""
    num_iterations: int = 100
    """Iterations that objective transport and unrolled gradients make and differentiate."""
    domain: Literal["log", "scaling"] = "log"
    """Arithmetic of objective transport: potentials, or matrices, which underflow."""
    epsilon: tuple[float, ...] = (0.05,)
    """Entropic regularisation, in epsilon_unit; of several ones regression adds the velocities."""
    epsilon_unit: Literal["length2", "mean-cost", "neighbours"] = "length2"
    """length^2; the mean cost of real samples to each other; or the effective number of real
    neighbours that a real sample has in a cloud of m."""
    epsilon_start: float = 8.0
    """Epsilon begins this many times larger and falls geometrically over the first half of the
    training; 1: fixed."""
    normalize: bool = False
    """Objective regression: divide each epsilon's velocity by its root mean square."""
    temperature: float = 0.05
    """Of objective drift, in mean distances of real samples to each other."""
    n: int = 256
    """Generated samples of a cloud. With labels n, m and k are rounded down to multiples of the
    number of classes."""
    m: int = 512
    """Real samples of a cloud."""
    k: int = 512
    """Samples of the self term's second cloud; as many as real ones, or their pulls do not cancel
    where both have one law."""
    clouds: int = 1
    """Clouds of each kind in a step, over all devices, which share them evenly; gradients are
    averaged. A device takes its own one after the other."""
    threshold: float = 3e-2
    """L1 marginal error [mass, total 1] at which a solve of the training stops."""
    max_iterations: int = 2_000
    """Cap on the iterations of other solves. A run that failed on it goes on with a larger one."""
    max_unconverged: float = 0.01
    """Largest share of the solves between two log lines that may miss the threshold."""
    allow_unconverged: bool = False
    """Go on whatever that share is; the log counts them."""
    labels: bool = False
    """Digits and images: a generator that is told the class, with plans within each class."""
    net: Literal["mlp", "conv", "unet"] = "mlp"
    """Perceptron (in the plane z + MLP(z)), upsampling convolutions, or a UNet from noise of the
    data's shape."""
    latent: int = 16
    """Dimension of z of digits and images; the UNet's is that of the data."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Widths of the perceptron's hidden layers."""
    channels: int = 64
    """Width of the finest level of a convolutional network."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Widths of its levels, finest first, in units of channels."""
    num_blocks: int = 1
    """Residual blocks of a level."""
    head: Literal["tanh", "linear"] = "tanh"
    """What digits and images end in: tanh lies in (-1, 1), as pixels do."""
    train_steps: int = 2_400
    """Steps, each with clouds of its own."""
    inner_steps: int = 1
    """Optimiser steps of a step; more of them, with objective regression alone, follow one and
    the same velocity: where solves cost more than the network does."""
    warmup_steps: int = 100
    """Optimiser steps in which the learning rate rises to its peak; then it decays to zero, as a
    cosine does."""
    learning_rate: float = 8e-3
    """Peak of Adam's learning rate."""
    b1: float = 0.9
    """Adam's decay of the mean gradient."""
    b2: float = 0.99
    """Adam's decay of the mean squared gradient."""
    clip: float = 1.0
    """Largest norm of a gradient of the mean loss of a coordinate."""
    ema_decay: float = 0.99
    """Decay of the moving average of parameters that samples are drawn with; less in a training
    of fewer than ten times as many steps as it spans."""
    steps_per_call: int = 100
    """Optimiser steps of one dispatched call, which is one log line."""
    checkpoint_every: int = 400
    """Optimiser steps between checkpoints."""
    num_samples: int = 2048
    """Samples to draw and measure; of digits as many are held out, of images at most as many as
    there are test images are compared."""
    num_floors: int = 5
    """Independent draws of real samples behind the floor of the plane and of digits."""
    sample_batch: int = 2_000
    """Images generated side by side."""
    data_dir: str = ""
    """Folder with the published files of images; by default SINKFLOW_DATA, or else a download."""
    inception_weights: str = ""
    """torch-fidelity's file weights-inception-2015-12-05-*.pth, for FID and IS of images; by
    default they are not run."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = ""
    """Output folder; by default one under runs/, named after the run."""
    smoke: bool = False
    """Shrink the run to seconds, images to enlarged 8x8 digits; its numbers then mean nothing."""
    tensorboard: bool = False
    """Write the log's scalars for TensorBoard too, into a folder tensorboard beside the log; takes
    pip install 'sinkflow[tensorboard]'."""

    DRIVER: ClassVar[str] = "generator"
    """The program's name."""
    CLASSIFIER: ClassVar[bool] = True
    """Whether a classifier of the image data sets is shipped, to judge images by."""

    @property
    def SELECTION(self) -> tuple[str, ...]:
        """Settings that a later start of the run may change, see :class:`harness.run.Run`."""
        solves = ("max_iterations", "allow_unconverged", "max_unconverged")
        judging = ("sample_batch", "data_dir", "inception_weights")
        # Of the digits as many are held out of the training as samples are drawn.
        drawn = () if self.dataset == "digits" else ("num_samples",)
        return (*solves, *judging, *drawn)

    @property
    def SHAPE(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return SHAPES.get(self.dataset, (2,))

    def folder(self) -> pathlib.Path:
        """``out``, or runs/NAME."""
        name = f"generator-{self.dataset}-{self.objective}"
        name += f"-{self.self_cloud}" if self.has_self_term() else ""
        name += "-labels" if self.labels else ""
        return pathlib.Path(self.out or f"runs/{name}{'-smoke' if self.smoke else ''}")

    def has_self_term(self) -> bool:
        """Whether the objective compares samples with each other."""
        return self.objective not in ("transport", "entropic")

    def num_classes(self) -> int:
        """Classes that the generator is told, each with plans of its own; else 1."""
        return images.NUM_CLASSES if self.labels else 1

    def dim(self) -> int:
        """Dimension of z."""
        fixed = self.dataset in data.TASKS or self.net == "unet"
        return math.prod(self.SHAPE) if fixed else self.latent

    def key(self, purpose: str) -> jax.Array:
        """The PRNG key of one of :data:`PURPOSES`; no other has it, whatever the seed."""
        return jax.random.fold_in(jax.random.key(self.seed), PURPOSES.index(purpose))


DIGITS: dict[str, Any] = {
    "epsilon": (0.01,),
    "epsilon_unit": "mean-cost",
    "threshold": 1e-2,
    "max_iterations": 400,
    "hidden_dims": (512, 512, 512),
    "multipliers": (1, 2),
    "channels": 16,
    "train_steps": 2_000,
    "learning_rate": 1e-3,
    "ema_decay": 0.998,
    "num_samples": 500,
}


# Chosen by equal seconds against training images: the rate is worth most, and with this epsilon
# nearly all solves converge.
PICTURES: dict[str, Any] = {
    "epsilon": (0.03,),
    "epsilon_unit": "mean-cost",
    "threshold": 1e-2,
    "epsilon_start": 1.0,
    "n": 1024,
    "m": 2048,
    "k": 2048,
    "max_iterations": 300,
    "net": "conv",
    "latent": 128,
    "train_steps": 12_000,
    "learning_rate": 3e-3,
    "ema_decay": 0.998,
    "checkpoint_every": 1_000,
    "num_samples": 10_000,
}


SMOKE: dict[str, Any] = {
    "smoke": True,
    "clouds": 4,
    "n": 40,
    "m": 60,
    "k": 60,
    "max_iterations": 2_000,
    "hidden_dims": (32, 32),
    "channels": 8,
    "latent": 8,
    "train_steps": 40,
    "warmup_steps": 4,
    "steps_per_call": 10,
    "checkpoint_every": 20,
    "num_samples": 100,
    "sample_batch": 40,
}


def preset(dataset: str, *, smoke: bool = False, **changes: Any) -> GeneratorConfig:
    """The settings of a data set, in miniature for a smoke run, with ``changes``."""
    chosen = PICTURES if dataset in IMAGES else DIGITS if dataset == "digits" else {}
    small = SMOKE if smoke else {}
    return GeneratorConfig(**{"dataset": dataset, **chosen, **small, **changes})  # type: ignore
