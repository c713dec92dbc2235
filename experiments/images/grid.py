"""Runs of the image methods over seeds: what each varies, where it lies, what is finished."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.harness import folders
from experiments.harness.settings import made
from experiments.images.config import MnistConfig
from sinkflow.files import read_object

SPLIT = {"split": 0.5}  # where NSGF++ changes from one network to the other
CLOUDS = {"pairs": "sinkhorn", "pair_size": 4096}  # as large as those of the flow
RUNS: dict[str, dict[str, Any]] = {  # from those that take little memory to those that take more
    "fm": {"method": "fm"},
    "fm-two-networks": {"method": "fm", **SPLIT},
    "ot-cfm": {"method": "ot-cfm"},
    "ot-cfm-two-networks": {"method": "ot-cfm", **SPLIT},
    "ot-cfm-sinkhorn-pairs": {"method": "ot-cfm", **CLOUDS},
    "nsgfpp": {"method": "nsgf++"},
    "nsgfpp-sinkhorn-pairs": {"method": "nsgf++", **CLOUDS},
    "flow-map": {"method": "flow-map", "nfe": (1, 2, 5, 10), "keep": (1,)},
}
"""Settings of each method by the name of its folder, which is the slug of its label."""


def configs(
    out: pathlib.Path, names: Sequence[str], seeds: Sequence[int], *, smoke: bool, **shared: Any
) -> dict[str, MnistConfig]:
    """A run for each method and seed by its folder's name, with the ``shared`` settings.

    Raises:
      ValueError: no names or seeds, or a name that is not of :data:`RUNS`.
    """
    if not names or not seeds:
        raise ValueError("methods or seeds is empty; name at least one of each")
    if unknown := sorted(set(names) - RUNS.keys()):
        raise ValueError(f"methods has {unknown}; choose among {', '.join(RUNS)}")
    small = MnistConfig.SMOKE if smoke else {}
    return {
        (folder := f"{name}-{seed}"): made(
            MnistConfig,
            **{**RUNS[name], **small, **shared, "smoke": smoke},
            **{"seed": seed, "out": str(out / folder)},
        )
        for name in names
        for seed in seeds
    }


def is_finished(folder: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Whether the run of these settings has its result.

    Raises:
      ValueError: it has one of other settings.
    """
    file = folder / "result.json"
    if not file.is_file():
        return False
    known = read_object(file, {"config": dict})["config"]
    now = json.loads(json.dumps(settings))  # which has lists for tuples
    for name in now.keys() - {"data_dir", "stages"}:
        if known.get(name) != now[name]:
            raise ValueError(
                f"{file} was run with another {name} ({known.get(name)} instead of {now[name]}); "
                "choose another --out"
            )
    return True


def is_free(out: pathlib.Path, name: str) -> bool:
    """Takes the run for this process until it ends, unless another process has it."""
    try:
        folders.take(out, name)
    except ValueError:
        return False
    return True
