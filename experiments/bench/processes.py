"""Processes that measure: each reports in JSON lines, and is stopped when it falls silent."""

import contextlib
import json
import math
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SILENCE = 180.0  # seconds of it that are allowed where a line sets no "limit": imports, a device
SPENT = "the benchmark's time was spent"


def environment(device: str) -> dict[str, str]:
    """Variables of a process that measures on "cpu" or "gpu"."""
    found = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    found.pop("JAX_PLATFORMS", None)
    if device == "cpu":
        found |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        # Torch's threads spin for each other; where others run, that costs them seconds.
        found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return found


class Worker:
    """Iterates over the lines of a process; ``code`` and ``reason`` tell afterwards how it ended.

    A line's "limit" is the seconds of silence that may follow it. ``reason`` is empty after an
    exit with status 0.

    Args:
      arguments: of Python.
      environment: variables, from :func:`environment`.
      silence: seconds until the first line, and after lines without a limit.
      deadline: when it is stopped in any case [s since the epoch].
    """

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str],
        silence: float = SILENCE,
        deadline: float = math.inf,
    ):
        self.command, self.environment = [sys.executable, *arguments], environment
        self.silence, self.deadline = silence, deadline
        self.code, self.reason = -1, ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        limit = self.silence
        lines: queue.Queue[str | None] = queue.Queue()
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.environment,
                cwd=pathlib.Path(__file__).parents[2],
                start_new_session=True,
            ) as process,
        ):
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
            try:
                while True:
                    limit = max(min(limit, self.deadline - time.time()), 0.0)
                    if (text := lines.get(timeout=limit)) is None:
                        break
                    line = json.loads(text)
                    limit = line.get("limit", self.silence)
                    yield line
                self.code = process.wait()
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:] or ["it said nothing"]
                self.reason = f"exit {self.code}: {last[0][:200]}" if self.code else ""
            except queue.Empty:
                self.reason = f"stopped after {limit:.0f} s"
            finally:
                # Its compiler's processes too; they are of its own session.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)


def _read(stream, lines) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def reporter() -> Callable[..., None]:
    """For the process: ``say(**line)`` reports; what libraries print goes to the error stream."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**line):
        stream.write(json.dumps(line) + "\n")
        stream.flush()

    return say


def told(error: Exception) -> str:
    """Kind and beginning of what it says, in one line of a table."""
    return " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")[:200]
