"""Work that several devices share, each as ``prepare(plan, share) -> (repeat, amount)``.

``share`` is how many times the work of one device there is in all: as many as devices (weak
scaling) or 1 (strong scaling). ``repeat()`` does it once and waits; ``amount`` is what it did.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bench import unet_config
from experiments.bench.devices_config import Plan
from experiments.generators import draws, updates
from experiments.generators import training as generators
from experiments.generators.config import preset
from experiments.images.config import Flow
from experiments.images.pools import POOL_DTYPE, chosen_epsilon, samplers
from experiments.images.rows import matching_loss, straight_rows
from sinkflow import Limits, nets, parallel, pool, train

Prepared = tuple[Callable[[], Any], float]


def unet(plan: Plan, share: int) -> Prepared:
    """Training of the UNet as the image drivers do it: the devices share each batch.

    Every device draws the whole batch, and dropout's masks with it, and takes its part; gradients
    are averaged by one sum over devices a step. The amount is in images.
    """
    batch, shape = plan.work.batch * share, plan.network.shape(1)
    model = plan.network.unet(axis_name=parallel.AXIS)
    network = nets.on_vectors(model, (shape[1], shape[2], shape[3]), jnp.zeros(1))
    adam = optax.adam(plan.training.learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    decay = plan.training.ema_decay
    step = train.make_step(network.apply_fn, optimizer, ema_decay=decay, loss_fn=matching_loss)
    draw = functools.partial(straight_rows, batch_size=batch, start=0.0, mirror=False)
    params = jax.jit(network.init)(jax.random.key(plan.seed, impl="rbg"))
    repeat = repeated(
        train.make_steps(train.drawing_step(step, draw), plan.training.steps_per_call),
        train.create(params, optimizer),
        jnp.asarray(plan.network.images(plan.seed)),
        jax.random.key(plan.seed),
    )
    return repeat, batch * plan.training.steps_per_call


def generator(plan: Plan, share: int) -> Prepared:
    """Training of a one-step generator of 28x28 images: the devices share the clouds of a step.

    A device draws its clouds, solves for their plans and takes gradients one cloud after the
    other; then they are averaged. The amount is in generated images.
    """
    count, size = plan.work.clouds * share, plan.work.cloud_size
    settings: dict[str, Any] = {"clouds": count, "n": size, "m": 2 * size, "k": 2 * size}
    settings |= {"channels": plan.work.generator_channels, "seed": plan.seed}
    asked = preset("mnist", **settings)
    real = draws.real_samples(asked, small_images(plan))
    made = generators.prepare(asked, real)
    steps = plan.training.steps_per_call
    many = train.make_steps(made.step, steps, summary=updates.summary)
    return repeated(many, made.state, real, made.key), count * size * steps


def build_pool(plan: Plan, share: int) -> Prepared:
    """Building of a pool of flows between noise and 28x28 images: the devices share the clouds.

    No device waits for another within a call. The pool is put together on the first. The amount
    is in particles times steps.
    """
    work, count = plan.work, plan.work.pool_clouds * share
    flow = Flow(flow_steps=work.flow_steps, num_particles=work.num_particles)
    clouds = samplers(jnp.asarray(small_images(plan)), jax.random.key(plan.seed), False)
    epsilon = chosen_epsilon(clouds, flow, flow.num_particles)

    def build(num_clouds: int) -> None:
        rows, _ = pool.build(
            jax.random.key(plan.seed + 1),
            clouds.noise,
            clouds.image,
            num_clouds=num_clouds,
            num_particles=flow.num_particles,
            epsilon=epsilon,
            step_sizes=flow.step_sizes(),
            clouds_per_call=min(work.clouds_per_call, num_clouds),
            limits=Limits(max_iterations=flow.max_iterations),
            dtype=POOL_DTYPE,
        )
        jax.block_until_ready(rows)

    build(min(count, work.clouds_per_call * jax.device_count()))  # compiles
    return lambda: build(count), count * flow.num_particles * flow.flow_steps


TASKS: dict[str, Callable[[Plan, int], Prepared]] = {
    "unet": unet,
    "generator": generator,
    "pool": build_pool,
}


def small_images(plan: Plan):
    """Grey images [n, 28, 28, 1] of bytes, whatever the size of the UNet's."""
    return unet_config.Network().images(plan.seed)[:, 2:30, 2:30, :1]


def repeated(many: Callable, state: Any, rows: Any, key: jax.Array) -> Callable[[], float]:
    """Calls of several steps as :func:`sinkflow.fit` makes them, compiled; each waits for its loss.

    Raises:
      ValueError: at a call, a loss that is not finite.
    """

    def call(state: Any, batch: Any, *, axis_name: str) -> tuple[Any, Any]:
        rows, key = batch
        return many(state, rows, key[0], axis_name=axis_name)

    keys = parallel.shard(jnp.repeat(key[None], jax.local_device_count()))
    batch = parallel.replicate(rows), keys
    kept = [parallel.replicate(state)]
    compiled = parallel.pmap_step(call, batch_axes=(None, 0)).lower(kept[0], batch).compile()

    def once() -> float:
        kept[0], info = compiled(kept[0], batch)
        loss = float(info.loss)
        if not loss < float("inf"):
            raise ValueError(f"the loss is {loss}; it must be finite")
        return loss

    return once
