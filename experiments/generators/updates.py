"""A training step of a one-step generator: objective, gradient, optimiser, log line.

A step draws its clouds on the devices, which share them, and averages their gradients.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.generators.config import SOLVED, GeneratorConfig
from experiments.generators.draws import draw_clouds, labels_of
from experiments.harness import training
from sinkflow import Limits, generator, nets, opponents, train


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
