"""Blocks of generators.md: rows of one-step generators, whatever the records hold of them."""

import json
from typing import Any

import numpy as np

from experiments.generators import comparison
from experiments.harness import tables
from experiments.pages import images, plane
from experiments.pages.blocks import RESULTS, link, record

QUALITY = ("fd", "kd", "precision", "recall", "coverage", "class_tv", "memorised")
LONG = ("final", "labels")  # groups of the best settings, trained for long
COUNTS = (1, 5, 10, 60)  # evaluations of the methods with a field
RECORDS = tuple(p.stem for p in sorted(RESULTS.glob("table-generators-*.json"), reverse=True))
SEARCH = "generator-search-h100"
IN_PLANE = "table-plane-generators"
TIMED = "generator-mnist"
LONGEST = "generator-mnist-long"
REFINED = "refine-mnist"
SLOW = (10, 100)  # evaluations whose speed is shown
# Settings of the search that are shown where they differ between its rows.
KNOBS = (
    *("net", "head", "latent", "channels", "blocks", "labels", "n", "m", "k", "self_cloud"),
    *("epsilons", "threshold", "rate", "keep"),
)


def cells() -> dict[str, list[dict[str, Any]]]:
    """All recorded cells by data set."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in RECORDS:
        for cell in record(name)["cells"]:
            found.setdefault(cell["config"]["dataset"], []).append(cell)
    return found


def grid() -> str:
    """A table for each data set and group of rows."""
    made = []
    for dataset, own in cells().items():
        groups = dict.fromkeys(cell["group"] for cell in own)
        made += [tables.markdown(comparison.table(dataset, group, own)) for group in groups]
        commits, seeds = (
            ", ".join(dict.fromkeys(str(cell[key]) for cell in own)) for key in ("commit", "seed")
        )
        made.append(f"Of {dataset}: commits {commits}; seeds {seeds}.\n")
    return "\n".join([*made, f"Records: {', '.join(map(link, RECORDS))}.\n"])


def beside() -> str:
    """One evaluation of the best settings beside several of the methods with a field."""
    names = [comparison.HEADINGS[name] for name in QUALITY]
    header = ["method", "NFE", *names, "training [s]"]
    made = []
    for dataset, own in cells().items():
        body = [*_best(own), *(_longest() if dataset == "mnist" else [])]
        for method in images.RUNS:
            for (other, nfe), row in images.rows(dataset).items():
                if other == method and nfe in COUNTS:
                    values = [f"{row[name]:.3g}" for name in QUALITY]
                    body.append([method, str(nfe), *values, _trained(dataset, method)])
        for name, row in images.references(dataset).items():
            body.append([f"*{name}*", "", *(f"{row[score]:.3g}" for score in QUALITY), ""])
        title = f"{dataset}: generators of one evaluation beside fields"
        made.append(tables.markdown(tables.Table(title, header, body)))
    return "\n".join(made)


def _best(own: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of the long trainings, one for each setting and number of steps."""
    same: dict[tuple, list[dict[str, Any]]] = {}
    for cell in own:
        if cell["group"] in LONG and "failed" not in cell:
            same.setdefault((cell["row"], cell["config"]["train_steps"]), []).append(cell)
    return [
        [f"generator: {label}, {steps:,} steps, {_seeds(group)}", "1"]
        + [comparison.number(group, name) for name in (*QUALITY, "train_s")]
        for (label, steps), group in same.items()
    ]


def _longest() -> list[list[str]]:
    """The run that was given the most time; its seconds are those of its log, compilation too."""
    found = record(LONGEST)
    (row,), config = found["rows"], found["config"]
    lines = (RESULTS / f"{LONGEST}.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in lines)
    sizes = f"clouds of {config['n']:,} and {config['m']:,}"
    label = f"generator: {link(LONGEST, sizes)}, {config['train_steps']:,} steps, 1 seed"
    values = [f"{row[name]:.3g}" for name in QUALITY]
    return [[label, "1", *values, f"{seconds:.0f} with compilation"]]


def speed() -> str:
    """Images a second of one evaluation, beside several of the methods with a field."""
    found = record(TIMED)
    runs: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [(TIMED, found, (1,))]
    runs += [(name, run, SLOW) for name, run in _fields().items()]
    body = []
    for name, run, counts in runs:
        for row in run["rows"]:
            if row["nfe"] in counts:
                numbers = [f"{1e4 / row['seconds_per_10k']:,.0f}", f"{row['fd']:.3g}"]
                first = link(name, row["method"])
                body.append([first, str(row["nfe"]), *numbers, run["device"]["kind"]])
    title = f"mnist: images a second, {found['config']['sample_batch']:,} side by side"
    header = ["method", "NFE", "images a second", comparison.HEADINGS["fd"], "device"]
    return tables.markdown(tables.Table(title, header, body))


def _fields() -> dict[str, dict[str, Any]]:
    """Runs of the methods with a field, by their records' names."""
    found = [images.seeds("mnist", name) for name in dict.fromkeys(images.RUNS.values())]
    return {names[0]: record(names[0]) for names in found if names}


def _seeds(group: list[dict[str, Any]]) -> str:
    return f"{len(group)} seed{'s' if len(group) > 1 else ''}"


def refined() -> str:
    """Samples of one evaluation carried on by a straight flow, beside NSGF++ at equal counts."""
    found = record(REFINED)
    counts = sorted({row["nfe"] for row in found["rows"]})
    starts = dict.fromkeys(row["method"] for row in found["rows"])
    scored = {(row["method"], row["nfe"]): row for row in found["rows"]}
    body = [[name, *_at(scored, name, counts)] for name in starts]
    others = images.rows("mnist")
    for name in ("NSGF++", "OT-CFM", "FM"):
        body.append([name, *_at(others, name, counts)])
    header = ["FD ↓ of", *(f"NFE {count}" for count in counts)]
    title = "mnist: one evaluation, samples taken back to time t that follow the flow, and fields"
    made = tables.markdown(tables.Table(title, header, body))
    made += f"\n[Record]({REFINED}.json), {found['device']['kind']}, commit {found['commit']}.\n"
    return made


def _at(rows: Any, method: str, counts: list[int]) -> list[str]:
    """A method's FD at each number of evaluations, where it was scored."""
    return [f"{rows[method, n]['fd']:.2f}" if (method, n) in rows else "" for n in counts]


def small() -> str:
    """The driver's runs on a CPU: a task in the plane, and digits by their class."""
    found = record("generator-8gaussians-moons")
    numbers = [found["w2"]["1"], found["floor"], found["stratified_floor"]]
    row = [link("generator-8gaussians-moons", found["config"]["dataset"])]
    row += [*(f"{value:.3f}" for value in numbers), f"{found['times']['total']:.0f}"]
    header = ["task", "W2", "floor", "stratified floor", "seconds"]
    title = "One evaluation in the plane, one seed, two CPU cores"
    digits = record("generator-digits")
    return "\n".join(
        [
            tables.markdown(tables.Table(title, header, [row])),
            plane.scores_of_digits("generator-digits"),
            f"The judge sees the class that was asked for in {100 * digits['asked_accuracy']:.1f}% "
            f"of the digits ({link('generator-digits', 'record')}).\n",
        ]
    )


def in_plane() -> str:
    """W2 of the generator at one evaluation beside methods at 1, 2 and 5, the same points."""
    own, others = record(IN_PLANE), record("table-plane")
    tasks = own["config"]["tasks"]
    body = []
    for found, labels, counts in (
        (own, ("Generator", "NSGF"), ("1",)),
        (others, ("NSGF", "RF-2", "OT-CFM n=256"), ("1", "2", "5")),
    ):
        named = {(cell["row"], cell["task"]): cell for cell in found["cells"]}
        for label in labels:
            for nfe in counts:
                values = [named[label, task]["w2"][nfe] for task in tasks]
                spread = [f"{np.mean(w2):.3f} ± {np.std(w2):.3f}" for w2 in values]
                source = link(IN_PLANE if found is own else "table-plane", "record")
                body.append([label, nfe, *spread, _seconds(named, label, tasks), source])
    named = {(cell["row"], cell["task"]): cell for cell in own["cells"]}
    for name, key in (("*floor*", "floor"), ("*stratified floor*", "stratified_floor")):
        floors = [f"{np.mean(named['NSGF', task][key]):.3f}" for task in tasks]
        body.append([name, "", *floors, "", ""])
    header = ["method", "NFE", *tasks, "seconds of a task and seed", "record"]
    title = f"W2 in the plane, mean and deviation of {own['config']['seeds']} seeds"
    return tables.markdown(tables.Table(title, header, body))


def _seconds(named: dict, label: str, tasks: list[str]) -> str:
    """Median over tasks of the seconds of pool and training, of one seed."""
    cells = [named[label, task] for task in tasks]
    spent = [
        sum(cell["seconds_of_all_seeds"].get(phase, 0.0) for phase in ("pool", "train"))
        / len(cell["floor"])
        for cell in cells
    ]
    return f"{np.median(spent):.1f}"


def _trained(dataset: str, method: str) -> str:
    """Seconds of a method's training with its flows or pairs, without compilation."""
    run = record(images.seeds(dataset, images.RUNS[method])[0])
    stages = ["velocity"] if method == "NSGF" else list(run["training"])
    spent = [run["training"][stage]["seconds"] for stage in stages]
    if any(run["training"][stage]["resumed_from"] is not None for stage in stages):
        return "resumed"
    return f"{sum(sum(s.values()) - s.get('compile', 0.0) for s in spent):.0f}"


def search() -> str:
    """All rows of the search, with the settings that differ."""
    found = record(SEARCH)
    every = [row for one in found["searches"] for row in one["rows"]]
    shown = [name for name in KNOBS if len({str(row.get(name)) for row in every}) > 1]
    made = []
    for number, one in enumerate(found["searches"], 1):
        body = []
        for row in one["rows"]:
            settings = [_setting(row.get(name)) for name in shown]
            scores = [f"{row['train_s']:.0f}", *(f"{row[name]:.3g}" for name in QUALITY)]
            body.append([row["name"], *settings, str(row["steps"]), *scores])
        names = [comparison.HEADINGS[name] for name in QUALITY]
        title = f"Search {number}: {one['dataset']}, {one['device']}, commit {one['commit']}"
        header = ["row", *shown, "steps", "training [s]", *names]
        made.append(tables.markdown(tables.Table(title, header, body)))
    return "\n".join([*made, f"{link(SEARCH, 'Record')}. {found['about']}\n"])


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


BLOCKS = {
    "generators-small": small,
    "generators-grid": grid,
    "generators-beside": beside,
    "generators-speed": speed,
    "generators-refined": refined,
    "generators-plane": in_plane,
    "generators-search": search,
}
