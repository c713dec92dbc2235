"""Training of one-step generators from beginning to end, and loading of a run."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generators.checks import check, check_devices
from experiments.generators.config import SOLVED, GeneratorConfig, preset
from experiments.generators.draws import Real, units
from experiments.generators.updates import Info, logged_rate, make_optimizer, make_step, summary
from experiments.harness import training
from experiments.harness.run import Run, read_settings
from experiments.harness.settings import checked, naming
from sinkflow import checkpoint, data, generators, nets, train
from sinkflow.data import images
from sinkflow.nets import unet


class Generator(NamedTuple):
    """A trained generator; ``draw(z [n, k], labels [n]) -> [n, d]`` is one evaluation each."""

    config: GeneratorConfig
    draw: Callable


def _model(config: GeneratorConfig) -> Any:
    """The network of the config, for vectors or images."""
    classes = images.NUM_CLASSES if config.labels else 0
    if config.net == "mlp":
        return generators.GeneratorMLP(int(np.prod(config.SHAPE)), config.hidden_dims)
    if config.net == "unet":
        widths = config.channels, config.multipliers, config.num_blocks
        return unet.UNet(*widths, num_classes=classes)
    height, width, depth = config.SHAPE
    return generators.ConvGenerator(
        (height, width, depth),
        config.channels,
        config.multipliers[::-1],  # coarsest first
        config.num_blocks,
        head=config.head,
        num_classes=classes,
    )


def network(config: GeneratorConfig) -> nets.Network:
    """The generator, with parameters as a vector [p], for which Adam takes few kernels.

    Its ``apply_fn(params, z [n, k], labels [n])`` gives samples [n, d]; labels are not looked at
    by a network without classes.
    """
    model, plane = _model(config), config.dataset in data.TASKS
    bounded = config.head == "tanh" and config.net != "conv"  # which has a head of its own

    def inputs(z, labels):
        asked = labels if config.labels else None
        if config.net == "conv":
            return z, asked
        if config.net == "unet":
            return z.reshape(-1, *config.SHAPE), jnp.zeros(z.shape[0]), asked
        if asked is None:
            return (z,)
        return (jnp.concatenate([z, jax.nn.one_hot(asked, images.NUM_CLASSES)], axis=1),)

    def init_tree(key):
        z, labels = jnp.zeros((1, config.dim())), jnp.zeros(1, int)
        return model.init(key, *inputs(z, labels))

    def apply_tree(params, z, labels):
        out = model.apply(params, *inputs(z, labels)).reshape(z.shape[0], -1)
        if plane:
            return z + out
        return jnp.tanh(out) if bounded else out

    return nets.flattened(init_tree, apply_tree)


def watch(config: GeneratorConfig) -> Callable[[int, Info], None]:
    """Raises RuntimeError at a log line with more unconverged solves than are allowed."""

    def look(step: int, info: Info) -> None:
        failed, solves = int(info.unconverged), int(info.solves)
        if config.allow_unconverged or failed <= config.max_unconverged * solves:
            return
        limit = "num-iterations" if config.gradient == "unrolled" else "max-iterations"
        what = "solves missed their threshold" if config.objective in SOLVED else "losses are bad"
        raise RuntimeError(
            f"step {step}: {failed} of the last {solves} {what} (largest marginal error "
            f"{float(info.marginal_error):.2g}), more than a share of {config.max_unconverged}; "
            f"raise --{limit} or --epsilon, or go on with --allow-unconverged"
        )

    return look


class Training(NamedTuple):
    """What a training begins with: arguments of :func:`sinkflow.fit`, network and scales."""

    net: nets.Network
    state: train.TrainState
    step: Callable
    key: jax.Array
    scales: dict[str, Any]


def prepare(config: GeneratorConfig, real: Real | None) -> Training:
    """A fresh state, the step, the key of its draws, and the epsilons of the config."""
    check_devices(config.clouds)
    epsilons, temperature = units(config, real)
    net = network(config)
    key_init, key_steps = jax.random.split(config.key("train"))
    seed = jax.random.wrap_key_data(jax.random.bits(key_init, (4,), jnp.uint32), impl="rbg")
    make = jax.jit(lambda key: train.create(net.init(key), make_optimizer(config)))
    scales = {"epsilon": epsilons.tolist(), "temperature": temperature}
    step = make_step(config, net, epsilons, temperature)
    return Training(net, make(seed), step, key_steps, scales)


def learn(run: Run, config: GeneratorConfig, real: Real | None) -> tuple[Generator, dict]:
    """The trained generator, and its epsilons; resumes where an earlier start stopped."""
    with run.timed("train"):
        made = prepare(config, real)
        state = training.fit(
            run,
            made.state,
            made.step,
            lambda part: real,
            key=made.key,
            rate=logged_rate(config),
            batch_size=config.n * jax.local_device_count(),
            num_steps=config.train_steps,
            steps_per_call=config.steps_per_call,
            checkpoint_every=config.checkpoint_every,
            watch=watch(config),
            summary=summary,
        )
    return generator_of(config, made.net, state.ema_params), made.scales


def generator_of(config: GeneratorConfig, net: nets.Network, params) -> Generator:
    return Generator(config, functools.partial(jax.jit(net.apply_fn), params))


def restored(folder: pathlib.Path) -> Generator:
    """The newest generator of a run.

    Raises:
      ValueError: no run, or no checkpoint of one, in the folder.
    """
    settings = read_settings(folder, {"dataset": str})
    if checkpoint.latest_step(folder / "checkpoints") is None:
        raise ValueError(f"run is {folder}: it has no checkpoint yet; start its driver again")
    values = {name: value for name, value in settings.items() if name != "driver"}
    with naming(folder / "config.json"):
        config = preset(**checked(GeneratorConfig, values))
        check(config)
    net = network(config)
    like = jax.eval_shape(
        lambda key: train.create(net.init(key), make_optimizer(config)), jax.random.key(0)
    )
    state = checkpoint.restore(folder / "checkpoints", like, settings)
    return generator_of(config, net, state.ema_params)
