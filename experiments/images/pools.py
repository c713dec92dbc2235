"""What image models draw their rows from: pools of Sinkhorn flows, and of pairs."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from tqdm.auto import tqdm

from experiments.harness.files import write_json
from experiments.harness.run import Run
from experiments.harness.training import certified
from experiments.images.config import Flow
from experiments.images.rows import vectors
from sinkflow import Limits, pairs, pool
from sinkflow.ot.regularisation import epsilon_for_neighbours

POOL_DTYPE = jnp.float16  # three bits more than bfloat16, and pixels need no exponents


class Samplers(NamedTuple):
    """Noise and images, ``(key, n) -> [n, d]``, and the key that epsilon is chosen with."""

    noise: Callable
    image: Callable
    key_epsilon: jax.Array


def shared(pixels, key):
    """As many images, shuffled, as the devices can share evenly."""
    count = len(pixels) // jax.local_device_count() * jax.local_device_count()
    return pixels[jax.random.permutation(key, len(pixels))[:count]]


def samplers(pixels, key_epsilon: jax.Array, mirror: bool) -> Samplers:
    """Noise and images as samplers; images without replacement."""
    dim = pixels[0].size

    def noise(key, n):
        return jax.random.normal(key, (n, dim))

    def image(key, n):
        key_image, key_mirror = jax.random.split(key)
        index = jax.random.choice(key_image, len(pixels), (n,), replace=False)
        return vectors(key_mirror, pixels[index], mirror)

    return Samplers(noise, image, key_epsilon)


def chosen_epsilon(samplers: Samplers, flow: Flow, size: int) -> float:
    """Epsilon [length^2] that gives clouds of ``size`` the wanted number of neighbours."""
    key_x, key_y = jax.random.split(samplers.key_epsilon)
    value, solved = epsilon_for_neighbours(
        samplers.noise(key_x, size),
        samplers.image(key_y, size),
        flow.neighbours,
        limits=Limits(0.001, flow.max_iterations),
    )
    if not solved.converged or abs(float(solved.neighbours) / flow.neighbours - 1) > 0.05:
        raise RuntimeError(
            f"no epsilon gives clouds of {size} images {flow.neighbours} neighbours: the closest "
            f"has {float(solved.neighbours):.3g} (converged: {bool(solved.converged)}); choose "
            "another number"
        )
    return float(value)


def flow_pools(
    run: Run, key: jax.Array, samplers: Samplers, flow: Flow
) -> Callable[[int], pool.Pool]:
    """Makes the pool of Sinkhorn flows of a part of the training; its certificates are logged."""

    @functools.cache
    def regularisation():
        return chosen_epsilon(samplers, flow, flow.num_particles)

    def make(part):
        with run.timed("pool"):
            rows, info = pool.build(
                jax.random.fold_in(key, part),
                samplers.noise,
                samplers.image,
                num_clouds=flow.num_clouds,
                num_particles=flow.num_particles,
                epsilon=regularisation(),
                step_sizes=flow.step_sizes(),
                clouds_per_call=flow.clouds_per_call,
                limits=Limits(max_iterations=flow.max_iterations),
                dtype=POOL_DTYPE,
            )
            jax.block_until_ready(rows)
        tell(run, "pools", part, {"epsilon": regularisation(), **pool.summary(info)})
        return rows

    return make


def tell(run: Run, kind: str, part: int, seen: dict) -> None:
    """Certificates of a part's solves: a line on the terminal, and a file of the run's record."""
    folder = run.out / kind
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{part}.json", seen)
    tqdm.write(certified(f"{kind} {part}", seen))


def pair_pools(
    run: Run, key: jax.Array, samplers: Samplers, flow: Flow, pairing: str
) -> Callable[[int], pool.Pool]:
    """Makes the pool of pairs of a part of the training, exact or drawn from a plan.

    Certificates of the plans are logged.
    """
    size, count = flow.pair_size, flow.num_clouds * flow.num_particles // flow.pair_size

    @functools.cache
    def regularisation():
        return chosen_epsilon(samplers, flow, size)

    @jax.jit
    def draw(key):
        split = jax.random.split(key, (count, 2))
        return jax.vmap(lambda key: (samplers.noise(key[0], size), samplers.image(key[1], size)))(
            split
        )

    def partners(part, key, x, y):
        if pairing == "exact":
            return pairs.exact(x, y)
        limits = Limits(max_iterations=flow.max_iterations)
        drawn, converged = pairs.entropic(key, x, y, regularisation(), limits=limits)
        unconverged = int(jnp.sum(~converged))
        if unconverged:
            raise RuntimeError(
                f"{unconverged} of {count} solves did not converge: raise neighbours or "
                "max_iterations"
            )
        seen = {"epsilon": regularisation(), "solves": count, "unconverged": unconverged}
        tell(run, "pairs", part, seen)
        return drawn

    def make(part):
        with run.timed("pool"):
            key_draw, key_pairs = jax.random.split(jax.random.fold_in(key, part))
            x, y = draw(key_draw)
            y = partners(part, key_pairs, x, y)
            rows = pool.from_pairs(*(cloud.reshape(-1, cloud.shape[-1]) for cloud in (x, y)))
            halves = {name: getattr(rows, name).astype(POOL_DTYPE) for name in ("x", "velocity")}
            return jax.block_until_ready(rows._replace(**halves))

    return make
