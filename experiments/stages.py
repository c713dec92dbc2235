"""Training of the image models, in stages that resume one by one.

Images are vectors [n, d] everywhere but inside the networks, so that flows, pools and samplers are
those of the plane. A stage is a network with its loss and its rows; :func:`learn` trains one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments import common
from experiments.image_config import STAGES, ImageConfig
from sinkflow import (
    Limits,
    assignment,
    divergence,
    epsilon,
    images,
    interpolants,
    pool,
    train,
    unet,
)
from sinkflow.sinkhorn import sinkhorn

TRAINING = "training.json"  # of each stage: what its training took
POOL_DTYPE = jnp.float16  # three bits more than bfloat16, and pixels need no exponents


class Network(NamedTuple):
    """``init(key)`` gives parameters [p]; ``apply_fn(params, x [n, d], ...)`` applies them."""

    init: Callable
    apply_fn: Callable


class Stage(NamedTuple):
    """One network with its loss and rows.

    ``data(part)`` makes what ``draw(data, key)`` draws rows from, leading axes shared by the
    devices.
    """

    network: Network
    loss_fn: Callable
    draw: Callable
    data: Callable[[int], Any]


class Field(NamedTuple):
    """A trained network: ``apply_fn(params, x [n, d], ...)``."""

    apply_fn: Callable
    params: Any


class Rows(NamedTuple):
    """A batch to match velocities on, and the key [1] of each batch's dropout."""

    x: jax.Array
    t: jax.Array
    velocity: jax.Array
    key: jax.Array


def make_stages(run: common.Run, config: ImageConfig, pixels) -> dict[str, Stage]:
    """The stages of the method, by name, for training images ``pixels`` [n, h, w, c] of uint8."""
    field = unet.UNet(
        config.channels,
        config.multipliers,
        config.num_blocks,
        config.attention,
        dropout=config.dropout,
    )
    share = common.check_batch(config.batch_size)
    draw_flows = functools.partial(pool_rows, batch_size=share, power=config.row_power)
    velocity = on_vectors(field, config.SHAPE, jnp.zeros(1))
    # Images in random order once, so that every device's share has all classes.
    pixels = shared(pixels, config.key("shuffle"))
    independent = config.pairing() == "independent"
    paired = (lambda part: pixels) if independent else pair_pools(run, config, pixels)
    # NSGF++'s straight flow begins where the first phase ends; its rivals' at the source.
    start = config.straight_start if config.method == "nsgf++" else 0.0
    uniform = (
        functools.partial(straight_rows, batch_size=share, start=start, mirror=config.FLIP)
        if independent
        else functools.partial(pool_rows, batch_size=share, start=start)
    )
    straight = uniform if independent else functools.partial(uniform, power=config.row_power)
    made = {
        "velocity": Stage(velocity, matching_loss, draw_flows, flow_pools(run, config, pixels)),
        "predictor": Stage(
            on_vectors(unet.ConvTimePredictor(), config.SHAPE),
            train.time_prediction_loss,
            uniform,  # the points of the straight flow, at each of its times alike
            paired,
        ),
        "straight": Stage(velocity, matching_loss, straight, paired),
    }
    return {name: made[name] for name in STAGES[config.method]}


def on_vectors(model, shape: tuple[int, int, int], *inputs) -> Network:
    """A network of images [n, h, w, c] for images, and parameters, as vectors.

    Clipping, Adam and the moving average then take a few kernels instead of a few for each
    of hundreds of arrays. ``inputs`` are what the model takes besides one image.
    """

    def init_tree(key):
        return model.init(key, jnp.zeros((1, *shape)), *inputs)

    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(init_tree, jax.random.key(0))
    )
    unravel = ravel_pytree(zeros)[1]

    def apply_fn(params, x, *rest, **options):
        out = model.apply(unravel(params), x.reshape(-1, *shape), *rest, **options)
        return out.reshape(x.shape) if out.ndim > 1 else out

    return Network(lambda key: ravel_pytree(init_tree(key))[0], apply_fn)


def shared(pixels, key):
    """As many images, shuffled, as the devices can share evenly."""
    count = len(pixels) // jax.local_device_count() * jax.local_device_count()
    return pixels[jax.random.permutation(key, len(pixels))[:count]]


# Rows.


def straight_rows(pixels, key, batch_size: int, start: float, mirror: bool) -> Rows:
    """Points of the straight paths between noise and images, at uniform times from ``start``."""
    key_image, key_mirror, key_noise, key_t, key_dropout = jax.random.split(key, 5)
    index = jax.random.randint(key_image, (batch_size,), 0, pixels.shape[0])
    x1 = vectors(key_mirror, pixels[index], mirror)
    x0 = jax.random.normal(key_noise, x1.shape)
    t = jax.random.uniform(key_t, (batch_size,), minval=start)
    x, velocity = interpolants.straight(x0, x1, t)
    return Rows(x, t, velocity, key_dropout[None])


def pool_rows(rows: pool.Pool, key, batch_size: int, power=1.0, start=0.0) -> Rows:
    """Rows of a pool of flows or of pairs, see :func:`sinkflow.pool.sample`."""
    key_rows, key_dropout = jax.random.split(key)
    x, t, velocity = pool.sample(rows, key_rows, batch_size, power, start)
    return Rows(x, t, velocity, key_dropout[None])


def vectors(key, pixels, mirror: bool):
    """Images of bytes as vectors [n, d] from -1 to 1, mirrored at random where that is asked."""
    x = images.scale(pixels)
    x = images.flip(key, x) if mirror else x
    return x.reshape(x.shape[0], -1)


def matching_loss(apply_fn, params, rows: Rows):
    """:func:`sinkflow.train.velocity_matching_loss` a pixel, with the network's dropout."""
    # A key of "rbg": one of threefry costs a GPU more than the masks are worth.
    bits = jax.random.bits(rows.key[0], (4,), jnp.uint32)
    rngs = {"dropout": jax.random.wrap_key_data(bits, impl="rbg")}
    noisy = functools.partial(apply_fn, train=True, rngs=rngs)
    return train.velocity_matching_loss(noisy, params, rows) / rows.x.shape[1]


# What rows are drawn from.


def samplers(config, pixels) -> tuple[Callable, Callable]:
    """Noise and images as samplers ``(key, n) -> [n, d]``; images without replacement."""

    def noise(key, n):
        return jax.random.normal(key, (n, config.dim()))

    def image(key, n):
        key_image, key_mirror = jax.random.split(key)
        index = jax.random.choice(key_image, len(pixels), (n,), replace=False)
        return vectors(key_mirror, pixels[index], config.FLIP)

    return noise, image


def chosen_epsilon(config, source, target, size: int) -> float:
    """Epsilon [length^2] that gives clouds of ``size`` the wanted number of neighbours."""
    key_x, key_y = jax.random.split(config.key("epsilon"))
    value, solved = epsilon.epsilon_for_neighbours(
        source(key_x, size),
        target(key_y, size),
        config.neighbours,
        limits=Limits(0.001, config.max_iterations),
    )
    if not solved.converged or abs(float(solved.neighbours) / config.neighbours - 1) > 0.05:
        raise RuntimeError(
            f"no epsilon gives clouds of {size} images {config.neighbours} neighbours: the closest "
            f"has {float(solved.neighbours):.3g} (converged: {bool(solved.converged)}); choose "
            "another number"
        )
    return float(value)


def flow_pools(run, config, pixels) -> Callable[[int], pool.Pool]:
    """Makes the pool of Sinkhorn flows of a part of the training; its certificates are logged."""
    source, target = samplers(config, pixels)
    keys = config.key("flows")

    @functools.cache
    def regularisation():
        return chosen_epsilon(config, source, target, config.num_particles)

    def make(part):
        with run.timed("pool"):
            rows, info = pool.build(
                jax.random.fold_in(keys, part),
                source,
                target,
                num_clouds=config.num_clouds,
                num_particles=config.num_particles,
                epsilon=regularisation(),
                step_sizes=config.step_sizes(),
                clouds_per_call=config.clouds_per_call,
                limits=Limits(max_iterations=config.max_iterations),
                dtype=POOL_DTYPE,
            )
            jax.block_until_ready(rows)
        seen = {"epsilon": regularisation(), **pool.summary(info)}
        folder = run.out / "pools"
        folder.mkdir(exist_ok=True)
        common.write_json(folder / f"{part}.json", seen)
        return rows

    return make


def pair_pools(run, config, pixels) -> Callable[[int], pool.Pool]:
    """Makes the pool of pairs of a part of the training, exact or drawn from a plan."""
    source, target = samplers(config, pixels)
    keys = config.key("pairs")
    size, count = config.pair_size, config.num_clouds * config.num_particles // config.pair_size

    @functools.cache
    def regularisation():
        return chosen_epsilon(config, source, target, size)

    @jax.jit
    def draw(key):
        split = jax.random.split(key, (count, 2))
        return jax.vmap(lambda key: (source(key[0], size), target(key[1], size)))(split)

    @jax.jit
    def plan_partners(keys, x, y, epsilon):
        def one(cloud):
            key, x, y = cloud
            out = sinkhorn(x, y, epsilon, limits=Limits(max_iterations=config.max_iterations))
            return divergence.draw_partners(key, x, y, out.g, epsilon), out.converged

        return jax.lax.map(one, (keys, x, y), batch_size=max(1, 2**24 // size**2))

    def partners(key, x, y):
        if config.pairing() == "exact":
            pairs = list(zip(np.asarray(x), np.asarray(y), strict=True))
            return jnp.asarray(np.stack(assignment.assignment_many(pairs)))
        order, converged = plan_partners(jax.random.split(key, count), x, y, regularisation())
        if not converged.all():
            raise RuntimeError(
                f"{int(jnp.sum(~converged))} of {count} solves did not converge: raise neighbours"
            )
        return order

    def make(part):
        with run.timed("pool"):
            key, key_pairs = jax.random.split(jax.random.fold_in(keys, part))
            x, y = draw(key)
            y = jnp.take_along_axis(y, partners(key_pairs, x, y)[..., None], axis=1)
            rows = pool.from_pairs(*(cloud.reshape(-1, config.dim()) for cloud in (x, y)))
            halves = {name: getattr(rows, name).astype(POOL_DTYPE) for name in ("x", "velocity")}
            return jax.block_until_ready(rows._replace(**halves))

    return make


# Training.


def learn(
    run: common.Run, config: ImageConfig, name: str, stage: Stage, params: Any = None
) -> Field:
    """A stage's field, with averaged parameters; it resumes where an earlier start stopped.

    ``params`` are those that the training begins with, by default random ones.
    """
    num_steps = config.steps()[name]
    optimizer = adam(config, num_steps)
    key_init, key_rows = jax.random.split(config.key(name))
    if params is None:
        # One program of many threefry draws takes a compiler long.
        seed = jax.random.wrap_key_data(jax.random.bits(key_init, (4,), jnp.uint32), impl="rbg")
        state = jax.jit(lambda key: train.create(stage.network.init(key), optimizer))(seed)
    else:  # a copy: a training step gives the memory of its state away
        state = train.create(jnp.copy(params), optimizer)
    # The average spans a tenth of the training at most: nothing is left of the initial values.
    decay = min(config.ema_decay, 1 - 10 / max(num_steps, 20))
    step = train.make_step(
        stage.network.apply_fn, optimizer, ema_decay=decay, loss_fn=stage.loss_fn
    )
    part, before = run.stage(name), dict(run.times)
    with run.timed(f"train {name}"):
        state = common.fit(
            part,
            state,
            train.drawing_step(step, stage.draw),
            stage.data,
            key=key_rows,
            num_steps=num_steps,
            steps_per_call=config.steps_per_call,
            checkpoint_every=config.checkpoint_every,
            refresh_every=config.refresh_every,
            description=name,
        )
    if part.resumed_from != num_steps:  # else it was finished before
        spent = {phase: run.times[phase] - before.get(phase, 0.0) for phase in run.times}
        record = {
            "seconds": {phase: round(seconds, 2) for phase, seconds in spent.items() if seconds},
            # The seconds are of the start that finished it: too few if it had to resume.
            "resumed_from": part.resumed_from,
            "device_memory_gb": common.peak_memory(),
            "ema_decay": decay,
            **run.circumstances(),
        }
        common.write_json(part.out / TRAINING, record)
    if part.resumed_from is not None:  # of a run in stages: steps of all stages together
        run.resumed_from = (run.resumed_from or 0) + part.resumed_from
    return Field(stage.network.apply_fn, state.ema_params)


def adam(config: ImageConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipped gradients, Adam, linear warm-up, cosine decay to zero."""
    rate = optax.warmup_cosine_decay_schedule(0, config.learning_rate, num_steps // 20, num_steps)
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))
