"""Kept samples before two classifiers: scores side by side, and where the rankings disagree.

Command:  python -m experiments.rejudge --dataset mnist --samples A.npz B.npz ...
Runtime:  about a minute on two CPU cores.
Expected: table.md, table.tex and result.json in the folder that --out names. Where the classifiers
          rank two files differently, it says so.
Source:   none; the scores are those of sinkflow/metrics/.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any, ClassVar, Literal

import tyro

from experiments.harness import cli, tables
from experiments.harness.run import Run
from experiments.images import judge, rankings


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
    kept = rankings.read(config.samples, config.num_samples)
    train, test = (
        judge.load(config.dataset, config.data_dir, split) for split in ("train", "test")
    )
    test = rankings.in_random_order(test)
    run = Run(config)
    found = {}
    for network in judge.NETWORKS:
        judging = judge.Judge(
            config.dataset, train, test, num_images=config.num_samples, network=network
        )
        found[network] = rankings.judgement(judging, kept)
    dropped = sorted({name for one in found.values() for name in one["dropped"]})
    told = [score for score in judge.QUALITY if score not in dropped]
    apart = rankings.disagreements({network: one["rows"] for network, one in found.items()}, told)
    tables.write(run.out, [rankings.make_table(config.dataset, config.num_samples, found)])
    print(f"Pairs that the classifiers rank differently by {', '.join(told)}: {len(apart)}")
    print(*apart, sep="\n")
    sums = [hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() for path in config.samples]
    return run.finish(
        judged=found,
        disagreements=apart,
        dropped=dropped,
        samples_sha256=dict(zip(kept, sums, strict=True)),
    )


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        main(tyro.cli(Config, description=cli.header(__doc__), prog=cli.program()))
