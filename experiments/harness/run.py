"""One run: its folder, its log, its clock, its record."""

import contextlib
import copy
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.harness import board, folders, hosts, provenance
from experiments.harness.files import write_json, write_text
from experiments.harness.settings import flat
from sinkflow import checkpoint, parallel
from sinkflow.files import parse_object, read_object
from sinkflow.fit import NOTHING, check_finite

COMPILE_EVENT = "/jax/core/compile/"
BROKEN = "put a copy back or remove it"
"""What to do with a config.json that cannot be read."""


WITHOUT_EFFECT = ("out", board.SETTING)
"""Settings that no result depends on: where it is written, and what else is."""


def recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """What a record tells of a config: all that results may depend on."""
    return {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}


def read_settings(folder: pathlib.Path, form: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """A run's config.json, with the name of its driver.

    Args:
      folder: of the run.
      form: of other settings that must be there, see :func:`sinkflow.files.misfit`.

    Raises:
      ValueError: no run in the folder, or a file that is damaged or lacks one of these settings.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"run is {folder}: there is no config.json; give a driver's output folder")
    return read_object(folder / "config.json", {"driver": str, **form}, remedy=BROKEN)


class Run:
    """One run's output folder: settings, logs, checkpoints/, result.json.

    ``config`` is a dataclass with ``folder()`` and ``SELECTION``: the names of settings that choose
    what to run, not how, and that a later start of the run may change. ``DRIVER`` is the driver's
    name, if the config has it; else it is that of the config's module.

    The folder is this process's own until it ends; ``shared`` lets several processes work on parts
    of it, which they take by :func:`experiments.harness.folders.take`.

    Raises:
      ValueError: the folder cannot be written, is another process's, or belongs to a run with
        another config.
    """

    def __init__(self, config: Any, *, shared: bool = False):
        self.config = flat(config)
        if self.config.get(board.SETTING):
            board.writer()  # what it lacks is said before any work
        driver = type(config).__module__.rpartition(".")[2]
        driver = pathlib.Path(sys.argv[0]).stem if driver == "__main__" else driver
        driver = getattr(config, "DRIVER", driver)
        free = {*WITHOUT_EFFECT, *config.SELECTION}
        settings = {name: value for name, value in self.config.items() if name not in free}
        self.settings = {"driver": driver, **settings}
        self.out = hosts.own_folder(config.folder())
        self.times: dict[str, float] = {"compile": 0.0}
        self.resumed_from: int | None = None
        self.pool_restored = False
        self.start, self.memory_before = time.perf_counter(), provenance.peak_memory()
        # Read now: by the end of a long run the checkout may be another.
        self.commit = provenance.commit()
        folders.opened(self.out, shared=shared)
        saved = self.out / "config.json"
        # Before its first result a run has nothing to lose: settings may be mended in place.
        results = ("pool", "cells", "checkpoints", "*/checkpoints")
        started = any(any(self.out.glob(name)) for name in results)
        if saved.exists() and started:
            checkpoint.check_config(self.out, read_object(saved, remedy=BROKEN), self.settings)
        else:
            write_json(saved, self.settings)
        self.log_file, self.time_file = self.out / "metrics.jsonl", self.out / "timings.jsonl"
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)

    def _count_compilation(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILE_EVENT):
            self.times["compile"] += duration_secs

    @contextlib.contextmanager
    def timed(self, phase: str):
        """Adds the block's seconds to ``times[phase]``.

        Compilation, and blocks timed within this one, count for themselves alone.
        """
        begin, counted = time.perf_counter(), sum(self.times.values())
        yield
        seconds = time.perf_counter() - begin - (sum(self.times.values()) - counted)
        self.times[phase] = self.times.get(phase, 0.0) + seconds

    def stage(self, name: str) -> "Run":
        """This run in a subfolder: a log and checkpoints of its own, the same clock."""
        part = copy.copy(self)
        part.out = self.out / name
        part.out.mkdir(exist_ok=True)
        folders.take(part.out)  # two processes may share a run's folder, not a stage's
        part.resumed_from = None
        part.log_file = part.out / self.log_file.name
        part.time_file = part.out / self.time_file.name
        return part

    def log(self, step: int, **values: Any) -> dict[str, float]:
        """Appends a line to metrics.jsonl; the values as numbers.

        Raises:
          FloatingPointError: a value is not finite.
          OSError: the disk is full.
        """
        numbers = check_finite(step, values)
        _append(self.log_file, {"step": step, **numbers})
        return numbers

    def log_time(self, step: int, seconds: float, rows: int) -> dict[str, float]:
        """Appends a line to timings.jsonl; its values.

        Args:
          step: the last one of those that took the time.
          seconds: since the line before, or since the start: pools, compilation, checkpoints too.
          rows: that were trained on, images for example, over all devices.

        Raises:
          OSError: the disk is full.
        """
        values = {"seconds": seconds, "rows_per_second": rows / seconds}
        _append(self.time_file, {"step": step, **values})
        return values

    def logged(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged quantity."""
        lines = [line for line, _ in _lines(self.log_file) if name in line]
        return [line["step"] for line in lines], [line[name] for line in lines]

    def forget_after(self, step: int) -> None:
        """Drops log lines past a restored step, and a line that a kill left half-written."""
        for path in (self.log_file, self.time_file):
            kept = [text for line, text in _lines(path) if line["step"] <= step]
            write_text(path, "".join(line + "\n" for line in kept))

    def restored_pool(self, like: Any, make: Callable[[], Any]) -> Any:
        """The pool that an earlier start of this run saved, or ``make()``, then saved."""
        folder = self.out / "pool"
        self.pool_restored = parallel.anywhere(checkpoint.latest_step(folder) is not None)
        if self.pool_restored:
            return parallel.from_first(
                lambda: checkpoint.restore(folder, like, self.settings),
                like,
            )
        made = make()
        if jax.process_index() == 0:
            checkpoint.save(folder, 0, made, self.settings)
        return made

    def circumstances(self) -> dict[str, Any]:
        """What a number depends on besides its config: commit, versions, device."""
        return {
            "commit": self.commit,
            "versions": {"python": platform.python_version(), **provenance.versions()},
            "device": provenance.device(),
        }

    def peak_memory(self) -> float | None:
        """Largest memory of the first device so far [GB]; None where an earlier run took more."""
        peak = provenance.peak_memory()
        return None if peak is None or peak == self.memory_before else peak

    def finish(self, **results: Any) -> dict[str, Any]:
        """Writes result.json: results, config, commit, versions, device and times."""
        times = {**self.times, "total": time.perf_counter() - self.start}
        result = {
            **results,
            "driver": self.settings["driver"],
            "times": {name: round(seconds, 2) for name, seconds in times.items()},
            # The times are those of this start: less than the run's if it was resumed.
            "resumed_from": self.resumed_from,
            "pool_restored": self.pool_restored,
            "config": recorded(self.config),
            **self.circumstances(),
        }
        write_json(self.out / "result.json", result)
        return result


def _append(path: pathlib.Path, line: dict[str, Any]) -> None:
    """A line more of a log."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        said = f"{error.strerror}; make room and start again"
        raise OSError(error.errno, said, str(path)) from None


def _lines(path: pathlib.Path) -> list[tuple[dict[str, Any], str]]:
    """Whole lines of a log, read and as they are; a kill may leave the last half-written."""
    content = path.read_bytes() if path.exists() else b""
    form = {"step": int, ...: float}
    return [
        (parse_object(line, f"{path}, line {number}", form), line.decode())
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.endswith(b"}")
    ]
