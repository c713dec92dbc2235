"""How a row of the generators' table is trained, timed, drawn and judged."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sinkflow
from experiments.generators import draws, reports, training, updates
from experiments.generators.config import GeneratorConfig
from experiments.harness import stopping
from experiments.harness.training import memory_needed
from experiments.images import scoring
from sinkflow.data import images
from sinkflow.metrics.judge import shares

TIMED = 20  # draws of clouds whose losses are timed together


COVERED = 0.1  # a class is covered by this share of its share among real images


class Data(NamedTuple):
    """What rows are trained on and judged by."""

    train: images.Images
    scorer: scoring.Scorer


def train(config: GeneratorConfig, real, lock) -> tuple[training.Generator, dict[str, Any]]:
    """The generator, and what its training took; the lock is held from its first step on.

    Raises:
      FloatingPointError: a loss that is not finite.
    """
    made = training.prepare(config, real)
    time_loss = timer_of_loss(config, real, made.scales)
    calls, lines, told = [], [], {}

    def start(program: Any) -> None:
        told["memory_gb"] = round((memory_needed(program) or np.nan) / 1e9, 3)
        lock.acquire()
        told["begin"] = time.perf_counter()
        calls.append(told["begin"])

    def log(step: int, info: updates.Info) -> None:
        lines.append({name: float(value) for name, value in info._asdict().items()})
        calls.append(time.perf_counter())

    try:
        state, _ = sinkflow.fit(
            made.state,
            made.step,
            real,
            key=made.key,
            num_steps=config.train_steps,
            steps_per_call=config.steps_per_call,
            summary=updates.summary,
            compiled=start,
            log=log,
            stop=stopping.REQUESTS.asked,
        )
        if int(state.step) < config.train_steps:
            raise stopping.Stopped("finished rows are saved")
        seconds = time.perf_counter() - told["begin"]
        drawing = training.generator_of(config, made.net, state.ema_params)
        loss_ms = time_loss(drawing)
    finally:
        if "begin" in told:
            lock.release()
    # The median: while a call runs, programs of other rows may compile.
    step_ms = 1e3 * float(np.median(np.diff(calls))) / config.steps_per_call
    solves = {name: int(sum(line[name] for line in lines)) for name in ("unconverged", "solves")}
    record = {
        "steps": config.train_steps,
        "train_s": seconds,
        "step_ms": step_ms,
        "loss_ms": loss_ms,
        "memory_gb": told["memory_gb"],
        "iterations": float(np.mean([line["iterations"] for line in lines])),
        **solves,
        "largest_marginal_error": max(line["marginal_error"] for line in lines),
        "last_line": lines[-1],
        **made.scales,
    }
    return drawing, record


def timer_of_loss(config: GeneratorConfig, real, scales) -> Callable:
    """``time(generator) -> milliseconds`` of a step without its network, compiled here.

    That is the objective and its gradient in the samples.
    """
    of = updates.by_class(config, updates.objective(config))
    key_x, key_other, key_y = jax.random.split(config.key("evaluate"), 3)
    own = [draws.labels_of(config, count) for count in (config.n, config.k)]
    second = config.has_self_term() and config.self_cloud == "second"
    place = jax.local_devices()[0]
    y = jax.device_put(draws.draw_real(config, real, key_y, config.m), place)
    epsilons = [jnp.asarray(value) for value in scales["epsilon"]]

    def several(x, other, y):
        def loss(moved):
            cloud = other if second else moved
            return of(moved, cloud, y, key_y, epsilons, scales["temperature"])[0]

        def body(total, shift):
            value, gradient = jax.value_and_grad(loss)(x + shift)
            return total + value + jnp.mean(gradient), None

        return jax.lax.scan(body, 0.0, 1e-6 * jnp.arange(TIMED))[0]

    clouds = [jax.ShapeDtypeStruct((len(labels), y.shape[-1]), y.dtype) for labels in own]
    compiled = jax.jit(several).lower(*clouds, y).compile()

    def time_loss(made: training.Generator) -> float:
        x, other = (
            jax.device_put(made.draw(draws.latent(config, key, len(labels)), labels), place)
            for key, labels in zip((key_x, key_other), own, strict=True)
        )
        jax.block_until_ready(compiled(x, other, y))
        begin = time.perf_counter()
        jax.block_until_ready(compiled(x, other, y))
        return 1e3 * (time.perf_counter() - begin) / TIMED

    return time_loss


def draw(config: GeneratorConfig, made: training.Generator) -> np.ndarray:
    """Images [num_samples, h, w, c] of bytes; with labels all classes in turn."""
    count = -(-config.num_samples // config.sample_batch)
    batches = []
    for number in range(count):
        key = jax.random.fold_in(config.key("noise"), number)
        z = draws.latent(config, key, config.sample_batch)
        x = made.draw(z, reports.asked_labels(len(z)))
        batches.append(np.asarray(images.unscale(x)).reshape(-1, *config.SHAPE))
    return np.concatenate(batches)[: config.num_samples]


def spread(data: Data, drawn: np.ndarray) -> dict[str, Any]:
    """How much of the data's variety the images have: the shrinkage of a biased loss."""
    judge = data.scorer.judge
    clouds = drawn, judge.test
    variances = [float(np.var(judge.vectors_fn(cloud), axis=0).sum()) for cloud in clouds]
    found: dict[str, Any] = {"variance_ratio": variances[0] / variances[1]}
    if judge.features_fn is not None:
        own, real = (shares(judge.features_fn(cloud)[1]) for cloud in clouds)
        found["classes_covered"] = int(np.sum(own >= COVERED * real))
    return found
