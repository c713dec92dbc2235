"""Points, pairs and pools that the methods of the tables learn from, seeds side by side."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.vectors.config import Flow
from sinkflow import Limits, data, pool
from sinkflow.ot.exact import assignment_many


def draw_pairs(flow: Flow, task: data.Task, keys, size: int):
    """The points of NSGF's pools as source and target clouds [seeds, clouds, size, 2].

    With the same keys every method learns from the very same points: what its pool lacks in one
    mode, all lack.
    """
    total = flow.num_clouds * flow.num_particles
    if total % size:
        raise ValueError(f"clouds of {size} do not divide the {total} pairs of a seed")
    samplers = data.SAMPLERS[task.source], data.SAMPLERS[task.target]
    indices = jnp.arange(flow.num_clouds)
    x, y = jax.vmap(lambda key: pool.draw_clouds(key, *samplers, indices, flow.num_particles))(keys)
    x, y = (cloud.reshape(len(keys), total // size, size, 2) for cloud in (x, y))
    return x, y


def pair_pool(x: jax.Array, y: jax.Array) -> pool.Pool:
    """Straight paths between paired clouds [seeds, ..., 2]."""
    x, y = (cloud.reshape(cloud.shape[0], -1, 2) for cloud in (x, y))
    return jax.vmap(pool.from_pairs)(x, y)


def optimal_partners(x: jax.Array, y: jax.Array) -> jax.Array:
    """y reordered within each cloud so that (x_i, y_i) are the optimal pairs: they stay pairs."""
    flat_x, flat_y = (np.asarray(cloud).reshape(-1, *cloud.shape[2:]) for cloud in (x, y))
    order = assignment_many(list(zip(flat_x, flat_y, strict=True)))
    partners = [cloud[indices] for cloud, indices in zip(flat_y, order, strict=True)]
    return jnp.asarray(np.stack(partners)).reshape(y.shape)


def sinkhorn_partners(
    epsilon: float, x: jax.Array, y: jax.Array, keys
) -> tuple[jax.Array, dict[str, int]]:
    """For every x_i one y drawn from its row of ott-jax's Sinkhorn plan, and the solves counted.

    Raises:
      RuntimeError: solves that did not converge, with their number.
    """
    from ott.geometry import epsilon_scheduler, pointcloud
    from ott.solvers import linear

    # OTT's cost has no factor one half: its epsilon is twice ours. It is annealed from a thousand
    # times as much, without which some solves of 8gaussians-moons do not end.
    annealed = epsilon_scheduler.Epsilon(2 * epsilon, init=1000.0, decay=0.9)

    def partners(cloud):
        key, x, y = cloud
        out = linear.solve(pointcloud.PointCloud(x, y, epsilon=annealed), max_iterations=20_000)
        chosen = jax.random.categorical(key, jnp.log(out.matrix + 1e-30), axis=1)
        return y[chosen], out.converged

    flat = [cloud.reshape(-1, *cloud.shape[2:]) for cloud in (x, y)]
    split = jax.vmap(lambda key: jax.random.split(key, x.shape[1]))(keys).reshape(-1)
    # Side by side each waits for the slowest, and on a CPU gains nothing from it.
    batch = 1 if jax.default_backend() == "cpu" else 64
    with jax.numpy_rank_promotion("allow"):  # OTT relies on it
        solve = jax.jit(lambda clouds: jax.lax.map(partners, clouds, batch_size=batch))
        drawn, converged = solve((split, *flat))
    unconverged = int(jnp.sum(~converged))
    if unconverged:
        raise RuntimeError(
            f"{unconverged} of {converged.size} of ott-jax's solves did not converge at epsilon "
            f"{epsilon}: raise epsilon"
        )
    return drawn.reshape(y.shape), {"solves": converged.size, "unconverged": unconverged}


def flow_pool(flow: Flow, task: data.Task, keys, independent_self: bool):
    """Pools of Sinkhorn flows; certificates of the worst seed, and all seeds' solves counted."""
    pools: list[pool.Pool] = []
    infos: list[dict[str, Any]] = []
    for key in keys:
        rows, info = pool.build(
            key,
            data.SAMPLERS[task.source],
            data.SAMPLERS[task.target],
            **flow.pool_settings(),
            independent_self=independent_self,
            limits=Limits(max_iterations=20_000),
        )
        pools.append(rows)
        infos.append(pool.summary(info))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pools)
    counts = {name: sum(info[name] for info in infos) for name in ("solves", "unconverged")}
    return stacked, {**max(infos, key=lambda info: info["worst_marginal_error"]), **counts}
