"""Damaged checkpoints, pools, classifiers: each changed bit is seen, the last whole one used."""

import contextlib
import json
import secrets
import shutil
import subprocess
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import sinkflow
from experiments import plane
from experiments.harness.run import Run
from experiments.harness.settings import made
from experiments.images import judge
from sinkflow import checkpoint, pool
from sinkflow.nets import classifier
from tests.tested import flips_per_kind, write_record

CONFIG = {"epsilon": 0.02, "task": "moons"}
SEED = secrets.randbits(32)  # printed with every failure


def state_of(number):
    key = jax.random.key(number)
    return {"step": jnp.asarray(number, jnp.int32), "kernel": jax.random.normal(key, (6, 3))}


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def random_flips(folder, count, random):
    """Files, positions and bits; every file is met, large ones no more often than small ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        path = files[number % len(files)]
        yield path, random.integers(path.stat().st_size), random.integers(8)


def unnoticed(folder, count, random, notice):
    """Flips in the folder's files that ``notice()`` does not see; each is undone."""
    missed = []
    for path, position, bit in random_flips(folder, count, random):
        flip(path, position, bit)
        if not notice():
            missed.append(f"{path.relative_to(folder)}, byte {position}, bit {bit}")
        flip(path, position, bit)
    return missed


@pytest.fixture
def random():
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 10 and 20."""
    for number in (10, 20):
        checkpoint.save(tmp_path / "run", number, state_of(number), CONFIG)
    return tmp_path / "run"


def refused(call):
    """Whether a call ends in ValueError of one line."""
    try:
        call()
    except ValueError as error:
        return "\n" not in str(error)
    return False


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_every_changed_bit_of_a_checkpoint_is_noticed(saved, random):
    def notice():
        state = checkpoint.restore(saved, state_of(0), CONFIG)
        chex.assert_trees_all_equal(state, state_of(int(state["step"])))
        return int(state["step"]) == 10  # and never 20 with other numbers

    missed = unnoticed(saved / "20", flips_per_kind(), random, notice)
    assert not missed, missed
    write_record("flips", "checkpoint", {"flips": flips_per_kind(), "seed": SEED})
    assert checkpoint.latest_step(saved) == 20  # every flip was undone


def test_every_changed_bit_of_a_pool_is_refused_with_the_remedy(tmp_path, random):
    run = Run(made(plane.Config, out=str(tmp_path)))
    x, y = (jax.random.normal(jax.random.key(number), (8, 2)) for number in (1, 2))
    whole = pool.from_pairs(x, y)
    like = jax.tree.map(jnp.zeros_like, whole)
    run.restored_pool(like, lambda: whole)
    again = lambda: run.restored_pool(like, lambda: pytest.fail("made anew"))
    missed = unnoticed(tmp_path / "pool", flips_per_kind(), random, lambda: refused(again))
    assert not missed, missed
    write_record("flips", "pool", {"flips": flips_per_kind(), "seed": SEED})
    chex.assert_trees_all_equal(again(), whole)
    flip(next((tmp_path / "pool" / "0" / "state" / "d").iterdir()), 5, 0)
    with pytest.raises(
        ValueError, match=r"pool has no .* whole \(0 is damaged, .*remove that fold"
    ):
        again()
    shutil.rmtree(tmp_path / "pool")
    chex.assert_trees_all_equal(run.restored_pool(like, lambda: whole), whole)


def test_every_changed_bit_of_a_classifier_is_refused(tmp_path, random):
    like = jax.eval_shape(judge.MODEL.init, jax.random.key(0), jnp.zeros((1, *classifier.SHAPE)))
    weights = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), like)
    judge.write_classifier(tmp_path, "toy", weights, {"test_accuracy": 0.5})
    again = lambda: judge.read_classifier("toy", tmp_path)
    missed = unnoticed(tmp_path, flips_per_kind(), random, lambda: refused(again))
    assert not missed, missed
    write_record("flips", "classifier", {"flips": flips_per_kind(), "seed": SEED})
    chex.assert_trees_all_equal(again().params, jax.tree.map(np.float32, judge.half(weights)))


def test_orbax_alone_does_not_see_all_of_them(tmp_path, random):
    """What the sums are for: without them wrong numbers come back."""
    kernel = np.asarray(jax.random.normal(jax.random.key(0), (64, 64)))
    checkpoint.save(tmp_path, 1, {"kernel": kernel}, CONFIG)
    for name in ("SHA256SUMS", "arrays.json"):
        (tmp_path / "1" / name).unlink()
    values = max((tmp_path / "1" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    wrong = 0
    for at in random.integers(values.stat().st_size // 4, 3 * values.stat().st_size // 4, 20):
        flip(values, at, 3)
        with pytest.warns(UserWarning), contextlib.suppress(ValueError):
            warnings.warn("one at least, for those that Orbax sees", stacklevel=1)
            wrong += not np.array_equal(checkpoint.load(tmp_path)[0]["kernel"], kernel)
        flip(values, at, 3)
    assert wrong > 0


def test_sha256sum_reads_the_sums(saved):
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    run = lambda: subprocess.run(check, cwd=saved / "20", capture_output=True, text=True)
    assert run().returncode == 0
    flip(saved / "20" / "arrays.json", 7, 3)
    done = run()
    assert done.returncode == 1 and "arrays.json: FAILED" in done.stdout


def test_the_newest_whole_one_is_used_and_the_damaged_one_named(saved):
    flip(saved / "20" / "config" / "metadata", 3, 1)
    said = r"run/20 is damaged, another SHA-256: config/metadata; 10 is used in its place"
    for call in (
        lambda: checkpoint.latest_step(saved),
        lambda: int(checkpoint.restore(saved, state_of(0), CONFIG)["step"]),
        lambda: int(checkpoint.load(saved)[0]["step"]),
    ):
        with pytest.warns(UserWarning, match=said):
            assert call() == 10


def test_a_damaged_one_gives_way_to_the_next_of_its_step_or_before(saved):
    flip(saved / "20" / "config" / "metadata", 3, 1)
    with pytest.warns(UserWarning, match="20 is damaged"):
        checkpoint.save(saved, 15, state_of(15), CONFIG)
    assert sorted(path.name for path in saved.iterdir()) == ["10", "15"]
    checkpoint.save(saved, 20, state_of(20), CONFIG)
    flip(saved / "20" / "config" / "metadata", 3, 1)
    with pytest.warns(UserWarning, match="20 is damaged"):
        checkpoint.save(saved, 20, state_of(20), CONFIG)
    assert sorted(path.name for path in saved.iterdir()) == ["15", "20"]
    assert checkpoint.latest_step(saved) == 20


@pytest.mark.parametrize("damage", ["missing", "extra", "cut", "empty sums", "half a line"])
def test_missing_added_and_cut_files_are_noticed(saved, damage):
    newest = saved / "20"
    if damage == "missing":
        (newest / "config" / "metadata").unlink()
    elif damage == "extra":
        (newest / "state" / "more").write_text("x")
    elif damage == "cut":
        (newest / "arrays.json").write_text("[]")
    elif damage == "empty sums":
        (newest / "SHA256SUMS").write_text("")
    else:
        (newest / "SHA256SUMS").write_text((newest / "SHA256SUMS").read_text()[:-30])
    with pytest.warns(UserWarning, match="20 is damaged"):
        assert checkpoint.latest_step(saved) == 10


def test_hidden_files_of_others_are_no_damage(saved):
    (saved / "20" / "state" / ".nfs0001").write_text("x")
    (saved / "20" / ".DS_Store").write_text("x")
    assert checkpoint.latest_step(saved) == 20


def test_where_all_are_damaged_the_remedy_is_said_and_training_goes_on_saving(saved):
    for step in ("10", "20"):
        flip(saved / step / "config" / "metadata", 3, 1)
    said = r"run has no checkpoint that is whole \(20 is .*; 10 is .*\): put a copy back, or remove"
    for call in (
        lambda: checkpoint.latest_step(saved),
        lambda: checkpoint.restore(saved, state_of(0), CONFIG),
        lambda: sinkflow.checkpoint.load(saved),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    checkpoint.save(saved, 30, state_of(30), CONFIG)
    chex.assert_trees_all_equal(checkpoint.restore(saved, state_of(0), CONFIG), state_of(30))


def old_checkpoint(folder, step):
    """A checkpoint as earlier versions wrote it, by Orbax's manager and without sums."""
    handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    state = jax.tree.map(np.asarray, state_of(step))
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        parts = {"state": ocp.args.StandardSave(state), "config": ocp.args.JsonSave(CONFIG)}
        manager.save(step, args=ocp.args.Composite(**parts))


def test_checkpoints_from_before_there_were_sums_are_restored_with_a_word(tmp_path):
    old_checkpoint(tmp_path, 5)
    with pytest.warns(UserWarning, match="5 has no sums: it was written before there were any"):
        state = checkpoint.restore(tmp_path, state_of(0), CONFIG)
    chex.assert_trees_all_equal(state, state_of(5))
    (tmp_path / "5" / "state" / "manifest.ocdbt").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"5 is damaged, .* cannot be read") as error:
        checkpoint.restore(tmp_path, state_of(0), CONFIG)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_a_state_of_another_structure_is_refused_in_a_sentence(saved):
    with pytest.raises(ValueError, match="has another state: bias is only here, kernel is only th"):
        checkpoint.restore(saved, {"step": jnp.asarray(0), "bias": jnp.zeros(3)}, CONFIG)
    with pytest.raises(ValueError, match=r"arrays without elements: \['x'\]"):
        checkpoint.save(saved, 30, {"x": jnp.zeros((0, 2))}, CONFIG)


def test_arrays_are_listed_with_their_sums(saved):
    listed = json.loads((saved / "20" / "arrays.json").read_text())
    assert [entry["path"] for entry in listed] == [["kernel"], ["step"]]
    assert listed[0]["dtype"] == "float32" and listed[0]["shape"] == [6, 3]
    assert len({entry["sha256"] for entry in listed}) == 2
