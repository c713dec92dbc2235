"""Tables and pictures of several image models, from the records of their runs alone."""

import pathlib
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any

import numpy as np

from experiments.harness import tables
from experiments.images import pictures
from experiments.images.config import label_of
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
    *("stepper", "sample_batch", "smoke"),
)
FREE = ("seed", "stages", "data_dir", "nfe", "max_iterations", "keep", "num_kept")
"""Settings that seeds of one method may have different."""
SCORES = {f"{name}?": float for name in HEADINGS}
ROW = {**SCORES, "inception?": {**dict.fromkeys(INCEPTION, object), **SCORES}}
RESULT = {  # what the tables read of a run's record, see sinkflow.files.misfit
    "config": {
        **{"method": str, "pairs": str, "split?": float, "seed": int},
        **dict.fromkeys(SHARED, object),
        **dict.fromkeys(STEPS, int),
    },
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


def write(runs: Sequence[str], out: pathlib.Path) -> tables.Table:
    """Reads the results of runs, writes tables and pictures into ``out``; returns the table.

    Raises:
      ValueError: no runs, or some that cannot be compared.
    """
    results = [read(pathlib.Path(run)) for run in runs]
    if not results:
        raise ValueError("runs is empty; name at least one output folder")
    check_comparable(runs, results)
    out.mkdir(parents=True, exist_ok=True)
    table = make_table(results)
    tables.write(out, [table, training_table(results)])
    if distances(results):
        plotting.save(draw(results), out / "fd.png")
    pictures.draw_beside(runs, results, out / "samples.png")
    return table


def check_comparable(names: Sequence[str], results: Sequence[dict]) -> None:
    """Raises ValueError unless all runs have the first one's data, samples, network and steps.

    Runs of one method may differ in their seed alone.
    """
    first, alike = results[0]["config"], dict[str, tuple[str, dict]]()
    for name, result in zip(names, results, strict=True):
        different = differences(result["config"], first, SHARED)
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
        other, theirs = alike.setdefault(label(result), (name, result["config"]))
        own = [key for key in result["config"] if key in theirs and key not in FREE]
        if different := differences(result["config"], theirs, own):
            raise ValueError(f"{name} is no other seed of {other}: {'; '.join(different)}")


def differences(own: dict, other: dict, names: Iterable[str]) -> list[str]:
    """Settings that are others in two runs, in words."""
    return [
        f"{name} {own[name]} instead of {other[name]}" for name in names if own[name] != other[name]
    ]


def label(result: dict[str, Any]) -> str:
    """What the run's method is called in tables."""
    config = result["config"]
    return label_of(config["method"], config["pairs"], config.get("split", 0.0))


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


def grouped(results: Sequence[dict]) -> dict[tuple[str, int], list[dict]]:
    """Rows of all seeds by method and number of evaluations, scores of Inception beside others.

    Raises:
      ValueError: two rows of the same seed.
    """
    found: dict[tuple[str, int], dict[int, dict]] = {}
    for result in results:
        seed = result["config"]["seed"]
        for row in result["rows"]:
            own = found.setdefault((row["method"], row["nfe"]), {})
            if seed in own:
                raise ValueError(
                    f"two runs have rows of {(row['method'], row['nfe'])} and seed {seed}; a table "
                    "has each seed of a method once"
                )
            own[seed] = {**row, **row.get("inception", {})}
    # By method: results have them as they are drawn, by number of evaluations.
    order = list(dict.fromkeys(method for method, _ in found))
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return {key: list(found[key].values()) for key in keys}


def make_table(results: Sequence[dict]) -> tables.Table:
    """A row for every method and number of evaluations, then floor and traps.

    Where a method has several seeds, mean and deviation over them, and a column of their number.
    """
    first, rows = results[0], grouped(results)
    several = any(len(group) > 1 for group in rows.values())
    shown = [
        name
        for name in HEADINGS
        if name not in first["dropped"] and any(name in row for rs in rows.values() for row in rs)
    ] or ["fd"]  # where all failed
    body = []
    for (method, nfe), group in rows.items():
        count = [str(len(group))] if several else []
        body.append([method, str(nfe), *count, *cells(group, shown)])
    for name, scores in first["references"].items():
        body.append([f"*{name}*", "", *[""] * several, *cells([scores], shown)])
    title = f"{first['dataset']}, {first['num_samples']} samples, {first['device']['kind']}"
    title += ", mean ± standard deviation over seeds" if several else ""
    commits = dict.fromkeys(result["commit"] for result in results)
    title += f", {first['config']['stepper']} steps, commit {', '.join(commits)}"
    if first["dropped"]:
        title += f" (left out, as they miss a trap: {', '.join(first['dropped'])})"
    for name in INCEPTION if inception_setting(first, "split") else ():
        title += f", {name} {inception_setting(first, name)}"
    names = ["method", "NFE", *["seeds"] * several, *(HEADINGS[name] for name in shown)]
    return tables.Table(title, names, body)


def cells(group: Sequence[dict], shown: Sequence[str]) -> list[str]:
    """Scores of a row's seeds, or how one of them failed."""
    failed = [row["failed"] for row in group if "failed" in row]
    if failed:
        counted = f"{len(failed)} of {len(group)} seeds: " if len(group) > 1 else ""
        return [counted + failed[0], *[""] * (len(shown) - 1)]
    return [cell([row[name] for row in group if name in row]) for name in shown]


def cell(values: Sequence[float]) -> str:
    """Mean over seeds, with the deviation where there are several."""
    if not values:
        return ""
    spread = f" ± {np.std(values):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


def training_table(results: Sequence[dict]) -> tables.Table:
    """What training took: seconds without compilation, a column for each stage of any method.

    A stage that was resumed has the seconds of its last start, and the step that this began with.
    """
    stages = list(dict.fromkeys(stage for result in results for stage in result["training"]))
    several = len({result["config"]["seed"] for result in results}) > 1
    header = ["run", *(f"{stage} [s]" for stage in stages), "pools [s]", "compilation [s]"]
    body = []
    for result in results:
        seed = f", seed {result['config']['seed']}" if several else ""
        training = result["training"]
        seconds = {stage: record["seconds"] for stage, record in training.items()}
        own = [stage_cell(stage, training[stage]) if stage in training else "" for stage in stages]
        sums = [sum(s.get(what, 0.0) for s in seconds.values()) for what in ("pool", "compile")]
        cells = [*own, *(f"{value:.1f}" for value in sums)]
        peaks = [record["device_memory_gb"] for record in training.values()]
        known = peaks and None not in peaks
        body.append(
            [
                f"{label(result)}{seed}{elsewhere(result)}",
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


def distances(results: Sequence[dict]) -> dict[str, dict[int, list[float]]]:
    """FD of all seeds by method and number of evaluations, where none of them failed."""
    found: dict[str, dict[int, list[float]]] = {}
    for (method, nfe), group in grouped(results).items():
        if all("fd" in row for row in group):
            found.setdefault(method, {})[nfe] = [row["fd"] for row in group]
    return found


def draw(results: Sequence[dict]):
    """FD against NFE, a curve for each method, with bars where it has several seeds."""
    found = distances(results)
    several = max(len(values) for by_nfe in found.values() for values in by_nfe.values())
    name, floor = results[0]["dataset"], results[0]["references"]["floor"]["fd"]
    spread = f"\nmean and deviation of {several} seeds" if several > 1 else ""
    return plotting.curves(
        {name: {label: fd_curve(by_nfe) for label, by_nfe in found.items()}},
        "network evaluations (NFE)",
        f"Fréchet distance of features{spread}",
        levels={name: {"real images": floor}},
    )


def fd_curve(by_nfe: dict[int, list[float]]) -> plotting.Curve:
    """Mean and deviation over seeds at each NFE."""
    counts = sorted(by_nfe)
    values = [by_nfe[count] for count in counts]
    error = [float(np.std(own)) for own in values] if any(len(v) > 1 for v in values) else None
    return plotting.Curve(counts, [float(np.mean(own)) for own in values], error)
