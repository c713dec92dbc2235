"""Tables and pictures of generators, from cells alone."""

import pathlib
from typing import Any

import numpy as np

from experiments.generators import grid
from experiments.harness import tables
from experiments.images import pictures
from sinkflow import plotting

HEADINGS = {
    "fd": "FD ↓",
    "kd": "KD ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "class_tv": "class TV ↓",
    "memorised": "memorised",
    "variance_ratio": "variance / data's",
    "classes_covered": "classes",
    "step_ms": "ms a step",
    "loss_ms": "of it objective",
    "memory_gb": "memory [GB]",
}
SHOWN = 12  # images of a row in a picture


def described(cell: dict[str, Any]) -> list[str]:
    """The cell's numbers in a line."""
    return [cell.get("failed", ""), *(f"{k} {cell[k]:.4g}" for k in HEADINGS if k in cell)]


def table(dataset: str, group: str, cells: list[dict[str, Any]]) -> tables.Table:
    """A row for each of the group's, mean and deviation where there are several seeds."""
    own = [cell for cell in cells if cell["group"] == group]
    body = []
    for label in dict.fromkeys(cell["row"] for cell in own):
        same = [cell for cell in own if cell["row"] == label]
        failed = next((cell["failed"] for cell in same if "failed" in cell), None)
        values = [number(same, name) for name in HEADINGS]
        body.append([label, *([failed] + [""] * (len(HEADINGS) - 1) if failed else values)])
    kinds = sorted({cell["device"]["kind"] for cell in own})
    steps = ", ".join(map(str, sorted({cell["config"]["train_steps"] for cell in own})))
    title = f"{dataset}, one evaluation, {steps} steps, {', '.join(kinds)}"
    return tables.Table(title, [group, *HEADINGS.values()], body)


def number(cells: list[dict[str, Any]], name: str) -> str:
    """Mean over seeds, with the deviation where there are several."""
    if any(name not in cell for cell in cells):
        return ""
    values = [cell[name] for cell in cells]
    spread = f" ± {np.std(values):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def draw(out: pathlib.Path, group: str, rows: list[grid.Row]) -> None:
    """The first images of each row, side by side."""
    first = {row.label: row for row in reversed(rows)}  # seed of each
    kept = {label: grid.shown(row) for label, row in reversed(first.items())}
    shown = {k: pictures.scaled(x[:SHOWN]) for k, x in kept.items() if x is not None}
    if shown:
        plotting.save(plotting.image_grid(shown, SHOWN), out / f"samples-{grid.slug(group)}.png")
