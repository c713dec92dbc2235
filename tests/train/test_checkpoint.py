"""Checkpoints: bit for bit, two kept, other configs refused, kills and device counts survived."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinkflow import checkpoint, nets, parallel, pool, train

ROOT = pathlib.Path(checkpoint.__file__).parents[1]
CONFIG = {"epsilon": 0.02, "hidden_dims": (8, 8), "task": "moons"}


def state_of(number=0):
    """Every kind of leaf a run saves, with values that only full precision brings back."""
    key = jax.random.key(number)
    return {
        "step": jnp.asarray(number, jnp.int32),
        "params": {"kernel": jax.random.normal(key, (5, 3)), "bias": jnp.array([1e-30, np.pi])},
        "half": jax.random.normal(key, (4,)).astype(jnp.bfloat16),
        "flags": (jnp.array([True, False]), jnp.array(7, jnp.uint32)),
        "key": jax.random.key_data(key),
    }


def process(code, *arguments, devices=None):
    """Runs code as a fresh program; the test's own flags and devices do not reach it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"} if devices else {}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**kept, **flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = state_of(3)
    checkpoint.save(tmp_path / "new" / "folder", 3, state, CONFIG)
    restored = checkpoint.restore(tmp_path / "new" / "folder", state_of(0), CONFIG)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))


def test_a_training_state_comes_back_and_trains_on(tmp_path, key):
    model, optimizer = nets.VelocityMLP((8,)), optax.adam(0.1)
    step = jax.jit(train.make_step(model.apply, optimizer, ema_decay=0.9))
    rows = pool.Rows(jnp.ones((4, 2)), jnp.linspace(0, 1, 4), -jnp.ones((4, 2)))
    state, _ = step(train.init(key, model, optimizer, dim=2), rows)
    checkpoint.save(tmp_path, 1, state, CONFIG)
    like = train.init(jax.random.key(9), model, optimizer, dim=2)
    restored = checkpoint.restore(tmp_path, like, CONFIG)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(step(restored, rows), step(state, rows))


def test_shapes_alone_are_enough_to_restore(tmp_path):
    rows = pool.Pool(*(np.full(shape, 2.0, np.float32) for shape in [(6, 3, 2)] * 2 + [(6, 3)] * 2))
    checkpoint.save(tmp_path, 0, rows, CONFIG)
    restored = checkpoint.restore(tmp_path, pool.abstract(6, 3, dim=2), CONFIG)
    assert isinstance(restored, pool.Pool)
    chex.assert_trees_all_equal(restored, rows)


def test_another_shape_is_not_restored_silently(tmp_path):
    # Orbax alone hands back the saved six numbers, whatever was asked for.
    checkpoint.save(tmp_path, 0, {"x": jnp.arange(6.0)}, CONFIG)
    with pytest.raises(ValueError, match=r"\['x'\] is \(6,\) there, \(4,\) here"):
        checkpoint.restore(tmp_path, {"x": jnp.zeros(4)}, CONFIG)


def test_the_newest_two_are_kept_and_the_newest_restored(tmp_path):
    for number in (10, 20, 30):
        checkpoint.save(tmp_path, number, state_of(number), CONFIG)
    assert steps_in(tmp_path) == [20, 30]
    assert checkpoint.latest_step(tmp_path) == 30
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, state_of(), CONFIG), state_of(30))


def test_another_config_is_refused_with_the_differences(tmp_path):
    checkpoint.save(tmp_path, 1, state_of(), CONFIG)
    other = {"epsilon": 0.5, "hidden_dims": [8, 8], "task": "moons", "seed": 1}
    with pytest.raises(ValueError, match="another config") as error:
        checkpoint.restore(tmp_path, state_of(), other)
    message = str(error.value)
    assert "epsilon: 0.02 there, 0.5 here" in message and "seed: 'absent' there, 1 here" in message
    assert "hidden_dims" not in message and "task" not in message  # a tuple equals its list


def test_an_existing_step_is_refused_and_stays(tmp_path):
    checkpoint.save(tmp_path, 1, state_of(1), CONFIG)
    with pytest.raises(ValueError, match="already holds a checkpoint of step 1"):
        checkpoint.save(tmp_path, 1, state_of(2), CONFIG)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, state_of(), CONFIG), state_of(1))


def test_readers_leave_what_another_process_is_writing(tmp_path):
    checkpoint.save(tmp_path, 1, state_of(1), CONFIG)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert checkpoint.latest_step(tmp_path) == 1
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, state_of(), CONFIG), state_of(1))
    assert unfinished.is_dir()


def test_missing_checkpoints_are_reported(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert checkpoint.latest_step(folder) is None
        with pytest.raises(FileNotFoundError, match=folder.name):
            checkpoint.restore(folder, state_of(), CONFIG)
    assert not (tmp_path / "absent").exists()  # asking creates nothing


@pytest.mark.parametrize("moment", ["first", "last"])
def test_a_kill_during_save_leaves_the_last_checkpoint(tmp_path, moment):
    # SIGKILL at the first file that the second save puts in place, or at its last rename.
    code = """
        import os, pathlib, signal, sys
        import numpy as np
        from sinkflow import checkpoint

        config = {"epsilon": 0.02}
        checkpoint.save(sys.argv[1], 1, {"x": np.arange(5.0, dtype=np.float32)}, config)
        rename, replace = os.rename, os.replace

        def die(*arguments, **options):
            if sys.argv[2] == "first" or pathlib.Path(arguments[1]).name == "2":
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(*arguments, **options)

        os.rename = os.replace = die
        checkpoint.save(sys.argv[1], 2, {"x": np.zeros(5, np.float32)}, config)
    """
    done = process(code, tmp_path, moment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.iterdir())) > 1, "the kill came before anything was written"
    like, config = {"x": np.zeros(5, np.float32)}, {"epsilon": 0.02}
    assert checkpoint.latest_step(tmp_path) == 1
    np.testing.assert_array_equal(checkpoint.restore(tmp_path, like, config)["x"], np.arange(5.0))
    checkpoint.save(tmp_path, 2, {"x": np.ones(5, np.float32)}, config)  # the same step again
    np.testing.assert_array_equal(checkpoint.restore(tmp_path, like, config)["x"], np.ones(5))
    assert steps_in(tmp_path) == [1, 2] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("devices", [1, 2])
def test_a_checkpoint_of_four_devices_is_restored_on_fewer(tmp_path, key, devices):
    assert jax.local_device_count() == 4
    x = parallel.shard(jax.random.normal(key, (8, 3)))
    mean = lambda state, batch, axis_name: (jax.lax.pmean(state + batch, axis_name), 0.0)
    state, _ = parallel.pmap_step(mean)(jnp.ones((2, 3)), x)
    assert len(state.devices()) == 4  # replicated, as a driver's state is
    checkpoint.save(tmp_path / "run", 5, {"w": state}, CONFIG)
    np.save(tmp_path / "expected.npy", state)
    code = """
        import sys
        import jax, numpy as np
        from sinkflow import checkpoint, parallel

        config = {"epsilon": 0.02, "hidden_dims": (8, 8), "task": "moons"}
        assert jax.local_device_count() == int(sys.argv[2])
        like = {"w": jax.ShapeDtypeStruct((2, 3), np.float32)}
        state = checkpoint.restore(sys.argv[1] + "/run", like, config)
        np.testing.assert_array_equal(state["w"], np.load(sys.argv[1] + "/expected.npy"))
        add = parallel.pmap_step(lambda s, b, axis_name: (s + jax.lax.pmean(b, axis_name).sum(), 0))
        moved, _ = add(state["w"], parallel.shard(np.ones((2, 1), np.float32)))
        print("restored on", len(moved.devices()))
    """
    done = process(code, tmp_path, devices, devices=devices)
    assert done.stdout.split() == ["restored", "on", str(devices)], done.stderr


def test_nan_in_the_config_equals_itself(tmp_path):
    config = {"floor": float("nan"), "nested": {"list": [1, float("nan")]}}
    checkpoint.save(tmp_path, 1, state_of(1), config)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, state_of(), config), state_of(1))
    with pytest.raises(ValueError, match=r"floor: nan there, 0\.0 here"):
        checkpoint.restore(tmp_path, state_of(), {**config, "floor": 0.0})
    with pytest.raises(ValueError, match="nested"):
        checkpoint.restore(tmp_path, state_of(), {**config, "nested": {"list": [1]}})


def test_an_earlier_step_is_refused_and_the_later_stays(tmp_path):
    checkpoint.save(tmp_path, 10, state_of(10), CONFIG)
    with pytest.raises(ValueError, match="holds a checkpoint of step 10, and 5 is before it"):
        checkpoint.save(tmp_path, 5, state_of(5), CONFIG)
    assert steps_in(tmp_path) == [10]


@pytest.mark.parametrize("step", [1.5, -1, True, "1"])
def test_steps_are_whole_numbers_from_zero_up(tmp_path, unchecked_shapes, step):
    with pytest.raises(ValueError, match=f"step is {step!r}; .* whole numbers"):
        checkpoint.save(tmp_path / "new", step, state_of(), CONFIG)
    assert not (tmp_path / "new").exists()


def test_another_dtype_is_refused_and_named(tmp_path):
    # Orbax alone makes 1e6 an infinity in float16.
    state = {"b": jnp.array([1e6]), "a": jnp.arange(3)}
    checkpoint.save(tmp_path, 1, state, CONFIG)
    like = {**state, "b": jnp.zeros(1, jnp.float16)}
    with pytest.raises(ValueError, match=r"\['b'\] is float32 there, float16 here"):
        checkpoint.restore(tmp_path, like, CONFIG)


def test_dtypes_are_compared_leaf_by_leaf_in_every_container(tmp_path):
    # Orbax sorts the fields of a named tuple; in order its t would be compared with x.
    leaves = (np.zeros(2, dtype) for dtype in (np.float16, np.float32, np.int32, np.uint8))
    state = {"pool": pool.Pool(*leaves), "pair": (np.zeros(1, np.int8), [np.zeros(1, np.int16)])}
    checkpoint.save(tmp_path, 1, state, CONFIG)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        checkpoint.restore(tmp_path, state, CONFIG), state
    )
    other = {**state, "pair": (np.zeros(1, np.int8), [np.zeros(1, np.int32)])}
    with pytest.raises(ValueError, match="is int16 there, int32 here; restore") as error:
        checkpoint.restore(tmp_path, other, CONFIG)
    assert "pool" not in str(error.value)


def test_leaves_that_are_no_arrays_are_refused_and_named(tmp_path, key):
    state = {"rate": 0.1, "count": 3, "key": key, "x": jnp.zeros(2)}
    wrong = r"\['count'\] is int, \['key'\] is .*, \['rate'\] is float; save numpy.asarray"
    with pytest.raises(ValueError, match=wrong):
        checkpoint.save(tmp_path, 1, state, CONFIG)
    arrays = {"rate": np.float32(0.1), "count": np.asarray(3), "x": jnp.zeros(2)}
    checkpoint.save(tmp_path, 1, arrays, CONFIG)
    restored = checkpoint.restore(tmp_path, {**arrays, "count": np.asarray(0)}, CONFIG)
    assert float(restored["rate"]) == np.float32(0.1) and int(restored["count"]) == 3
    with pytest.raises(ValueError, match=r"\['rate'\] is float"):
        checkpoint.restore(tmp_path, {**arrays, "rate": 0.1}, CONFIG)


def test_a_state_of_unknown_structure_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.load(tmp_path)
    rows = pool.Rows(np.ones((3, 2), np.float32), np.zeros(3), np.full((3, 2), 2.0))
    checkpoint.save(tmp_path, 1, {**state_of(1), "rows": rows}, CONFIG)
    state, config = checkpoint.load(tmp_path)
    chex.assert_trees_all_equal(state["rows"], rows._asdict())
    chex.assert_trees_all_equal(state["params"], jax.device_get(state_of(1)["params"]))
    assert state["half"].dtype == jnp.bfloat16 and config == {**CONFIG, "hidden_dims": [8, 8]}
