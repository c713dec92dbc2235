"""Neural Sinkhorn gradient flow between two measures in the plane.

Command:  python -m experiments.plane --task 8gaussians-moons
Runtime:  about 1.5 minutes on two CPU cores; --smoke ends in under a minute.
Expected: see "Results" in the README; a larger change than its spread is a finding.
Source:   arXiv:2401.14069, the 2-D experiments; geodesic time is ours.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import numpy as np
import optax

from experiments import common
from sinkflow import data, flow, metrics, models, ode, plotting, pool, sampling, train


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the run. Lengths are the plane's (targets span about 10)."""

    task: str = "8gaussians-moons"
    """8gaussians, 8gaussians-moons, moons, scurve or checkerboard."""
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
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Widths of the velocity network's hidden layers."""
    batch_size: int = 1024
    """Rows of each optimiser step, over all devices."""
    train_steps: int = 4_000
    """Optimiser steps."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate: warm-up over 5%, then cosine decay."""
    ema_decay: float = 0.999
    """Decay of the moving average of parameters that samples are drawn with."""
    nfe: tuple[int, ...] = (1, 2, 5, 10, 100)
    """Network evaluations for each sample, one evaluation of the metric each."""
    num_samples: int = 2048
    """Generated and target samples of each W2, both stratified."""
    num_floors: int = 5
    """Independent draws behind the floor."""
    steps_per_call: int = 200
    """Optimiser steps of one dispatched call."""
    checkpoint_every: int = 1_000
    """Optimiser steps between checkpoints."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = ""
    """Output folder; default runs/plane-TASK-TIME (with -smoke)."""
    smoke: bool = False
    """Shrink the run to seconds; numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {
        "num_particles": 64,
        "num_clouds": 4,
        "train_steps": 100,
        "steps_per_call": 50,
        "checkpoint_every": 50,
        "num_samples": 128,
        "hidden_dims": (32, 32),
    }

    def __post_init__(self):
        if not self.out:
            suffix = "-smoke" if self.smoke else ""
            object.__setattr__(self, "out", f"runs/plane-{self.task}-{self.time}{suffix}")


def main(config: Config) -> dict:
    """Fills the pool, fits the velocity, samples, measures; returns result.json's content."""
    task = data.task(config.task)
    for nfe in config.nfe:
        ode.num_steps(nfe)
    rows_per_device = common.check_batch(config.batch_size)
    steps = flow.step_sizes(config.step_size, config.flow_steps, full_last=config.time == "geodesic")
    run = common.Run(config)
    key_pool, key_init, key_train, key_eval = jax.random.split(jax.random.key(config.seed), 4)

    with run.timed("pool"):
        rows, info = build_pool(run, config, key_pool, task, steps)
    model = models.VelocityMLP(config.hidden_dims)
    optimizer = optax.adam(schedule(config))
    with run.timed("train"):
        state = train.init(key_init, model, optimizer, dim=2)
        step = train.make_step(model.apply, optimizer, ema_decay=config.ema_decay)
        draw = functools.partial(pool.sample, batch_size=rows_per_device)
        keys = jax.random.split(key_train, jax.local_device_count())
        state = common.fit(
            run,
            state,
            train.make_steps(step, draw, config.steps_per_call),
            (rows, keys),
            num_steps=config.train_steps,
            steps_per_call=config.steps_per_call,
            checkpoint_every=config.checkpoint_every,
        )
    return evaluate(run, config, task, model.apply, state.ema_params, steps, info, key_eval)


def build_pool(run, config, key, task, steps):
    """The pool and its certificates, restored if an earlier start of the run built them."""
    clouds_per_call = 1 if jax.default_backend() == "cpu" else config.num_clouds
    solves = (config.num_clouds, config.flow_steps)
    like = (
        pool.abstract(config.num_clouds * config.num_particles, config.flow_steps, dim=2),
        pool.PoolInfo(*(jax.ShapeDtypeStruct(solves, kind) for kind in "?ffi")),
    )
    return run.restored(
        "pool",
        like,
        lambda: pool.build(
            key,
            data.SAMPLERS[task.source],
            data.SAMPLERS[task.target],
            num_clouds=config.num_clouds,
            num_particles=config.num_particles,
            epsilon=config.epsilon,
            step_sizes=steps,
            time=config.time,
            clouds_per_call=clouds_per_call,
            progress=common.progress("pool"),
        ),
    )


def schedule(config) -> optax.Schedule:
    """Linear warm-up over 5% of the steps, then cosine decay to zero."""
    warmup = config.train_steps // 20
    return optax.warmup_cosine_decay_schedule(0, config.learning_rate, warmup, config.train_steps)


def evaluate(run, config, task, apply_fn, params, steps, info, key) -> dict:
    """W2 at every NFE beside its floor, and the pictures."""
    key_x0, key_x1, *key_floors = jax.random.split(key, 2 + config.num_floors + 1)
    draw, draw_stratified = data.SAMPLERS[task.target], data.STRATIFIED[task.target]
    n, end = config.num_samples, pool.horizon(steps, config.time)
    with run.timed("sample"):
        x0 = data.STRATIFIED[task.source](key_x0, n)
        samples = {
            nfe: np.asarray(sampling.nsgf(apply_fn, params, x0, nfe=nfe, horizon=end))
            for nfe in config.nfe
        }
    with run.timed("evaluate"):
        target = np.asarray(draw_stratified(key_x1, n))
        fresh = [draw(key, n) for key in key_floors[:-1]] + [draw_stratified(key_floors[-1], n)]
        pairs = [(points, target) for points in [*samples.values(), *fresh]]
        bar = functools.partial(common.progress("exact W2"), total=len(pairs))
        distances = metrics.wasserstein2_many(pairs, progress=bar)
    w2 = dict(zip(map(str, config.nfe), distances, strict=False))
    floors, stratified_floor = distances[len(samples) : -1], distances[-1]
    floor = float(np.mean(floors))
    with run.timed("pictures"):
        draw_pictures(run, apply_fn, params, x0, target, samples, w2, end)
    result = run.finish(
        task=config.task,
        metric="exact W2, stratified source and target",
        floor=floor,
        floor_std=float(np.std(floors)),
        stratified_floor=stratified_floor,
        w2=w2,
        excess={nfe: metrics.excess(value, floor) for nfe, value in w2.items()},
        pool=pool.summary(info),
    )
    cells = "  ".join(f"NFE {nfe}: {value:.3f}" for nfe, value in w2.items())
    print(f"W2  {cells}  (floor {floor:.3f}, stratified {stratified_floor:.3f})")
    print(f"seconds {result['times']}; pictures and result.json in {run.out}")
    return result


def draw_pictures(run, apply_fn, params, x0, target, samples, w2, end):
    """samples.png, trajectories.png, loss.png and flow.gif in the run's folder."""
    titled = {f"NFE {nfe}, W2 {w2[str(nfe)]:.3f}": points for nfe, points in samples.items()}
    plotting.save(plotting.samples_against_target(titled, target), run.out / "samples.png")
    states = np.asarray(ode.trajectory(apply_fn, params, x0[:512], t1=end, nfe=32))
    title = f"{run.config['task']}, learned flow"
    plotting.save(plotting.trajectories(states[:, :128], target, title), run.out / "trajectories.png")
    plotting.save(plotting.loss_curve(*run.logged("loss")), run.out / "loss.png")
    plotting.flow_gif(states, target, run.out / "flow.gif", np.linspace(0, end, len(states)))


if __name__ == "__main__":
    common.fail_clearly(main, common.cli(Config, __doc__))
