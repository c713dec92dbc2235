"""Blocks of plane.md and of the front page: runs in the plane, digits, the table of methods."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.harness import tables
from experiments.pages.blocks import RESULTS, link, record
from experiments.vectors.cell_tables import RIVAL, make_tables
from experiments.vectors.methods import METHODS

NFE = ("1", "2", "5", "10", "100")
FEW = ("1", "5", "10", "100")
FRONT = ("NSGF", RIVAL, "FM")
Cells = dict[tuple[str, str], dict[str, Any]]


def methods() -> str:
    """W2 of all methods on all tasks."""
    labels = _labels(_cells(record("table-plane")))
    return _methods([*labels, *_not_run(labels)])


def headline() -> str:
    """W2 of NSGF and of two rivals."""
    return _methods(FRONT)


def _methods(labels: Sequence[str]) -> str:
    found = record("table-plane")
    tasks, cells = found["config"]["tasks"], _cells(found)
    body = [
        [label, *(_few(cells[label, task]["w2"]) for task in tasks)]
        if (label, tasks[0]) in cells
        else [label, "not run", *[""] * (len(tasks) - 1)]
        for label in labels
    ]
    for name, key in (("*floor*", "floor"), ("*stratified floor*", "stratified_floor")):
        body.append([name, *(f"{np.mean(cells['NSGF', task][key]):.3f}" for task in tasks)])
    title = f"W2 at {' / '.join(FEW)} network evaluations, mean of {found['config']['seeds']} seeds"
    return tables.markdown(tables.Table(title, ["method", *tasks], body))


def _few(w2: dict[str, list[float]]) -> str:
    return " / ".join(f"{np.mean(w2[nfe]):.3f}" if nfe in w2 else "n/a" for nfe in FEW)


def differences() -> str:
    """NSGF beside the rival with minibatches."""
    found = record("table-plane")
    cells, body = _cells(found), []
    for task in found["config"]["tasks"]:
        one, five = (np.array(cells["NSGF", task]["w2"][nfe]) for nfe in ("1", "5"))
        rival, many = (np.array(cells[RIVAL, task]["w2"][nfe]) for nfe in ("1", "100"))
        floor, behind = np.mean(cells["NSGF", task]["stratified_floor"]), five - many
        gain = f"{100 * (1 - one.mean() / rival.mean()):.0f}% lower"
        paired = f"{behind.mean():+.4f} ± {behind.std():.4f}"
        body.append([task, gain, paired, f"{one.mean() / floor:.2f}"])
    header = ["task", f"at 1 evaluation, against {RIVAL}", f"at 5, less {RIVAL} at 100"]
    header.append("at 1 evaluation, over the stratified floor")
    title = "NSGF's W2: mean over seeds; differences are of the same points and seed"
    return tables.markdown(tables.Table(title, header, body))


def seconds() -> str:
    """What a seed of each method costs, and how it was run."""
    found = record("table-plane")
    config, cells = found["config"], found["cells"]
    on_gpu = [cell for cell in cells if cell["device"]["kind"] != "cpu"]
    body = []
    for label in dict.fromkeys(cell["row"] for cell in on_gpu):
        spent = [cell["seconds_of_all_seeds"] for cell in on_gpu if cell["row"] == label]
        ranges = []
        for phase in ("pool", "train"):
            each = [seconds.get(phase, 0.0) / config["seeds"] for seconds in spent]
            ranges.append(f"{min(each):.1f} to {max(each):.1f}")
        body.append([label, *ranges])
    kinds = sorted({cell["device"]["kind"] for cell in on_gpu})
    title = f"Seconds of a seed, least and most of the tasks, {', '.join(kinds)}"
    made = tables.markdown(tables.Table(title, ["method", "flows or pairs", "training"], body))
    sums = [sum(cell["seconds_of_all_seeds"].values()) for cell in on_gpu]
    elsewhere = [f"{c['row']} of {c['task']}" for c in cells if c not in on_gpu]
    alone = record("table-plane-cpu")
    return made + (
        f"\nGroups of {config['seeds']} seeds took {sum(sums):.0f} s in sum, compilation included, "
        f"and {max(sums):.0f} s at most.\n"
        f"On the CPU ran {' and '.join(elsewhere)}.\n"
        f"There one NSGF of {alone['config']['tasks'][0]} takes {alone['times']['total']:.0f} s "
        f"from start to table ({link('table-plane-cpu', 'record')}).\n"
    )


def settings() -> str:
    """The table's settings."""
    config = record("table-plane")["config"]
    body = [
        ["pairs of clouds", f"{config['num_clouds']} of {config['num_particles']:,} particles"],
        ["steps of a flow", f"{config['flow_steps']} of {config['step_size']}, the last one full"],
        ["epsilon", f"{config['epsilon']} length²"],
        ["hidden layers", ", ".join(map(str, config["hidden_dims"]))],
        ["training", f"{config['train_steps']:,} steps of {config['batch_size']:,} rows"],
        ["sampling", f"{config['stepper']}, times (k/K)^{config['time_power']}; flow time: Euler"],
        ["evaluation", f"{config['num_samples']:,} stratified samples, exact W2"],
    ]
    return tables.markdown(tables.Table("Settings of every method", ["what", "value"], body))


def predictor() -> str:
    """How far predicted times are from true ones, in the plane, on digits, and on MNIST."""
    found, images = record("time-predictor"), record("images-mnist-nsgfpp")["predicted_time"]
    body = []
    for name, row in found["rows"].items():
        least = f"{row['least']:.3f}" if "least" in row else ""
        half = f"{row['half_mean']:.3f} ± {row['half_std']:.3f}"
        body.append([name, f"{row['dim']}", f"{row['missed']:.3f}", least, half])
    half = f"{images['mean']:.3f} ± {images['std']:.3f}"
    body.append([f"MNIST ({link('images-mnist-nsgfpp', 'record')})", "784", "", "", half])
    header = ["task", "dimensions", "missed", "least possible", "predicted half-way"]
    title = f"Time from position; the mean time alone misses {found['constant']:.3f}"
    return tables.markdown(tables.Table(title, header, body))


def runs() -> str:
    """A row for each record of the driver of the plane."""
    body = []
    for path in sorted(RESULTS.glob("plane-*.json")):
        one = record(path.stem)
        name = f"{one['config']['task']}, {one['config']['time']}"
        numbers = [one["floor"], one["stratified_floor"], *(one["w2"][nfe] for nfe in NFE)]
        time = f"{one['times']['total']:.0f}"
        body.append([link(path.stem, name), *(f"{value:.3f}" for value in numbers), time])
    header = ["task, time label", "floor", "stratified floor", *(f"NFE {nfe}" for nfe in NFE)]
    title = "W2 of single runs on two CPU cores"
    return tables.markdown(tables.Table(title, [*header, "seconds"], body))


def digits() -> str:
    """The digits: every number of evaluations, floor and traps."""
    return scores_of_digits("digits-geodesic")


def scores_of_digits(name: str) -> str:
    """Scores of a run on digits, of its floor and of the traps."""
    found = record(name)
    columns = list(found["floor"])
    rows = {f"NFE {nfe}": {key: found[key][nfe] for key in columns} for nfe in found["w2"]}
    rows |= {"*floor*": found["floor"]} | {f"*{k}*": v for k, v in found["traps"].items()}
    body = [[label, *(f"{row[column]:.3f}" for column in columns)] for label, row in rows.items()]
    names = {"w2": "W2", "frechet": "Fréchet", "class_tv": "class TV"}
    config, times = found["config"], found["times"]
    count = config["num_test" if "num_test" in config else "num_samples"]
    title = (
        f"{count} samples against as many test images; {times['total']:.0f} s on two "
        f"CPU cores; test accuracy of the judge {found['classifier_accuracy']:.3f}"
    )
    header = ["", *(names.get(column, column) for column in columns)]
    return tables.markdown(tables.Table(title, header, body))


def whole(name: str) -> list[tables.Table]:
    """All tables of a grid, as its driver makes them."""
    found = record(name)
    cells = {key: _of_seeds(cell) for key, cell in _cells(found).items()}
    labels, config = _labels(cells), found["config"]
    return make_tables(cells, labels, config["tasks"], config["nfe"], _not_run(labels))


def _labels(cells: Iterable[tuple[str, str]]) -> list[str]:
    """Rows of a grid, in their order."""
    return list(dict.fromkeys(label for label, _ in cells))


def _not_run(labels: Sequence[str]) -> list[str]:
    """Methods that the grid does not have: those of later date."""
    return [label for label in METHODS if label not in labels]


def _cells(found: dict[str, Any]) -> Cells:
    return {(cell["row"], cell["task"]): cell for cell in found["cells"]}


def _of_seeds(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """A summary's cells, one for each seed."""
    floors = zip(cell["floor"], cell["stratified_floor"], strict=True)
    return [
        {
            "w2": {nfe: values[seed] for nfe, values in cell["w2"].items()},
            "floor": floor,
            "stratified_floor": stratified,
            "seconds_of_all_seeds": cell["seconds_of_all_seeds"],
        }
        for seed, (floor, stratified) in enumerate(floors)
    ]


BLOCKS = {
    "headline": headline,
    "plane-methods": methods,
    "plane-differences": differences,
    "plane-seconds": seconds,
    "plane-settings": settings,
    "plane-predictor": predictor,
    "plane-runs": runs,
    "digits": digits,
}
