"""fit: resumed bit for bit, refreshed, reported; fields come back from the folder alone."""

import functools
import json
import re
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sinkflow
from experiments import sample
from sinkflow import checkpoint, data, nets, pool, train
from sinkflow._described import description, network
from sinkflow.fit import FitReport, check_finite
from sinkflow.nets import unet

MODEL, OPTIMIZER = nets.VelocityMLP((8, 8)), optax.adam(0.01)
DRAW = functools.partial(pool.sample, batch_size=4)
STEP = train.drawing_step(train.make_step(MODEL.apply, OPTIMIZER, ema_decay=0.9), DRAW)
CONFIG = {"source": "moons", "seed": 0}


class Stop(Exception):
    """What a test ends a training with."""


class Counter(NamedTuple):
    """The smallest state that fit trains."""

    step: jax.Array
    total: jax.Array


def add(state, rows, key, *, axis_name=None):
    """Adds the mean of the rows and a bit of noise."""
    mean = jax.lax.pmean(jnp.mean(rows), axis_name)
    noise = jax.lax.pmean(jax.random.normal(key), axis_name)
    return Counter(state.step + 1, state.total + mean + noise), {"total": state.total}


def counter(step=0):
    return Counter(jnp.asarray(step, jnp.int32), jnp.zeros(()))


def count(state=None, step=add, rows=None, **options):
    """fit of a counter."""
    rows = jnp.ones(8) if rows is None else rows
    settings = {"key": jax.random.key(0), "num_steps": 20, "steps_per_call": 5, **options}
    return sinkflow.fit(counter() if state is None else state, step, rows, **settings)


def learn(folder, num_steps=40, **options):
    """fit of a small field from moons to moons further right."""
    x = data.moons(jax.random.key(1), 64)
    state = train.init(jax.random.key(2), MODEL, OPTIMIZER, dim=2)
    settings = {
        "key": jax.random.key(3),
        "num_steps": num_steps,
        "steps_per_call": 10,
        "folder": folder,
        "config": CONFIG,
        "checkpoint_every": 10,
        "network": MODEL,
        **options,
    }
    return sinkflow.fit(state, STEP, pool.from_pairs(x, x + 5), **settings)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    return folder, *learn(folder)


def test_a_training_stopped_by_an_exception_ends_bit_for_bit_like_an_unbroken_one(
    learned, tmp_path
):
    _, whole, _ = learned

    def stop(done, info):
        if done == 30:
            raise Stop

    with pytest.raises(Stop):
        learn(tmp_path, log=stop)
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 20  # none of the call that failed
    state, report = learn(tmp_path)
    assert report.resumed_from == 20 and report.steps == 20
    chex.assert_trees_all_equal(state, whole)


def test_the_report_tells_what_was_done(learned):
    folder, state, report = learned
    assert isinstance(report, FitReport)
    assert report.steps == 40 and report.resumed_from is None and report.seconds > 0
    assert int(state.step) == 40
    again, nothing = learn(folder)
    assert nothing[::2] == (0, 40)
    chex.assert_trees_all_equal(again, state)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, report = count()
    assert int(state.step) == 20 and report.steps == 20 and report.resumed_from is None
    assert list(tmp_path.iterdir()) == []
    further, report = count(state, num_steps=30)  # in memory it goes on, too
    assert int(further.step) == 30 and report.steps == 10


def test_a_step_is_that_of_its_number_whatever_the_calls():
    wholes = [count(steps_per_call=calls)[0] for calls in (1, 4, 20)]
    for whole in wholes[1:]:
        chex.assert_trees_all_close(whole, wholes[0], rtol=1e-5)
    assert abs(float(wholes[0].total) - 20) > 0.1  # noise of the keys came in
    other, _ = count(key=jax.random.key(1))
    assert float(other.total) != float(wholes[0].total)


def test_each_part_of_the_training_has_rows_of_its_own():
    asked = []

    def rows(part):
        asked.append(part)
        return jnp.full(8, 10.0**part)

    plain, _ = count()
    refreshed, _ = count(rows=rows, refresh_every=10)
    assert asked == [0, 1]
    assert float(refreshed.total - plain.total) == pytest.approx(10 * (10 - 1), rel=1e-4)
    count(rows=rows)
    assert asked == [0, 1, 0]  # one part is the whole training


def test_rows_of_a_finished_part_are_not_made_again(tmp_path):
    asked = []
    rows = lambda part: asked.append(part) or jnp.ones(8)
    options = {"rows": rows, "folder": tmp_path, "refresh_every": 5}
    count(num_steps=10, **options)
    count(num_steps=20, **options)
    assert asked == [0, 1, 2, 3]
    count(num_steps=20, **options)
    assert asked == [0, 1, 2, 3]


def test_log_progress_and_the_compiled_call_are_shown_in_order(tmp_path):
    seen = []

    def progress(calls):
        seen.append(calls)
        return calls

    count(
        folder=tmp_path,
        num_steps=10,
        log=lambda done, metrics: seen.append((done, sorted(metrics))),
        progress=progress,
        compiled=lambda program: seen.append(hasattr(program, "memory_analysis")),
        summary=lambda metrics, axis_name: {"last": metrics["total"][-1]},
    )
    assert seen == [range(0, 10, 5), True, (5, ["last"]), (10, ["last"])]
    count(folder=tmp_path, progress=progress)
    assert seen[-1] == range(10, 20, 5)


def test_checkpoints_are_written_when_they_are_due(tmp_path):
    kept = lambda: sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    count(folder=tmp_path, num_steps=15, checkpoint_every=10)
    assert kept() == [10, 15]
    count(folder=tmp_path, num_steps=30)
    assert kept() == [15, 30]


def test_a_field_is_loaded_from_its_folder_alone(learned):
    folder, state, _ = learned
    field = sinkflow.load_field(folder)
    chex.assert_trees_all_equal(field.params, state.ema_params)
    assert field.horizon == 1 and dict(field.config) == CONFIG
    x, t = jnp.ones((3, 2)), jnp.array([0.0, 0.5, 1.0])
    expected = MODEL.apply(state.ema_params, x, t)
    np.testing.assert_array_equal(field.apply_fn(field.params, x, t), expected)


def test_the_command_samples_what_a_notebook_trained(learned, tmp_path):
    folder, _, _ = learned
    settings = {"num_samples": 5, "nfe": 2, "out": str(tmp_path / "x.npy")}
    samples = sample.main(sample.Config(run=str(folder), **settings))
    field, x0 = sinkflow.load_field(folder), data.moons(jax.random.key(0), 5)
    expected = sinkflow.sampling.nsgf(field.apply_fn, field.params, x0, nfe=2)
    np.testing.assert_array_equal(samples, expected)
    with pytest.raises(ValueError, match="this run's field has none"):
        sample.main(sample.Config(run=str(folder), labels=(1,), **settings))


def test_sampling_needs_to_know_the_source(tmp_path):
    learn(tmp_path, num_steps=10, config={"source": "spiral"})
    with pytest.raises(ValueError, match=r"source is 'spiral' .* gaussian, 8gaussians, moons"):
        sample.main(sample.Config(run=str(tmp_path), num_samples=5))


def test_the_folder_of_another_run_is_refused(learned):
    folder, _, _ = learned
    before = (folder / "network.json").read_text()
    with pytest.raises(ValueError, match="seed: 0 there, 7 here"):
        learn(folder, config={**CONFIG, "seed": 7})
    with pytest.raises(ValueError, match=r"horizon: 1\.0 there, 2\.0 here"):
        learn(folder, horizon=2.0)
    with pytest.raises(ValueError, match=r"num_steps is 20, but .* is at step 40; ask for more"):
        learn(folder, num_steps=20)
    with pytest.raises(ValueError, match=r"steps_per_call is 25, but .* is at step 40"):
        learn(folder, num_steps=100, steps_per_call=25, checkpoint_every=0)
    assert (folder / "network.json").read_text() == before


def test_a_folder_without_a_checkpoint_may_be_mended(tmp_path):
    def stop(done, info):
        raise Stop

    with pytest.raises(Stop):
        learn(tmp_path, horizon=2.0, log=stop)
    assert json.loads((tmp_path / "network.json").read_text())["horizon"] == 2
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        sinkflow.load_field(tmp_path)
    learn(tmp_path, num_steps=10)
    assert sinkflow.load_field(tmp_path).horizon == 1


def test_a_folder_without_a_network_is_no_field(tmp_path):
    count(folder=tmp_path, config=CONFIG)
    with pytest.raises(ValueError, match=r"has no network\.json; give sinkflow\.fit the network"):
        sinkflow.load_field(tmp_path)
    state, config = checkpoint.load(tmp_path / "checkpoints")
    assert int(state["step"]) == 20 and config == CONFIG


def test_settings_of_any_network_survive_the_file():
    described = json.loads(json.dumps(description(unet.UNet(8, (1, 2)), 1.0)))
    made = network(described)
    assert (made.channels, made.multipliers) == (8, (1, 2)) and jnp.dtype(made.dtype) == "bfloat16"


class Foreign(nn.Module):
    """A network that the library cannot name."""


def test_only_networks_of_the_library_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"network is a Foreign of .*test_fit; only those of"):
        learn(tmp_path, network=Foreign())
    assert list(tmp_path.iterdir()) == []
    count(folder=tmp_path)
    for name in ("os.system", "sinkflow.checkpoint.save", "sinkflow.nets.unet.functools", "UNet"):
        described = {"network": name, "settings": {}, "horizon": 1.0}
        (tmp_path / "network.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match=rf"network is {re.escape(name)}; only those of sink"):
            sinkflow.load_field(tmp_path)


def test_a_metric_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 5: \{'total': inf\}; lower"):
        count(rows=jnp.full(8, jnp.inf), folder=tmp_path, checkpoint_every=5, log=never)
    assert checkpoint.latest_step(tmp_path / "checkpoints") is None
    assert check_finite(1, {"loss": jnp.array(2.0)}) == {"loss": 2.0}


def spoil(state, rows, key, *, axis_name=None):
    """A step whose loss is finite, and whose update no longer is at step 15."""
    total = jnp.where(state.step == 14, jnp.nan, state.total + 1)
    return Counter(state.step + 1, total), {"loss": jnp.nan_to_num(state.total)}


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 15: not finite in the state: \.total; low"):
        count(step=spoil, folder=tmp_path, checkpoint_every=5)
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 10
    saved = checkpoint.restore(tmp_path / "checkpoints", counter(), {})
    assert float(saved.total) == 10


def never(done, metrics):
    raise AssertionError("logged what is not finite")


def test_a_step_that_does_not_count_is_refused():
    lazy = lambda state, *rest, axis_name: (state, {"total": state.total})
    with pytest.raises(ValueError, match=r"from 0 to 0 in 5 steps; it must add 1"):
        count(step=lazy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"num_steps": 12}, "num_steps is 12; it must be a multiple of steps_per_call, 5"),
        ({"steps_per_call": 0}, "steps_per_call is 0; it must be at least 1"),
        ({"refresh_every": 7}, "refresh_every is 7; it must be a multiple"),
        ({"refresh_every": 10}, "refresh_every is 10; give rows as a function of the part"),
        ({"checkpoint_every": 5}, "checkpoint_every is 5; give a folder"),
        ({"checkpoint_every": 7, "folder": "x"}, "checkpoint_every is 7; it must be a multiple"),
        ({"state": {"total": jnp.ones(())}}, "state is a dict without step; take one like"),
        ({"network": MODEL}, "state is a Counter without ema_params"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        count(**options)
