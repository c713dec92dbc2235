"""Training of the image models, in stages that resume one by one.

Images are vectors [n, d] everywhere but inside the networks, so that flows, pools and samplers are
those of the plane. A stage is a network with its loss and its rows; :func:`train_stage` trains one.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.harness.files import write_json
from experiments.harness.run import Run, read_settings
from experiments.harness.settings import check_batch, from_record, naming
from experiments.harness.training import adam, decaying, fit
from experiments.images.checks import check_network
from experiments.images.config import (
    DataSet,
    Flow,
    Keys,
    Network,
    Training,
    pairing,
    stage_steps,
)
from experiments.images.pools import flow_pools, pair_pools, samplers
from experiments.images.rows import (
    map_loss,
    map_rows,
    matching_loss,
    pool_rows,
    prediction_loss,
    straight_rows,
)
from sinkflow import checkpoint, nets, train
from sinkflow.files import read_object
from sinkflow.fit import CHECKPOINTS, Field
from sinkflow.nets import unet

BEGINS_AS = {"straight": "velocity", "second": "first"}
"""Stages that begin with the parameters of an earlier one: where the two meet, both are fields that
carry the same particles to the same images."""
TRAINING = "training.json"  # of each stage: what its training took
TRAINING_FORM: dict[str, Any] = {
    "seconds": {...: float},
    "resumed_from": (int, NoneType),
    "device_memory_gb": (float, NoneType),
    "commit?": str,
    "device?": {"kind": str},
}


class Stage(NamedTuple):
    """One network with its loss and rows.

    ``data(part)`` makes what ``draw(data, key)`` draws rows from.
    """

    network: nets.Network
    loss_fn: Callable
    draw: Callable
    data: Callable[[int], Any]


def make_stages(
    run: Run,
    pixels,
    keys: Keys,
    *,
    method: str,
    data_set: DataSet,
    flow: Flow,
    network: Network,
    training: Training,
) -> dict[str, Stage]:
    """The stages of the method, by name, for training images ``pixels`` [n, h, w, c] of uint8."""
    batch, power = training.batch_size, training.row_power
    check_batch(batch)
    draw_flows = functools.partial(pool_rows, batch_size=batch, power=power)
    velocity = nets.on_vectors(network.velocity(), data_set.shape, jnp.zeros(1))
    pixels = pixels[jax.random.permutation(keys["shuffle"], len(pixels))]
    clouds, kind = samplers(pixels, keys["epsilon"], data_set.flip), pairing(method, flow.pairs)
    independent = kind == "independent"
    paired = (
        (lambda part: pixels) if independent else pair_pools(run, keys["pairs"], clouds, flow, kind)
    )
    uniform = (
        functools.partial(straight_rows, batch_size=batch, mirror=data_set.flip)
        if independent
        else functools.partial(pool_rows, batch_size=batch)
    )
    straight = uniform if independent else functools.partial(uniform, power=power)

    def straight_stage(start: float = 0.0, stop: float = 1.0) -> Stage:
        rows = functools.partial(straight, start=start, stop=stop)
        return Stage(velocity, matching_loss, rows, paired)

    # NSGF++'s straight flow begins where the first phase ends; its rivals' at the source.
    start = training.straight_start if method == "nsgf++" else 0.0
    flows = flow_pools(run, keys["flows"], clouds, flow)
    draw_pairs = functools.partial(map_rows, batch_size=batch, power=power)
    made = {
        "velocity": Stage(velocity, matching_loss, draw_flows, flows),
        "map": Stage(of_two_times(network, data_set.shape), map_loss, draw_pairs, flows),
        "predictor": Stage(
            nets.on_vectors(unet.ConvTimePredictor(), data_set.shape),
            prediction_loss,
            # The points of the straight flow, at each of its times alike.
            functools.partial(uniform, start=start),
            paired,
        ),
        "straight": straight_stage(start),
        "first": straight_stage(stop=training.split),
        "second": straight_stage(training.split),
    }
    return {name: made[name] for name in stage_steps(method, training)}


def of_two_times(network: Network, shape: tuple[int, int, int]) -> nets.Network:
    """A field of mean velocities ``(params, x, s, t)``, see :mod:`sinkflow.flow_map`."""
    made = nets.on_vectors(network.velocity(), shape, jnp.zeros((1, 2)))

    def apply_fn(params, x, s, t, **options):
        return made.apply_fn(params, x, jnp.stack([s, t], axis=1), **options)

    return nets.Network(made.init, apply_fn)


def train_stage(
    run: Run,
    name: str,
    stage: Stage,
    key: jax.Array,
    *,
    num_steps: int,
    refresh_every: int,
    training: Training,
    params: Any = None,
) -> Field:
    """A stage's field, with averaged parameters; it resumes where an earlier start stopped.

    ``params`` are those that the training begins with, by default random ones.
    """
    rate = decaying(training.learning_rate, num_steps)
    optimizer = adam(rate, clip=training.clip)
    key_init, key_rows = jax.random.split(key)
    if params is None:
        # One program of many threefry draws takes a compiler long.
        seed = jax.random.wrap_key_data(jax.random.bits(key_init, (4,), jnp.uint32), impl="rbg")
        state = jax.jit(lambda key: train.create(stage.network.init(key), optimizer))(seed)
    else:  # a copy: a training step gives the memory of its state away
        state = train.create(jnp.copy(params), optimizer)
    # The average spans a tenth of the training at most: nothing is left of the initial values.
    decay = min(training.ema_decay, 1 - 10 / max(num_steps, 20))
    step = train.make_step(
        stage.network.apply_fn, optimizer, ema_decay=decay, loss_fn=stage.loss_fn
    )
    part, before = run.stage(name), dict(run.times)
    with run.timed(f"train {name}"):
        state = fit(
            part,
            state,
            train.drawing_step(step, stage.draw),
            stage.data,
            key=key_rows,
            rate=rate,
            batch_size=training.batch_size,
            num_steps=num_steps,
            steps_per_call=training.steps_per_call,
            checkpoint_every=training.checkpoint_every,
            refresh_every=refresh_every,
            description=name,
        )
    # Else it was finished before; a kill may have come between its last step and its record.
    if part.resumed_from != num_steps or not (part.out / TRAINING).exists():
        spent = {phase: run.times[phase] - before.get(phase, 0.0) for phase in run.times}
        record = {
            "seconds": {phase: round(seconds, 2) for phase, seconds in spent.items() if seconds},
            # The seconds are of the start that finished it: too few if it had to resume.
            "resumed_from": part.resumed_from,
            "device_memory_gb": run.peak_memory(),
            "ema_decay": decay,
            **run.circumstances(),
        }
        write_json(part.out / TRAINING, record)
    if part.resumed_from is not None:  # of a run in stages: steps of all stages together
        run.resumed_from = (run.resumed_from or 0) + part.resumed_from
    return Field(stage.network.apply_fn, state.ema_params)


def train_stages(
    run: Run,
    made: dict[str, Stage],
    keys: Keys,
    *,
    method: str,
    chosen: tuple[str, ...],
    refresh_every: int,
    training: Training,
) -> dict[str, Field]:
    """Fields of the ``chosen`` stages, or of all, and of those that are trained already."""
    steps = stage_steps(method, training)
    finished = [
        name
        for name in steps
        if checkpoint.latest_step(run.out / name / CHECKPOINTS) == steps[name]
    ]
    wanted = [name for name in steps if name in finished or name in (chosen or steps)]
    before = {name: BEGINS_AS[name] for name in wanted if BEGINS_AS.get(name) in steps}
    for name, first in before.items():
        if first not in wanted:
            raise ValueError(f"stage {name} begins as {first}; train that stage first")
    fields: dict[str, Field] = {}
    for name in wanted:
        begin = fields[before[name]].params if name in before else None
        fields[name] = train_stage(
            run,
            name,
            made[name],
            keys[name],
            num_steps=steps[name],
            refresh_every=refresh_every,
            training=training,
            params=begin,
        )
    missing = [name for name in steps if name not in fields]
    if missing:
        print(f"still to be trained before samples are drawn: {', '.join(missing)}")
    return fields


def restored(folder: pathlib.Path, name: str, shape: tuple[int, int, int]) -> Field:
    """The newest field of a stage of an image run.

    Raises:
      ValueError: no run in the folder, or no checkpoint of the stage, which is named.
    """
    settings = read_settings(folder, {field.name: object for field in dataclasses.fields(Network)})
    if checkpoint.latest_step(folder / name / CHECKPOINTS) is None:
        raise ValueError(f"run is {folder}: it has no checkpoint of stage {name} yet; train it")
    own = {field.name: settings[field.name] for field in dataclasses.fields(Network)}
    with naming(folder / "config.json"):
        model = from_record(Network, own)
        check_network(model)
    network = nets.on_vectors(model.velocity(), shape, jnp.zeros(1))
    state, _ = checkpoint.load(folder / name / CHECKPOINTS)
    return Field(network.apply_fn, state["ema_params"])


def training_records(run: Run, stages: Iterable[str]) -> dict[str, dict]:
    """What the training of each stage took, whenever that was."""
    paths = {stage: run.out / stage / TRAINING for stage in stages}
    return {
        stage: read_object(path, TRAINING_FORM) for stage, path in paths.items() if path.is_file()
    }


def pool_records(run: Run, kind: str = "pools") -> list[dict]:
    """Certificates of the pools that the run has trained on, or of its pairs, in their order."""
    paths = [path for path in (run.out / kind).glob("*.json") if path.stem.isdecimal()]
    return [read_object(path) for path in sorted(paths, key=lambda path: int(path.stem))]
