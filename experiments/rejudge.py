"""Kept samples before two classifiers: scores side by side, and where the rankings disagree.

Command:  python -m experiments.rejudge --dataset mnist --samples A.npz B.npz ...
Runtime:  about a minute on two CPU cores.
Expected: table.md, table.tex and result.json in the folder that --out names. Where the classifiers
          rank two files differently, it says so.
Source:   none; the scores are those of sinkflow/metrics/.
"""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import tyro

from experiments.harness import cli, tables
from experiments.harness.run import Run
from experiments.images import comparison, judge
from sinkflow.data.images import Images
from sinkflow.files import read_arrays
from sinkflow.nets import classifier

Scores = Mapping[str, Mapping[str, float]]  # of files or references, by name


@dataclasses.dataclass(frozen=True)
class Config:
    """Which samples are judged, and what they are compared with."""

    samples: tuple[str, ...]
    """Files .npz with one array, images [num_samples, 28, 28, 1] uint8, as in a run's samples/."""
    dataset: Literal["mnist", "fashion"] = "mnist"
    """Data set that they are samples of."""
    num_samples: int = 2_000
    """Images in each file; as many test images, drawn once, are compared with them."""
    data_dir: str = ""
    """Folder with the published files; by default SINKFLOW_DATA, or else a download."""
    out: str = ""
    """Output folder; by default runs/rejudge-DATASET."""

    SELECTION: ClassVar[tuple[str, ...]] = ()

    def folder(self) -> pathlib.Path:
        """``out``, or runs/rejudge-DATASET."""
        return pathlib.Path(self.out or f"runs/rejudge-{self.dataset}")


def main(config: Config) -> dict[str, Any]:
    """Judges all files by each classifier; returns result.json's content."""
    kept = read(config.samples, config.num_samples)
    train, test = (
        judge.load(config.dataset, config.data_dir, split) for split in ("train", "test")
    )
    test = in_random_order(test)
    run = Run(config)
    found = {}
    for network in judge.NETWORKS:
        judging = judge.Judge(
            config.dataset, train, test, num_images=config.num_samples, network=network
        )
        found[network] = judgement(judging, kept)
    dropped = sorted({name for one in found.values() for name in one["dropped"]})
    told = [score for score in judge.QUALITY if score not in dropped]
    apart = disagreements({network: one["rows"] for network, one in found.items()}, told)
    tables.write(run.out, [make_table(config, found)])
    print(f"Pairs that the classifiers rank differently by {', '.join(told)}: {len(apart)}")
    print(*apart, sep="\n")
    sums = [hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() for path in config.samples]
    return run.finish(
        judged=found,
        disagreements=apart,
        dropped=dropped,
        samples_sha256=dict(zip(kept, sums, strict=True)),
    )


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


def make_table(config: Config, found: Mapping[str, Mapping[str, Any]]) -> tables.Table:
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
        f"{config.dataset}, {config.num_samples:,} images of each, as many test images; "
        f"test accuracy: {accuracies}"
    )
    return tables.Table(title, header, body)


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        main(tyro.cli(Config, description=cli.header(__doc__), prog=cli.program()))
