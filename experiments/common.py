"""Plumbing that every driver shares: command line, output folder, log, resume, timing."""

import contextlib
import copy
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import sinkflow
from sinkflow import checkpoint, flow, models, ode, pool, sampling, train
from sinkflow.fit import Field, check_finite

COMPILE_EVENT = "/jax/core/compile/"
PACKAGES = ("sinkflow", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "POT", "numpy")


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Settings that every neural Sinkhorn gradient flow needs."""

    time: Literal["geodesic", "flow"] = "geodesic"
    """Time label of pool rows: geodesic (s in [0, 1]) or flow (the paper's)."""
    epsilon: float = 0.02
    """Entropic regularisation [length^2]; GeomLoss's blur squared."""
    step_size: float = 0.5
    """Euler step of the particle flow [flow time]; in geodesic time the last step is 1."""
    flow_steps: int = 8
    """Euler steps of the particle flow."""
    num_particles: int = 1024
    """Particles in each cloud."""
    num_clouds: int = 64
    """Simulated pairs of clouds in the pool."""
    allow_unconverged: bool = False
    """Train on the pool even if some of its Sinkhorn solves did not converge."""
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Widths of the velocity network's hidden layers."""
    batch_size: int = 1024
    """Rows of each optimiser step, over all devices."""
    train_steps: int = 4_000
    """Optimiser steps."""
    row_power: float = 2.0
    """A row's time is u^row_power of its path's, u uniform: above 1 early times are seen more
    often, where paths part. Flow time takes its stored states alike."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    ema_decay: float = 0.999
    """Decay of the moving average of parameters that samples are drawn with."""
    steps_per_call: int = 200
    """Optimiser steps of one dispatched call."""
    checkpoint_every: int = 1_000
    """Optimiser steps between checkpoints."""
    nfe: tuple[int, ...] = (1, 2, 5, 10, 100)
    """Network evaluations for each sample, one evaluation of the metrics each."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = ""
    """Output folder; by default one under runs/, named after the run."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {}
    SELECTION: ClassVar[tuple[str, ...]] = ()
    """Settings that choose what to run, not how: a later start of the run may change them."""
    DIM: ClassVar[int]
    """Dimension of the particles."""

    def source(self, key: jax.Array, n: int) -> jax.Array:
        """Source samples [n, DIM]."""
        raise NotImplementedError

    def folder(self) -> pathlib.Path:
        """``out``, or runs/NAME."""
        return pathlib.Path(self.out or f"runs/{self.name()}{'-smoke' if self.smoke else ''}")

    def name(self) -> str:
        """What distinguishes the run from its siblings."""
        raise NotImplementedError

    def step_sizes(self) -> jax.Array:
        """Steps of the particle flow [flow time]."""
        full_last = self.time == "geodesic"
        return flow.step_sizes(self.step_size, self.flow_steps, full_last=full_last)

    def clouds_per_call(self) -> int:
        """Clouds simulated side by side: what 256 MiB of cost matrices hold, a divisor of all.

        On a CPU one cloud fills the machine, and side by side each waits for the slowest solve.
        """
        most = 1 if jax.default_backend() == "cpu" else max(1, 2**26 // self.num_particles**2)
        return max(k for k in range(1, min(most, self.num_clouds) + 1) if self.num_clouds % k == 0)

    def pool_settings(self) -> dict[str, Any]:
        """The keywords of :func:`sinkflow.pool.build` that these settings decide."""
        return {
            "num_clouds": self.num_clouds,
            "num_particles": self.num_particles,
            "epsilon": self.epsilon,
            "step_sizes": self.step_sizes(),
            "time": self.time,
            "clouds_per_call": self.clouds_per_call(),
            "allow_unconverged": self.allow_unconverged,
        }

    def horizon(self) -> float:
        """Time at which the field ends."""
        return pool.horizon(self.step_sizes(), self.time)


def cli(config_class: Any, description: str | None) -> Any:
    """The config from the command line; ``--smoke`` starts from the class's SMOKE values."""
    smoke = "--smoke" in sys.argv[1:]
    default = config_class(**config_class.SMOKE, smoke=True) if smoke else config_class()
    return parse(default, description)


def parse(default: Any, description: str | None) -> Any:
    """A config like ``default`` from the command line, whose flags change it."""
    about = header(description)
    return tyro.cli(type(default), default=default, description=about, prog=program())


def header(doc: str | None) -> str:
    """A driver's docstring for ``--help``, which joins lines that no blank line parts."""
    return "\n\n".join(line for line in (doc or "").splitlines() if line)


def program() -> str:
    """How the user started this: python -m experiments.NAME."""
    return f"python -m experiments.{pathlib.Path(sys.argv[0]).stem}"


@contextlib.contextmanager
def clear_errors():
    """Ends the program with one line for what a user can mend, not with a traceback.

    The traceback is shown when SINKFLOW_TRACEBACK is set.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
        if os.environ.get("SINKFLOW_TRACEBACK"):
            raise
        sys.exit(f"error: {error} (SINKFLOW_TRACEBACK=1 shows where)")


def run_driver(main: Callable[[Any], Any], config_class: type, doc: str | None) -> None:
    """Parses the command line and runs a driver."""
    with clear_errors():
        main(cli(config_class, doc))


def progress(description: str) -> Callable:
    """A wrapper of iterables that shows a bar on a terminal."""
    return lambda iterable, **options: tqdm(iterable, description, disable=None, **options)


def require_finite(name: str, values: Any) -> None:
    """Raises ValueError with the number of non-finite rows of a cloud."""
    rows = ~np.isfinite(np.asarray(values)).reshape(len(values), -1).all(axis=1)
    if rows.any():
        raise ValueError(f"{name}: {rows.sum()} of {len(rows)} particles are not finite")


def recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """What a record tells of a config: all but the folder, which is of no use elsewhere."""
    return {name: value for name, value in settings.items() if name != "out"}


class Run:
    """One run's output folder: config.json, metrics.jsonl, checkpoints/, result.json.

    ``config`` is a dataclass with ``folder()`` and ``SELECTION``, like :class:`FlowConfig`, and
    with ``DRIVER``, the driver's name, unless it is of the driver's module.

    Raises:
      ValueError: the folder cannot be written, or belongs to a run with another config.
    """

    def __init__(self, config: Any):
        self.config = dataclasses.asdict(config)
        driver = type(config).__module__.rpartition(".")[2]
        driver = pathlib.Path(sys.argv[0]).stem if driver == "__main__" else driver
        driver = getattr(config, "DRIVER", driver)
        free = {"out", *config.SELECTION}
        settings = {name: value for name, value in self.config.items() if name not in free}
        self.settings = {"driver": driver, **settings}
        self.out = config.folder()
        self.times: dict[str, float] = {"compile": 0.0}
        self.resumed_from: int | None = None
        self.pool_restored = False
        self.start = time.perf_counter()
        # Read now: by the end of a long run the checkout may be another.
        self.commit = commit()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.out):
                pass
        except OSError as error:
            raise ValueError(f"out is {self.out}: cannot write there ({error.strerror})") from None
        saved = self.out / "config.json"
        # Before its first result a run has nothing to lose: settings may be mended in place.
        results = ("pool", "cells", "checkpoints", "*/checkpoints")
        started = any(any(self.out.glob(name)) for name in results)
        if saved.exists() and started:
            checkpoint.check_config(self.out, json.loads(saved.read_text()), self.settings)
        else:
            write_json(saved, self.settings)
        self.log_file = self.out / "metrics.jsonl"
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)

    def _count_compilation(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILE_EVENT):
            self.times["compile"] += duration_secs

    @contextlib.contextmanager
    def timed(self, phase: str):
        """Adds the block's seconds to ``times[phase]``.

        Compilation, and blocks timed within this one, count for themselves alone.
        """
        begin, counted = time.perf_counter(), sum(self.times.values())
        yield
        seconds = time.perf_counter() - begin - (sum(self.times.values()) - counted)
        self.times[phase] = self.times.get(phase, 0.0) + seconds

    def stage(self, name: str) -> "Run":
        """This run in a subfolder: a log and checkpoints of its own, the same clock."""
        part = copy.copy(self)
        part.out = self.out / name
        part.out.mkdir(exist_ok=True)
        part.resumed_from = None
        part.log_file = part.out / self.log_file.name
        return part

    def log(self, step: int, **values: Any) -> None:
        """Appends a line to metrics.jsonl.

        Raises:
          FloatingPointError: a value is not finite.
        """
        values = check_finite(step, values)
        with self.log_file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def logged(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged quantity."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()]
        lines = [line for line in lines if name in line]
        return [line["step"] for line in lines], [line[name] for line in lines]

    def forget_after(self, step: int) -> None:
        """Drops log lines past a restored step, and a line that a kill left half-written."""
        lines = self.log_file.read_text().splitlines() if self.log_file.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_text(self.log_file, "".join(line + "\n" for line in kept))

    def restored_pool(self, like: Any, make: Callable[[], Any]) -> Any:
        """The pool that an earlier start of this run saved, or ``make()``, then saved."""
        folder = self.out / "pool"
        if checkpoint.latest_step(folder) is not None:
            self.pool_restored = True
            return checkpoint.restore(folder, like, self.settings)
        made = make()
        checkpoint.save(folder, 0, made, self.settings)
        return made

    def circumstances(self) -> dict[str, Any]:
        """What a number depends on besides its config: commit, versions, device."""
        return {
            "commit": self.commit,
            "versions": {"python": platform.python_version(), **versions()},
            "device": device(),
        }

    def finish(self, **results: Any) -> dict[str, Any]:
        """Writes result.json: results, config, commit, versions, device and times."""
        times = {**self.times, "total": time.perf_counter() - self.start}
        result = {
            **results,
            "times": {name: round(seconds, 2) for name, seconds in times.items()},
            # The times are those of this start: less than the run's if it was resumed.
            "resumed_from": self.resumed_from,
            "pool_restored": self.pool_restored,
            "config": recorded(self.config),
            **self.circumstances(),
        }
        write_json(self.out / "result.json", result)
        return result


def learn(run: Run, config: FlowConfig, key, target: Callable) -> tuple[Field, dict]:
    """Fills the pool and fits the velocity; both resume where an earlier start stopped.

    Args:
      run: owns the folder, the log and the clock.
      config: of the flow and the training.
      key: PRNG key.
      target: ``(key, n) -> [n, DIM]``.

    Returns:
      The field, with averaged parameters, and the pool's certificates in numbers.
    """
    key_pool, key_init, key_train, key_check = jax.random.split(key, 4)
    share = check_batch(config.batch_size)
    check_steps(
        config.steps_per_call,
        train_steps=config.train_steps,
        checkpoint_every=config.checkpoint_every,
    )
    check_pool(config)
    check_settings(config)
    if not config.nfe:
        raise ValueError("nfe is empty; give at least one number of network evaluations")
    for nfe in config.nfe:
        ode.num_steps(nfe)
    for name, sampler in (("source", config.source), ("target", target)):
        require_finite(name, sampler(key_check, config.num_particles))
    with run.timed("pool"):
        rows, info = fill_pool(run, config, key_pool, target)
    with run.timed("train"):
        model, optimizer = network(config)
        step = train.make_step(model.apply, optimizer, ema_decay=config.ema_decay)
        draw = functools.partial(pool.sample, batch_size=share, power=config.row_power)
        state = fit(
            run,
            train.init(key_init, model, optimizer, config.DIM),
            train.drawing_step(step, draw),
            lambda part: rows,
            key=key_train,
            num_steps=config.train_steps,
            steps_per_call=config.steps_per_call,
            checkpoint_every=config.checkpoint_every,
            network=model,
            horizon=config.horizon(),
        )
    return Field(model.apply, state.ema_params, config.horizon()), pool.summary(info)


def network(config: FlowConfig):
    """The velocity field and its optimiser: Adam, linear warm-up, cosine decay to zero."""
    warmup, steps = config.train_steps // 20, config.train_steps
    rate = optax.warmup_cosine_decay_schedule(0, config.learning_rate, warmup, steps)
    return models.VelocityMLP(config.hidden_dims), optax.adam(rate)


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """A run's config.json.

    Raises:
      ValueError: no run in the folder.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"run is {folder}: there is no config.json; give a driver's output folder")
    return json.loads((folder / "config.json").read_text())


def load_field(folder: pathlib.Path) -> tuple[FlowConfig, Field]:
    """The config and the newest field of a run.

    Raises:
      ValueError: no run, or no checkpoint of one, in the folder.
    """
    settings = read_settings(folder)
    driver = importlib.import_module(f"experiments.{settings['driver']}")
    if not issubclass(driver.Config, FlowConfig):
        raise ValueError(
            f"run is {folder}: {settings['driver']} draws its samples itself; start it again with "
            "the same settings and the --num-samples and --nfe you want"
        )
    if checkpoint.latest_step(folder / "checkpoints") is None:
        raise ValueError(f"run is {folder}: it has no checkpoint yet; start its driver again")
    values = {name: value for name, value in settings.items() if name != "driver"}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    config = driver.Config(**{**values, **lists})
    model, optimizer = network(config)
    like = jax.eval_shape(
        lambda key: train.init(key, model, optimizer, config.DIM), jax.random.key(0)
    )
    state = checkpoint.restore(folder / "checkpoints", like, settings)
    return config, Field(model.apply, state.ema_params, config.horizon())


def fill_pool(run: Run, config: FlowConfig, key, target):
    """The pool and its certificates, from the run's folder if they are there."""
    like = (
        pool.abstract(config.num_clouds * config.num_particles, config.flow_steps, config.DIM),
        pool.abstract_info(config.num_clouds, config.flow_steps),
    )
    return run.restored_pool(
        like,
        lambda: pool.build(
            key,
            config.source,
            target,
            **config.pool_settings(),
            progress=progress("pool"),
        ),
    )


def draw_samples(run: Run, field: Field, x0, counts: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Samples from ``x0`` for every number of network evaluations."""
    with run.timed("sample"):
        return {
            str(nfe): np.asarray(
                sampling.nsgf(field.apply_fn, field.params, x0, nfe=nfe, horizon=field.horizon)
            )
            for nfe in counts
        }


def fit(
    run: Run,
    state: train.TrainState,
    step: Callable,
    data: Callable[[int], Any],
    *,
    num_steps: int,
    steps_per_call: int,
    checkpoint_every: int,
    refresh_every: int = 0,
    description: str = "training",
    watch: Callable[[int, Any], None] | None = None,
    **options: Any,
) -> train.TrainState:
    """:func:`sinkflow.fit` with the run's folder, log and settings, and a bar.

    Args:
      run: owns the folder and the log.
      state: fresh state; replaced by the checkpoint's if there is one.
      step: one step, see :func:`sinkflow.fit`.
      data: makes what a part of the training draws from, from the part's number.
      num_steps: optimiser steps in all.
      steps_per_call: optimiser steps of one dispatched call.
      checkpoint_every: optimiser steps between checkpoints.
      refresh_every: optimiser steps of a part; 0 for one part, the whole training.
      description: what the bar is named.
      watch: sees the number of steps done and each call's info once it is logged, and may raise.
      options: further ones of :func:`sinkflow.fit`.

    Raises:
      ValueError: step counts that are not multiples of one another.
    """
    check_steps(
        steps_per_call,
        train_steps=num_steps,
        checkpoint_every=checkpoint_every,
        refresh_every=refresh_every or num_steps,
    )
    with tqdm(total=num_steps, desc=description, disable=None) as bar:

        def start(calls: range) -> range:
            run.forget_after(calls.start)
            bar.initial = bar.n = calls.start
            return calls

        def tell_memory(program: Any) -> None:
            needed = memory_needed(program) or math.nan
            tqdm.write(f"{description}: {needed / 1e9:.2f} GB on each device")

        def log(done: int, info: Any) -> None:
            run.log(done, **info._asdict())
            if watch is not None:
                watch(done, info)
            bar.update(steps_per_call)
            bar.set_postfix(loss=f"{float(info.loss):.4g}")

        state, report = sinkflow.fit(
            state,
            step,
            data,
            num_steps=num_steps,
            steps_per_call=steps_per_call,
            refresh_every=refresh_every,
            folder=run.out,
            config=run.settings,
            checkpoint_every=checkpoint_every,
            log=log,
            progress=start,
            compiled=tell_memory,
            **options,
        )
    run.resumed_from = report.resumed_from
    return state


def memory_needed(program: Any) -> int | None:
    """Bytes of each device that a compiled call needs: arguments, results and scratch."""
    sizes = program.memory_analysis()
    if sizes is None:  # not every backend tells
        return None
    own = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + own


def peak_memory() -> float | None:
    """Largest number of bytes that the first device has held [GB], where it tells."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else round(peak / 1e9, 2)


def check_steps(steps_per_call: int, **counts: int) -> None:
    """Raises ValueError that names the first count that whole calls do not make up."""
    check_positive_counts(steps_per_call=steps_per_call)
    for name, count in counts.items():
        if count < 1 or count % steps_per_call:
            raise ValueError(f"{name} is {count}; it must be a multiple of {steps_per_call}")


def check_pool(config: FlowConfig) -> None:
    """Raises ValueError unless there are rows, and the local devices can share them evenly."""
    check_positive_counts(num_clouds=config.num_clouds, num_particles=config.num_particles)
    rows, count = config.num_clouds * config.num_particles, jax.local_device_count()
    if rows % count:
        raise ValueError(
            f"num_clouds {config.num_clouds} times num_particles {config.num_particles} is {rows} "
            f"rows; they must be a multiple of {count} devices"
        )


def check_settings(config: FlowConfig) -> None:
    """Raises ValueError that names the first number that no network or training can have."""
    check_widths("hidden_dims", config.hidden_dims)
    check_ranges(
        config,
        row_power=(0 < config.row_power < math.inf, "(0, inf)"),
        learning_rate=(0 < config.learning_rate < math.inf, "(0, inf)"),
        ema_decay=(0 <= config.ema_decay < 1, "[0, 1)"),
    )


def check_widths(name: str, widths: tuple[int, ...]) -> None:
    """Raises ValueError unless every width is at least 1."""
    if any(width < 1 for width in widths):
        raise ValueError(f"{name} is {tuple(widths)}; each must be at least 1")


def check_ranges(config: Any, **ranges: tuple[bool, str]) -> None:
    """Raises ValueError that names the first setting outside of its range (inside, range)."""
    for name, (inside, allowed) in ranges.items():
        if not inside:
            raise ValueError(f"{name} is {getattr(config, name)}; it lies in {allowed}")


def check_positive_counts(**counts: int) -> None:
    """Raises ValueError that names the first count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


def check_batch(batch_size: int) -> int:
    """Rows of each device's share of a batch.

    Raises:
      ValueError: a batch that the local devices cannot share evenly.
    """
    count = jax.local_device_count()
    if batch_size < 1 or batch_size % count:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a positive multiple of {count} devices"
        )
    return batch_size // count


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a whole file or nothing."""
    with checkpoint.whole_file(path) as partial:
        partial.write_text(text)


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def commit() -> str:
    """The checkout's commit, marked when files differ from it, or "unknown" outside one.

    SINKFLOW_COMMIT goes before it: a copy of the files knows its commit from nowhere else.
    """
    if "SINKFLOW_COMMIT" in os.environ:
        return os.environ["SINKFLOW_COMMIT"]
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=12", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def device() -> dict[str, Any]:
    """Kind and number of the devices that ran, and the host's cores."""
    kinds = sorted({d.device_kind for d in jax.local_devices()})
    count = jax.local_device_count()
    return {"kind": ", ".join(kinds), "count": count, "host_cores": os.cpu_count()}
