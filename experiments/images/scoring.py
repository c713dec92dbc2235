"""Scores of generated images, kept beside the images."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.harness.files import slug, write_json
from experiments.harness.run import Run
from experiments.images import judge
from experiments.images.sampling import Drawing, Scheme, draw
from sinkflow import checkpoint
from sinkflow.data import images
from sinkflow.files import read_arrays, read_object
from sinkflow.metrics import inception


def load_splits(
    dataset: str, data_dir: str, *, smoke: bool, shape: tuple[int, int, int]
) -> tuple[images.Images, images.Images]:
    """Training and test images; a smoke run takes what needs no files."""
    folder = "" if smoke else data_dir
    train_set, test_set = (
        judge.load(dataset, folder, split, smoke=smoke, shape=shape) for split in ("train", "test")
    )
    return train_set, test_set


class Scorer:
    """Scores generated images against as many test images, by all that judges this data set.

    Args:
      dataset: whose classifier judges; None: only pixels are compared.
      train_set: what the model is trained on.
      test_set: what it has not seen.
      num_samples: images to compare, at most all of ``test_set``.
      inception_weights: file for FID and IS; raises as
        :func:`sinkflow.metrics.inception.open_weights`.
    """

    def __init__(
        self,
        dataset: str | None,
        train_set: images.Images,
        test_set: images.Images,
        num_samples: int,
        inception_weights: str = "",
    ):
        self.count = min(num_samples, len(test_set.labels))
        self.weights = inception_weights
        if self.weights:
            inception.open_weights(self.weights)
        self.judge = judge.Judge(dataset, train_set, test_set, num_images=self.count)

    def __call__(self, pixels) -> dict[str, Any]:
        pixels = pixels[: self.count]
        return {**self.judge(pixels), **self.inception(pixels)}

    def inception(self, pixels) -> dict[str, Any]:
        """FID and Inception score, under "inception"; nothing without weights."""
        if not self.weights:
            return {}
        return {"inception": inception.scores(pixels, self.judge.test, self.weights)}

    @functools.cached_property
    def references(self) -> dict[str, dict[str, Any]]:
        """Floor and traps."""
        references: dict[str, dict[str, Any]] = {**self.judge.references()}
        shown = {"floor": self.judge.floor_images, **self.judge.traps} if self.weights else {}
        for name, pixels in shown.items():
            references[name] = {**references[name], **self.inception(pixels)}
        return references


def judged(
    run: Run, drawing: Drawing, scheme: Scheme, score: Callable[[np.ndarray], dict[str, Any]]
) -> tuple[dict, np.ndarray | None]:
    """A row of the table and its images, from an earlier start if that drew the same.

    A scheme whose samples are not all finite has a row that says so, and no images. Where the
    commit does not tell what code drew them, they are drawn again.
    """
    folder = run.out / "scores"
    folder.mkdir(exist_ok=True)
    file = folder / f"{slug(scheme.label)}-{scheme.nfe}.json"
    drawn_with = {**drawing.settings, "commit": run.commit}
    form = {"drawn_with": dict, "row": {"method": str, "nfe": int}}
    saved = read_object(file, form) if file.is_file() else {}
    same = saved.get("drawn_with") == drawn_with and not run.commit.endswith(("-dirty", "unknown"))
    if same and samples_file(run, scheme).is_file():
        path = samples_file(run, scheme)
        return saved["row"], load_samples(path, drawing.num_samples, drawing.shape)
    row = {"method": scheme.label, "nfe": scheme.nfe}
    pixels, seconds, failed = draw(run, drawing, scheme)
    if failed:
        return {**row, "failed": f"{failed} of {len(pixels)} samples are not finite"}, None
    save_samples(samples_file(run, scheme), pixels)
    with run.timed("evaluate"):
        row = {**row, "seconds_per_10k": seconds, **score(pixels)}
    write_json(file, {"drawn_with": drawn_with, "row": row})
    return row, pixels


def save_samples(path: pathlib.Path, pixels: np.ndarray) -> None:
    """An .npz file with one array, "images" [n, h, w, c] of bytes, compressed."""
    path.parent.mkdir(exist_ok=True)
    with checkpoint.whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=pixels)


def load_samples(path: pathlib.Path, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The ``count`` images of a ``shape`` that :func:`save_samples` wrote.

    Raises:
      ValueError: other arrays, or a damaged file.
    """
    form = jax.ShapeDtypeStruct((count, *shape), np.uint8)
    return read_arrays(path, {"images": form})["images"]


def keep(run: Run, scheme: Scheme, pixels: np.ndarray) -> str:
    """Saves images as kept-METHOD-NFE.npz in the run's folder; a line that tells the size."""
    path = run.out / f"kept-{samples_file(run, scheme).name}"
    save_samples(path, pixels)
    return f"{path}: {len(pixels)} images, {path.stat().st_size / 1e6:.2f} MB"


def samples_file(run, scheme: Scheme) -> pathlib.Path:
    return run.out / "samples" / f"{slug(scheme.label)}-{scheme.nfe}.npz"


def row_line(row: dict[str, Any]) -> str:
    label = f"{row['method']}, NFE {row['nfe']}" if "nfe" in row else row["method"]
    scores = {name: value for name, value in row.items() if name not in ("method", "nfe")}
    scores.update(scores.pop("inception", {}))
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    return (
        f"{label:>16}  "
        + row.get("failed", "")
        + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    )
