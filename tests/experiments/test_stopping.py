"""Runs that are asked to stop, meet another process, a full or read-only disk, a broken file."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkflow
from experiments import plane
from experiments.harness import cli, folders, stopping
from experiments.harness.run import Run, read_settings
from experiments.harness.settings import made
from sinkflow import checkpoint
from sinkflow.files import read_object
from tests import kills

# Long enough to be stopped on the way, whatever else the machine does.
LONG = "plane --smoke --train-steps 200000 --steps-per-call 10 --checkpoint-every 1000"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    flags = "--num-clouds 1 --num-samples 32 --nfe 1"
    return kills.Program(f"{LONG} {flags}", tmp_path_factory.mktemp("programs"))


@contextlib.contextmanager
def training(program, out, lines=5):
    """A process that has trained for some calls; it is ended at last."""
    running, log = program.start(out), out / "metrics.jsonl"
    wanted = lines + (log.read_text().count("\n") if log.exists() else 0)
    try:
        deadline = time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") >= wanted):
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield running
    finally:
        running.kill()
        running.communicate()


@pytest.mark.slow
def test_a_stopped_run_has_saved_its_last_call_and_a_second_process_is_refused(program, tmp_path):
    for name, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        with training(program, tmp_path) as running:  # the second one goes on where it was
            if name == signal.SIGTERM:
                other = program.finished(tmp_path)
                assert other.code == 1 and other.output.count("\n") == 1
                assert f"out is {tmp_path}: process {running.pid} on " in other.output
                assert (
                    "is at work there; wait until it has ended, or choose another" in other.output
                )
            running.send_signal(name)
            output, _ = running.communicate(timeout=100)
        assert running.returncode == code, output
        assert output.splitlines()[-1].startswith(f"stopped by {stopping.SIGNALS[name]}: ")
        assert output.endswith("the same command goes on\n")
    step = checkpoint.latest_step(tmp_path / "checkpoints")
    assert step > 0 and kills.unfinished(tmp_path) == []
    assert f"step {step} of 200000 (training) is saved in {tmp_path}" in output


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(program, tmp_path):
    with training(program, tmp_path) as running:
        running.kill()
        running.wait()
        with training(program, tmp_path) as again:
            assert again.poll() is None


STUBBORN = """
import hashlib
from experiments.harness import cli, stopping
with cli.clear_errors(), stopping.deferred():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # no handler of Python's interrupts it
"""


def test_a_second_ctrl_c_ends_at_once():
    running = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        env={**os.environ, "PYTHONPATH": str(kills.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=20) == 130
    finally:
        running.kill()
        running.communicate()


def stopped(number, block):
    """How a program ends that gets a signal before it runs ``block``, and what it says."""
    with pytest.raises(SystemExit) as stop, cli.clear_errors():
        block(number)
    stopping.REQUESTS.first = None
    return stop.value.code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_outside_of_trainings_a_signal_ends_the_program_between_two_files(number, code, capsys):
    before = [signal.getsignal(known) for known in stopping.SIGNALS]

    def block(number):
        signal.raise_signal(number)
        time.sleep(5)
        raise AssertionError("not interrupted")

    assert stopped(number, block) == code
    said = f"stopped by {stopping.SIGNALS[number]}: what it had finished is in its folder; the same"
    assert said in capsys.readouterr().out
    assert [signal.getsignal(known) for known in stopping.SIGNALS] == before


def test_a_deferring_block_ends_first():
    done = []

    def block(number):
        with stopping.deferred():
            signal.raise_signal(number)
            done.append(stopping.REQUESTS.asked())
        raise stopping.Stopped("saved")

    assert stopped(signal.SIGTERM, block) == 0 and done == [True]


def test_another_thread_installs_no_handlers():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def block():
        with stopping.handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [before]


def test_fit_stops_between_calls_and_goes_on_bit_for_bit(tmp_path):
    def train(folder, stop=None, log=None):
        def step(state, rows, key, *, axis_name):
            noise = jax.lax.pmean(jax.random.normal(key), axis_name)
            return {**state, "step": state["step"] + 1, "x": state["x"] * 0.9 + noise}, {"x": noise}

        class State(dict):
            step = property(lambda self: self["step"])

        jax.tree_util.register_pytree_node(
            State, lambda s: ((s["step"], s["x"]), None), lambda _, c: State(step=c[0], x=c[1])
        )
        wrapped = lambda state, *rest, **own: (lambda out: (State(out[0]), out[1]))(
            step(state, *rest, **own)
        )
        return sinkflow.fit(
            State(step=jnp.asarray(0, jnp.int32), x=jnp.zeros(())),
            wrapped,
            jnp.ones(8),
            key=jax.random.key(0),
            num_steps=40,
            steps_per_call=5,
            checkpoint_every=20,
            folder=folder,
            stop=stop,
            log=log,
        )

    whole, _ = train(tmp_path / "whole")
    logged = []
    stop = lambda: len(logged) >= 3
    state, report = train(tmp_path / "parts", stop, lambda *line: logged.append(line))
    assert int(state.step) == report.steps == 15  # the running call was the third
    assert checkpoint.latest_step(tmp_path / "parts" / "checkpoints") == 15
    again, report = train(tmp_path / "parts")
    assert report.resumed_from == 15 and report.steps == 25
    chex.assert_trees_all_equal(dict(again), dict(whole))
    fresh, report = train(tmp_path / "fresh", lambda: True)
    assert int(fresh.step) == report.steps == 0
    assert not (tmp_path / "fresh" / "checkpoints").exists()


def test_a_process_may_work_in_its_folder_again_and_others_share_what_is_shared(tmp_path):
    folders.opened(tmp_path)
    folders.opened(tmp_path)
    code = "import pathlib, sys; from experiments.harness import folders\n"
    code += "folders.opened(pathlib.Path(sys.argv[1]), shared=bool(sys.argv[2]))"
    run = lambda shared: subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), shared],
        env={**os.environ, "PYTHONPATH": str(kills.ROOT)},
        capture_output=True,
        text=True,
    )
    for shared in ("", "yes"):
        assert f"process {os.getpid()} on" in run(shared).stderr
    folders.opened(tmp_path, shared=True)
    assert run("yes").returncode == 0 and run("").returncode == 1
    folders.take(tmp_path, "moons")
    code = code.replace("opened(pathlib.Path(sys.argv[1]), ", "take(pathlib.Path(sys.argv[1]), ")
    code = code.replace("shared=bool(sys.argv[2])", "sys.argv[2]")
    assert run("scurve").returncode == 0 and "on moons" in run("moons").stderr


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folders.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked .* start no second process there"):
        folders.opened(tmp_path)


MOUNT = """
set -e
mount -t tmpfs -o size={size} none {folder}
{before}
exec {python} -c '{code}' {folder}
"""


def mounted(folder, size, code, before=""):
    """Runs code on a small disk of its own, where the system lets users mount one."""
    folder.mkdir()
    script = MOUNT.format(size=size, folder=folder, before=before, python=sys.executable, code=code)
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(kills.ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    return done


can_mount = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode != 0,
    reason="this system lets nobody mount a small disk",
)

OPEN = """
import pathlib, sys
from experiments.harness import cli, folders
with cli.clear_errors():
    folders.opened(pathlib.Path(sys.argv[1]))
"""


@can_mount
@pytest.mark.parametrize(
    ("size", "before", "said"),
    [
        ("500k", "", "cannot write there (No space left on device); make room"),
        ("9m", "mount -o remount,ro {folder}", "cannot write there (Read-only file system)"),
    ],
)
def test_a_full_or_read_only_disk_is_refused_at_the_start(tmp_path, size, before, said):
    folder = tmp_path / "small"
    done = mounted(folder, size, OPEN, before.format(folder=folder))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: out is {folder}: {said}")
    assert done.stderr.count("\n") == 1


SAVE = """
import pathlib, sys
import numpy as np
from experiments.harness import cli, files
from sinkflow import checkpoint
folder = pathlib.Path(sys.argv[1])
checkpoint.save(folder / "run", 1, {"x": np.arange(9.0)}, {})
files.write_json(folder / "result.json", {"old": 1})
noise = np.random.default_rng(0).bytes(4_000_000)
for write in (
    lambda: checkpoint.save(folder / "run", 2, {"x": np.frombuffer(noise, np.uint8)}, {}),
    lambda: files.write_json(folder / "result.json", {"new": noise.hex()}),
):
    try:
        write()
        print("written")
    except OSError as error:
        print(error)
print(sorted(path.name for path in folder.rglob("*") if len(path.relative_to(folder).parts) < 3))
print(checkpoint.load(folder / "run")[0]["x"].sum())
"""


@can_mount
def test_a_disk_that_fills_up_keeps_what_was_whole(tmp_path):
    done = mounted(tmp_path / "small", "3m", SAVE)
    assert done.returncode == 0, done.stderr
    saving, writing, names, total = done.stdout.splitlines()
    assert f"{tmp_path / 'small' / 'run'}: the checkpoint of step 2 could not be written" in saving
    assert "No space left on device" in saving and "those before it are untouched" in saving
    assert "No space left on device; make room" in writing and "result.json" in writing
    assert names == "['1', 'result.json', 'run']" and float(total) == 36
    assert "Traceback" not in done.stderr


def test_a_folder_without_permission_is_refused(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0  # whom no permission stops
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(
            ValueError, match=r"closed: cannot write there \(Permission denied\); mak"
        ):
            folders.opened(folder)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("content", ['{"seed": 0', "[]", "", "\x00"])
def test_a_broken_config_is_named(tmp_path, content):
    config = made(plane.Config, out=str(tmp_path))
    Run(config).restored_pool({"x": jnp.zeros(2)}, lambda: {"x": jnp.ones(2)})
    (tmp_path / "config.json").write_text(content)
    for call in (lambda: Run(config), lambda: read_settings(tmp_path)):
        with pytest.raises(ValueError, match=r"config\.json.*put a copy back or remove"):
            call()
    assert read_object(tmp_path / "pool" / "0" / "config" / "metadata") != {}


def test_warnings_of_a_driver_are_one_line(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": np.ones(3)}, {})
    (tmp_path / "2" / "arrays.json").write_text(json.dumps([]))
    with cli.clear_errors():
        assert checkpoint.latest_step(tmp_path) == 1
        assert checkpoint.latest_step(tmp_path) == 1  # said once
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {tmp_path}/2 is damaged, ") and error.count("\n") == 1
