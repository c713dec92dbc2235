"""A driver in two processes of two devices: as in one process of four, also after a kill."""

import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sinkflow import checkpoint
from tests import devices
from tests.tested import recording, write_record

pytestmark = pytest.mark.slow
BOUND = 90
"""Seconds in which a process must notice that the other is dead; four heartbeats and a margin for
a busy machine."""
WORDS = ["plane", "--smoke", "--train-steps", "400", "--checkpoint-every", "100", "--nfe", "1"]


def start(out: pathlib.Path, *flags: str, count: int, **environment: str) -> subprocess.Popen:
    words = [sys.executable, "-m", f"experiments.{WORDS[0]}", *WORDS[1:], "--out", str(out), *flags]
    return subprocess.Popen(
        words,
        env={**devices.environment(count), "SINKFLOW_COMMIT": "0123456789ab", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(out: pathlib.Path) -> list[subprocess.Popen]:
    """Two processes of two devices each, which meet on this host."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "SINKFLOW_HEARTBEAT": "10",
    }
    return [
        start(out, "--distributed", count=2, JAX_PROCESS_ID=str(number), **together)
        for number in range(2)
    ]


def finish(*running: subprocess.Popen) -> list[str]:
    """What processes said, once all of them have ended well."""
    said = [process.communicate(timeout=400)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said
    return said


def parameters(out: pathlib.Path) -> np.ndarray:
    state, _ = checkpoint.load(out / "checkpoints")
    assert int(state["step"]) == 400
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state["params"])])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Parameters of one process with four devices."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start(out, count=4))
    return parameters(out)


def test_two_processes_train_as_one(alone, tmp_path):
    first, second = finish(*start_two(tmp_path / "run"))
    assert "result.json" in first and "result.json" not in second
    found = devices.difference(parameters(tmp_path / "run"), alone)
    print("difference", found)
    assert found < devices.ROUNDING
    write_record("hosts", "undisturbed", {"kills": 0, "difference": found})


@pytest.mark.parametrize("victim", [0, 1] if recording() else [0])
def test_after_a_kill_the_other_ends_and_both_resume(alone, tmp_path, victim):
    out = tmp_path / "run"
    running = start_two(out)
    while not (out / "checkpoints" / "100").exists():
        assert all(process.poll() is None for process in running), running[victim].communicate()[0]
        time.sleep(0.02)
    running[victim].kill()
    begin = time.monotonic()
    said, _ = running[1 - victim].communicate(timeout=BOUND)
    running[victim].communicate()
    noticed = time.monotonic() - begin
    print(f"noticed after {noticed:.1f} s:", said[-400:])
    assert running[1 - victim].returncode != 0
    assert "gives up" in said or "distributed service detected fatal errors" in said
    assert not (out / "result.json").exists()
    finish(*start_two(out))
    found = devices.difference(parameters(out), alone)
    assert found < devices.ROUNDING
    values = {"kills": 1, "noticed_seconds": noticed, "difference": found}
    write_record("hosts", f"process {victim} killed, both started again", values)
