"""Neural Sinkhorn gradient flow on real input: 1,797 handwritten digits of 8x8 pixels.

Command:  python -m experiments.digits
Runtime:  about 3 minutes on two CPU cores; --smoke ends in under a minute.
Expected: the README's table "On real digits"; a larger change than its spread is a finding.
Source:   arXiv:2401.14069, the method; the digits ship with scikit-learn.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.vectors import DIGITS, Judge, as_images
from sinkflow import data, metrics, plotting


@dataclasses.dataclass(frozen=True)
class Config(common.FlowConfig):
    """Every number of the run. Lengths are pixel values in [-1, 1]."""

    epsilon: float = 0.1
    """Entropic regularisation [length^2]; 0.1 leaves a particle 1 to 2 effective neighbours."""
    flow_steps: int = 4
    """Euler steps of the particle flow."""
    num_test: int = 500
    """Held-out images; as many samples are generated and compared with them."""
    num_floors: int = 5
    """Draws of training images behind the floor."""
    num_particles: int = 1297
    """Particles in each cloud; all training images by default."""
    hidden_dims: tuple[int, ...] = (768, 768, 768, 768)
    """Widths of the velocity network's hidden layers."""
    batch_size: int = 512
    """Rows of each optimiser step, over all devices."""
    learning_rate: float = 1e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""

    SMOKE: ClassVar[dict] = {
        "num_particles": 64,
        "num_clouds": 2,
        "hidden_dims": (64, 64),
        "batch_size": 64,
        "train_steps": 100,
        "steps_per_call": 50,
        "checkpoint_every": 50,
    }

    DIM: ClassVar[int] = 64

    def source(self, key, n):
        return jax.random.normal(key, (n, self.DIM))

    def name(self) -> str:
        return f"digits-{self.time}"


def main(config: Config) -> dict:
    """Fills the pool, fits the velocity, samples, measures; returns result.json's content."""
    images, labels = data.digits()
    most = min(len(images) - config.num_particles, len(images) // 2)
    if not 2 <= config.num_test <= most:
        raise ValueError(
            f"num_test is {config.num_test}; of {len(images)} images, {config.num_particles} of "
            f"them particles and as many for the floor as for the test, it must be 2 to {most}"
        )
    common.check_positive_counts(num_floors=config.num_floors)
    run = common.Run(config)
    key_learn, key_x0, key_split = jax.random.split(jax.random.key(config.seed), 3)
    order = np.asarray(jax.random.permutation(key_split, len(images)))
    test, real = order[: config.num_test], order[config.num_test :]
    pixels = jnp.asarray(images[real])

    def target(key, n):
        return pixels[jax.random.choice(key, len(pixels), (n,), replace=False)]

    field, certificates = common.learn(run, config, key_learn, target)
    x0 = config.source(key_x0, config.num_test)
    samples = common.draw_samples(run, field, x0, config.nfe)
    with run.timed("evaluate"):
        judge = Judge(images[real], labels[real], images[test], labels[test], config)
        rows = {nfe: judge(points) for nfe, points in samples.items()}
        floor, traps = judge.floor(), {name: judge(z) for name, z in judge.traps().items()}
    with run.timed("pictures"):
        draw_pictures(run, samples, images[real], rows, judge)
    result = run.finish(
        metric="pixel W2 [length], squared Frechet distance of classifier features, "
        "total variation of predicted classes to uniform, distance to the nearest training image",
        **{name: {nfe: row[name] for nfe, row in rows.items()} for name in floor},
        floor=floor,
        traps=traps,
        class_shares={nfe: judge.shares(points).tolist() for nfe, points in samples.items()},
        classifier_accuracy=judge.accuracy,
        pool=certificates,
    )
    for label, row in {**rows, "real": floor, **traps}.items():
        print(f"{label:>8}  " + "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    print(f"seconds {result['times']}; pictures and result.json in {run.out}")
    return result


def draw_pictures(run, samples, train_images, rows, judge):
    """samples.png, neighbours.png, classes.png and loss.png in the run's folder."""
    pictures = {
        f"NFE {nfe}, W2 {rows[nfe]['w2']:.2f}": as_images(points[:40])
        for nfe, points in samples.items()
    }
    plotting.save(plotting.image_grid(pictures, columns=20), run.out / "samples.png")
    last = list(samples)[-1]
    shown = samples[last][:40]
    nearest = train_images[metrics.nearest(shown, train_images)[1]]
    pairs = {f"samples, NFE {last}": as_images(shown), "nearest real": as_images(nearest)}
    plotting.save(plotting.image_grid(pairs, columns=10), run.out / "neighbours.png")
    shares = {f"NFE {last}": judge.shares(samples[last]), "test images": judge.shares(judge.test)}
    plotting.save(plotting.class_histogram(shares, DIGITS), run.out / "classes.png")
    plotting.save(plotting.loss_curve(*run.logged("loss")), run.out / "loss.png")


if __name__ == "__main__":
    common.run_driver(main, Config, __doc__)
