"""Trainings in processes of their own, on so many CPU devices; and how far their results differ.

Command:  python -m tests.devices FOLDER STEPS CASE [CASE ...]
"""

import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import sinkflow
from experiments.generators import draws, training, updates
from experiments.generators.config import preset
from experiments.images.rows import matching_loss, straight_rows
from sinkflow import data, flow, nets, parallel, pool, train
from sinkflow.nets import unet

ROOT = pathlib.Path(__file__).parents[1]
ROUNDING = 1e-5
"""Largest difference of parameters, as a share of the largest parameter, that is rounding here:
some hundred units in the last place of float32, after the steps of a case."""
STEPS = 16


def environment(devices: int) -> dict[str, str]:
    """Of a process that has so many CPU devices; nothing of the tests' own reaches it."""
    own = ("XLA_FLAGS", "NPROC", "JAX_ENABLE_COMPILATION_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    flags = f"--xla_force_host_platform_device_count={devices}"
    # Virtual devices on few cores otherwise starve one another.
    own = {"XLA_FLAGS": flags, "NPROC": "32", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return {**kept, **own}


def process(devices: int, folder: pathlib.Path, steps: int, *cases: str) -> None:
    """Trains each case on so many devices, in another process; resumes what the folder holds."""
    words = [sys.executable, "-m", "tests.devices", str(folder), str(steps), *cases]
    done = subprocess.run(
        words, env=environment(devices), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == [str(devices), "devices"]


def read(folder: pathlib.Path, case: str) -> np.ndarray:
    """Parameters [p] that a process has left."""
    return np.load(folder / f"{case}.npy")


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, as a share of the largest parameter."""
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def field(optimizer: optax.GradientTransformation) -> tuple[Any, Any, Any]:
    """A perceptron's state, step and rows; rows and their times are drawn."""
    model, (key, *keys) = nets.VelocityMLP((32, 32)), jax.random.split(jax.random.key(0), 3)
    x, shift = (jax.random.normal(own, (200, 2)) for own in keys)
    step = train.make_step(model.apply, optimizer, ema_decay=0.9)
    step = train.drawing_step(step, functools.partial(pool.sample, batch_size=64, power=2.0))
    # Rows in no order: what is drawn by another device is something else.
    return train.init(key, model, optimizer, dim=2), step, pool.from_pairs(x, x + 3 * shift)


def pictures() -> tuple[Any, Any, Any]:
    """A UNet with dropout; images, mirroring, noise, times and masks are drawn."""
    model = unet.UNet(32, (1,), 1, dropout=0.5, dtype=jnp.float32, axis_name=parallel.AXIS)
    network = nets.on_vectors(model, (8, 8, 1), jnp.zeros(1))
    pixels = jax.random.randint(jax.random.key(0), (40, 8, 8, 1), 0, 256).astype(jnp.uint8)
    optimizer = optax.adam(1e-3)
    step = train.make_step(network.apply_fn, optimizer, ema_decay=0.9, loss_fn=matching_loss)
    draw = functools.partial(straight_rows, batch_size=16, start=0.0, mirror=True)
    # Away from the zeros of its last layers, behind which nothing is seen.
    params = network.init(jax.random.key(1))
    params += 0.05 * jax.random.normal(jax.random.key(2), params.shape)
    return train.create(params, optimizer), train.drawing_step(step, draw), pixels


def generator() -> tuple[Any, Any, Any]:
    """A generator of digits by class, eight clouds a step; its solves converge well."""
    small = {"n": 20, "m": 20, "k": 20, "hidden_dims": (16,), "threshold": 1e-4}
    config = preset("digits", smoke=True, clouds=8, labels=True, train_steps=STEPS, **small)
    pixels = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    real = draws.real_samples(config, pixels, np.arange(200) % 10)
    made = training.prepare(config, real)
    return made.state, made.step, real


CASES = {
    "SGD": lambda: field(optax.sgd(0.05)),
    "Adam": lambda: field(optax.adam(1e-2)),
    "UNet with dropout": pictures,
    "generator": generator,
}


def flows() -> np.ndarray:
    """Rows of a pool of seven clouds, more than devices share evenly."""
    steps = flow.step_sizes(0.5, 3, full_last=True)
    sizes = {"num_clouds": 7, "num_particles": 32, "epsilon": 0.1, "step_sizes": steps}
    rows, _ = pool.build(jax.random.key(3), data.gaussian, data.moons, **sizes)
    return np.concatenate([np.ravel(leaf) for leaf in rows])


def trained(case: str, folder: pathlib.Path | None, steps: int) -> np.ndarray:
    """Parameters [p] after so many steps, a checkpoint every four; or a pool's numbers."""
    if case == "pool":
        return flows()
    state, step, rows = CASES[case]()
    summary = updates.summary if case == "generator" else train.mean_over_steps
    where = None if folder is None else folder / case
    options = {"folder": where, "checkpoint_every": 4 if where else 0, "summary": summary}
    state, _ = sinkflow.fit(
        state, step, rows, key=jax.random.key(5), num_steps=steps, steps_per_call=4, **options
    )
    return np.asarray(jax.flatten_util.ravel_pytree(state.params)[0])


def main(folder: str, steps: str, *cases: str) -> None:
    for case in cases:
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        np.save(path / f"{case}.npy", trained(case, path, int(steps)))
    print(jax.local_device_count(), "devices")


if __name__ == "__main__":
    main(*sys.argv[1:])
