"""Numbers of a small run in the plane, which every supported version gives.

``python -m tests.reference`` writes them down, with the versions that gave them.
"""

import functools
import pathlib
import platform

from tests import conftest  # noqa: F401  first: it sets the devices

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
import optax

import sinkflow
from experiments.harness import provenance
from experiments.harness.files import write_json
from sinkflow import data, flow, metrics, nets, pool, sampling, train

PATH = pathlib.Path(__file__).parent / "reference_plane.json"
STEPS = 200


def numbers(seed: int = 0) -> dict[str, float]:
    """Of solver, pool, training and samples, all from one seed."""
    keys = jax.random.split(jax.random.key(seed), 6)
    task = data.task("8gaussians-moons")
    source, target = data.SAMPLERS[task.source], data.SAMPLERS[task.target]
    x, y = source(keys[0], 256), target(keys[1], 256)
    divergence, converged = sinkflow.sinkhorn_divergence(x, y, 0.1)
    assert converged
    rows, info = pool.build(
        keys[2],
        source,
        target,
        num_clouds=4,
        num_particles=64,
        epsilon=0.1,
        step_sizes=flow.step_sizes(0.5, 4, full_last=True),
    )
    path = jnp.sum(rows.width[..., None] * rows.velocity, axis=1)
    model = nets.VelocityMLP((32, 32))
    optimizer = optax.adam(1e-2)
    draw = functools.partial(pool.sample, batch_size=128)
    lines = []
    state, _ = sinkflow.fit(
        train.init(keys[3], model, optimizer, 2),
        train.drawing_step(train.make_step(model.apply, optimizer, ema_decay=0.95), draw),
        rows,
        key=keys[4],
        num_steps=STEPS,
        steps_per_call=50,
        log=lambda step, seen: lines.append(seen),
    )
    samples = sampling.nsgf(model.apply, state.ema_params, x, nfe=5)
    real = data.STRATIFIED[task.target](keys[5], 256)
    return {
        "divergence": float(divergence),
        "pool_displacement": float(jnp.mean(jnp.linalg.norm(path, axis=1))),
        "pool_neighbours": pool.summary(info)["neighbours"][0],
        "first_loss": float(lines[0].loss),
        "last_loss": float(lines[-1].loss),
        "last_gradient_norm": float(lines[-1].gradient_norm),
        "parameter_norm": float(optax.tree.norm(state.ema_params)),
        "mean_sample_radius": float(jnp.mean(jnp.linalg.norm(samples, axis=1))),
        "w2": metrics.wasserstein2(np.asarray(samples), np.asarray(real)),
    }


if __name__ == "__main__":
    versions = {"python": platform.python_version(), **provenance.versions()}
    written = {"numbers": numbers(), "versions": versions, "device": provenance.device()}
    write_json(PATH, written)
    print(PATH.read_text())
