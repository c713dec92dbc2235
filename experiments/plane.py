"""Neural Sinkhorn gradient flow between two measures in the plane.

Command:  python -m experiments.plane --task 8gaussians-moons
Runtime:  a minute and a half on two CPU cores; --smoke ends in under a minute.
Expected: experiments/results/plane.md; a larger change than its spread is a finding.
Source:   arXiv:2401.14069, the 2-D experiments; geodesic time is ours.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from experiments.harness import cli
from experiments.harness.run import Run
from experiments.harness.settings import check_positive_counts
from experiments.vectors import config as parts
from experiments.vectors import evaluation
from experiments.vectors.learning import Samplers, draw_samples, learn
from sinkflow import data, metrics, ode, plotting


@dataclasses.dataclass(frozen=True)
class Sampling(parts.Sampling):
    """How samples are drawn and measured."""

    num_samples: int = 2048
    """Generated and target samples of each W2, both stratified."""
    num_floors: int = 5
    """Independent draws behind the floor."""


@dataclasses.dataclass(frozen=True)
class Config(parts.VectorConfig):
    """Every number of the run. Lengths are the plane's: targets span about 10."""

    task: str = "8gaussians-moons"
    """8gaussians, 8gaussians-moons, moons, scurve or checkerboard."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    SMOKE: ClassVar[dict] = {
        "num_particles": 64,
        "num_clouds": 4,
        "hidden_dims": (32, 32),
        "train_steps": 100,
        "steps_per_call": 50,
        "checkpoint_every": 50,
        "num_samples": 128,
    }

    def name(self) -> str:
        return f"plane-{self.task}-{self.flow.time}"


def main(config: Config) -> dict:
    """Fills the pool, fits the velocity, samples, measures; returns result.json's content."""
    task, chosen = data.task(config.task), config.sampling
    check_positive_counts(num_samples=chosen.num_samples, num_floors=chosen.num_floors)
    run = Run(config)
    key_learn, key_x0, key_x1 = jax.random.split(jax.random.key(config.seed), 3)
    field, certificates = learn(
        run,
        key_learn,
        Samplers(data.SAMPLERS[task.source], data.SAMPLERS[task.target], 2),
        flow=config.flow,
        network=config.network,
        training=config.training,
        nfe=chosen.nfe,
    )
    x0 = data.STRATIFIED[task.source](key_x0, chosen.num_samples)
    samples = draw_samples(run, field, x0, chosen.nfe)
    with run.timed("evaluate"):
        real, w2, floors = evaluation.distances(
            task, samples, key_x1, num_samples=chosen.num_samples, num_floors=chosen.num_floors
        )
    with run.timed("pictures"):
        draw_pictures(run, field, x0, real, samples, w2)
    floor, stratified_floor = float(np.mean(floors[:-1])), floors[-1]
    result = run.finish(
        metric="exact W2 [length], stratified source and target",
        floor=floor,
        floor_std=float(np.std(floors[:-1])),
        stratified_floor=stratified_floor,
        w2=w2,
        excess={nfe: metrics.excess(value, floor) for nfe, value in w2.items()},
        pool=certificates,
    )
    cells = "  ".join(f"NFE {nfe}: {value:.3f}" for nfe, value in w2.items())
    print(f"W2  {cells}  (floor {floor:.3f}, stratified {stratified_floor:.3f})")
    print(f"seconds {result['times']}; pictures and result.json in {run.out}")
    return result


def draw_pictures(run, field, x0, real, samples, w2):
    """samples.png, trajectories.png, loss.png and flow.gif in the run's folder."""
    titled = {f"NFE {nfe}, W2 {w2[nfe]:.3f}": points for nfe, points in samples.items()}
    plotting.save(plotting.samples_against_target(titled, real), run.out / "samples.png")
    states = np.asarray(
        ode.trajectory(field.apply_fn, field.params, x0[:512], t1=field.horizon, nfe=32)
    )
    times, task = np.linspace(0, field.horizon, len(states)), run.config["task"]
    label = f"{run.config['time']} time"
    paths = plotting.trajectories(states[:, :96], real, f"{task}, learned flow", label, times)
    plotting.save(paths, run.out / "trajectories.png")
    steps, losses = run.logged("loss")
    curve = plotting.loss_curve(steps, losses, run.config["steps_per_call"])
    plotting.save(curve, run.out / "loss.png")
    plotting.flow_gif(states, real, run.out / "flow.gif", times)


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
