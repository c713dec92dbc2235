"""Track C: whole trajectory pools, and peers at states of their flows."""

import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench.measure import TIMED, NotRunError, host
from experiments.bench.peers.base import Peer
from experiments.bench.problems import PoolProblem
from experiments.bench.timing import timed

STATES = 3  # of a flow at which peers are timed
SAMPLED_CLOUDS = 2


def state_indices(steps: int) -> list[int]:
    """First, middle and last step."""
    return sorted({0, steps // 2, steps - 1})[:STATES]


def samplers(d: int) -> tuple[Callable, Callable]:
    """Source and target ``(key, n) -> [n, d]``: 8gaussians and moons, or normal and clusters."""
    import jax
    import jax.numpy as jnp

    from sinkflow import data

    if d == 2:
        return data.eight_gaussians, data.moons

    def clusters(key, n):
        """Ten clusters, the same for every key, pushed into the cube's corners."""
        key_cluster, key_noise = jax.random.split(key)
        centres = jax.random.normal(jax.random.key(0), (10, d))
        index = jax.random.randint(key_cluster, (n,), 0, 10)
        noise = jax.random.normal(key_noise, (n, d))
        return jnp.tanh(2 * (0.8 * centres[index] + 0.6 * noise))

    return lambda key, n: jax.random.normal(key, (n, d)), clusters


def whole_pool(
    problem: PoolProblem, folder: pathlib.Path, limit: float, label: str, storage: str
) -> dict[str, Any]:
    """Track C, this library: the pool that a driver builds, in one call of all clouds."""
    import jax
    import jax.numpy as jnp

    from sinkflow import Limits, flow, pool, sinkhorn_velocity

    source, target = samplers(problem.d)
    key, clouds, n = jax.random.key(problem.seed), problem.clouds, problem.n
    settings: dict[str, Any] = {
        "num_clouds": clouds,
        "num_particles": n,
        "epsilon": problem.epsilon,
        "step_sizes": flow.step_sizes(problem.step_size, problem.steps),
        "time": "flow",
        "clouds_per_call": problem.clouds_per_call,
        "limits": Limits(storage=storage),
        "allow_unconverged": True,
    }

    def build():
        begin = time.perf_counter()
        rows, info = jax.block_until_ready(pool.build(key, source, target, **settings))
        return rows, info, time.perf_counter() - begin

    *_, first = build()
    rows, info, once = build()
    times: list[float] = [once]
    while len(times) < TIMED[0] and sum(times) + once < 2 * limit:
        times.append(build()[2])
    steps = state_indices(problem.steps)
    files = [folder / f"{problem.key}-{side}.npy" for side in "xy"]
    if files[0].exists():  # judged at the states that an earlier row left, like the peers
        states, targets = (np.load(file) for file in files)
        velocity = jnp.stack(
            [
                sinkhorn_velocity(
                    x[0], targets[0], problem.epsilon, limits=Limits(storage=storage)
                )[0]
                for x in states
            ]
        )
    else:
        # What peers start from: the states of all clouds, and targets drawn as the pool does.
        states = np.asarray(rows.x[:, np.array(steps)]).reshape(clouds, n, len(steps), -1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(clouds))
        targets = jax.vmap(lambda key: target(jax.random.split(key)[1], n))(keys)
        np.save(files[0], states.transpose(2, 0, 1, 3))
        np.save(files[1], np.asarray(targets))
        velocity = rows.velocity[:n, np.array(steps)].transpose(1, 0, 2)
    np.save(folder / velocity_file(problem.key, "sinkflow", label), np.asarray(velocity))
    return {
        "seconds": statistics.median(times),
        "fastest_slowest": [min(times), max(times)],
        "repetitions": len(times),
        "first_call_seconds": first,
        "extrapolated": False,
        **pool.summary(info),
    }


def velocity_file(problem: str, peer: str, label: str) -> str:
    """Where a row of track C leaves the first cloud's velocity at the sampled steps."""
    return f"{problem}-velocity-{peer}-{label}.npy"


def sampled_pool(
    peer: Peer,
    run: Callable,
    batched: bool,
    problem: PoolProblem,
    file: pathlib.Path,
    limit: float,
) -> dict[str, Any]:
    """Track C, a peer: its velocity at states of the flow, multiplied up to the whole pool."""
    states, targets = (file.parent / f"{problem.key}-{side}.npy" for side in "xy")
    if not states.exists():
        raise NotRunError("sinkflow's flow gives the states, and was not run")
    all_x, all_y = np.load(states, mmap_mode="r"), np.load(targets, mmap_mode="r")
    clouds = [slice(None)] if batched else range(min(SAMPLED_CLOUDS, problem.clouds))
    per_state, first_cloud, counts = [], [], []
    pair = [peer.put(all_x[0][clouds[0]]), peer.put(all_y[clouds[0]])]
    _, first = timed(lambda: run(*pair), peer.wait)
    for x_of_step in all_x:
        for cloud in clouds:
            x, y = peer.put(x_of_step[cloud]), peer.put(all_y[cloud])
            v, once = timed(functools.partial(run, x, y), peer.wait)
            if cloud == clouds[0]:
                first_cloud.append(host(v)[0] if batched else host(v))
            room = limit / (len(all_x) * len(clouds) * once)
            counts.append(int(min(max(room - 1, 1), TIMED[0])))
            spells = [timed(functools.partial(run, x, y), peer.wait)[1] for _ in range(counts[-1])]
            per_state.append(statistics.median(spells))
    np.save(file, np.stack(first_cloud))
    calls = problem.steps * (1 if batched else problem.clouds)
    return {
        "seconds": statistics.mean(per_state) * calls,
        "seconds_per_call": statistics.mean(per_state),
        "repetitions": min(counts),
        "first_call_seconds": first,
        "extrapolated": True,
        "sampled_states": len(per_state),
        "whole_calls": calls,
    }
