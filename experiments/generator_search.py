"""Which settings of a one-step image generator are worth their seconds: equal times, one table.

Trains the generators of a plan (a JSON list of :class:`Setting` fields) one after the other, each
for the same kind of budget, seconds of training; what is annealed follows the share of it that has
passed. Scores come from the judge of every image table. One setting is trained for a number of
steps, resumed and drawn from by experiments.generator, which has no queue and no additive network.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from PIL import Image

from experiments import common, judge
from sinkflow import Limits, epsilon, generators, images, sinkhorn_velocity, unet

DRAWN = 500  # images of one call of a generator when it is judged
WARM_UP = 100  # steps over which the learning rate rises
GRID = 10  # images of a side of a grid


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    seconds: float = 50.0
    """Of training; compilation is not counted."""
    net: str = "conv"
    """conv (from a latent), unet (from noise of the image's shape), additive (z + UNet(z))."""
    head: str = "tanh"
    latent: int = 128
    channels: int = 64
    blocks: int = 1
    labels: bool = False
    """A generator of asked digits, with plans within each class."""
    n: int = 1024
    """Generated images a step."""
    m: int = 2048
    """Real images a step."""
    k: int = 2048
    """Images of the self term's cloud."""
    self_cloud: str = "second"
    """second (generated for it), queue (of the last steps), same."""
    epsilons: tuple[float, ...] = (0.01,)
    """In mean costs of real images to each other; their velocities are averaged."""
    epsilon_start: float = 1.0
    """Epsilons begin this many times higher and fall geometrically over the first half."""
    threshold: float = 1e-2
    iterations: int = 100
    rate: float = 1e-3
    b1: float = 0.9
    ema: float = 0.998
    seed: int = 1
    call: int = 50
    """Steps of one dispatched call."""
    share: bool = False
    """Time the solves by themselves, after training."""
    keep: bool = False
    """Write the averaged parameters, float16."""


class Carry(NamedTuple):
    """What a training step hands to the next."""

    params: dict
    average: dict
    moments: optax.OptState
    queue: jax.Array
    step: jax.Array


class Log(NamedTuple):
    """Of one step, or the mean of several."""

    square: jax.Array
    neighbours: jax.Array
    iterations: jax.Array
    self_iterations: jax.Array
    unconverged: jax.Array
    error: jax.Array


def network(setting: Setting):
    """The module and its function (params, z, labels) -> images [n, h, w, c]."""
    classes = images.NUM_CLASSES if setting.labels else 0
    if setting.net == "conv":
        net = generators.ConvGenerator(
            channels=setting.channels,
            num_blocks=setting.blocks,
            head=setting.head,
            num_classes=classes,
        )
        return net, net.apply
    field = unet.UNet(setting.channels, (1, 2, 2), setting.blocks, num_classes=classes)

    def apply_fn(params, z, labels=None):
        out: Any = field.apply(params, z, jnp.zeros(z.shape[0]), labels)
        out = out + z if setting.net == "additive" else out
        return jnp.tanh(out) if setting.head == "tanh" else out

    return field, apply_fn


def latent(setting: Setting, key, count):
    shape = (setting.latent,) if setting.net == "conv" else (28, 28, 1)
    return jax.random.normal(key, (count, *shape))


def labels_of(setting: Setting, count):
    """As many of each class, in order; None for a generator without labels."""
    if not setting.labels:
        return None
    return jnp.repeat(jnp.arange(images.NUM_CLASSES), count // images.NUM_CLASSES)


def generate(setting: Setting, apply_fn, params, key, count):
    labels = labels_of(setting, count)
    return apply_fn(params, latent(setting, key, count), labels).reshape(count, -1)


def velocity(setting: Setting, x, y, other, scales, threshold, iterations):
    """Mean over epsilons of the velocity of x [n, d], within each class if there are labels."""

    def of_clouds(x, y, other, scale):
        v, info = sinkhorn_velocity(
            x, y, scale, self_cloud=other, limits=Limits(threshold, iterations)
        )
        solves = info.xy.num_iterations, info.xx.num_iterations
        return v, (info.neighbours, *solves, ~info.converged, info.marginal_error)

    if setting.labels:
        clouds = [z.reshape(images.NUM_CLASSES, -1, z.shape[-1]) for z in (x, y, other)]
        each: Any = jax.vmap(of_clouds, (0, 0, 0, None))
        results = [each(*clouds, scale) for scale in scales]
    else:
        results = [of_clouds(x, y, other, scale) for scale in scales]
    v = sum(v for v, _ in results) / len(results)
    logs = [log for _, log in results]
    log = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves).astype(float)), *logs)
    return v.reshape(x.shape), log


def make_steps(setting: Setting, apply_fn, transform, rows):
    """``steps(carry, pixels, key, rate, scales, threshold, iterations) -> (carry, mean log)``."""

    def step(carry: Carry, pixels, key, rate, scales, threshold, iterations):
        keys = jax.random.split(jax.random.fold_in(key, carry.step), 3)
        count = setting.m // rows.shape[0]
        picks = jax.random.randint(keys[0], (rows.shape[0], count), 0, rows.shape[1])
        picks = jnp.take_along_axis(rows, picks, axis=1).ravel()
        y = images.scale(pixels[picks]).reshape(setting.m, -1)
        other = carry.queue
        if setting.self_cloud == "second":
            other = generate(setting, apply_fn, carry.params, keys[1], setting.k)
            other = jax.lax.stop_gradient(other)

        def loss_fn(params):
            x = generate(setting, apply_fn, params, keys[2], setting.n)
            fixed = jax.lax.stop_gradient(x)
            own = fixed if setting.self_cloud == "same" else other
            v, log = velocity(setting, fixed, y, own, scales, threshold, iterations)
            return 0.5 * jnp.mean((x - fixed - v) ** 2), (fixed, jnp.mean(v**2), log)

        gradient, (x, square, log) = jax.grad(loss_fn, has_aux=True)(carry.params)
        updates, moments = transform.update(gradient, carry.moments)
        rate = rate * jnp.minimum(1.0, (carry.step + 1) / WARM_UP)
        params = jax.tree.map(lambda p, u: p - rate * u, carry.params, updates)
        average = optax.incremental_update(params, carry.average, 1 - setting.ema)
        queue = carry.queue
        if setting.self_cloud == "queue":
            by_class = (images.NUM_CLASSES if setting.labels else 1, -1, x.shape[-1])
            new = jnp.concatenate([queue.reshape(by_class), x.reshape(by_class)], axis=1)
            queue = new[:, x.shape[0] // by_class[0] :].reshape(queue.shape)
        return Carry(params, average, moments, queue, carry.step + 1), Log(square, *log)

    def steps(carry, *arguments):
        carry, logs = jax.lax.scan(lambda c, _: step(c, *arguments), carry, None, setting.call)
        return carry, jax.tree.map(jnp.mean, logs)

    return steps


def structure(setting: Setting) -> Setting:
    """What of a setting a compiled program depends on; the rest is given to it."""
    free: dict[str, Any] = {
        "name": "",
        "seconds": 0.0,
        "threshold": 0.0,
        "iterations": 1,
        "rate": 0.0,
    }
    free |= {"epsilons": (0.0,) * len(setting.epsilons), "epsilon_start": 1.0, "seed": 0}
    return dataclasses.replace(setting, share=False, keep=False, **free)


@dataclasses.dataclass
class Built:
    """The compiled programs of settings of one structure."""

    steps: jax.stages.Compiled
    draw: jax.stages.Compiled
    apply_fn: Any
    compile_s: float


def begin(setting: Setting, key) -> Carry:
    """Where a setting starts."""
    net, apply_fn = network(setting)
    params = jax.jit(functools.partial(_init, setting, net))(jax.random.key(setting.seed))
    queue = np.zeros((1, 784), np.float32)
    if setting.self_cloud == "queue":
        queue = generate(setting, apply_fn, params, key, setting.k)
    moments = make_transform(setting).init(params)
    carry = Carry(params, params, moments, jnp.asarray(queue), jnp.asarray(0))
    return jax.tree.map(jnp.copy, carry)


def make_transform(setting: Setting) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=setting.b1, b2=0.99))


def build(setting: Setting, pixels, rows, key) -> Built:
    """Compiles for a structure; in a thread while another trains."""
    start = time.perf_counter()
    _, apply_fn = network(setting)
    carry = begin(setting, key)
    steps = make_steps(setting, apply_fn, make_transform(setting), rows)
    arguments = (pixels, key, 0.0, (0.0,) * len(setting.epsilons), 0.0, 1)
    steps = jax.jit(steps, donate_argnums=0).lower(carry, *arguments).compile()

    def draw(params, key):
        x = generate(setting, apply_fn, params, key, DRAWN)
        return images.unscale(x.reshape(DRAWN, 28, 28, 1))

    draw = jax.jit(draw).lower(carry.params, key).compile()
    return Built(steps, draw, apply_fn, time.perf_counter() - start)


def _init(setting, net, key):
    z, labels = latent(setting, key, 2), jnp.zeros(2, int) if setting.labels else None
    times = () if setting.net == "conv" else (jnp.zeros(2),)
    return net.init(key, z, *times, labels)


def schedule(setting: Setting, passed: float, unit: float):
    """Learning rate and epsilons when this share of the time has passed."""
    rate = setting.rate * 0.5 * (1 + np.cos(np.pi * min(passed, 1.0)))
    factor = setting.epsilon_start ** max(0.0, 1 - 2 * passed)
    return float(rate), tuple(float(value * factor * unit) for value in setting.epsilons)


def train(setting: Setting, built: Built, pixels, key, unit):
    """The carry after the setting's seconds, and a record of how it went."""
    carry, calls, marks = begin(setting, key), [], []
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < setting.seconds:
        rate, scales = schedule(setting, spent / setting.seconds, unit)
        limits = setting.threshold, setting.iterations
        carry, log = built.steps(carry, pixels, key, rate, scales, *limits)
        marks.append({k: float(v) for k, v in log._asdict().items()})
        calls.append(time.perf_counter() - begun - spent)
        if not np.isfinite(marks[-1]["square"]):
            break
    count = len(calls) * setting.call
    mean = {k: float(np.mean([mark[k] for mark in marks])) for k in marks[0]}
    record = {
        "steps": count,
        "train_s": time.perf_counter() - begun,
        "step_ms": 1e3 * float(np.median(calls)) / setting.call,
        "compile_s": built.compile_s,
        "temporary_mib": _temporary(built.steps) / 2**20,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(carry.params)),
        "unconverged_solves": round(mean.pop("unconverged") * count),
        "log": mean,
        "log_quarters": [marks[i] for i in np.linspace(0, len(marks) - 1, 5).astype(int)],
    }
    return carry, record


def _temporary(program: Any) -> int:
    """Bytes that a compiled program needs besides its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def solve_ms(setting: Setting, built: Built, carry, pixels, unit):
    """Milliseconds of a step's solves by themselves, on clouds of the trained generator."""

    def solves(params, key, scales, threshold, iterations):
        x, other = (
            generate(setting, built.apply_fn, params, k, count)
            for k, count in zip(jax.random.split(key), (setting.n, setting.k), strict=True)
        )
        y = images.scale(pixels[: setting.m]).reshape(setting.m, -1)

        def one(total, shift):
            v, _ = velocity(setting, x + shift, y, other, scales, threshold, iterations)
            return total + jnp.mean(v), None

        return jax.lax.scan(one, 0.0, 1e-6 * jnp.arange(setting.call))[0]

    _, scales = schedule(setting, 1.0, unit)
    run = functools.partial(
        jax.jit(solves),
        carry.params,
        jax.random.key(7),
        scales,
        setting.threshold,
        setting.iterations,
    )
    float(run())
    start = time.perf_counter()
    float(run())
    return 1e3 * (time.perf_counter() - start) / setting.call


def grid(pixels):
    """The first images as one [h, w]; of a generator with labels a row of each class."""
    tiles = pixels[: GRID**2].reshape(GRID, GRID, 28, 28)
    return tiles.transpose(0, 2, 1, 3).reshape(28 * GRID, 28 * GRID)


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs a plan of settings and writes its table."""

    plan: str
    """JSON file: a list of settings, in the order in which they run."""
    dataset: str = "mnist"
    data_dir: str = "data"
    out: str = "runs/generator-search"
    budget: float = 500.0
    """Seconds for everything; settings that would not end in time are left out."""
    num_images: int = 10_000
    commit: str = ""
    """Recorded where there is no repository to ask."""


def main(config: Config) -> None:
    begun = time.perf_counter()
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    plan = [Setting(**fields) for fields in json.loads(pathlib.Path(config.plan).read_text())]
    smoke = config.num_images < 10_000
    real = [judge.load(config.dataset, config.data_dir, part) for part in ("train", "test")]
    pixels, key = jnp.asarray(real[0].pixels), jax.random.key(11)
    sample = images.scale(pixels[:4000]).reshape(4000, -1)
    unit = float(epsilon.mean_cost(sample, sample))
    by_class = [np.flatnonzero(real[0].labels == label) for label in range(images.NUM_CLASSES)]
    least = min(map(len, by_class))
    class_rows = jnp.asarray(np.stack([picks[:least] for picks in by_class]))
    all_rows = jnp.arange(len(pixels))[None]
    workers = concurrent.futures.ThreadPoolExecutor(1), concurrent.futures.ThreadPoolExecutor(1)
    critic = workers[0].submit(
        lambda: judge.Judge(config.dataset, *real, num_images=config.num_images)
    )
    rows, grids, pending = [], [], []
    head = {
        "dataset": config.dataset,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "commit": config.commit or common.commit(),
        "mean_cost": unit,
    }
    print(head, flush=True)

    programs: dict[Setting, concurrent.futures.Future] = {}
    for setting in map(structure, plan):
        if setting not in programs:
            picks = class_rows if setting.labels else all_rows
            programs[setting] = workers[1].submit(build, setting, pixels, picks, key)

    def score(setting, record, drawn):
        verdict = critic.result()
        scores = verdict(drawn)
        rows.append({**dataclasses.asdict(setting), **record, **scores})
        grids.append(grid(drawn))
        (out / f"{config.dataset}.json").write_text(json.dumps({**head, "rows": rows}, indent=1))
        wide = np.concatenate([np.pad(tile, 6, constant_values=90) for tile in grids], axis=1)
        Image.fromarray(wide).save(out / f"{config.dataset}.png")
        print(setting.name, {k: round(v, 4) for k, v in scores.items()}, flush=True)

    for setting in plan:
        needed = setting.seconds + (0 if smoke else 25)
        left = config.budget - (time.perf_counter() - begun)
        try:
            ready = programs[structure(setting)].result(max(left - needed, 0))
        except Exception as error:  # one setting that does not fit must not end the others
            print(setting.name, "failed or left out:", repr(error)[:500], flush=True)
            continue
        carry, record = train(setting, ready, pixels, key, unit)
        print(setting.name, {k: v for k, v in record.items() if k != "log_quarters"}, flush=True)
        count = -(-config.num_images // DRAWN)
        keys = [jax.random.fold_in(jax.random.key(9), i) for i in range(count)]
        drawn = np.concatenate([np.asarray(ready.draw(carry.average, k)) for k in keys])
        # Of a generator with labels the first hundred, which are shown, have all of them.
        order = np.arange(DRAWN).reshape(GRID, -1).T.ravel() if setting.labels else slice(None)
        drawn[:DRAWN] = drawn[:DRAWN][order] if setting.labels else drawn[:DRAWN]
        pending.append(workers[0].submit(score, setting, record, drawn[: config.num_images]))
        if setting.share:
            record["solve_ms"] = solve_ms(setting, ready, carry, pixels, unit)
            print(setting.name, "solves", record["solve_ms"], "ms a step", flush=True)
        if setting.keep:
            leaves: Any = {
                jax.tree_util.keystr(path): np.asarray(leaf, np.float16)
                for path, leaf in jax.tree_util.tree_leaves_with_path(carry.average)
            }
            np.savez(out / f"{config.dataset}-{setting.name}.npz", **leaves)
    for future in pending:
        if problem := future.exception():
            print("scoring failed:", repr(problem)[:500], flush=True)
    columns = ("fd", "kd", "precision", "recall", "coverage", "class_tv", "memorised")
    for row in rows:
        values = " ".join(f"{name} {row[name]:.3f}" for name in columns)
        print(f"{row['name']:14} {row['train_s']:5.0f} s {row['steps']:6d} steps", values)
    sys.stdout.flush()
    os._exit(0)  # programs of settings that were left out may still compile


if __name__ == "__main__":
    main(tyro.cli(Config))
