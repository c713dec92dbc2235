"""Rows of the generators' table: what each varies, and the cell that is kept of it."""

import dataclasses
import json
import pathlib
import re
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.generators import draws, measuring
from experiments.generators.config import GeneratorConfig, preset
from experiments.harness import files, provenance
from experiments.harness.run import WITHOUT_EFFECT
from sinkflow import checkpoint, generator
from sinkflow.files import read_npy, read_object

KEPT = 100  # images of a row that are kept to be shown


CELL: dict[Any, Any] = {  # what tables read of a cell; all the rest are numbers
    **dict.fromkeys(("group", "row", "commit", "failed?"), str),
    "seed": int,
    "config": {"train_steps": int},
    "versions": dict,
    "device": {"kind": str},
    "epsilon?": [float],
    "last_line?": dict,
    ...: float,
}


def _objectives() -> dict[str, dict[str, Any]]:
    """Objective, self cloud and gradient in all combinations that there are."""
    rows: dict[str, dict[str, Any]] = {
        "tutorial, L 100": {"objective": "transport", "num_iterations": 100}
    }
    for gradient in ("envelope", "implicit", "unrolled"):
        rows[f"entropic, {gradient}"] = {"objective": "entropic", "gradient": gradient}
    for cloud in generator.SELF_CLOUDS:
        for gradient in ("envelope", "implicit", "unrolled"):
            if (cloud, gradient) != ("diagonal", "implicit"):
                changes = {"objective": "divergence", "self_cloud": cloud, "gradient": gradient}
                rows[f"divergence, {cloud}, {gradient}"] = changes
    for objective in ("regression", "energy", "drift"):
        for cloud in generator.SELF_CLOUDS:
            rows[f"{objective}, {cloud}"] = {"objective": objective, "self_cloud": cloud}
    return rows


def _tutorial(epsilon: float, iterations: int, count: int, **changes: Any) -> dict[str, Any]:
    """Settings of the tutorial's loss; epsilon belongs to the whole squared distance there."""
    sizes = {"n": count, "m": count, "k": count}
    return {
        "objective": "transport",
        "epsilon": (epsilon / 2,),
        "epsilon_unit": "length2",
        "num_iterations": iterations,
        **sizes,
        **changes,
    }


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "final": {"regression, second": {}},
    "labels": {"plans within each class": {"labels": True, "n": 1000}},
    "objective": _objectives(),
    "tutorial": {
        "epsilon 1, L 50, m 300": _tutorial(1.0, 50, 300),
        "epsilon 1, L 10, m 200": _tutorial(1.0, 10, 200),
        "epsilon 0.1, L 100, m 200": _tutorial(0.1, 100, 200),
        "epsilon 1, L 50, m 300, as matrices": _tutorial(1.0, 50, 300, domain="scaling"),
        "epsilon 10, L 100, m 300": _tutorial(10.0, 100, 300),
    },
    "epsilon": {
        **{f"{value} mean costs": {"epsilon": (value,)} for value in (0.003, 0.01, 0.03, 0.1)},
        "from 0.24 to 0.03": {"epsilon_start": 8.0},
        "0.01, 0.03 and 0.1 summed": {"epsilon": (0.01, 0.03, 0.1)},
        "the same, each over its RMS": {"epsilon": (0.01, 0.03, 0.1), "normalize": True},
        "10 neighbours": {"epsilon": (10.0,), "epsilon_unit": "neighbours"},
    },
    "limits": {
        f"threshold {threshold}, cap {cap}": {"threshold": threshold, "max_iterations": cap}
        for threshold, cap in ((1e-3, 1000), (1e-2, 300), (3e-2, 300), (1e-1, 300), (1e-2, 10))
    },
    "clouds": {
        f"n {n}, m {m}, k {k}": {"n": n, "m": m, "k": k}
        for n, m, k in ((256, 512, 512), (512, 1024, 1024), (1024, 1024, 1024), (1024, 2048, 2048))
    },
    "network": {
        "latent 16": {"latent": 16},
        "latent 784": {"latent": 784},
        "linear head": {"head": "linear"},
        "perceptron": {"net": "mlp", "hidden_dims": (1024, 1024, 1024)},
        "UNet from pixel noise": {"net": "unet", "n": 512, "k": 1024, "m": 1024},
    },
    "rate": {f"{rate:g}": {"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)},
}


class Row(NamedTuple):
    """A row of one seed: where its cell lies, and how it is trained."""

    group: str
    label: str
    seed: int
    file: pathlib.Path
    config: GeneratorConfig


def rows(
    out: pathlib.Path, dataset: str, groups, seeds, *, smoke: bool = False, **changes: Any
) -> list[Row]:
    """All rows of the groups, with ``changes`` of the data set's settings."""
    found = []
    for group in groups:
        for label, own in GROUPS[group].items():
            for seed in seeds:
                settings = {**changes, **({} if smoke else own), "seed": seed}
                if smoke:
                    sizes = ("n", "m", "k", "latent", "hidden_dims", "epsilon")
                    settings |= {k: v for k, v in own.items() if k not in sizes}
                    settings |= {"epsilon": (0.1,), "epsilon_unit": "mean-cost"}
                file = out / "cells" / slug(group) / f"{slug(label)}-{seed}.json"
                config = preset(dataset, smoke=smoke, **settings)
                found.append(Row(group, label, seed, file, config))
    return found


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def run(row: Row, data: measuring.Data, device: threading.Lock) -> dict[str, Any]:
    """Trains, draws and judges a row; writes and returns its cell, with a picture's images.

    Rows are prepared and judged side by side; they train one after the other.
    """
    real = draws.real_samples(row.config, data.train.pixels, data.train.labels)
    cell = {"group": row.group, "row": row.label, "seed": row.seed}
    cell |= {"config": settings(row.config), **circumstances()}
    row.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        made, trained = measuring.train(row.config, real, device)
    except FloatingPointError as error:
        cell["failed"] = str(error)
    else:
        drawn = measuring.draw(row.config, made)
        cell |= {**trained, **data.scorer(drawn), **measuring.spread(data, drawn)}
        path = row.file.with_suffix(".npy")
        with checkpoint.whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, drawn[:KEPT])
    files.write_json(row.file, cell)
    return cell


def circumstances() -> dict[str, Any]:
    """What a number depends on besides its config."""
    return {
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "device": provenance.device(),
    }


def read(row: Row) -> dict[str, Any] | None:
    """A row's cell, if it has been run with these settings.

    Raises:
      ValueError: it was run with other settings.
    """
    if not row.file.is_file():
        return None
    cell = read_object(row.file, CELL)
    now = json.loads(json.dumps(settings(row.config)))
    changed = [name for name, value in now.items() if cell["config"].get(name) != value]
    if changed:
        raise ValueError(
            f"{row.file} was run with another {changed[0]} ({cell['config'].get(changed[0])} "
            f"instead of {now[changed[0]]}); choose another --out"
        )
    return cell


def shown(row: Row) -> np.ndarray | None:
    """The images that were kept of a row, [n, h, w, c] of bytes; None where it has failed."""
    file = row.file.with_suffix(".npy")
    count = min(KEPT, row.config.num_samples)
    form = jax.ShapeDtypeStruct((count, *row.config.SHAPE), np.uint8)
    return read_npy(file, form) if file.is_file() else None


def settings(config: GeneratorConfig) -> dict[str, Any]:
    """What a record tells of a config: all but where things lie."""
    values = dataclasses.asdict(config)
    return {
        name: value for name, value in values.items() if name not in (*WITHOUT_EFFECT, "data_dir")
    }
