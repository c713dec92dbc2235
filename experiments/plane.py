"""Neural Sinkhorn gradient flow between two measures in the plane.

Command:  python -m experiments.plane --task 8gaussians-moons
Runtime:  a minute and a half on two CPU cores; --smoke ends in under a minute.
Expected: the README's table "In the plane"; a larger change than its spread is a finding.
Source:   arXiv:2401.14069, the 2-D experiments; geodesic time is ours.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from experiments import common, vectors
from sinkflow import data, metrics, ode, plotting


@dataclasses.dataclass(frozen=True)
class Config(common.FlowConfig):
    """Every number of the run. Lengths are the plane's: targets span about 10."""

    task: str = "8gaussians-moons"
    """8gaussians, 8gaussians-moons, moons, scurve or checkerboard."""
    num_samples: int = 2048
    """Generated and target samples of each W2, both stratified."""
    num_floors: int = 5
    """Independent draws behind the floor."""

    SMOKE: ClassVar[dict] = {
        "num_particles": 64,
        "num_clouds": 4,
        "hidden_dims": (32, 32),
        "train_steps": 100,
        "steps_per_call": 50,
        "checkpoint_every": 50,
        "num_samples": 128,
    }

    DIM: ClassVar[int] = 2

    def source(self, key, n):
        return data.SAMPLERS[data.task(self.task).source](key, n)

    def name(self) -> str:
        return f"plane-{self.task}-{self.time}"


def main(config: Config) -> dict:
    """Fills the pool, fits the velocity, samples, measures; returns result.json's content."""
    task = data.task(config.task)
    common.check_positive_counts(num_samples=config.num_samples, num_floors=config.num_floors)
    run = common.Run(config)
    key_learn, key_x0, key_x1 = jax.random.split(jax.random.key(config.seed), 3)
    field, certificates = common.learn(run, config, key_learn, data.SAMPLERS[task.target])

    x0 = data.STRATIFIED[task.source](key_x0, config.num_samples)
    samples = common.draw_samples(run, field, x0, config.nfe)
    with run.timed("evaluate"):
        real, w2, floors = vectors.distances(config, task, samples, key_x1)
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
    paths = plotting.trajectories(states[:, :128], real, f"{run.config['task']}, learned flow")
    plotting.save(paths, run.out / "trajectories.png")
    plotting.save(plotting.loss_curve(*run.logged("loss")), run.out / "loss.png")
    times = np.linspace(0, field.horizon, len(states))
    plotting.flow_gif(states, real, run.out / "flow.gif", times)


if __name__ == "__main__":
    common.run_driver(main, Config, __doc__)
