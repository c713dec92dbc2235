"""Tables and pictures of several image models, from the records of their runs alone."""

import pathlib
from collections.abc import Sequence
from types import NoneType
from typing import Any

import numpy as np

from experiments.harness import tables
from experiments.images.stages import TRAINING_FORM
from sinkflow import plotting
from sinkflow.files import read_object

HEADINGS = {  # of the scores; an arrow where more or less of it is better
    "fd": "FD ↓",
    "kd": "KD ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "class_tv": "class TV ↓",
    "nearest": "nearest",
    "memorised": "memorised",
    "fid": "FID ↓",
    "inception_score": "IS ↑",
    "seconds_per_10k": "s per 10k",
}
INCEPTION = ("weights_sha256", "split", "count", "resize", "torch_fidelity")
STEPS = ("velocity_steps", "predictor_steps", "straight_steps")
SHARED = (  # settings that are the same in runs that are compared
    *("dataset", "num_samples", "channels", "multipliers", "num_blocks", "attention"),
    *("dropout", "batch_size", "learning_rate", "clip", "ema_decay"),
    *("stepper", "sample_batch", "seed", "smoke"),
)
SCORES = {f"{name}?": float for name in HEADINGS}
ROW = {**SCORES, "inception?": {**dict.fromkeys(INCEPTION, object), **SCORES}}
RESULT = {  # what the tables read of a run's record, see sinkflow.files.misfit
    "config": {"method": str, **dict.fromkeys(SHARED, object), **dict.fromkeys(STEPS, int)},
    "rows": [{"method": str, "nfe": int, "failed?": str, **ROW}],
    "references": {"floor": ROW, ...: ROW},
    "dropped": [str],
    "dataset": str,
    "num_samples": int,
    "classifier": (str, NoneType),
    "commit": str,
    "device": {"kind": str, "count": int},
    "training": {...: TRAINING_FORM},
}


def read(path: pathlib.Path) -> dict[str, Any]:
    """The result of a run.

    Raises:
      ValueError: the run has none yet, or its file is damaged.
    """
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no {path}; start the run's driver until it prints its scores")
    return read_object(path, RESULT)


def check_comparable(names: Sequence[str], results: Sequence[dict]) -> None:
    """Raises ValueError unless all runs have the first one's data, samples, network and steps."""
    first = results[0]["config"]
    for name, result in zip(names, results, strict=True):
        different = [
            f"{key} {result['config'][key]} instead of {first[key]}"
            for key in SHARED
            if result["config"][key] != first[key]
        ]
        here, there = judged_by(result), judged_by(results[0])
        different += [
            f"{what} {here[what]} instead of {there[what]}"
            for what in here
            if here[what] != there[what]
        ]
        total, wanted = (sum(config[key] for key in STEPS) for config in (result["config"], first))
        if total != wanted:
            different.append(f"{total} optimiser steps instead of {wanted}")
        if different:
            raise ValueError(f"{name} cannot be compared with {names[0]}: {'; '.join(different)}")


def judged_by(result: dict[str, Any]) -> dict[str, Any]:
    """What its scores and times depend on; the number of the host's cores is not of it."""
    return {
        "classifier": result["classifier"],
        "device": result["device"]["kind"],
        "device count": result["device"]["count"],
        **{f"Inception's {what}": inception_setting(result, what) for what in INCEPTION},
    }


def inception_setting(result: dict[str, Any], name: str) -> Any:
    """What the run's FIDs depend on; None where there are none."""
    return next((row["inception"][name] for row in result["rows"] if "inception" in row), None)


def make_table(results: Sequence[dict]) -> tables.Table:
    """A row for every method and number of evaluations, then floor and traps."""
    first = results[0]
    labels = [(row["method"], row["nfe"]) for result in results for row in result["rows"]]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two runs have rows of {twice[0]}; a table has each method once")
    # By method: results have them as they are drawn, by number of evaluations.
    order = list(dict.fromkeys(method for method, _ in labels))
    rows = [flat_row(row) for result in results for row in result["rows"]]
    rows.sort(key=lambda row: (order.index(row["method"]), row["nfe"]))
    references = [{"method": f"*{name}*", **scores} for name, scores in first["references"].items()]
    shown = [
        name
        for name in HEADINGS
        if name not in first["dropped"] and any(name in row for row in rows)
    ] or ["fd"]  # where all failed
    body = [
        [row["method"], str(row.get("nfe", "")), *(cell(row, name) for name in shown)]
        for row in (*rows, *references)
    ]
    for row, cells in zip(rows, body, strict=False):
        if "failed" in row:
            cells[2] = row["failed"]
    title = f"{first['dataset']}, {first['num_samples']} samples, {first['device']['kind']}"
    commits = dict.fromkeys(result["commit"] for result in results)
    title += f", {first['config']['stepper']} steps, commit {', '.join(commits)}"
    if first["dropped"]:
        title += f" (left out, as they miss a trap: {', '.join(first['dropped'])})"
    for name in INCEPTION if inception_setting(first, "split") else ():
        title += f", {name} {inception_setting(first, name)}"
    return tables.Table(title, ["method", "NFE", *(HEADINGS[name] for name in shown)], body)


def training_table(results: Sequence[dict]) -> tables.Table:
    """What training took: seconds without compilation, a column for each stage of any method.

    A stage that was resumed has the seconds of its last start, and the step that this began with.
    """
    stages = list(dict.fromkeys(stage for result in results for stage in result["training"]))
    header = ["run", *(f"{stage} [s]" for stage in stages), "pools [s]", "compilation [s]"]
    body = []
    for result in results:
        training = result["training"]
        seconds = {stage: record["seconds"] for stage, record in training.items()}
        own = [stage_cell(stage, training[stage]) if stage in training else "" for stage in stages]
        sums = [sum(s.get(what, 0.0) for s in seconds.values()) for what in ("pool", "compile")]
        cells = [*own, *(f"{value:.1f}" for value in sums)]
        peaks = [record["device_memory_gb"] for record in training.values()]
        known = peaks and None not in peaks
        body.append(
            [
                f"{result['config']['method']}{elsewhere(result)}",
                *cells,
                f"{max(peaks):.1f}" if known else "unknown",
            ]
        )
    return tables.Table("Training", [*header, "device memory [GB]"], body)


def stage_cell(stage: str, record: dict[str, Any]) -> str:
    """Seconds of a stage's training."""
    begin, seconds = record["resumed_from"], record["seconds"].get(f"train {stage}")
    if seconds is None:
        return "unknown"
    return f"{seconds:.1f}" + ("" if begin is None else f" from step {begin:,}")


def elsewhere(result: dict[str, Any]) -> str:
    """Says so if a stage was trained at another commit or device than the samples were drawn."""
    own = f"{result['device']['kind']}, commit {result['commit']}"
    found = {
        f"{record['device']['kind']}, commit {record['commit']}"
        for record in result["training"].values()
        if "commit" in record
    }
    other = sorted(found - {own})
    return f" (trained on {'; '.join(other)})" if other else ""


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """Scores of a row beside one another, those of Inception too."""
    return {**row, **row.get("inception", {})}


def cell(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3g}" if name in row else ""


def draw(results: Sequence[dict]):
    """FD against NFE, a curve for each method, with bars where it has several runs."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in (row for result in results for row in result["rows"] if "fd" in row):
        found.setdefault(row["method"], {}).setdefault(row["nfe"], []).append(row["fd"])
    several = max(len(values) for by_nfe in found.values() for values in by_nfe.values())
    name, floor = results[0]["dataset"], results[0]["references"]["floor"]["fd"]
    spread = f"\nmean and deviation of {several} runs" if several > 1 else ""
    return plotting.curves(
        {name: {label: fd_curve(by_nfe) for label, by_nfe in found.items()}},
        "network evaluations (NFE)",
        f"Fréchet distance of features{spread}",
        levels={name: {"real images": floor}},
    )


def fd_curve(by_nfe: dict[int, list[float]]) -> plotting.Curve:
    """Mean and deviation over runs at each NFE."""
    counts = sorted(by_nfe)
    values = [by_nfe[count] for count in counts]
    error = [float(np.std(own)) for own in values] if any(len(v) > 1 for v in values) else None
    return plotting.Curve(counts, [float(np.mean(own)) for own in values], error)
