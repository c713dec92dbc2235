"""How fast the UNet trains and samples: sinkflow against torchcfm's UNet of the same size.

Command:  python -m experiments.bench_unet --device gpu       (peer: pip install -e '.[bench]')
          python -m experiments.bench_unet --smoke            (a tiny network on the CPU)
Runtime:  nine minutes on an H200, most of it compilation; --budget bounds the whole. The smoke
          run takes half a minute on two CPU cores.
Expected: unet.json with a row for each batch size, library and setting, and their table in unet.md;
          what is missing, fails or does not compile in time says so in its row.
Source:   the CIFAR-10 network of arXiv:2401.14069; the peer is the UNet of torchcfm,
          arXiv:2302.00482, under torch.compile.

A training step is the same work on both sides: a batch of straight paths between noise and images
drawn on the device, gradient, clipped norm, Adam, moving average of the parameters; bfloat16
products, float32 parameters. Each row is a process of its own, one after the other. Steps are timed
in rounds of --steps-per-call, with one synchronisation at the end of each.

Floating-point operations are counted from our network's forward pass, convolutions and matrix
products only, two for each multiplication and addition; training counts three forward passes, as is
usual. Both libraries are given the same count.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments import common, stages
from experiments.bench_worker import told
from sinkflow import sampling, train, unet

WORKER = "--worker"  # first argument of a process that measures one row
START = 120.0  # seconds for a worker to import its library, find its device and check itself
LEAST = 3  # timed rounds, however long they take
FALL = 3  # rounds over which the loss must fall before anything is timed
# Of bfloat16 against float32, relative; on a CPU both are 0.017.
LARGEST_ERROR = {"forward_error": 0.05, "gradient_error": 0.06}
IMAGES = 4096  # of the data set, on the device
# Dense bfloat16 rates of the makers' datasheets [FLOP/s].
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and for how long."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where the workers run."""
    batch_sizes: tuple[int, ...] = (128, 512)
    """Images of a training step."""
    peers: tuple[Literal["sinkflow", "torchcfm"], ...] = ("sinkflow", "torchcfm")
    """Libraries to measure; rows of others that the output folder has are kept."""
    compile_modes: tuple[str, ...] = ("default", "max-autotune")
    """Modes of torch.compile, a row each; "eager" does not compile."""
    compile_limit: float = 150.0
    """Seconds that one program may take to compile."""
    time_limit: float = 4.0
    """Seconds of repeated rounds of each measurement."""
    budget: float = 600.0
    """Seconds after which nothing is begun and what runs is stopped."""
    steps_per_call: int = 20
    """Training steps of a round; with sinkflow they are one dispatched call."""
    sample_batch: int = 512
    """Images sampled together, by the row of the largest batch size; 0: do not sample."""
    nfe: int = 50
    """Network evaluations for each sample, by Euler's method."""
    flat: bool = True
    """sinkflow: one vector for all parameters; clipping, Adam and average are then a few passes."""
    flash: bool = True
    """sinkflow: cuDNN's fused attention, on a GPU."""
    dropout_key: Literal["rbg", "threefry2x32", "philox4x32"] = "rbg"
    """sinkflow: generator of all random numbers of a step."""
    xla_flags: str = ""
    """sinkflow: appended to the XLA_FLAGS of its processes."""
    channels: int = 128
    """Width of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level, in units of ``channels``."""
    num_blocks: int = 2
    """Residual blocks of a level."""
    attention: int = 16
    """Height at which blocks attend [pixels]."""
    head_dim: int = 64
    """Width of an attention head."""
    dropout: float = 0.1
    """Rate within residual blocks."""
    image_size: int = 32
    """Height and width of the images, which have three channels."""
    learning_rate: float = 2e-4
    """Of Adam, constant."""
    ema_decay: float = 0.9999
    """Of the moving average of parameters."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = "runs/bench-unet"
    """Output folder."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {
        "batch_sizes": (4,),
        "compile_modes": ("eager",),
        "time_limit": 0.2,
        "budget": 120.0,
        "steps_per_call": 4,
        "sample_batch": 4,
        "nfe": 2,
        "channels": 32,
        "multipliers": (1,),
        "num_blocks": 1,
        "attention": 8,
        "head_dim": 16,
        "image_size": 8,
        "xla_flags": "--xla_backend_optimization_level=0",  # compiles twice as fast
        "learning_rate": 2e-3,
        "out": "runs/bench-unet-smoke",
    }

    def network(self, **changes: Any) -> unet.UNet:
        """The network that is measured."""
        settings: dict[str, Any] = {
            "multipliers": self.multipliers,
            "num_blocks": self.num_blocks,
            "attention": (self.attention,),
            "head_dim": self.head_dim,
            "dropout": self.dropout,
            "flash": self.flash,
        }
        return unet.UNet(self.channels, **{**settings, **changes})

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a batch of images [n, h, w, c]."""
        return (batch, self.image_size, self.image_size, 3)


def main(config: Config) -> dict:
    """Measures what is selected; makes the table from the record alone."""
    common.check_positive_counts(
        **{f"batch_sizes {size}": size for size in config.batch_sizes},
        nfe=config.nfe,
        steps_per_call=config.steps_per_call,
    )
    if not config.batch_sizes or not config.compile_modes:
        raise ValueError("batch_sizes or compile_modes is empty; give at least one")
    # This process only counts; the device is its workers'.
    jax.config.update("jax_platforms", "cpu")
    bench = Bench(config)
    bench.run()
    record = json.loads(bench.path.read_text())
    text = table(record)
    common.write_text(bench.out / "unet.md", text)
    print(f"\n{text}\n{bench.path}")
    return record


class Bench:
    """Rows as they come, each written down at once beside those that the folder had before."""

    def __init__(self, config: Config):
        self.config, self.commit = config, common.commit()
        self.out = pathlib.Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "unet.json"
        self.rows = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        self.deadline = time.time() + config.budget
        self.flops = forward_flops(config.network(flash=False), config.shape(1))

    def run(self) -> None:
        """One process after another: first every library once, then the peer's other settings."""
        print(f"forward: {self.flops / 1e9:.2f} GFLOP an image", flush=True)
        first, *others = self.config.compile_modes
        for batch in self.config.batch_sizes:
            for peer in self.config.peers:
                self.measure(peer, batch, "" if peer == "sinkflow" else first)
        for mode in others if "torchcfm" in self.config.peers else ():
            for batch in self.config.batch_sizes:
                self.measure("torchcfm", batch, mode)

    def measure(self, peer: str, batch: int, mode: str) -> None:
        """One row; what its process reported is kept if it is stopped or dies."""
        settings = ours(self.config) if peer == "sinkflow" else mode
        row: dict[str, Any] = {"peer": peer, "setting": settings, "batch": batch}
        row |= {"commit": self.commit, "load_before": os.getloadavg()[0]}
        if time.time() > self.deadline:
            self.add({**row, "not_run": "the benchmark's time was spent"})
            return
        plan = {"config": dataclasses.asdict(self.config), "batch": batch, "mode": mode}
        plan["deadline"] = self.deadline
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "plan.json"
            common.write_json(file, plan)
            worker = Worker([peer, str(file)], environment(self.config, peer), self.deadline)
            for line in worker:
                row = self.add({**row, **line})
        if worker.reason:
            self.add({**row, "stopped" if "seconds" in row else "not_run": worker.reason})

    def add(self, row: dict) -> dict:
        """Prints the row, and writes the record with it in place of an older one."""
        if "seconds" in row:
            row |= rates(row, self.flops)
        self.rows = [old for old in self.rows if identity(old) != identity(row)] + [row]
        print(f"{' '.join(filter(None, map(str, identity(row))))}: {summary(row)}", flush=True)
        record = {
            "rows": self.rows,
            "forward_flops": self.flops,
            "config": common.recorded(dataclasses.asdict(self.config)),
            "commit": self.commit,
            "host_cores": os.cpu_count(),
        }
        common.write_json(self.path, record)
        return row


def identity(row) -> tuple:
    return row["peer"], row["setting"], row["batch"]


def ours(config: Config) -> str:
    """What tells one setting of sinkflow from another."""
    parts = [
        "one vector" if config.flat else "a tree",
        "cuDNN attention" if config.flash and config.device == "gpu" else "plain attention",
        config.dropout_key,
        config.xla_flags,
    ]
    return ", ".join(filter(None, parts))


def rates(row: dict, flops: float) -> dict:
    """What follows from the time of a step: images a second, FLOP/s and its part of the peak."""
    images = row["batch"] / row["seconds"]
    peak = PEAKS.get(row["device"])
    achieved = 3 * flops * images
    return {
        "images_per_second": images,
        "flop_per_second": achieved,
        "fraction_of_peak": achieved / peak if peak else None,
    }


def forward_flops(model, shape: tuple[int, ...]) -> float:
    """Of one application to images of that shape: convolutions and matrix products only."""
    x, t = (jax.ShapeDtypeStruct(size, jnp.float32) for size in (shape, shape[:1]))
    params = jax.eval_shape(model.init, jax.random.key(0), x, t)
    return count_flops(jax.make_jaxpr(model.apply)(params, x, t).jaxpr)


def count_flops(jaxpr) -> float:
    """Two for each multiplication of a convolution or matrix product in a program, and within."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * math.prod(kernel) / features
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval
            total += 2 * out.size * math.prod(left[axis] for axis in contracted)
        times = parameters["length"] if name == "scan" else 1
        for value in parameters.values():
            inner = getattr(value, "jaxpr", value)
            total += times * count_flops(inner) if hasattr(inner, "eqns") else 0.0
    return total


def environment(config: Config, peer: str) -> dict[str, str]:
    """Of a worker's process."""
    found = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    found.pop("JAX_PLATFORMS", None)
    if peer == "sinkflow" and config.xla_flags:
        found["XLA_FLAGS"] = f"{found.get('XLA_FLAGS', '')} {config.xla_flags}".strip()
    if config.device == "cpu":
        found |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        # Torch's threads spin for each other; where others run, that costs them seconds.
        found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return found


class Worker:
    """Iterates over what a worker measures; ``reason`` tells afterwards why it ended early.

    A line {"begin": what, "limit": seconds} announces the next stretch of silence; if nothing
    comes within it, the process is killed.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], deadline: float):
        self.command = [sys.executable, "-m", "experiments.bench_unet", WORKER, *arguments]
        self.environment, self.deadline, self.reason = environment, deadline, ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        doing, limit = "start", START
        lines: queue.Queue[str | None] = queue.Queue()
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.environment,
                cwd=pathlib.Path(__file__).parent.parent,
                start_new_session=True,
            ) as process,
        ):
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
            try:
                while True:
                    limit = max(min(limit, self.deadline - time.time()), 0.0)
                    if (text := lines.get(timeout=limit)) is None:
                        break
                    line = json.loads(text)
                    self.reason = line.pop("failed", self.reason)
                    doing, limit = line.pop("begin", doing), line.pop("limit", START)
                    if line:
                        yield line
                if process.wait() and not self.reason:
                    errors.seek(0)
                    last = errors.read().strip().splitlines()[-1:] or ["it said nothing"]
                    self.reason = f"{doing}: exit {process.returncode}: {last[0][:200]}"
            except queue.Empty:
                self.reason = f"{doing} did not end in {limit:.0f} s"
            finally:
                # Its compiler's processes too; they are of its own session.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)


def _read(stream, lines) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def summary(row) -> str:
    """What a row says in one line."""
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    parts = []
    if "sampled_per_second" in row:
        parts.append(f"sampling {row['sampled_per_second']:.4g} images/s")
    if "seconds" in row:
        parts.append(
            f"{1e3 * row['seconds']:.4g} ms a step, {row['images_per_second']:.5g} images/s"
        )
    elif "estimated_bytes" in row:
        parts.append(f"will need {gibibytes(row['estimated_bytes'])} GiB")
    elif "parameters" in row:
        parts.append(f"{row['parameters']} parameters")
    return ", ".join([*parts, *([row["stopped"]] if "stopped" in row else [])]) or "started"


def table(record) -> str:
    """Markdown, from the record alone."""
    header = ["batch", "library", "setting", "ms a step", "images/s", "of bf16 peak", "sinkflow is"]
    header += ["peak [GiB]", "compiling [s]", "sampled/s", "sinkflow is", "parameters"]
    lines = [line(header), line(["---"] * len(header))]
    rows = sorted(record["rows"], key=lambda row: (row["batch"], row["peer"], row["setting"]))
    for row in rows:
        cells = [str(row["batch"]), row["peer"], row["setting"]]
        if "seconds" not in row:
            cells += [f"not run: {row.get('not_run', '?')}", *[""] * (len(header) - 4)]
        else:
            fraction = row["fraction_of_peak"]
            cells += [
                f"{1e3 * row['seconds']:.4g}",
                f"{row['images_per_second']:.5g}",
                "unknown" if fraction is None else f"{100 * fraction:.1f}%",
                ratio(row, rows, "images_per_second"),
                gibibytes(row["peak_bytes"]),
                f"{row['compile_seconds']:.0f}",
                f"{row['sampled_per_second']:.4g}" if "sampled_per_second" in row else "",
                ratio(row, rows, "sampled_per_second"),
                str(row["parameters"]),
            ]
        lines.append(line(cells))
    devices = {row["device"] for row in rows if "device" in row}
    commits = {row["commit"] for row in rows}
    forward = record["forward_flops"] / 1e9
    lines += ["", f"Device: {', '.join(sorted(devices))}. Commit: {', '.join(sorted(commits))}."]
    lines.append(f"A forward pass of an image is {forward:.2f} GFLOP, a training step three.")
    lines += [note(row) for row in rows if "stopped" in row or "estimated_bytes" in row]
    return "\n".join(lines) + "\n"


def note(row) -> str:
    """What a row says beside its numbers."""
    name = f"Batch {row['batch']}, {row['peer']} ({row['setting']}):"
    if "stopped" in row:
        return f"{name} {row['stopped']}."
    return f"{name} XLA's estimate before the start was {gibibytes(row['estimated_bytes'])} GiB."


def line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def gibibytes(count) -> str:
    return "n/a" if count is None else f"{count / 2**30:.2f}"


def ratio(row, rows, rate: str) -> str:
    """How many times as fast sinkflow's fastest row of this batch size is as a peer's row."""
    same = [other for other in rows if other["batch"] == row["batch"]]
    found = [other[rate] for other in same if other["peer"] == "sinkflow" and rate in other]
    if row["peer"] == "sinkflow" or rate not in row or not found:
        return ""
    return f"{max(found) / row[rate]:.2f} x"


def images(config: Config) -> np.ndarray:
    """Smooth random images [n, h, w, c] in [-1, 1], so that there is something to learn."""
    rng = np.random.default_rng(config.seed)
    coarse = rng.standard_normal((IMAGES, 4, 4, 3), np.float32)
    times = -(-config.image_size // 4)
    fine = coarse.repeat(times, axis=1).repeat(times, axis=2)
    return np.tanh(fine[:, : config.image_size, : config.image_size])


# What follows runs in the workers.


def work(peer: str, file: str) -> None:
    """Measures one row; a line for each thing found, everything else on the other stream."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the lines

    def say(**values):
        stream.write(json.dumps(values) + "\n")
        stream.flush()

    plan = json.loads(pathlib.Path(file).read_text())
    settings: dict[str, Any] = plan["config"]
    lists = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    config = Config(**{**settings, **lists})
    sample = config.sample_batch and plan["batch"] == max(config.batch_sizes)
    try:
        library = Sinkflow(config) if peer == "sinkflow" else Torchcfm(config, plan["mode"])
        if config.device == "gpu" and library.device() == "cpu":
            raise RuntimeError("it sees no GPU")
        say(device=library.device(), versions=library.versions(), parameters=library.parameters())
        if plan["batch"] == min(config.batch_sizes):  # once: its networks take a while to compile
            say(begin="checking the precision", limit=config.compile_limit)
            say(**library.check())
        say(begin="compiling the training step", limit=config.compile_limit)
        steps, found = library.prepare(plan["batch"])
        say(**found, begin="the first training steps", limit=config.compile_limit)
        say(**learn(steps))
        say(begin="training", limit=10 * config.time_limit + START)
        library.forget()
        measured = repeat(lambda: steps(), config.time_limit)
        say(**per_step(measured, config.steps_per_call), peak_bytes=library.memory())
        if sample:
            say(begin="compiling the sampler", limit=config.compile_limit)
            draw = library.sampler(config.sample_batch)
            _, first = timed(draw)
            say(begin="sampling", limit=10 * config.time_limit + START)
            measured = repeat(draw, config.time_limit)
            rate = config.sample_batch / measured["seconds"]
            say(sampled_per_second=rate, sampler_compile_seconds=first - measured["seconds"])
    except Exception as error:
        say(failed=told(error))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call that waits for its device returns, and its seconds."""
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def repeat(call: Callable[[], Any], limit: float) -> dict[str, Any]:
    """Median time of calls over ``limit`` seconds, at least the fewest."""
    times: list[float] = []
    while len(times) < LEAST or sum(times) < limit:
        times.append(timed(call)[1])
    spread = [min(times), max(times)]
    return {"seconds": statistics.median(times), "fastest_slowest": spread, "rounds": len(times)}


def per_step(measured: dict[str, Any], count: int) -> dict[str, Any]:
    """Times of rounds, divided by their steps."""
    spread = [seconds / count for seconds in measured["fastest_slowest"]]
    return {**measured, "seconds": measured["seconds"] / count, "fastest_slowest": spread}


def learn(steps: Callable[[], float]) -> dict[str, Any]:
    """The mean loss of the first rounds.

    Raises:
      ValueError: it is not finite, or does not fall.
    """
    losses, seconds = [], []
    for _ in range(FALL):
        loss, once = timed(steps)
        losses.append(loss)
        seconds.append(once)
    if not np.all(np.isfinite(losses)) or not losses[-1] < losses[0]:
        raise ValueError(f"the loss of the first rounds is {losses}; it must be finite and fall")
    return {"losses": losses, "first_rounds_seconds": seconds}


class Sinkflow:
    """This library."""

    def __init__(self, config: Config):
        self.config, self.model = config, config.network()
        self.key = jax.random.key(config.seed, impl=config.dropout_key)
        params = initial(self.model, config.shape(1), config.seed)
        self.params: Any
        self.unravel: Callable
        self.params, self.unravel = ravel_pytree(params) if config.flat else (params, lambda p: p)

    def device(self) -> str:
        return jax.local_devices()[0].device_kind

    def versions(self) -> dict[str, str]:
        return common.versions()

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def forget(self) -> None:
        """Nothing: JAX's peak is that of its process, which holds one batch size."""

    def memory(self) -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def apply(self, params, x, t, **options):
        return self.model.apply(self.unravel(params), x, t, **options)

    def check(self) -> dict[str, Any]:
        """Errors of bfloat16 against float32: of the network, on a GPU of a small gradient too.

        Raises:
          ValueError: one is too large.
        """
        network = self.config.network
        tree = self.unravel(self.params)
        errors = {"forward_error": disagreement(network, tree, self.config.shape(4))}
        if self.device() != "cpu":
            # Of 256 pixels and a head of 64, so that attention is what the large network's is.
            small = unet.UNet(64, (1,), 1, attention=(16,), flash=self.config.flash).clone
            shape = (8, 16, 16, 3)
            tree = initial(small(), shape, 0)
            errors["gradient_error"] = disagreement(small, tree, shape, gradient=True)
        for name, error in errors.items():
            most = LARGEST_ERROR[name]
            if not error < most:
                raise ValueError(f"{name} is {error:.2e}; bfloat16 must be within {most}")
        return errors

    def prepare(self, batch: int) -> tuple[Callable[[], float], dict[str, Any]]:
        """A round of training steps, compiled, and what the compiler says it will need."""
        config = self.config
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
        step = train.make_step(
            self.apply, optimizer, ema_decay=config.ema_decay, loss_fn=matching_loss
        )
        draw = functools.partial(straight_rows, batch=batch)
        many = train.make_steps(step, draw, config.steps_per_call)
        self.state = train.create(self.params, optimizer)
        data = (jnp.asarray(images(config)), jax.random.split(self.key, 1))
        begin = time.perf_counter()
        compiled = jax.jit(many, donate_argnums=0).lower(self.state, data).compile()
        seconds = time.perf_counter() - begin

        def steps():
            self.state, info = compiled(self.state, data)
            return float(info.loss)

        return steps, {
            "compile_seconds": seconds,
            "estimated_bytes": common.memory_needed(compiled),
        }

    def sampler(self, batch: int) -> Callable[[], Any]:
        noise = jax.random.normal(self.key, self.config.shape(batch))
        params, nfe = self.state.ema_params, self.config.nfe
        return lambda: jax.block_until_ready(sampling.nsgf(self.apply, params, noise, nfe=nfe))


def initial(model: unet.UNet, shape: tuple[int, ...], seed: int) -> Any:
    """Fresh parameters for images of that shape."""
    # By "rbg", because one program of many threefry draws takes the CPU's compiler long.
    key = jax.random.key(seed, impl="rbg")
    return jax.jit(model.init)(key, jnp.zeros(shape), jnp.zeros(shape[0]))


def disagreement(
    network: Callable, params, shape: tuple[int, ...], gradient: bool = False
) -> float:
    """Relative distance of bfloat16 from float32; parameters are perturbed: no branch is zero."""
    key_noise, key_x = jax.random.split(jax.random.key(0))
    x, t = jax.random.normal(key_x, shape), jnp.linspace(0.0, 1.0, shape[0])
    params, unravel = ravel_pytree(params)
    params = params + 0.05 * jax.random.normal(key_noise, params.shape)

    def found(dtype):
        field = lambda params: network(dtype=dtype).apply(unravel(params), x, t)
        slope = jax.grad(lambda params: jnp.mean((field(params) - x) ** 2))
        # A GPU's float32 is TF32 unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(slope if gradient else field)(params))

    expected, actual = found(jnp.float32), found(jnp.bfloat16)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def straight_rows(data, key, *, batch: int) -> stages.Rows:
    """Points of straight paths from noise to images, uniform in time."""
    key_x0, key_x1, key_t, key_dropout = jax.random.split(key, 4)
    x1 = data[jax.random.randint(key_x1, (batch,), 0, data.shape[0])]
    x0, t = jax.random.normal(key_x0, x1.shape), jax.random.uniform(key_t, (batch,))
    s = t[:, None, None, None]
    return stages.Rows((1 - s) * x0 + s * x1, t, x1 - x0, key_dropout)


def matching_loss(apply_fn: Callable, params, rows: stages.Rows):
    """Mean squared error of the velocity, with dropout."""
    error = apply_fn(params, rows.x, rows.t, train=True, rngs={"dropout": rows.key}) - rows.velocity
    return jnp.mean(error**2)


class Torchcfm:
    """torchcfm's UNet in PyTorch: compiled, bfloat16 autocast, channels last, fused Adam, TF32."""

    def __init__(self, config: Config, mode: str):
        import torch
        from torchcfm.models.unet import UNetModel

        self.torch, self.config, self.mode = torch, config, mode
        self.name = "cuda" if config.device == "gpu" else "cpu"
        if self.name == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("it sees no GPU")
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True  # the quickest algorithm, as XLA picks it
        model = UNetModel(
            (3, config.image_size, config.image_size),
            config.channels,
            config.num_blocks,
            channel_mult=list(config.multipliers),
            num_heads=4,
            num_head_channels=config.head_dim,
            attention_resolutions=str(config.attention),
            dropout=config.dropout,
        )
        self.model = model.to(self.name, memory_format=torch.channels_last)
        self.field = self.model
        if mode != "eager":
            self.field = torch.compile(self.model, mode=mode, dynamic=False)

    def device(self) -> str:
        return self.torch.cuda.get_device_name() if self.name == "cuda" else "cpu"

    def versions(self) -> dict[str, str]:
        found = {name: importlib.metadata.version(name) for name in ("torch", "torchcfm")}
        return {**found, "cudnn": str(self.torch.backends.cudnn.version())}

    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def forget(self) -> None:
        """A new peak: that of tuning is not that of training."""
        if self.name == "cuda":
            self.torch.cuda.reset_peak_memory_stats()

    def memory(self) -> int | None:
        return self.torch.cuda.max_memory_allocated() if self.name == "cuda" else None

    def check(self) -> dict[str, Any]:
        """Nothing: its precision is PyTorch's own affair."""
        return {}

    def autocast(self):
        return self.torch.autocast(self.name, dtype=self.torch.bfloat16)

    def velocity(self, t, x):
        if self.name == "cuda":  # with CUDA graphs a result lives until the next call
            self.torch.compiler.cudagraph_mark_step_begin()
        with self.autocast():
            return self.field(t, x)

    def wait(self) -> None:
        if self.name == "cuda":
            self.torch.cuda.synchronize()

    def prepare(self, batch: int) -> tuple[Callable[[], float], dict[str, Any]]:
        """A round of training steps; the first step, which compiles, is already made."""
        torch, config = self.torch, self.config
        params = list(self.model.parameters())
        average = [p.detach().clone() for p in params]
        optimizer = torch.optim.Adam(params, lr=config.learning_rate, fused=True)
        data = torch.from_numpy(images(config)).permute(0, 3, 1, 2).to(self.name)
        data = data.contiguous(memory_format=torch.channels_last)
        self.model.train()

        def step():
            x1 = data[torch.randint(len(data), (batch,), device=self.name)]
            x0, t = torch.randn_like(x1), torch.rand(batch, device=self.name)
            error = self.velocity(t, torch.lerp(x0, x1, t[:, None, None, None])) - (x1 - x0)
            loss = torch.mean(error.float() ** 2)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1 - config.ema_decay)
            return loss.detach()

        def steps():
            total = torch.zeros((), device=self.name)
            for _ in range(config.steps_per_call):
                total += step()
            return float(total) / config.steps_per_call  # waits for the device

        _, seconds = timed(lambda: float(step()))
        return steps, {"compile_seconds": seconds}

    def sampler(self, batch: int) -> Callable[[], Any]:
        torch, nfe = self.torch, self.config.nfe
        n, height, width, channels = self.config.shape(batch)
        noise = torch.randn(n, channels, height, width, device=self.name)
        noise = noise.contiguous(memory_format=torch.channels_last)
        self.model.eval()

        @torch.no_grad()
        def draw():
            x = noise
            for k in range(nfe):
                t = torch.full((n,), k / nfe, device=self.name)
                x = x + self.velocity(t, x).float() / nfe
            self.wait()
            return x

        return draw


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(*sys.argv[2:])
    else:
        common.run_driver(main, Config, __doc__)
