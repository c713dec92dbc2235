"""Rows of the generators' table: what each varies, how one is trained, and what is kept of it."""

import dataclasses
import json
import pathlib
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sinkflow
from experiments import common, generating, generator_reports, imaging, judge
from experiments.generator_config import GeneratorConfig, preset
from sinkflow import generator, images

TIMED = 20  # draws of clouds whose losses are timed together
KEPT = 100  # images of a row that are kept to be shown
COVERED = 0.1  # a class is covered by this share of its share among real images


def _objectives() -> dict[str, dict[str, Any]]:
    """Objective, self cloud and gradient in all combinations that there are."""
    rows: dict[str, dict[str, Any]] = {
        "tutorial, L 100": {"objective": "transport", "num_iterations": 100}
    }
    for gradient in ("envelope", "implicit", "unrolled"):
        rows[f"entropic, {gradient}"] = {"objective": "entropic", "gradient": gradient}
    for cloud in generator.SELF_CLOUDS:
        for gradient in ("envelope", "implicit", "unrolled"):
            if (cloud, gradient) != ("diagonal", "implicit"):
                changes = {"objective": "divergence", "self_cloud": cloud, "gradient": gradient}
                rows[f"divergence, {cloud}, {gradient}"] = changes
    for objective in ("regression", "energy", "drift"):
        for cloud in generator.SELF_CLOUDS:
            rows[f"{objective}, {cloud}"] = {"objective": objective, "self_cloud": cloud}
    return rows


def _tutorial(epsilon: float, iterations: int, count: int, **changes: Any) -> dict[str, Any]:
    """Settings of the tutorial's loss; epsilon belongs to the whole squared distance there."""
    sizes = {"n": count, "m": count, "k": count}
    return {
        "objective": "transport",
        "epsilon": (epsilon / 2,),
        "epsilon_unit": "length2",
        "num_iterations": iterations,
        **sizes,
        **changes,
    }


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "final": {"regression, second": {}},
    "labels": {"plans within each class": {"labels": True, "n": 1000}},
    "objective": _objectives(),
    "tutorial": {
        "epsilon 1, L 50, m 300": _tutorial(1.0, 50, 300),
        "epsilon 1, L 10, m 200": _tutorial(1.0, 10, 200),
        "epsilon 0.1, L 100, m 200": _tutorial(0.1, 100, 200),
        "epsilon 1, L 50, m 300, as matrices": _tutorial(1.0, 50, 300, domain="scaling"),
        "epsilon 10, L 100, m 300": _tutorial(10.0, 100, 300),
    },
    "epsilon": {
        **{f"{value} mean costs": {"epsilon": (value,)} for value in (0.003, 0.01, 0.03, 0.1)},
        "from 0.24 to 0.03": {"epsilon_start": 8.0},
        "0.01, 0.03 and 0.1 summed": {"epsilon": (0.01, 0.03, 0.1)},
        "the same, each over its RMS": {"epsilon": (0.01, 0.03, 0.1), "normalize": True},
        "10 neighbours": {"epsilon": (10.0,), "epsilon_unit": "neighbours"},
    },
    "limits": {
        f"threshold {threshold}, cap {cap}": {"threshold": threshold, "max_iterations": cap}
        for threshold, cap in ((1e-3, 1000), (1e-2, 300), (3e-2, 300), (1e-1, 300), (1e-2, 10))
    },
    "clouds": {
        f"n {n}, m {m}, k {k}": {"n": n, "m": m, "k": k}
        for n, m, k in ((256, 512, 512), (512, 1024, 1024), (1024, 1024, 1024), (1024, 2048, 2048))
    },
    "network": {
        "latent 16": {"latent": 16},
        "latent 784": {"latent": 784},
        "linear head": {"head": "linear"},
        "perceptron": {"net": "mlp", "hidden_dims": (1024, 1024, 1024)},
        "UNet from pixel noise": {"net": "unet", "n": 512, "k": 1024, "m": 1024},
    },
    "rate": {f"{rate:g}": {"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)},
}


class Row(NamedTuple):
    """A row of one seed: where its cell lies, and how it is trained."""

    group: str
    label: str
    seed: int
    file: pathlib.Path
    config: GeneratorConfig


class Data(NamedTuple):
    """What rows are trained on and judged by."""

    train: images.Images
    scorer: imaging.Scorer


class Locks(NamedTuple):
    """Rows are prepared side by side; they train and are judged one after the other."""

    device: threading.Lock
    judge: threading.Lock


def rows(
    out: pathlib.Path, dataset: str, groups, seeds, *, smoke: bool = False, **changes: Any
) -> list[Row]:
    """All rows of the groups, with ``changes`` of the data set's settings."""
    found = []
    for group in groups:
        for label, own in GROUPS[group].items():
            for seed in seeds:
                settings = {**changes, **({} if smoke else own), "seed": seed}
                if smoke:
                    sizes = ("n", "m", "k", "latent", "hidden_dims", "epsilon")
                    settings |= {k: v for k, v in own.items() if k not in sizes}
                    settings |= {"epsilon": (0.1,), "epsilon_unit": "mean-cost"}
                file = out / "cells" / slug(group) / f"{slug(label)}-{seed}.json"
                config = preset(dataset, smoke=smoke, **settings)
                found.append(Row(group, label, seed, file, config))
    return found


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def run(row: Row, data: Data, locks: Locks) -> dict[str, Any]:
    """Trains, draws and judges a row; writes and returns its cell, with a picture's images."""
    real = generating.real_samples(row.config, data.train.pixels, data.train.labels)
    cell = {"group": row.group, "row": row.label, "seed": row.seed}
    cell |= {"config": settings(row.config), **circumstances()}
    row.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        made, trained = train(row.config, real, locks.device)
    except FloatingPointError as error:
        cell["failed"] = str(error)
    else:
        drawn = draw(row.config, made)
        with locks.judge:
            cell |= {**trained, **data.scorer(drawn), **spread(data, drawn)}
        np.save(row.file.with_suffix(".npy"), drawn[:KEPT])
    common.write_json(row.file, cell)
    return cell


def circumstances() -> dict[str, Any]:
    """What a number depends on besides its config."""
    return {
        "commit": common.commit(),
        "versions": common.versions(),
        "device": common.device(),
    }


def train(config: GeneratorConfig, real, lock) -> tuple[generating.Generator, dict[str, Any]]:
    """The generator, and what its training took; the lock is held from its first step on.

    Raises:
      FloatingPointError: a loss that is not finite.
    """
    made = generating.training(config, real)
    time_loss = timer_of_loss(config, real, made.scales)
    calls, lines, told = [], [], {}

    def start(program: Any) -> None:
        told["memory_gb"] = round((common.memory_needed(program) or np.nan) / 1e9, 3)
        lock.acquire()
        told["begin"] = time.perf_counter()
        calls.append(told["begin"])

    def log(step: int, info: generating.Info) -> None:
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
            summary=generating.summary,
            compiled=start,
            log=log,
        )
        seconds = time.perf_counter() - told["begin"]
        drawing = generating.generator_of(config, made.net, state.ema_params)
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
    of = generating.by_class(config, generating.objective(config))
    key_x, key_other, key_y = jax.random.split(config.key("evaluate"), 3)
    own = [generating.labels_of(config, count) for count in (config.n, config.k)]
    second = config.has_self_term() and config.self_cloud == "second"
    one = jax.tree.map(generating._first_device, real)
    y = generating.draw_real(config, one, key_y, config.m)
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

    def time_loss(made: generating.Generator) -> float:
        x, other = (
            made.draw(generating.latent(config, key, len(labels)), labels)
            for key, labels in zip((key_x, key_other), own, strict=True)
        )
        jax.block_until_ready(compiled(x, other, y))
        begin = time.perf_counter()
        jax.block_until_ready(compiled(x, other, y))
        return 1e3 * (time.perf_counter() - begin) / TIMED

    return time_loss


def draw(config: GeneratorConfig, made: generating.Generator) -> np.ndarray:
    """Images [num_samples, h, w, c] of bytes; with labels all classes in turn."""
    count = -(-config.num_samples // config.sample_batch)
    batches = []
    for number in range(count):
        z = imaging.noise(config, number)
        x = made.draw(z, generator_reports.asked_labels(len(z)))
        batches.append(np.asarray(images.unscale(x)).reshape(-1, *config.SHAPE))
    return np.concatenate(batches)[: config.num_samples]


def spread(data: Data, drawn: np.ndarray) -> dict[str, Any]:
    """How much of the data's variety the images have: the shrinkage of a biased loss."""
    real = data.scorer.judge.test
    variances = [float(np.var(judge.flat(cloud), axis=0).sum()) for cloud in (drawn, real)]
    found: dict[str, Any] = {"variance_ratio": variances[0] / variances[1]}
    if data.scorer.judge.weights is not None:
        shares = [judge.shares(judge.look(data.scorer.judge.params, x)[1]) for x in (drawn, real)]
        found["classes_covered"] = int(np.sum(shares[0] >= COVERED * shares[1]))
    return found


def read(row: Row) -> dict[str, Any] | None:
    """A row's cell, if it has been run with these settings.

    Raises:
      ValueError: it was run with other settings.
    """
    if not row.file.is_file():
        return None
    cell = json.loads(row.file.read_text())
    now = json.loads(json.dumps(settings(row.config)))
    changed = [name for name, value in now.items() if cell["config"].get(name) != value]
    if changed:
        raise ValueError(
            f"{row.file} was run with another {changed[0]} ({cell['config'].get(changed[0])} "
            f"instead of {now[changed[0]]}); choose another --out"
        )
    return cell


def settings(config: GeneratorConfig) -> dict[str, Any]:
    """What a record tells of a config: all but where things lie."""
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in ("out", "data_dir")}
