"""A run again, from its record: what comes out otherwise.

Command:  python -m experiments.rerun experiments/results/plane-8gaussians-moons-geodesic.json
Runtime:  that of the run; the record tells it. A smoke run's record: under two minutes.
Expected: a table of versions and device that differ, and one of values that differ; times are not
          compared. Exit status 0 where all values are equal to the tolerance, else 1.
Source:   none; the run's own driver trains, samples and measures.
"""

import dataclasses
import importlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import tyro

from experiments.harness import cli, comparing
from experiments.harness.run import recorded
from experiments.harness.settings import checked, flat, made, naming
from sinkflow.files import read_object

DRIVERS = ("plane", "digits", "mnist", "cifar10", "generator")
"""Drivers whose records tell of one run, with all its settings."""
OTHERWISE = 0.01
"""Tolerance on other versions or another device. Between the oldest and the newest versions a smoke
run's marginal errors differed by 0.0015 on a CPU, all its other numbers by 3e-6 at most."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which record, and how closely it is to be met."""

    record: tyro.conf.Positional[pathlib.Path]
    """A run's result.json, or a record made of it."""
    out: str = ""
    """Folder of the new run; by default runs/rerun-NAME, after the record. An unfinished run there
    goes on, a finished one is refused."""
    tolerance: float | None = None
    """Relative difference of two numbers that counts as none [share of the larger]. By default 0 on
    the record's versions and device, and 0.01 on others."""
    driver: str = ""
    """The record's driver, for records older than its name in them."""
    data_dir: str = ""
    """Folder with the published files of images; by default SINKFLOW_DATA, or else a download."""

    def folder(self) -> pathlib.Path:
        """``out``, or one named after the record, or after the record's folder."""
        stem = self.record.parent.name if self.record.stem == "result" else self.record.stem
        return pathlib.Path(self.out or f"runs/rerun-{stem}")


def main(config: Config) -> bool:
    """Repeats the run and prints what differs; whether all is equal to the tolerance."""
    record = read_object(config.record, remedy="give a run's result.json")
    with naming(config.record):
        driver = driver_of(record, config.driver)
        program = importlib.import_module(f"experiments.{driver}")
        folders = {"out": str(config.folder()), "data_dir": config.data_dir}
        settings = settings_of(program.Config, record["config"], folders)
    if (config.folder() / "result.json").exists():
        raise ValueError(
            f"out is {config.folder()}: a finished run is there; remove it or choose another --out"
        )
    program.main(settings)
    result = read_object(config.folder() / "result.json")
    others = comparing.circumstances(record, result)
    same = not [one for one in others if one.name != "commit"]
    usual = 0.0 if same else OTHERWISE
    tolerance = usual if config.tolerance is None else config.tolerance
    equal, differing = comparing.compared(record, result)
    beyond = [one for one in differing if not one.relative <= tolerance]
    print(comparing.table("Circumstances that differ", others))
    print(comparing.table("Values that differ", differing))
    print(
        f"{equal} values equal, {len(differing)} differ, {len(beyond)} by more than {tolerance:g}"
    )
    return not beyond


def driver_of(record: Mapping[str, Any], named: str) -> str:
    """The driver that a record is of.

    Raises:
      ValueError: it is of none that can be started again, or does not say of which.
    """
    found = named or record.get("driver")
    if not isinstance(record.get("config"), dict) or not isinstance(record.get("device"), dict):
        raise ValueError("it has no config or device, as a single run's; start its driver instead")
    if found is None:
        raise ValueError(f"it does not name its driver; give --driver {', '.join(DRIVERS)}")
    if found not in DRIVERS:
        raise ValueError(
            f"driver is {found}; single runs of {', '.join(DRIVERS)} are repeated, and a table or "
            "a benchmark is made by its own command"
        )
    return found


def settings_of(config_class: Any, asked: Mapping[str, Any], folders: Mapping[str, str]) -> Any:
    """The record's settings, with folders of this machine; says which the record lacks."""
    values = {**checked(config_class, asked), **{k: folders[k] for k in folders if k in asked}}
    values |= {"out": folders["out"], **({"stages": ()} if "stages" in values else {})}
    config = made(config_class, **values)
    if missing := {k: v for k, v in recorded(flat(config)).items() if k not in asked}:
        print(f"settings that the record lacks have today's defaults: {missing}")
    return config


def start() -> None:
    """The program: exits with 0 where all is equal to the tolerance, else with 1."""
    asked = tyro.cli(Config, description=cli.header(__doc__), prog=cli.program())
    sys.exit(0 if main(asked) else 1)


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        start()
