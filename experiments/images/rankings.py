"""Kept samples before several classifiers: scores side by side, and pairs ranked differently."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.harness import tables
from experiments.images import comparison, judge
from sinkflow.data.images import Images
from sinkflow.files import read_arrays
from sinkflow.nets import classifier

Scores = Mapping[str, Mapping[str, float]]  # of files or references, by name


def read(paths: Sequence[str], num_samples: int) -> dict[str, np.ndarray]:
    """The images of each file, by a name that no other has: its stem, or else its path.

    Raises:
      ValueError: no file, one named twice, or another array than these images.
      OSError: a file cannot be read.
    """
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"samples is {tuple(paths)}; name at least one file, and none twice")
    form = {"images": jax.ShapeDtypeStruct((num_samples, *classifier.SHAPE), np.uint8)}
    remedy = "--num-samples says how many images each file has"
    stems = [pathlib.Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    return {
        name: read_arrays(path, form, remedy=remedy)["images"]
        for name, path in zip(names, paths, strict=True)
    }


def in_random_order(test: Images) -> Images:
    """The test images in an order of a fixed seed: few are compared, and files are sorted.

    The first half of MNIST's test images is cleaner than the second, as its authors say.
    """
    order = np.random.default_rng(0).permutation(len(test.labels))
    return Images(test.pixels[order], test.labels[order])


def judgement(judging: judge.Judge, kept: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What one classifier says of all files, of the floor and of the traps."""
    assert judging.weights is not None
    shown = {"floor": judging.floor_images, **judging.traps}
    references = {name: judging.quality(pixels) for name, pixels in shown.items()}
    return {
        "classifier": judging.weights.record["sha256"],
        "test_accuracy": judging.weights.record["test_accuracy"],
        "rows": {name: judging.quality(pixels) for name, pixels in kept.items()},
        "references": references,
        "dropped": judge.indistinct(references),
    }


def disagreements(found: Mapping[str, Scores], scores: Sequence[str]) -> list[str]:
    """A line for each score and pair of files that two classifiers order differently."""
    first, second = found.values()
    said = []
    for score, (a, b) in itertools.product(scores, itertools.combinations(first, 2)):
        if (first[a][score] - first[b][score]) * (second[a][score] - second[b][score]) < 0:
            seen = (
                f"{network} has {a} {rows[a][score]:.4g}, {b} {rows[b][score]:.4g}"
                for network, rows in found.items()
            )
            said.append(f"{comparison.HEADINGS[score]}: {'; '.join(seen)}")
    return said


def make_table(
    dataset: str, num_samples: int, found: Mapping[str, Mapping[str, Any]]
) -> tables.Table:
    """Every score by each classifier, side by side; references below the files."""
    columns = list(itertools.product(judge.QUALITY, found))
    header = ["", *(f"{comparison.HEADINGS[score]} {network}" for score, network in columns)]
    body = []
    for kind, mark in (("rows", ""), ("references", "*")):
        for name in next(iter(found.values()))[kind]:
            values = [f"{found[network][kind][name][score]:.4g}" for score, network in columns]
            body.append([f"{mark}{name}{mark}", *values])
    accuracies = ", ".join(
        f"{network} {one['test_accuracy']:.4f}" for network, one in found.items()
    )
    title = (
        f"{dataset}, {num_samples:,} images of each, as many test images; "
        f"test accuracy: {accuracies}"
    )
    return tables.Table(title, header, body)
