"""Training: any pure step over rows, with a log, checkpoints, resuming and refreshed rows."""

import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow import _described, parallel, train
from sinkflow._described import NETWORK
from sinkflow.types import PRNGKey

__all__ = ["NETWORK", "Field", "FitReport", "check_finite", "fit", "load_field"]

# Orbax takes seconds to load: checkpoint is imported by the functions that need it.

State = TypeVar("State")
Folder = str | pathlib.Path | None
CHECKPOINTS = "checkpoints"
NOTHING: Mapping[str, Any] = MappingProxyType({})


class FitReport(NamedTuple):
    """What one call of :func:`sinkflow.fit` did.

    Attributes:
      steps: steps of this call, without those before it was resumed.
      seconds: wall-clock time of this call, compilation included [s].
      resumed_from: step of the checkpoint that it went on from, or None.
    """

    steps: int
    seconds: float
    resumed_from: int | None


class Field(NamedTuple):
    """A trained velocity field.

    Attributes:
      apply_fn: ``(params, x [n, d], t [n]) -> velocity [n, d]``.
      params: averaged parameters.
      horizon: time at which the field ends [the pool's time].
      config: the settings of the run that trained it.
    """

    apply_fn: Callable
    params: Any
    horizon: float = 1.0
    config: Mapping[str, Any] = NOTHING


def fit(
    state: State,
    step: Callable,
    rows: Any,
    *,
    key: PRNGKey,
    num_steps: int,
    steps_per_call: int = 1,
    refresh_every: int = 0,
    folder: str | pathlib.Path | None = None,
    config: Mapping[str, Any] = NOTHING,
    checkpoint_every: int = 0,
    network: Any = None,
    horizon: float = 1.0,
    log: Callable[[int, Any], None] | None = None,
    summary: Callable = train.mean_over_steps,
    progress: Callable[[range], Iterable[int]] = iter,
    compiled: Callable[[Any], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[State, FitReport]:
    """Trains until ``state.step`` is ``num_steps``; resumes from the folder's newest checkpoint.

    A resumed training ends with the parameters of an unbroken one when it is given the same
    arguments: bit for bit on one device, to rounding on any other number of devices.

    Args:
      state: fresh state with a field ``step`` that counts, like :class:`sinkflow.train.TrainState`.
        Its memory is given away; a checkpoint's state takes its place.
      step: pure ``(state, rows, key, *, axis_name) -> (state, metrics)``, for example from
        :func:`sinkflow.train.drawing_step`. Every device of ``axis_name`` has the same state, rows
        and key; a step computes on its :func:`sinkflow.train.own_part` of what it draws, and
        averages gradients. Metrics are scalars, in a NamedTuple or a dict.
      rows: what the step draws its batches from, or a function that makes it from the part's
        number 0, 1, .... Every device keeps all of it.
      key: PRNG key, folded with the step's number.
      num_steps: steps in all, those before a resume included.
      steps_per_call: steps in one compiled program; log lines are as far apart.
      refresh_every: steps of a part, after which ``rows(part)`` is asked for; 0 for one part.
      folder: where ``checkpoints/`` are written; None for none. Of several processes the first
        alone reads and writes there, and the others are told.
      config: JSON-serialisable settings, kept in the checkpoints; others refuse to resume. What
        ``step``, ``rows`` and ``key`` were made from belongs here: none of them is compared.
      checkpoint_every: steps between checkpoints; 0 for one at the end.
      network: Linen module of sinkflow that is trained; with it :func:`load_field` needs nothing
        but the folder.
      horizon: time at which its field ends [the pool's time].
      log: called with the number of steps done and the metrics of each call. It may raise, and
        no checkpoint of that call is written then.
      summary: ``(metrics of the steps, axis_name) -> metrics`` of a call, by default their mean.
      progress: wraps the range of the calls' first steps, once it is known where to begin.
      compiled: called with the compiled call before the first one, for example to ask for its
        memory.
      stop: asked before each call; once it is true the training ends there, with a checkpoint. Its
        ``state.step`` is then below ``num_steps``, and the same arguments go on.

    Returns:
      The trained state and what was done.

    Raises:
      ValueError: counts that are no multiples of one another, a folder of a run with another
        config, network or more steps, a batch that the devices cannot share evenly, a network that
        is not of sinkflow, a state without ``step`` (or ``ema_params`` beside a network), or a step
        that does not count.
      FloatingPointError: a metric, or an array of the state, is not finite; the message names step
        and array. The last checkpoint is kept.
      OSError: a checkpoint could not be written, see :func:`sinkflow.checkpoint.save`.

    Example:
      >>> import functools, jax, optax, sinkflow
      >>> from sinkflow import pool, train
      >>> x = jax.random.normal(jax.random.key(0), (64, 2))
      >>> model, adam = sinkflow.nets.VelocityMLP((8,)), optax.adam(0.01)
      >>> draw = functools.partial(pool.sample, batch_size=16)
      >>> step = train.drawing_step(train.make_step(model.apply, adam, ema_decay=0.9), draw)
      >>> state = train.init(jax.random.key(1), model, adam, dim=2)
      >>> state, report = sinkflow.fit(
      ...     state, step, pool.from_pairs(x, x + 1), key=jax.random.key(2), num_steps=4
      ... )
      >>> int(state.step), report.steps, report.resumed_from
      (4, 4, None)
    """
    begin = time.perf_counter()
    _check_counts(num_steps, steps_per_call, checkpoint_every, refresh_every, folder)
    _check_state(state, network)
    if refresh_every and not callable(rows):
        raise ValueError(f"refresh_every is {refresh_every}; give rows as a function of the part")
    description = None if network is None else _described.description(network, horizon)
    state, resumed_from = _restored(state, folder, config)
    done = int(state.step)  # type: ignore[attr-defined]
    _check_start(done, num_steps, steps_per_call, folder)
    if folder is not None and description is not None and jax.process_index() == 0:
        _described.write(pathlib.Path(folder), description, resumed_from is not None)
    many = train.make_steps(step, steps_per_call, summary=summary)
    advance = parallel.pmap_step(_call(many), batch_axes=(None, 0))
    # One key, whatever the number of devices; the map over devices wants something to map.
    keys = parallel.shard(jnp.repeat(jax.random.split(key, 1), jax.local_device_count()))
    part_steps = refresh_every or num_steps
    state, whole, part = parallel.replicate(state), None, -1
    last = saved = done
    for first in progress(range(done, num_steps, steps_per_call)):
        if stop is not None and parallel.anywhere(stop()):
            break
        if first // part_steps != part:
            whole = None  # the last part's memory is free before the next one takes its own
            whole = parallel.replicate(rows(first // part_steps) if callable(rows) else rows)
            if part < 0 and compiled is not None:
                compiled(advance.lower(state, (whole, keys)).compile())
            part = first // part_steps
        state, (metrics, finite) = advance(state, (whole, keys))
        last = first + steps_per_call
        _check_step(state, first, last)
        check_finite(last, metrics if isinstance(metrics, Mapping) else metrics._asdict())
        _check_finite_state(last, finite)
        if log is not None:
            log(last, metrics)
        if folder is not None and last % (checkpoint_every or num_steps) == 0:
            _save(folder, last, state, config)
            saved = last
    if folder is not None and saved != last:  # stopped, or at its end
        _save(folder, last, state, config)
    return state, FitReport(last - done, time.perf_counter() - begin, resumed_from)


def load_field(folder: str | pathlib.Path) -> Field:
    """The newest field that :func:`fit` wrote into ``folder``, given its network.

    Raises:
      ValueError: the folder has no network.json or no checkpoint, or its network is not of
        sinkflow.

    Example:
      >>> sinkflow.load_field("runs/moons").horizon  # doctest: +SKIP
      1.0
    """
    from sinkflow import checkpoint

    folder = pathlib.Path(folder)
    if not (folder / NETWORK).exists():
        raise ValueError(f"{folder} has no {NETWORK}; give sinkflow.fit the network it trains")
    if checkpoint.latest_step(folder / CHECKPOINTS) is None:
        raise ValueError(f"{folder} has no checkpoint yet; start its training again")
    made, horizon = _described.read(folder)
    state, config = checkpoint.load(folder / CHECKPOINTS)
    if "ema_params" not in state:
        raise ValueError(f"{folder / CHECKPOINTS} holds no ema_params; they are a field's")
    params = jax.tree.map(jnp.asarray, state["ema_params"])
    return Field(made.apply, params, horizon, config)


def check_finite(step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics as numbers.

    Raises:
      FloatingPointError: one is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    bad = {name: value for name, value in values.items() if not np.isfinite(value)}
    if bad:
        raise FloatingPointError(f"step {step}: {bad}; lower learning_rate or look at the data")
    return values


def _call(steps: Callable) -> Callable:
    """The steps of one device, for :func:`sinkflow.parallel.pmap_step`."""

    def call(state: Any, batch: Any, *, axis_name: str) -> tuple[Any, Any]:
        rows, key = batch
        state, metrics = steps(state, rows, key[0], axis_name=axis_name)
        return state, (metrics, jax.tree.map(_is_finite, state))

    return call


def _check_counts(
    num_steps: int, steps_per_call: int, checkpoint_every: int, refresh_every: int, folder: Folder
) -> None:
    if steps_per_call < 1:
        raise ValueError(f"steps_per_call is {steps_per_call}; it must be at least 1")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    if checkpoint_every and folder is None:
        raise ValueError(f"checkpoint_every is {checkpoint_every}; give a folder to write to")
    counts = num_steps, checkpoint_every, refresh_every
    for name, count in zip(("num_steps", "checkpoint_every", "refresh_every"), counts, strict=True):
        if count < 0 or count % steps_per_call:
            raise ValueError(
                f"{name} is {count}; it must be a multiple of steps_per_call, {steps_per_call}"
            )


def _check_state(state: Any, network: Any) -> None:
    """Raises ValueError that names the field that the state lacks."""
    for name in ("step", *(["ema_params"] if network is not None else [])):
        if not hasattr(state, name):
            raise ValueError(
                f"state is a {type(state).__name__} without {name}; take one like train.TrainState"
            )


def _check_start(done: int, num_steps: int, steps_per_call: int, folder: Folder) -> None:
    """Raises ValueError unless whole calls lead from the steps done to those that are wanted."""
    where = "state" if folder is None else folder
    if done > num_steps:
        raise ValueError(
            f"num_steps is {num_steps}, but {where} is at step {done}; ask for more steps or use "
            "another folder"
        )
    if done % steps_per_call:
        raise ValueError(
            f"steps_per_call is {steps_per_call}, but {where} is at step {done}; choose a divisor"
        )


def _is_finite(leaf: Any) -> Any:
    return jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else True


def _check_finite_state(step: int, finite: Any) -> None:
    """Raises FloatingPointError that names the arrays of the state that are not finite.

    A loss is of the parameters before its step: the last update may have spoilt them unseen.
    """
    leaves = jax.tree.leaves_with_path(jax.device_get(finite))
    bad = [jax.tree_util.keystr(path) for path, whole in leaves if not whole]
    if bad:
        raise FloatingPointError(
            f"step {step}: not finite in the state: {', '.join(bad)}; lower learning_rate or look "
            "at the data"
        )


def _check_step(state: Any, first: int, last: int) -> None:
    if int(state.step) != last:
        raise ValueError(
            f"step took state.step from {first} to {int(state.step)} in {last - first} steps; it "
            "must add 1 to it"
        )


def _restored(state: State, folder: Folder, config: Mapping[str, Any]) -> tuple[State, int | None]:
    """The newest checkpoint and its step, or the state as it is and None."""
    if folder is None:
        return state, None
    from sinkflow import checkpoint

    checkpoints = pathlib.Path(folder) / CHECKPOINTS
    if not parallel.anywhere(checkpoint.latest_step(checkpoints) is not None):
        return state, None
    state = parallel.from_first(lambda: checkpoint.restore(checkpoints, state, config), state)
    return state, int(state.step)  # type: ignore[attr-defined]


def _save(folder: str | pathlib.Path, step: int, state: Any, config: Mapping[str, Any]) -> None:
    from sinkflow import checkpoint

    if jax.process_index() == 0:
        checkpoint.save(pathlib.Path(folder) / CHECKPOINTS, step, state, config)
