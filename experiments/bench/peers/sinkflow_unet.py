"""The UNet of this library."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.bench.unet_config import Plan
from experiments.harness import provenance
from experiments.harness.training import memory_needed
from experiments.images.rows import matching_loss, straight_rows
from sinkflow import sampling, train
from sinkflow.nets import unet

# Of bfloat16 against float32, relative; on a CPU both are 0.017.
LARGEST_ERROR = {"forward_error": 0.05, "gradient_error": 0.06}


class Sinkflow:
    """This library."""

    def __init__(self, plan: Plan):
        self.plan, self.network, self.model = (
            plan,
            plan.network,
            plan.network.unet(flash=plan.ours.flash),
        )
        self.key = jax.random.key(plan.seed, impl=plan.ours.dropout_key)
        params = initial(self.model, self.network.shape(1), plan.seed)
        self.params: Any
        self.unravel: Callable
        self.params, self.unravel = (
            ravel_pytree(params) if plan.ours.flat else (params, lambda p: p)
        )
        self.state: Any = None

    def device(self) -> str:
        return jax.local_devices()[0].device_kind

    def versions(self) -> dict[str, str]:
        return provenance.versions()

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def forget(self) -> None:
        """Nothing: JAX's peak is that of its process, which holds one batch size."""

    def memory(self) -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def apply(self, params, x, t, **options):
        """The velocity of images as vectors, as the image drivers have it."""
        images = x.reshape(-1, *self.network.shape(1)[1:])
        out: Any = self.model.apply(self.unravel(params), images, t, **options)
        return out.reshape(x.shape)

    def check(self) -> dict[str, Any]:
        """Errors of bfloat16 against float32: of the network, on a GPU of a small gradient too.

        Raises:
          ValueError: one is too large.
        """
        network = functools.partial(self.network.unet, flash=self.plan.ours.flash)
        tree = self.unravel(self.params)
        errors = {"forward_error": disagreement(network, tree, self.network.shape(4))}
        if self.device() != "cpu":
            # Of 256 pixels and a head of 64, so that attention is what the large network's is.
            small = unet.UNet(64, (1,), 1, attention=(16,), flash=self.plan.ours.flash).clone
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
        training, impl = self.plan.training, self.plan.ours.dropout_key
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(training.learning_rate))
        loss_fn = functools.partial(matching_loss, impl=impl)
        step = train.make_step(self.apply, optimizer, ema_decay=training.ema_decay, loss_fn=loss_fn)
        draw = functools.partial(straight_rows, batch_size=batch, start=0.0, mirror=False)
        many = train.make_steps(train.drawing_step(step, draw), training.steps_per_call)
        self.state = train.create(self.params, optimizer)
        pixels = jnp.asarray(self.network.images(self.plan.seed))
        data = pixels, jax.random.split(self.key, 1)[0]
        begin = time.perf_counter()
        compiled = jax.jit(many, donate_argnums=0).lower(self.state, *data).compile()
        seconds = time.perf_counter() - begin

        def steps():
            self.state, info = compiled(self.state, *data)
            return float(info.loss)

        return steps, {"compile_seconds": seconds, "estimated_bytes": memory_needed(compiled)}

    def sampler(self, batch: int) -> Callable[[], Any]:
        """Draws a batch of images."""
        noise = jax.random.normal(self.key, self.network.shape(batch)).reshape(batch, -1)
        params, nfe = self.state.ema_params, self.plan.sampling.nfe
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
