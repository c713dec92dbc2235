"""Cells of the synthetic tables: one file for each row, task and seed."""

import pathlib
from collections.abc import Sequence

from experiments.harness.files import slug as slug
from sinkflow.files import read_object

CELL = {  # what the tables read of a cell
    "w2": {...: float},
    **dict.fromkeys(("floor", "stratified_floor"), float),
    "commit": str,
    "seconds_of_all_seeds": {...: float},
    "certificates": dict,
    "device": {"kind": str},
}


def cell_path(out: pathlib.Path, label: str, name: str, seed: int) -> pathlib.Path:
    return out / "cells" / slug(label) / f"{name}-{seed}.json"


def read_cells(
    out: pathlib.Path, labels: Sequence[str], tasks: Sequence[str], seeds: int
) -> dict[tuple[str, str], list[dict]]:
    """Cells of the grid by row and task, one for each seed."""
    return {
        (label, name): [
            read_object(cell_path(out, label, name, seed), CELL) for seed in range(seeds)
        ]
        for label in labels
        for name in tasks
    }


def summaries(cells) -> list[dict]:
    """The cells of a row and task in one entry; lists have a value for each seed."""
    return [
        {
            "row": label,
            "task": name,
            "w2": {nfe: [cell["w2"][nfe] for cell in group] for nfe in group[0]["w2"]},
            **{
                key: [cell[key] for cell in group]
                for key in ("floor", "stratified_floor", "commit")
            },
            **{key: group[0][key] for key in ("seconds_of_all_seeds", "certificates", "device")},
        }
        for (label, name), group in cells.items()
    ]
