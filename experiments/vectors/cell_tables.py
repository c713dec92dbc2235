"""Tables and pictures of the synthetic tables, from their cells alone."""

from collections.abc import Sequence

import numpy as np

from experiments.harness import tables
from experiments.vectors.cells import slug
from sinkflow import metrics, plotting

FLOORS = (("floor", "floor, independent draws"), ("stratified_floor", "floor, stratified draws"))
DIVERGED = 10.0  # beyond the targets' span
RIVAL = "OT-CFM n=256"  # whose many evaluations are compared with
FEW = 5  # evaluations of everyone else


def by_variation(labels) -> dict[str, list[str]]:
    """Labels of one table: those of an ablation by what it varies, methods all together."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(label.rpartition(": ")[0], []).append(label)
    return groups


def make_tables(
    cells,
    labels: Sequence[str],
    tasks: Sequence[str],
    counts: Sequence[int],
    not_run: Sequence[str] = (),
) -> list[tables.Table]:
    """Tables from the cells alone: one for each task and variation, and paired differences.

    ``not_run`` are methods without cells, which a table of methods names.
    """
    made = [
        task_table(cells, group, variation, name, counts, not_run)
        for name in tasks
        for variation, group in by_variation(labels).items()
    ]
    if RIVAL in labels and FEW in counts:
        made.append(paired_table(cells, labels, tasks, max(counts)))
    return made


def task_table(
    cells,
    labels: Sequence[str],
    variation: str,
    name: str,
    counts: Sequence[int],
    not_run: Sequence[str],
) -> tables.Table:
    """W2 of a task's rows, and seconds of a seed."""
    rows = []
    for label in labels:
        group = cells[label, name]
        seconds = group[0]["seconds_of_all_seeds"]
        spent = [seconds.get(phase, 0) / len(group) for phase in ("pool", "train", "sample")]
        values = [mean_and_deviation(group, nfe) for nfe in counts]
        rows.append([label.rpartition(": ")[2], *values, *(f"{value:.1f}" for value in spent)])
    times = ["pool [s]", "train [s]", "sample [s]"]
    header = [variation or "method", *(f"NFE {k}" for k in counts), *times]
    if not variation:
        rows += [[label, "not run", *[""] * (len(header) - 2)] for label in not_run]
    floor, stratified = (
        np.mean([cell[key] for cell in cells[labels[0], name]])
        for key in ("floor", "stratified_floor")
    )
    title = (
        f"{name}: W2, in brackets the excess over the stratified floor {stratified:.3f} "
        f"(floor of independent samples {floor:.3f})"
    )
    return tables.Table(title, header, rows)


def mean_and_deviation(group, nfe) -> str:
    """W2 over seeds, and the mean excess over each seed's stratified floor in brackets."""
    pairs = [
        (cell["w2"][str(nfe)], cell["stratified_floor"]) for cell in group if str(nfe) in cell["w2"]
    ]
    if not pairs:
        return "n/a"
    values, excess = [pair[0] for pair in pairs], [metrics.excess(*pair) for pair in pairs]
    return f"{np.mean(values):.3f} ± {np.std(values):.3f} ({np.mean(excess):.3f})"


def paired_table(cells, labels: Sequence[str], tasks: Sequence[str], most: int) -> tables.Table:
    """W2 at FEW evaluations less that of the rival at most, of the same points and seed."""

    def difference(label, name):
        few, many = cells[label, name], cells[RIVAL, name]
        if str(FEW) not in few[0]["w2"]:
            return "n/a"
        values = [a["w2"][str(FEW)] - b["w2"][str(most)] for a, b in zip(few, many, strict=True)]
        return f"{np.mean(values):+.4f} ± {np.std(values):.4f}"

    rows = [[label, *(difference(label, name) for name in tasks)] for label in labels]
    title = f"W2 at NFE {FEW} less that of {RIVAL} at NFE {most}, same points and seed"
    return tables.Table(title, ["method", *tasks], rows)


def draw_group(out, label, name, samples, learned, x0, real):
    """Samples of the first seed at every NFE, and paths of a few particles."""
    panels = {f"NFE {nfe}": points[0] for nfe, points in samples.items() if points is not None}
    folder = out / "pictures" / slug(label)
    folder.mkdir(parents=True, exist_ok=True)
    if panels:  # a method of one count has none where others are asked for
        fig = plotting.samples_against_target(panels, real)
        plotting.save(fig, folder / f"{name}-samples.png")
    paths = np.asarray(learned.paths(x0[:1, :64]))
    title = ", ".join(filter(None, (label, name, learned.paths_of)))
    shares = np.linspace(0, 1, len(paths))
    fig = plotting.trajectories(paths, real, title, "share of the way", shares)
    plotting.save(fig, folder / f"{name}-paths.png")


def draw_curves(path, cells, labels: Sequence[str], tasks: Sequence[str], nfe: Sequence[int]):
    """W2 against NFE: a panel for each task, a curve with bars over seeds for each row."""
    panels = {
        name: {
            label.rpartition(": ")[2]: w2_curve(cells[label, name], nfe)
            for label in labels
            if any(str(k) in cells[label, name][0]["w2"] for k in nfe)
        }
        for name in tasks
    }
    if not any(panels.values()):
        return  # methods of counts that nobody asked for
    floors = {
        name: {title: np.mean([c[key] for c in cells[labels[0], name]]) for key, title in FLOORS}
        for name in tasks
    }
    seeds = len(cells[labels[0], tasks[0]])
    spread = f"\nmean and deviation of {seeds} seeds" if seeds > 1 else ""
    fig = plotting.curves(
        panels,
        "network evaluations (NFE)",
        f"W2 [length]{spread}",
        levels=floors,
        most=DIVERGED,
        title=labels[0].rpartition(": ")[0],
    )
    plotting.save(fig, path)


def w2_curve(group, nfe: Sequence[int]) -> plotting.Curve:
    """Mean over seeds and their deviation, at the NFE that were measured."""
    measured = [k for k in nfe if str(k) in group[0]["w2"]]
    values = [[cell["w2"][str(k)] for cell in group] for k in measured]
    error = np.std(values, axis=1) if len(group) > 1 else None
    return plotting.Curve(measured, np.mean(values, axis=1), error)
