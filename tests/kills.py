"""Drivers as processes that are killed at random moments and started again until they end."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import experiments
from experiments.harness.comparing import told
from sinkflow import checkpoint

ROOT = pathlib.Path(experiments.__file__).parents[1]
COMMIT = "0123456789ab"  # images of an earlier start are only taken where the commit is known


class Outcome(NamedTuple):
    """What became of one start."""

    code: int
    seconds: float
    output: str


class Program:
    """A driver with its flags, on the one device of a user's machine.

    Args:
      command: the driver's name, then its flags.
      programs: folder of compiled programs, which all starts share.
    """

    def __init__(self, command: str, programs: pathlib.Path):
        name, *self.flags = command.split()
        self.words = [sys.executable, "-m", f"experiments.{name}"]
        own = ("XLA_FLAGS", "NPROC", "JAX_ENABLE_COMPILATION_CACHE")  # of the tests' process
        self.environment = {key: value for key, value in os.environ.items() if key not in own} | {
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "SINKFLOW_COMMIT": COMMIT,
        }

    def start(self, out: pathlib.Path) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.words, *self.flags, "--out", str(out)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finished(self, out: pathlib.Path) -> Outcome:
        """One start that nobody disturbs."""
        begin = time.monotonic()
        running = self.start(out)
        output, _ = running.communicate(timeout=600)
        return Outcome(running.returncode, time.monotonic() - begin, output)

    def killed(self, out: pathlib.Path, after: float) -> Outcome | None:
        """A start that is killed after so many seconds, or None, if it had ended by then."""
        running = self.start(out)
        try:
            output, _ = running.communicate(timeout=after)
            return Outcome(running.returncode, after, output)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
            return None


def survived(program: Program, out: pathlib.Path, kills: int, seconds: float, seed: int) -> int:
    """Kills so many starts at random moments of ``seconds``; then lets it end; the kills made.

    Raises:
      AssertionError: a start ended with an error.
    """
    moments, made = random.Random(seed), 0
    for _ in range(4 * kills):
        if made == kills:
            break
        ended = program.killed(out, moments.uniform(0.15, 1.0) * seconds)
        made += ended is None
        if ended is not None:
            assert ended.code == 0, ended.output
            seconds *= 0.8  # a resumed run is shorter
    ended = program.finished(out)
    assert ended.code == 0, ended.output
    return made


def content(out: pathlib.Path) -> dict[str, Any]:
    """What a run has left, bit for bit, but for times and circumstances; pictures left out."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if {"checkpoints", "pool"} & set(path.relative_to(out).parts):
            continue
        if path.suffix == ".json":
            found[name] = told(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [told(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix in (".npz", ".npy"):
            loaded = np.load(path)
            arrays = dict(loaded) if path.suffix == ".npz" else {"": loaded}
            found[name] = {key: bits(array) for key, array in arrays.items()}
        elif path.suffix in (".png", ".gif"):
            found[name] = "a picture"
    for folder in sorted([*out.rglob("checkpoints"), *out.rglob("pool")]):
        state, config = checkpoint.load(folder)
        leaves = jax.tree.leaves_with_path(state)
        name = f"{folder.relative_to(out)}, step {checkpoint.latest_step(folder)}"
        found[name] = config, {jax.tree_util.keystr(path): bits(leaf) for path, leaf in leaves}
    return found


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes()


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what is not the same in both."""
    return sorted(name for name in a.keys() | b.keys() if repr(a.get(name)) != repr(b.get(name)))


def unfinished(out: pathlib.Path) -> list[str]:
    """Names that only unfinished work leaves behind."""
    return [path.name for path in out.rglob("*") if "partial" in path.name or "tmp" in path.name]
