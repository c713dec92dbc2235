"""One process of the UNet's benchmark: measures one row, JSON lines of what it has found so far.

Command:  started by experiments.bench_unet; python -m experiments.bench_unet_worker PEER FILE
Runtime:  as long as its row.
Expected: lines with numbers, {"begin": ...} before what takes long and {"failed": ...} on standard
          output, everything else on the other.
Source:   as experiments/bench_unet.py.
"""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments import common, processes, stages
from sinkflow import sampling, train, unet

LEAST = 3  # timed rounds, however long they take
FALL = 3  # rounds over which the loss must fall before anything is timed
# Of bfloat16 against float32, relative; on a CPU both are 0.017.
LARGEST_ERROR = {"forward_error": 0.05, "gradient_error": 0.06}
IMAGES = 4096  # of the data set, on the device


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


def work(peer: str, file: str) -> None:
    """Measures one row; a line for each thing found, everything else on the other stream."""
    say = processes.reporter()
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
        say(begin="training", limit=10 * config.time_limit + processes.SILENCE)
        library.forget()
        measured = repeat(lambda: steps(), config.time_limit)
        say(**per_step(measured, config.steps_per_call), peak_bytes=library.memory())
        if sample:
            say(begin="compiling the sampler", limit=config.compile_limit)
            draw = library.sampler(config.sample_batch)
            _, first = timed(draw)
            say(begin="sampling", limit=10 * config.time_limit + processes.SILENCE)
            measured = repeat(draw, config.time_limit)
            rate = config.sample_batch / measured["seconds"]
            say(sampled_per_second=rate, sampler_compile_seconds=first - measured["seconds"])
    except Exception as error:
        say(failed=processes.told(error))


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
        many = train.make_steps(train.drawing_step(step, draw), config.steps_per_call)
        self.state = train.create(self.params, optimizer)
        data = jnp.asarray(images(config)), jax.random.split(self.key, 1)[0]
        begin = time.perf_counter()
        compiled = jax.jit(many, donate_argnums=0).lower(self.state, *data).compile()
        seconds = time.perf_counter() - begin

        def steps():
            self.state, info = compiled(self.state, *data)
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


def images(config: Config) -> np.ndarray:
    """Smooth random images [n, h, w, c] in [-1, 1], so that there is something to learn."""
    rng = np.random.default_rng(config.seed)
    coarse = rng.standard_normal((IMAGES, 4, 4, 3), np.float32)
    times = -(-config.image_size // 4)
    fine = coarse.repeat(times, axis=1).repeat(times, axis=2)
    return np.tanh(fine[:, : config.image_size, : config.image_size])


if __name__ == "__main__":
    work(*sys.argv[1:])
