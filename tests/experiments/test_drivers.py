"""Drivers as a user meets them: smoke runs, kills and resumes, clear errors, whole files."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest

import sinkflow
from experiments import cifar10, classifier, digits, mnist, plane, sample, table_plane
from experiments.harness import cli, files, training
from experiments.harness.run import Run
from experiments.harness.settings import flat, from_record, made, parts, replaced, require_finite
from sinkflow import checkpoint, data, nets, ode, pool, train

ROOT = pathlib.Path(plane.__file__).parents[1]
NFE = ["1", "2", "5", "10", "100"]
TINY = {
    "num_particles": 16,
    "num_clouds": 1,
    "hidden_dims": (8,),
    "batch_size": 64,
    "train_steps": 20,
    "steps_per_call": 10,
    "checkpoint_every": 10,
    "nfe": (1, 2),
}
# Enough checkpoints that a kill after the first few lands between two of them.
KILLABLE = [
    *["--train-steps", "400", "--steps-per-call", "10", "--checkpoint-every", "20"],
    *["--num-clouds", "1", "--num-samples", "32", "--nfe", "1"],
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Where the runs keep their compiled programs; only the first one waits for them."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def start(programs):
    """Starts the plane driver as a program of its own, on the one device of a user's machine."""
    own = ("XLA_FLAGS", "NPROC", "JAX_ENABLE_COMPILATION_CACHE")  # of the tests' process
    kept = {name: value for name, value in os.environ.items() if name not in own}
    ours = {"JAX_COMPILATION_CACHE_DIR": str(programs), "PYTHONPATH": str(ROOT)}

    def start(*flags):
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.plane", "--smoke", *map(str, flags)],
            env={**kept, **ours, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def smoke(start, tmp_path_factory):
    """Folder and output of one smoke run from the command line."""
    out = tmp_path_factory.mktemp("smoke") / "new" / "run"
    running = start("--out", out)
    output, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    return out, output, errors


def halted(main, *arguments):
    """The line with which a program gives up."""
    with pytest.raises(SystemExit) as stop, cli.clear_errors():
        main(*arguments)
    assert isinstance(stop.value.code, str)  # the interpreter prints it and exits with 1
    assert "\n" not in stop.value.code and stop.value.code.startswith("error: ")
    return stop.value.code


def plane_halted(monkeypatch, *flags):
    """The line with which the plane driver gives up on these flags."""
    monkeypatch.setattr(sys, "argv", ["driver", "--smoke", *map(str, flags)])
    return halted(cli.run_driver, plane.main, plane.Config, plane.__doc__)


def left_over(folder):
    """Names that only unfinished work leaves behind."""
    return [path.name for path in folder.rglob("*") if "partial" in path.name or "tmp" in path.name]


def is_picture(path):
    with PIL.Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("L"), float).std() > 1


def final_state(out, hidden_dims, steps):
    optimizer = optax.adam(optax.constant_schedule(1.0))  # the shape of every schedule's state
    model = nets.VelocityMLP(hidden_dims)
    like = jax.eval_shape(lambda key: train.init(key, model, optimizer, 2), jax.random.key(0))
    settings = json.loads((out / "config.json").read_text())
    state = checkpoint.restore(out / "checkpoints", like, settings)
    assert int(state.step) == steps
    return state


def test_smoke_run_writes_its_record(smoke):
    out, _, _ = smoke
    result = json.loads((out / "result.json").read_text())
    assert list(result["w2"]) == list(result["excess"]) == NFE
    assert all(np.isfinite(value) and value > 0 for value in result["w2"].values())
    assert 0 < result["stratified_floor"] < result["floor"] < 2
    for nfe, value in result["w2"].items():
        expected = np.sqrt(max(value**2 - result["floor"] ** 2, 0))
        assert result["excess"][nfe] == pytest.approx(expected)
    assert result["pool"]["unconverged"] == 0 and result["pool"]["solves"] == 4 * 8
    assert result["resumed_from"] is None
    assert result["device"]["kind"] == "cpu" and result["device"]["count"] == 1
    assert {"python", "jax", "jaxlib", "flax", "optax"} <= result["versions"].keys()
    assert result["commit"]
    settings = json.loads((out / "config.json").read_text())
    assert settings.pop("driver") == "plane"
    assert result["config"] == settings


def test_smoke_run_times_its_phases_apart(smoke):
    times = json.loads((smoke[0] / "result.json").read_text())["times"]
    phases = ["compile", "pool", "train", "sample", "evaluate", "pictures"]
    assert all(times[name] >= 0 for name in phases)
    assert times["compile"] > 0.5  # a fresh program compiles for seconds
    # Nothing is counted twice, and nothing long is not counted.
    assert sum(times[name] for name in phases) == pytest.approx(times["total"], rel=0.3, abs=0.1)
    assert sum(times[name] for name in phases) <= times["total"] + 0.05


def test_smoke_run_leaves_its_pictures_and_nothing_half_written(smoke):
    out, output, errors = smoke
    for name in ("samples.png", "trajectories.png", "loss.png", "flow.gif"):
        assert is_picture(out / name), name
    with PIL.Image.open(out / "flow.gif") as image:
        assert image.n_frames == 33  # 32 steps and the start
    assert left_over(out) == []
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100]
    assert all(f"NFE {nfe}: " in output for nfe in NFE)
    assert errors == ""  # no bars, no warnings where nobody watches


def test_another_config_in_the_same_folder_is_one_clear_line(start, smoke):
    out, _, _ = smoke
    before = (out / "result.json").read_bytes()
    running = start("--out", out, "--epsilon", "0.5")
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 1
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert str(out) in errors and "epsilon: 0.02 there, 0.5 here" in errors
    assert (out / "result.json").read_bytes() == before


@pytest.mark.slow
def test_a_killed_run_started_again_ends_bit_for_bit_like_an_unbroken_one(start, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    running = start(*KILLABLE, "--out", broken)
    log = broken / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") >= 7):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.002)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    reached = checkpoint.latest_step(broken / "checkpoints")
    assert 60 <= reached < 400 and not (broken / "result.json").exists()

    runs = [start(*KILLABLE, "--out", out) for out in (broken, whole)]
    for running in runs:
        _, errors = running.communicate(timeout=300)
        assert running.returncode == 0, errors
    results = [json.loads((out / "result.json").read_text()) for out in (broken, whole)]
    assert [result["resumed_from"] for result in results] == [reached, None]
    chex.assert_trees_all_equal(*(final_state(out, (32, 32), 400) for out in (broken, whole)))
    assert (broken / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert results[0]["w2"] == results[1]["w2"] and results[0]["pool"] == results[1]["pool"]
    assert left_over(broken) == []


@pytest.mark.slow
def test_plain_time_runs_on_four_devices_and_again_from_its_checkpoint(tmp_path):
    assert jax.local_device_count() == 4
    config = made(
        plane.Config,
        **TINY,
        num_samples=32,
        time="flow",
        task="checkerboard",
        out=str(tmp_path / "run"),
    )
    first = plane.main(config)
    assert first["device"]["count"] == 4 and first["config"]["time"] == "flow"
    assert first == json.loads((tmp_path / "run" / "result.json").read_text()) | {
        "config": first["config"]  # tuples there, lists in JSON
    }
    state = final_state(tmp_path / "run", (8,), 20)
    field = sinkflow.load_field(tmp_path / "run")
    chex.assert_trees_all_equal(field.params, state.ema_params)
    assert field.horizon == config.flow.horizon() != 1
    again = plane.main(config)  # nothing left to train: the same samples, measured again
    assert again["resumed_from"] == 20 and again["w2"] == first["w2"]
    chex.assert_trees_all_equal(final_state(tmp_path / "run", (8,), 20), state)


@pytest.mark.slow
def test_digits_runs(tmp_path):
    tiny = {**TINY, "num_particles": 64, "num_test": 500, "num_floors": 1}
    result = digits.main(made(digits.Config, **tiny, epsilon=1.0, out=str(tmp_path)))
    for name in ("w2", "frechet", "class_tv", "nearest"):
        assert list(result[name]) == ["1", "2"]
        assert np.all(np.isfinite([*result[name].values(), result["floor"][name]]))
    # Metrics that do not tell real digits from these would be of no use.
    for trap in ("gaussian", "shuffled"):
        assert result["traps"][trap]["frechet"] > 2 * result["floor"]["frechet"]
    assert result["classifier_accuracy"] > 0.8
    for name in ("samples.png", "neighbours.png", "classes.png", "loss.png"):
        assert is_picture(tmp_path / name), name
    assert left_over(tmp_path) == []


def test_sampling_from_a_trained_run(smoke, tmp_path):
    out, _, _ = smoke
    draw = lambda **changes: sample.main(
        sample.Config(run=str(out), num_samples=7, **{"out": str(tmp_path / "x.npy"), **changes})
    )
    samples = draw(nfe=4, method="rk4")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), samples)
    assert samples.shape == (7, 2) and samples.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    # By hand: the averaged parameters of the last checkpoint, along the field to s = 1.
    params = final_state(out, (32, 32), 100).ema_params
    apply_fn = nets.VelocityMLP((32, 32)).apply
    x0 = data.eight_gaussians(jax.random.key(0), 7)
    settings = {"nfe": 4, "method": "rk4"}
    np.testing.assert_allclose(
        samples, ode.integrate(apply_fn, params, x0, **settings), rtol=1e-5, atol=1e-5
    )
    assert np.max(np.abs(draw(seed=1) - samples)) > 0.1


def test_sampling_needs_a_run_with_a_checkpoint(tmp_path):
    settings = {"num_samples": 1, "nfe": 1}
    config = sample.Config(run=str(tmp_path), **settings)
    assert "there is no config.json" in halted(sample.main, config)
    Run(plane.Config(out=str(tmp_path)))
    assert "it has no checkpoint yet" in halted(sample.main, config)
    for wrong in ({"nfe": 0}, {"num_samples": 0}):
        (name,) = wrong
        message = halted(sample.main, dataclasses.replace(config, **wrong))
        assert f"{name} is 0" in message


@pytest.mark.parametrize("module", [plane, digits])
def test_help_explains_every_setting_with_its_unit(monkeypatch, capsys, module):
    monkeypatch.setattr(sys, "argv", ["driver", "--help"])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        cli.cli(module.Config, module.__doc__)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "[length^2]" in text and "[flow time]" in text and "Command:" in text
    # One paragraph for each option: its flags, perhaps a line break, what it does, its default.
    options = [" ".join(block.split()) for block in text.replace("│", " ").split("\n  --")[1:]]
    for name in flat(module.Config()):
        flag = name.replace("_", "-")
        (option,) = [option for option in options if option.split()[0].rstrip(",") == flag]
        # A sentence stands between the flag and its default.
        assert option.partition(" (default: ")[0].endswith("."), option


@pytest.mark.parametrize("module", [plane, digits, mnist, cifar10, table_plane, classifier])
def test_help_groups_the_settings_of_each_part(monkeypatch, capsys, module):
    monkeypatch.setattr(sys, "argv", ["driver", "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.cli(module.Config, None)
    boxes = re.split(r"^\W*(\w* ?)options\W*$", capsys.readouterr().out, flags=re.MULTILINE)
    shown = {name.strip(): box for name, box in zip(boxes[1::2], boxes[2::2], strict=True)}
    for name, part in parts(module.Config).items():
        for field in dataclasses.fields(part):
            hidden = (module, field.name) == (table_plane, "checkpoint_every")
            assert (f"--{field.name.replace('_', '-')}" in shown[name]) != hidden, field.name


def test_a_config_of_parts_is_flat_in_records_and_is_made_from_them():
    config = made(plane.Config, epsilon=0.5, num_samples=7, task="moons")
    assert config.flow.epsilon == 0.5 and config.sampling.num_samples == 7
    record = json.loads(json.dumps(flat(config)))
    assert from_record(plane.Config, record) == config
    changed = replaced(config, hidden_dims=(3,), seed=2)
    assert changed.network.hidden_dims == (3,) and changed.seed == 2
    assert replaced(changed, hidden_dims=config.network.hidden_dims, seed=0) == config
    with pytest.raises(TypeError, match="epsilonn"):
        made(plane.Config, epsilonn=1.0)


@pytest.mark.slow
def test_a_second_start_compiles_nothing_anew(start, smoke, programs, tmp_path):
    kept = sorted(programs.glob("*-cache"))
    running = start("--out", tmp_path / "again")  # the same program, compiled by the fixture
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 0 and errors == ""  # nor a word from XLA's loader
    first, second = (
        json.loads((out / "result.json").read_text()) for out in (smoke[0], tmp_path / "again")
    )
    assert second["w2"] == first["w2"] and second["floor"] == first["floor"]
    assert len(kept) > 50 and sorted(programs.glob("*-cache")) == kept


def test_flags_override_the_smoke_preset(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["driver", "--smoke", "--epsilon", "0.5"])
    config = cli.cli(plane.Config, None)
    assert config == made(plane.Config, **plane.Config.SMOKE, smoke=True, epsilon=0.5)
    assert config.folder() == pathlib.Path("runs/plane-8gaussians-moons-geodesic-smoke")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "spiral"], "unknown task 'spiral'; choose one of 8gaussians, "),
        (["--nfe", "0"], "nfe is 0"),
        (["--batch-size", "66"], "batch_size is 66; it must be a positive multiple of 4 devices"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--step-size", "1.5"], "step_size is 1.5"),
        (["--flow-steps", "0"], "num_steps is 0"),
        (["--num-clouds", "0"], "num_clouds is 0"),
        (["--epsilon", "0"], "epsilon is 0.0; it must be positive"),
        (["--train-steps", "55"], "train_steps is 55; it must be a multiple of 50"),
        (["--checkpoint-every", "30"], "checkpoint_every is 30; it must be a multiple of 50"),
        (["--steps-per-call", "0"], "steps_per_call is 0"),
        (["--hidden-dims", "0"], "hidden_dims is (0,); each must be at least 1"),
        (["--learning-rate", "-1"], "learning_rate is -1.0; it lies in (0, inf)"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--ema-decay", "1.5"], "ema_decay is 1.5; it lies in [0, 1)"),
        (["--row-power", "0"], "row_power is 0.0; it lies in (0, inf)"),
    ],
)
def test_impossible_settings_are_one_clear_line(monkeypatch, tmp_path, flags, message):
    assert message in plane_halted(monkeypatch, "--out", tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "pool").exists(), "minutes of work before the error"
    assert left_over(tmp_path) == []


def test_traceback_is_shown_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("SINKFLOW_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["driver", "--task", "spiral", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="spiral"):
        cli.run_driver(plane.main, plane.Config, plane.__doc__)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_one_clear_line(monkeypatch, tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    message = plane_halted(monkeypatch, "--out", tmp_path / out)
    assert f"out is {tmp_path / out}: cannot write there" in message
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.slow
def test_an_unconverged_pool_is_refused_and_can_be_mended_in_place(monkeypatch, tmp_path):
    flags = ["--num-particles", "16", "--num-clouds", "1", "--out", tmp_path / "run"]
    message = plane_halted(monkeypatch, *flags, "--epsilon", "1e-6")
    assert "of 8 Sinkhorn solves did not converge" in message and "epsilon" in message
    assert not (tmp_path / "run" / "checkpoints").exists() and left_over(tmp_path) == []
    # The advice is to raise epsilon; the folder of the failed run must not refuse that.
    Run(made(plane.Config, out=str(tmp_path / "run"), epsilon=0.5))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epsilon"] == 0.5


@pytest.fixture
def run(tmp_path):
    return Run(made(plane.Config, **TINY, out=str(tmp_path / "run")))


def test_a_folder_with_a_pool_belongs_to_its_config(run):
    run.restored_pool({"x": jnp.zeros(2)}, lambda: {"x": jnp.ones(2)})
    Run(made(plane.Config, **TINY, out=str(run.out)))
    with pytest.raises(ValueError, match="seed: 0 there, 7 here"):
        Run(made(plane.Config, **TINY, out=str(run.out), seed=7))


def test_a_pool_is_made_once(run):
    made = []
    make = lambda: made.append(1) or {"x": jnp.full(2, 3.0)}
    for _ in range(2):
        value = run.restored_pool({"x": jnp.zeros(2)}, make)
        np.testing.assert_array_equal(value["x"], [3.0, 3.0])
    assert made == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf, jnp.array(-jnp.inf)])
def test_log_refuses_what_is_not_finite(run, value):
    run.log(10, loss=1.0)
    with pytest.raises(FloatingPointError, match=r"step 20: .*loss.*lower learning_rate"):
        run.log(20, loss=value, gradient_norm=1.0)
    assert run.logged("loss") == ([10], [1.0])


def test_forget_after_drops_later_and_half_written_lines(run):
    for step in (10, 20, 30):
        run.log(step, loss=step / 10)
    with run.log_file.open("a") as file:
        file.write('{"step": 20, "lo')
    run.forget_after(20)
    assert run.logged("loss") == ([10, 20], [1.0, 2.0])
    run.log(30, loss=5.0)
    assert run.logged("loss") == ([10, 20, 30], [1.0, 2.0, 5.0])


def test_forget_after_without_a_log_starts_one(run):
    run.forget_after(0)
    assert run.logged("loss") == ([], [])


def test_timed_counts_compilation_apart(run):
    @jax.jit
    def slow_to_trace(x):
        time.sleep(0.3)
        return x + 1

    with run.timed("work"):
        jax.block_until_ready(slow_to_trace(jnp.zeros(3)))
        time.sleep(0.1)
    assert run.times["compile"] >= 0.3
    assert 0.1 <= run.times["work"] < 0.3
    with run.timed("work"):
        time.sleep(0.1)
    assert run.times["work"] >= 0.2  # a phase adds up over its blocks


def test_require_finite_counts_bad_particles():
    cloud = np.ones((5, 2))
    require_finite("source", cloud)
    cloud[1] = np.nan
    cloud[3, 0] = np.inf
    with pytest.raises(ValueError, match="source: 2 of 5 particles are not finite"):
        require_finite("source", jnp.asarray(cloud))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"old": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))  # fails half-way, as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            files.write_json(path, {"new": "x" * 5_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads(path.read_text()) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


RATES = {"rate": lambda before: 0.01 / (1 + before), "batch_size": 16}  # as they are logged


def scale_problem(learning_rate):
    """State, steps and data of a field a x towards velocity 2 x, in the next part 3 x."""
    optimizer = optax.sgd(learning_rate)
    step = train.make_step(lambda params, x, t: params["a"] * x, optimizer, ema_decay=0.9)

    def draw(scale, key):
        x = jax.random.normal(key, (4, 2))
        return pool.Rows(x, jnp.zeros(4), scale[0] * x)

    params, average = {"a": jnp.array([[0.5]])}, {"a": jnp.array([[0.5]])}
    state = train.TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))
    return state, train.drawing_step(step, draw), lambda part: jnp.full(4, 2.0 + part)


def test_fit_resumes_to_the_same_parameters(tmp_path):
    counts = {**RATES, "key": jax.random.key(0), "steps_per_call": 5, "checkpoint_every": 10}
    runs = [Run(plane.Config(out=str(tmp_path / name))) for name in ("whole", "parts")]
    whole = training.fit(runs[0], *scale_problem(0.01), num_steps=40, **counts)
    training.fit(runs[1], *scale_problem(0.01), num_steps=20, **counts)
    assert runs[1].resumed_from is None
    parts = training.fit(runs[1], *scale_problem(0.01), num_steps=40, **counts)
    assert runs[1].resumed_from == 20
    chex.assert_trees_all_equal(parts, whole)
    assert runs[0].logged("loss") == runs[1].logged("loss")
    assert runs[0].logged("loss")[0] == list(range(5, 41, 5))
    assert abs(float(whole.params["a"][0, 0]) - 2) < 0.9  # it started 1.5 away


def test_fit_resumes_within_a_part_of_refreshed_data(tmp_path):
    counts = {
        **RATES,
        "key": jax.random.key(0),
        "steps_per_call": 5,
        "checkpoint_every": 5,
        "refresh_every": 10,
    }
    runs = [Run(plane.Config(out=str(tmp_path / name))) for name in ("whole", "parts")]
    whole = training.fit(runs[0], *scale_problem(0.01), num_steps=20, **counts)
    training.fit(runs[1], *scale_problem(0.01), num_steps=15, **counts)
    parts = training.fit(runs[1], *scale_problem(0.01), num_steps=20, **counts)
    chex.assert_trees_all_equal(parts, whole)
    same = training.fit(
        Run(plane.Config(out=str(tmp_path / "same"))),
        *scale_problem(0.01),
        **RATES,
        key=jax.random.key(0),
        num_steps=20,
        steps_per_call=5,
        checkpoint_every=5,
    )
    assert whole.params["a"] > same.params["a"] + 0.01  # the second part asked for more


def test_diverging_training_stops_before_it_saves(run):
    counts = {**RATES, "key": jax.random.key(0), "steps_per_call": 5, "checkpoint_every": 5}
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        training.fit(run, *scale_problem(1e25), num_steps=20, **counts)
    assert checkpoint.latest_step(run.out / "checkpoints") is None
    assert run.logged("loss") == ([], [])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((12, 5, 0), "train_steps is 12"),
        ((10, 7, 0), "checkpoint_every is 7"),
        ((0, 5, 0), "train_steps is 0"),
        ((10, 5, 3), "refresh_every is 3"),
    ],
)
def test_step_counts_that_do_not_fit_raise(run, counts, message):
    num_steps, every, refresh = counts
    with pytest.raises(ValueError, match=f"{message}; it must be a multiple of 5"):
        training.fit(
            run,
            *scale_problem(0.01),
            **RATES,
            key=jax.random.key(0),
            num_steps=num_steps,
            steps_per_call=5,
            checkpoint_every=every,
            refresh_every=refresh,
        )
