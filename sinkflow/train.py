"""Velocity-field matching: state, loss and pure training steps."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sinkflow.types import ApplyFn, Array, Int, PRNGKey, Scalar, Step, check_shape, widened

__all__ = [
    "TrainInfo",
    "TrainState",
    "create",
    "drawing_step",
    "init",
    "make_step",
    "make_steps",
    "mean_over_steps",
    "own_part",
    "time_prediction_loss",
    "velocity_matching_loss",
]

Tree = TypeVar("Tree")  # of arrays


class TrainState(NamedTuple):
    """Everything that training carries from step to step."""

    step: Int[Array, ""]
    params: Any
    ema_params: Any
    opt_state: Any


class TrainInfo(NamedTuple):
    """What a person wants to see of a step."""

    loss: Scalar
    gradient_norm: Scalar


def init(
    key: PRNGKey, model: nn.Module, optimizer: optax.GradientTransformation, dim: int
) -> TrainState:
    """State of a fresh velocity field for clouds of dimension ``dim``.

    Raises:
      ValueError: dim < 1.
    """
    if dim < 1:
        raise ValueError(f"dim is {dim}; clouds have at least 1 dimension")
    return create(model.init(key, jnp.zeros((1, dim)), jnp.zeros(1)), optimizer)


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State at step 0; the moving average starts at ``params``."""
    # A copy: a step that donates the state must not meet one buffer twice.
    average = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))


def velocity_matching_loss(apply_fn: ApplyFn, params: Any, rows: Any) -> Scalar:
    """Mean over rows of the squared distance between field and velocity [length^2 / time^2].

    Raises:
      ValueError: at trace time, if the field has another shape than the rows' velocity.

    Source: arXiv:2401.14069, velocity-field matching.
    """
    error = _error("the field", apply_fn(params, rows.x, rows.t), "rows.velocity", rows.velocity)
    return jnp.mean(jnp.sum(error.reshape(error.shape[0], -1) ** 2, axis=1))


def time_prediction_loss(apply_fn: Callable[..., Array], params: Any, rows: Any) -> Scalar:
    """Mean over rows of the squared error of the time predicted from the point alone.

    Raises:
      ValueError: at trace time, if the predicted times have another shape than the rows'.

    Source: arXiv:2401.14069, phase-transition time predictor.
    """
    return jnp.mean(_error("the predictor", apply_fn(params, rows.x), "rows.t", rows.t) ** 2)


def _error(name: str, found: Array, other: str, wanted: Array) -> Array:
    """Difference of what a network gives and what it should, in float32 at least."""
    check_shape(name, found, jnp.shape(wanted), f"{other} has")
    dtype = widened(found.dtype)
    return found.astype(dtype) - wanted.astype(dtype)


def make_step(
    apply_fn: Callable,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    loss_fn: Callable = velocity_matching_loss,
) -> Step:
    """A pure ``step(state, rows, *, axis_name=None)``: gradient, update, moving average.

    With ``axis_name`` gradients are averaged over that mapped axis, so that equal shards
    of one batch give the step of the whole batch.

    Raises:
      ValueError: ema_decay outside [0, 1); at 1 the average would never leave its start.
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay is {ema_decay}; the decay of an average lies in [0, 1)")

    def step(
        state: TrainState, rows: Any, *, axis_name: str | None = None
    ) -> tuple[TrainState, TrainInfo]:
        loss, gradient = jax.value_and_grad(loss_fn, argnums=1)(apply_fn, state.params, rows)
        if axis_name is not None:
            loss, gradient = jax.lax.pmean((loss, gradient), axis_name)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(params, state.ema_params, 1 - ema_decay)
        info = TrainInfo(loss, optax.tree.norm(gradient))
        return TrainState(state.step + 1, params, average, opt_state), info

    return step


def drawing_step(step: Step, sample: Callable) -> Step:
    """A pure ``step(state, data, key, *, axis_name=None)`` that draws its rows from ``data``.

    With ``axis_name`` every device of that axis draws the whole batch, from the same data with the
    same key, and takes its :func:`own_part`. So the batch does not depend on their number.

    Args:
      step: from :func:`make_step`.
      sample: ``(data, key) -> rows``, for example :func:`sinkflow.pool.sample` with its batch
        size filled in.
    """

    def draw_and_step(
        state: TrainState, data: Any, key: PRNGKey, *, axis_name: str | None = None
    ) -> tuple[TrainState, Any]:
        return step(state, own_part(sample(data, key), axis_name), axis_name=axis_name)

    return draw_and_step


def own_part(batch: Tree, axis_name: str | None) -> Tree:
    """This device's equal part of a batch that all devices of the axis have whole.

    Args:
      batch: leaves [batch, ...]. Those without an axis, a key for example, stay as they are.
      axis_name: of the devices; None for one device, which takes everything.

    Raises:
      ValueError: at trace time, a leading axis that the number of devices does not divide.
    """
    count = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if count == 1:
        return batch

    def cut(leaf: Array) -> Array:
        if jnp.ndim(leaf) == 0:
            return leaf
        if leaf.shape[0] % count:
            raise ValueError(
                f"a batch of {leaf.shape[0]} cannot be split evenly over {count} devices"
            )
        own = leaf.shape[0] // count
        return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(axis_name) * own, own)

    return jax.tree.map(cut, batch)


def mean_over_steps(infos: Any, axis_name: str | None = None) -> Any:
    """Mean of what each step of a call told; every leaf has a leading axis of steps."""
    return jax.tree.map(jnp.mean, infos)


def make_steps(step: Step, num_steps: int, *, summary: Callable = mean_over_steps) -> Step:
    """Several steps in one call, everything random drawn on the device.

    Args:
      step: ``(state, data, key, *, axis_name) -> (state, info)``, for example from
        :func:`drawing_step`.
      num_steps: steps of one call.
      summary: ``(infos, axis_name) -> info`` of the call, from those of its steps.

    Returns:
      ``steps(state, data, key, *, axis_name=None) -> (state, info)``; ``key`` is folded with
      the step's number, so that a resumed run draws the same rows.

    Raises:
      ValueError: num_steps that is no whole number from 1 up.
    """
    if num_steps < 1 or num_steps != int(num_steps):
        raise ValueError(f"num_steps is {num_steps}; it must be a whole number, at least 1")

    def steps(
        state: Any, data: Any, key: PRNGKey, *, axis_name: str | None = None
    ) -> tuple[Any, Any]:
        def body(state: Any, _: None) -> tuple[Any, Any]:
            return step(state, data, jax.random.fold_in(key, state.step), axis_name=axis_name)

        state, infos = jax.lax.scan(body, state, length=num_steps)
        return state, summary(infos, axis_name)

    return steps
