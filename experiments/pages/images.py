"""Blocks of images.md: methods on MNIST and Fashion-MNIST, pools, memory, classifiers."""

import json
from typing import Any

from experiments.harness import tables
from experiments.images import comparison
from experiments.pages.blocks import RESULTS, ROOT, link, record
from sinkflow.files import read_object

DATASETS = ("mnist", "fashion")
RUNS = {"NSGF++": "nsgfpp", "NSGF": "nsgfpp", "OT-CFM": "ot-cfm", "FM": "fm"}
SHOWN = 60  # evaluations at which all scores are shown
STAGES = ("velocity", "predictor", "straight")  # of NSGF++
SCORES = ("precision", "recall", "coverage", "class_tv")


def results(dataset: str) -> list[dict[str, Any]]:
    """Records of the three runs on a data set, which must be comparable."""
    names = list(dict.fromkeys(RUNS.values()))
    found = [record(f"images-{dataset}-{name}") for name in names]
    comparison.check_comparable(names, found)
    return found


def rows(dataset: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Scores by method and number of evaluations."""
    return {(row["method"], row["nfe"]): row for run in results(dataset) for row in run["rows"]}


def references(dataset: str) -> dict[str, dict[str, float]]:
    """Scores of training images (floor) and of the traps."""
    return results(dataset)[0]["references"]


def distance() -> str:
    """Fréchet distance by method and number of evaluations, for both data sets."""
    return "\n".join(map(_distance, DATASETS))


def _distance(dataset: str) -> str:
    scores = rows(dataset)
    counts = sorted({nfe for _, nfe in scores})
    body = []
    for method, name in RUNS.items():
        own = [scores.get((method, count)) for count in counts]
        cells = [f"{row['fd']:.3g}" if row else "n/a" for row in own]
        body.append([link(f"images-{dataset}-{name}", method), *cells])
    blank = [""] * (len(counts) - 1)
    body += [[f"*{k}*", f"{v['fd']:.3g}", *blank] for k, v in references(dataset).items()]
    first = results(dataset)[0]
    count, kind = first["num_samples"], first["device"]["kind"]
    title = f"{dataset}: Fréchet distance of {count:,} samples, one seed, {kind}"
    header = ["method", *(f"NFE {count}" for count in counts)]
    return tables.markdown(tables.Table(title, header, body))


def scores() -> str:
    """Other scores at SHOWN evaluations."""
    body = []
    for dataset in DATASETS:
        found = rows(dataset)
        shown = {name: found[name, SHOWN] for name in ("NSGF++", "OT-CFM", "FM")}
        for name, row in {**shown, "*floor*": references(dataset)["floor"]}.items():
            values = [*(f"{row[score]:.3f}" for score in SCORES), f"{row['nearest']:.2f}"]
            body.append([f"{dataset}, {name}", *values])
    header = ["", *(comparison.HEADINGS[score] for score in (*SCORES, "nearest"))]
    return tables.markdown(tables.Table(f"Other scores at {SHOWN} evaluations", header, body))


def pools() -> str:
    """One stored pool beside refreshed ones."""
    body = []
    for name in ("stored", "refreshed"):
        found = record(f"images-cpu-{name}")
        fd = {row["method"]: row["fd"] for row in found["rows"]}
        spent = found["training"]["velocity"]["seconds"]
        log = f"images-cpu-{name}-velocity.jsonl"
        last = json.loads((RESULTS / log).read_text().splitlines()[-1])
        numbers = [f"{fd[method]:.1f}" for method in ("NSGF", "NSGF++")]
        numbers += [f"{spent[phase]:.0f}" for phase in ("pool", "train velocity")]
        numbers.append(f"[{last['loss']:.3f}]({log})")
        body.append([link(f"images-cpu-{name}", name), str(len(found["pools"])), *numbers])
    first = record("images-cpu-stored")
    config = first["config"]
    title = (
        f"MNIST on two CPU cores: {config['velocity_steps']:,} steps of {config['batch_size']} "
        f"images, {config['channels']} channels, {first['num_samples']:,} samples, "
        f"{first['rows'][0]['nfe']} evaluations, one seed"
    )
    header = ["pools", "number", "FD of NSGF", "FD of NSGF++"]
    header += ["flows [s]", "training [s]", "last loss"]
    return tables.markdown(tables.Table(title, header, body))


def memory() -> str:
    """Memory of the setting of CIFAR-10."""
    found = record("cifar10-memory-h200")
    stages, config = found["training"], found["config"]
    steps = sum(config[f"{stage}_steps"] for stage in stages)
    peak = max(stage["device_memory_gb"] for stage in stages.values())
    announced = found["memory_ahead"].partition(": ")[2]
    row = [link("cifar10-memory-h200", "record"), str(config["batch_size"]), str(steps)]
    title = f"CIFAR-10's setting with generated images, {found['device']}"
    header = ["", "batch", "steps", "device memory", "announced before the start [GB]"]
    return tables.markdown(tables.Table(title, header, [[*row, f"{peak:.1f} GB", announced]]))


def settings() -> str:
    """Optimiser steps, clouds, pairs and memory of each run."""
    body = []
    for dataset in DATASETS:
        for run in results(dataset):
            config, stages = run["config"], run["training"]
            counts = {stage: config[f"{stage}_steps"] for stage in STAGES}
            if len(stages) == 1:  # a rival has the steps of all stages for its one network
                counts = {"one network": sum(counts.values())}
            steps = ", ".join(f"{stage} {count:,}" for stage, count in counts.items())
            cloud = f"{config['num_particles']:,}" if "velocity" in stages else ""
            exact = config["method"] == "ot-cfm"
            pairs = f"exact within {config['pair_size']}" if exact else config["pairs"]
            peak = max(stage["device_memory_gb"] for stage in stages.values())
            name = f"{dataset}, {config['method']}"
            body.append([name, steps, cloud, pairs, f"{peak:.1f} GB"])
    header = ["run", "optimiser steps", "images of a flow's cloud", "straight pairs", "memory"]
    return tables.markdown(tables.Table("What is trained", header, body))


def classifiers() -> str:
    """The classifiers that judge."""
    body = []
    for stem in (f"{dataset}{kind}" for dataset in DATASETS for kind in ("", "-mixer")):
        path = f"classifiers/{stem}.json"
        found = read_object(ROOT / "experiments" / path)
        numbers = [f"{found['test_accuracy']:.4f}", f"{found['num_test']:,}"]
        body.append([f"[{stem}](../{path})", *numbers, f"`{found['command']}`"])
    header = ["data", "test accuracy", "test images", "command"]
    return tables.markdown(tables.Table("Classifiers that judge", header, body))


def whole(dataset: str) -> list[tables.Table]:
    """All scores of a data set, as experiments.table_images makes them."""
    found = results(dataset)
    return [comparison.make_table(found), comparison.training_table(found)]


BLOCKS = {
    "images-distance": distance,
    "images-scores": scores,
    "images-pools": pools,
    "images-memory": memory,
    "images-settings": settings,
    "classifiers": classifiers,
}
