"""Blocks of images.md: methods on MNIST and Fashion-MNIST, pools, memory, classifiers."""

import dataclasses
import json
import re
from typing import Any

import numpy as np

from experiments.harness import tables
from experiments.harness.settings import made
from experiments.images import comparison
from experiments.images.config import OF_FLOWS, Training, pairing, stage_steps
from experiments.pages.blocks import RESULTS, ROOT, link, record
from sinkflow.files import read_object

DATASETS = ("mnist", "fashion")
RUNS = {  # where a method's records are, in the order of tables; those of rows not run are missing
    "NSGF++": "nsgfpp",
    "NSGF++, Sinkhorn pairs": "nsgfpp-sinkhorn-pairs",
    "NSGF": "nsgfpp",
    "Flow map": "flow-map",
    "OT-CFM": "ot-cfm",
    "OT-CFM, two networks": "ot-cfm-two-networks",
    "OT-CFM, Sinkhorn pairs": "ot-cfm-sinkhorn-pairs",
    "FM": "fm",
    "FM, two networks": "fm-two-networks",
}
SHOWN = 60  # evaluations at which all scores are shown
SCORES = ("precision", "recall", "coverage", "class_tv")


def seeds(dataset: str, name: str) -> list[str]:
    """Names of a method's records: images-DATASET-NAME, and with -SEED at the end."""
    stem = f"images-{dataset}-{name}"
    found = sorted(sorted(path.stem for path in RESULTS.glob(f"{stem}*.json")), key=len)
    return [one for one in found if re.fullmatch(rf"{re.escape(stem)}(-\d+)?", one)]


def results(dataset: str) -> list[dict[str, Any]]:
    """Records of all runs on a data set, which must be comparable."""
    names = [one for name in dict.fromkeys(RUNS.values()) for one in seeds(dataset, name)]
    found = [record(name) for name in names]
    comparison.check_comparable(names, found)
    return found


def rows(dataset: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Scores by method and number of evaluations, means over seeds."""
    return {
        key: {
            name: np.mean([row[name] for row in group])
            for name in comparison.HEADINGS
            if name in group[0]
        }
        for key, group in comparison.grouped(results(dataset)).items()
    }


def references(dataset: str) -> dict[str, dict[str, float]]:
    """Scores of training images (floor) and of the traps."""
    return results(dataset)[0]["references"]


def distance() -> str:
    """Fréchet distance by method and number of evaluations, for both data sets."""
    return "\n".join(map(_distance, DATASETS))


def _distance(dataset: str) -> str:
    found = comparison.distances(results(dataset))
    counts = sorted({nfe for by_nfe in found.values() for nfe in by_nfe})
    body, numbers = [], {len(values) for by_nfe in found.values() for values in by_nfe.values()}
    for method, name in RUNS.items():
        if method in found:
            own = [comparison.cell(found[method].get(count, [])) or "n/a" for count in counts]
            body.append([link(seeds(dataset, name)[0], method), *own])
    blank = [""] * (len(counts) - 1)
    body += [[f"*{k}*", f"{v['fd']:.3g}", *blank] for k, v in references(dataset).items()]
    first = results(dataset)[0]
    count, kind = first["num_samples"], first["device"]["kind"]
    several = f"mean ± standard deviation of {', '.join(map(str, sorted(numbers)))} seeds"
    over = "one seed" if numbers == {1} else several
    title = f"{dataset}: Fréchet distance of {count:,} samples, {over}, {kind}"
    header = ["method", *(f"NFE {count}" for count in counts)]
    return tables.markdown(tables.Table(title, header, body))


def scores() -> str:
    """Other scores at SHOWN evaluations."""
    body = []
    for dataset in DATASETS:
        found = rows(dataset)
        shown = {
            name: found[name, SHOWN] for name in RUNS if name != "NSGF" and (name, SHOWN) in found
        }
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
    body, known = [], [field.name for field in dataclasses.fields(Training)]
    for dataset in DATASETS:
        alike = {comparison.label(run): run for run in reversed(results(dataset))}
        for label, run in reversed(alike.items()):  # the first seed of each
            config, stages = run["config"], run["training"]
            training = made(Training, **{name: config[name] for name in known if name in config})
            counts = stage_steps(config["method"], training)
            if len(counts) == 1:  # a rival has the steps of all stages for its one network
                counts = {"one network": sum(counts.values())}
            steps = ", ".join(f"{stage} {count:,}" for stage, count in counts.items())
            cloud = f"{config['num_particles']:,}" if config["method"] in OF_FLOWS else ""
            pairs = pairing(config["method"], config["pairs"]).replace("sinkhorn", "Sinkhorn")
            within = "" if pairs == "independent" else f" within {config['pair_size']:,}"
            peaks = [stage["device_memory_gb"] for stage in stages.values()]
            peak = "unknown" if None in peaks else f"{max(peaks):.1f} GB"
            straight = "" if config["method"] == "flow-map" else f"{pairs}{within}"
            body.append([f"{dataset}, {label}", steps, cloud, straight, peak])
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
