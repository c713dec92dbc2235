"""Tables of the image models, from the results of their runs alone.

Command:  python -m experiments.table_images --runs runs/mnist-nsgfpp runs/mnist-fm ...
Runtime:  seconds.
Expected: table.md, table.tex and fd.png in the folder that --out names.
Source:   arXiv:2401.14069, the image tables; metrics as cited in sinkflow/metrics.py.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import tyro

from experiments import common, tables
from sinkflow import plotting

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


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs to compare, and where to put the table."""

    runs: tuple[str, ...]
    """Output folders of mnist.py or cifar10.py, all of one data set, or their result.json."""
    out: str = "runs/table-images"
    """Folder for table.md, table.tex and fd.png."""


def main(config: Config) -> tables.Table:
    """Reads the results, writes the table and the picture."""
    results = [read(pathlib.Path(run)) for run in config.runs]
    if not results:
        raise ValueError("runs is empty; name at least one output folder")
    check_comparable(config.runs, results)
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    table = make_table(results)
    tables.write(out, [table, training_table(results)])
    if any("fd" in row for result in results for row in result["rows"]):
        plotting.save(draw(results), out / "fd.png")
    return table


def read(path: pathlib.Path) -> dict[str, Any]:
    """The result of a run.

    Raises:
      ValueError: the run has none yet.
    """
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no {path}; start the run's driver until it prints its scores")
    return json.loads(path.read_text())


def check_comparable(names: Sequence[str], results: Sequence[dict]) -> None:
    """Raises ValueError unless all runs have the first one's data, samples, network and steps."""
    shared = (
        *("dataset", "num_samples", "channels", "multipliers", "num_blocks", "attention"),
        *("dropout", "batch_size", "learning_rate", "clip", "ema_decay"),
        *("stepper", "sample_batch", "seed", "smoke"),
    )
    steps = ("velocity_steps", "predictor_steps", "straight_steps")
    first = results[0]["config"]
    for name, result in zip(names, results, strict=True):
        different = [
            f"{key} {result['config'][key]} instead of {first[key]}"
            for key in shared
            if result["config"][key] != first[key]
        ]
        here, there = judged_by(result), judged_by(results[0])
        different += [
            f"{what} {here[what]} instead of {there[what]}"
            for what in here
            if here[what] != there[what]
        ]
        total, wanted = (sum(config[key] for key in steps) for config in (result["config"], first))
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
    begin = record["resumed_from"]
    return f"{record['seconds'][f'train {stage}']:.1f}" + (
        "" if begin is None else f" from step {begin:,}"
    )


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
    """FD against NFE, a line for each method; dashed the floor."""
    fig, axes = plotting.figure(size=5.0)
    axis = axes[0, 0]
    rows = [row for result in results for row in result["rows"]]
    for label in dict.fromkeys(row["method"] for row in rows):
        points = [(r["nfe"], r["fd"]) for r in rows if r["method"] == label and "fd" in r]
        axis.plot(*zip(*sorted(points), strict=True), marker=".", label=label)
    counts = sorted({row["nfe"] for row in rows})
    axis.axhline(results[0]["references"]["floor"]["fd"], color="0.5", ls="--", label="real images")
    axis.set(xscale="log", yscale="log", xlabel="NFE", ylabel="Fréchet distance of features")
    axis.set_title(results[0]["dataset"])
    axis.set_xticks(counts, map(str, counts))
    axis.set_xticks([], minor=True)
    axis.legend()
    return fig


if __name__ == "__main__":
    with common.clear_errors():
        main(tyro.cli(Config, description=common.header(__doc__), prog=common.program()))
