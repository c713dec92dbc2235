"""Training of one-step generators: network, real samples, objective, steps; and loading of a run.

A step draws its clouds on the device. Samples are vectors [n, d] outside of the networks. The
devices share the clouds of a step: each has some of its own, and gradients are averaged.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.generators.config import SOLVED, GeneratorConfig, check, check_devices, preset
from experiments.harness import training
from experiments.harness.run import Run, read_settings
from experiments.harness.settings import checked, naming
from sinkflow import Limits, checkpoint, costs, data, generator, generators, nets, opponents, train
from sinkflow.data import images
from sinkflow.nets import unet
from sinkflow.ot.regularisation import epsilon_for_neighbours, mean_cost

UNIT_SAMPLES = 2_048  # real samples that epsilon's unit is measured with, twice


class Generator(NamedTuple):
    """A trained generator; ``draw(z [n, k], labels [n]) -> [n, d]`` is one evaluation each."""

    config: GeneratorConfig
    draw: Callable


class Real(NamedTuple):
    """Real samples, and where those of each class are.

    ``rows`` [classes, most] is filled up behind the first ``counts`` [classes].
    """

    samples: jax.Array
    rows: jax.Array
    counts: jax.Array


class Info(NamedTuple):
    """A log line, of the steps of one call on all devices."""

    loss: jax.Array
    """Mean [length^2]; of objective energy [length]."""
    gradient_norm: jax.Array
    """Mean, of the loss of a coordinate."""
    marginal_error: jax.Array
    """Largest of all solves [mass, total 1]; 0 without any."""
    iterations: jax.Array
    """Mean of all solves."""
    unconverged: jax.Array
    """Solves that missed their threshold; without solves, steps whose loss is not finite."""
    solves: jax.Array
    """Solves in all."""
    epsilon: jax.Array
    """Largest epsilon of the last step [length^2]."""


# Networks.


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


def latent(config: GeneratorConfig, key, count: int):
    """Source points z [count, k]: of the task in the plane, else standard normal."""
    if config.dataset in data.TASKS:
        return data.SAMPLERS[data.task(config.dataset).source](key, count)
    return jax.random.normal(key, (count, config.dim()))


def share(config: GeneratorConfig, count: int) -> int:
    """Samples of each class among ``count``."""
    return count // config.num_classes()


def labels_of(config: GeneratorConfig, count: int):
    """As many of each class as there is room for, in order [classes * share]."""
    return jnp.repeat(jnp.arange(config.num_classes()), share(config, count))


# Real samples.


def real_samples(config: GeneratorConfig, samples=None, labels=None) -> Real | None:
    """Samples [N, ...], shuffled; None in the plane, drawn afresh."""
    if samples is None:
        return None
    order = np.asarray(jax.random.permutation(config.key("shuffle"), len(samples)))
    own = np.asarray(labels)[order] if config.labels else np.zeros(order.shape, int)
    found = [np.flatnonzero(own == label) for label in range(config.num_classes())]
    counts = np.array([len(rows) for rows in found])
    if not counts.all():
        raise ValueError("a class has no real samples; leave --labels away")
    rows = np.stack([np.resize(rows, counts.max()) for rows in found])
    return Real(jnp.asarray(samples[order]), jnp.asarray(rows), jnp.asarray(counts))


def draw_real(config: GeneratorConfig, real: Real | None, key, count: int):
    """Real samples [classes, share, d] of one cloud, with replacement."""
    if real is None:
        return data.SAMPLERS[data.task(config.dataset).target](key, count)[None]
    shape = (config.num_classes(), share(config, count))
    picks = jax.random.randint(key, shape, 0, real.counts[:, None])
    drawn = real.samples[jnp.take_along_axis(real.rows, picks, axis=1)]
    drawn = images.scale(drawn) if drawn.dtype == jnp.uint8 else drawn
    return drawn.reshape(*shape, -1)


def units(config: GeneratorConfig, real: Real | None) -> tuple[np.ndarray, float]:
    """Epsilons [length^2] at the end of the training, and the drift's temperature [length].

    Raises:
      RuntimeError: no epsilon gives the wanted number of neighbours.
    """
    count = config.m if config.epsilon_unit == "neighbours" else UNIT_SAMPLES
    draw = jax.jit(functools.partial(draw_real, config, count=count))
    x, y = (draw(real, key) for key in jax.random.split(config.key("epsilon")))
    flat = [cloud.reshape(-1, cloud.shape[-1]) for cloud in (x, y)]
    distance = float(jnp.mean(jnp.sqrt(2 * costs.squared_euclidean(*flat))))
    unit = float(mean_cost(*flat)) if config.epsilon_unit == "mean-cost" else 1.0
    values = np.array(config.epsilon) * unit
    if config.epsilon_unit == "neighbours":
        values = np.array([_for_neighbours(x, y, wanted) for wanted in config.epsilon])
    return values.astype(np.float32), config.temperature * distance


def _for_neighbours(x, y, wanted: float) -> float:
    """Mean over classes of the epsilon that gives the wanted number of neighbours."""
    found = []
    for clouds in zip(x, y, strict=True):
        value, out = epsilon_for_neighbours(*clouds, wanted, limits=Limits(1e-3))
        if not out.converged or abs(float(out.neighbours) / wanted - 1) > 0.05:
            raise RuntimeError(
                f"no epsilon gives clouds of {len(clouds[1])} samples {wanted} neighbours: the "
                f"closest has {float(out.neighbours):.3g}; choose another number"
            )
        found.append(float(value))
    return float(np.mean(found))


# Training.


def objective(config: Any) -> Callable:
    """``(x, other, y, key, epsilons, temperature) -> (loss, certificate)`` of clouds [n, d]."""
    limits = Limits(config.threshold, config.max_iterations)
    solved = {"limits": limits, "gradient": config.gradient}
    if config.gradient == "unrolled":
        solved["limits"] = limits._replace(max_iterations=config.num_iterations)
    own = {"self_cloud": config.self_cloud}

    def loss(x, other, y, key, epsilons, temperature):
        function: Any
        first, latent = {"epsilon": epsilons[0]}, {"latent": lambda key, z: other}
        count = {"num_iterations": config.num_iterations, "domain": config.domain}
        several = {"epsilons": epsilons, "normalize": config.normalize, "limits": limits}
        function, options = {
            "transport": (generator.transport_loss, {**first, **count}),
            "entropic": (generator.entropic_loss, {**first, **solved}),
            "divergence": (generator.divergence_loss, {**first, **solved, **own, **latent}),
            "regression": (
                generator.regression_loss,
                {**several, **own, **latent},
            ),
            "energy": (opponents.energy_loss, {**own, **latent}),
            "drift": (opponents.drift_loss, {"temperature": temperature, **own, **latent}),
        }[config.objective]
        # The samples are the latent points of a generator that returns them.
        value, seen = function(lambda params, z: z, None, x, y, key, **options)
        if config.objective in SOLVED:
            return value, seen
        zero, bad = jnp.asarray(0), (~seen).astype(int)
        return value, generator.Certificate(bad, jnp.zeros_like(value), zero, jnp.asarray(1))

    return loss


def by_class(config: GeneratorConfig, loss: Callable) -> Callable:
    """The loss of clouds whose samples come class after class: the mean, with all certificates."""

    def of_all(x, other, y, key, epsilons, temperature):
        if config.num_classes() == 1:
            return loss(x, other, y[0], key, epsilons, temperature)
        clouds = [cloud.reshape(config.num_classes(), -1, cloud.shape[-1]) for cloud in (x, other)]
        each: Any = jax.vmap(lambda x, other, y: loss(x, other, y, key, epsilons, temperature))
        values, seen = each(*clouds, y)
        error = jnp.max(seen.marginal_error)
        totals = jax.tree.map(jnp.sum, seen)
        return jnp.mean(values), totals._replace(marginal_error=error)

    return of_all


def make_step(config: GeneratorConfig, net: nets.Network, epsilons, temperature: float) -> Callable:
    """One optimiser step, ``step(state, real, key, axis_name) -> (state, seen)``.

    ``seen`` is loss, norm of the gradient, certificates and largest epsilon. Everything that the
    step draws follows from its key, whatever the number of devices.
    """
    gradient_of = make_gradient(config, net, temperature)
    targets_of = make_targets(config, net, temperature)
    optimizer, decay = make_optimizer(config), ema_decay(config)
    labels = labels_of(config, config.n)

    def step(state, real, key, *, axis_name=None):
        passed = state.step / config.train_steps
        now = epsilons * config.epsilon_start ** jnp.maximum(0.0, 1 - 2 * passed)
        parts = state.params, state.ema_params, state.opt_state
        keys = jax.random.split(key, config.clouds) if config.clouds > 1 else key[None]
        keys = train.own_part(keys, axis_name)

        def of_each(function):
            """``function`` of each cloud's key, its results along a first axis."""
            one = functools.partial(function, state.params, real, now)
            if len(keys) > 1:
                return jax.lax.map(one, keys)
            return jax.tree.map(lambda leaf: leaf[None], one(keys[0]))

        def update(parts, gradient):
            params, average, opt_state = parts
            gradient = mean_over(gradient, axis_name)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            average = optax.incremental_update(params, average, 1 - decay)
            return (params, average, opt_state), optax.tree.norm(gradient)

        if config.inner_steps == 1:
            gradients, (values, seen) = of_each(gradient_of)
            parts, norm = update(parts, jnp.mean(gradients, axis=0))
        else:
            (z, targets), (values, seen) = of_each(targets_of)

            def distance(params):
                x = jax.vmap(lambda z: net.apply_fn(params, z, labels))(z)
                return 0.5 * jnp.mean((x - targets) ** 2)

            follow = lambda parts, _: update(parts, jax.grad(distance)(parts[0]))
            parts, norms = jax.lax.scan(follow, parts, length=config.inner_steps)
            norm = jnp.mean(norms)
        value = mean_over(jnp.mean(values), axis_name)
        return train.TrainState(state.step + 1, *parts), (value, norm, seen, jnp.max(now))

    return step


def mean_over(tree, axis_name: str | None):
    """The mean over devices, where there is an axis of them."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def make_gradient(config: GeneratorConfig, net: nets.Network, temperature: float) -> Callable:
    """``(params, real, epsilons, key) -> (gradient, (loss, certificate))`` of one cloud each."""
    loss_of = by_class(config, objective(config))

    def gradient_of(params, real, epsilons, key):
        z, z_other, y, key = draw_clouds(config, real, key)

        def loss_fn(params):
            x, other = generated(config, net, params, z, z_other)
            value, seen = loss_of(x, other, y, key, list(epsilons), temperature)
            return value / x.shape[1], (value, seen)  # of a coordinate: clip does not depend on d

        return jax.grad(loss_fn, has_aux=True)(params)

    return gradient_of


def make_targets(config: GeneratorConfig, net: nets.Network, temperature: float) -> Callable:
    """``(params, real, epsilons, key) -> ((z, x + v), (loss, certificate))`` of one cloud each."""
    loss_of = by_class(config, objective(config))

    def targets_of(params, real, epsilons, key):
        z, z_other, y, key = draw_clouds(config, real, key)
        x, other = generated(config, net, params, z, z_other)
        loss = lambda x: loss_of(x, other, y, key, list(epsilons), temperature)
        told, slope = jax.value_and_grad(loss, has_aux=True)(x)
        return (z, x - len(x) * slope), told  # the loss is half the mean of |v|^2

    return targets_of


def draw_clouds(config: GeneratorConfig, real: Real | None, key) -> tuple:
    """Latent points of a cloud and of the self term's, real samples, and a key of the objective."""
    keys = jax.random.split(key, 4)
    y = draw_real(config, real, keys[0], config.m)
    counts = (len(labels_of(config, count)) for count in (config.n, config.k))
    z, z_other = (latent(config, k, n) for k, n in zip(keys[1:3], counts, strict=True))
    return z, z_other, y, keys[3]


def generated(config: GeneratorConfig, net: nets.Network, params, z, z_other) -> tuple:
    """Samples, and what the self term compares them with."""
    x = net.apply_fn(params, z, labels_of(config, config.n))
    if config.has_self_term() and config.self_cloud == "second":
        return x, net.apply_fn(params, z_other, labels_of(config, config.k))
    return x, x


def summary(seen, axis_name: str | None = None) -> Info:
    """The log line of a call, from what its steps have seen [steps, ...]."""
    value, norm, certificates, now = seen
    totals = jax.tree.map(jnp.sum, certificates)
    error = jnp.max(certificates.marginal_error)
    if axis_name is not None:
        totals = jax.lax.psum(totals, axis_name)
        error = jax.lax.pmax(error, axis_name)
    iterations = totals.num_iterations / totals.num_solves
    counts = totals.unconverged, totals.num_solves
    return Info(jnp.mean(value), jnp.mean(norm), error, iterations, *counts, now[-1])


def make_optimizer(config: GeneratorConfig) -> optax.GradientTransformation:
    """Clipped gradients, and Adam with the config's decays."""
    adam = optax.adam(learning_rate(config), b1=config.b1, b2=config.b2)
    return optax.chain(optax.clip_by_global_norm(config.clip), adam)


def learning_rate(config: GeneratorConfig) -> optax.Schedule:
    """Linear warm-up, then cosine decay to zero, of the number of updates before."""
    updates = config.train_steps * config.inner_steps
    return training.decaying(config.learning_rate, updates, warmup_steps=config.warmup_steps)


def logged_rate(config: GeneratorConfig) -> optax.Schedule:
    """The rate of a step's last update, of the number of steps before."""
    rate, inner = learning_rate(config), config.inner_steps
    return lambda before: rate((before + 1) * inner - 1)


def ema_decay(config: GeneratorConfig) -> float:
    """At most what spans a tenth of the training: nothing is left of the initial values."""
    return min(config.ema_decay, 1 - 10 / max(config.train_steps * config.inner_steps, 20))


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
