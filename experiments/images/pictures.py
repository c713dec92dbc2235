"""Pictures of an image model's run."""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.harness.files import slug
from experiments.harness.run import Run
from experiments.images import judge
from sinkflow import metrics, plotting
from sinkflow.data import images

SHOWN = 100  # images of a grid
COLUMNS = 10
BESIDE = 6  # rows and columns of grids beside each other


def draw_grids(run: Run, dataset: str, drawn: dict[str, np.ndarray], real) -> None:
    """A grid of samples for each scheme, and the training images nearest to the last one's."""
    folder = run.out / "pictures"
    folder.mkdir(exist_ok=True)
    for name, pixels in drawn.items():
        path = folder / f"{slug(name.replace('NFE', ''))}.png"
        shown = {f"{dataset}, {name}": scaled(pixels[:SHOWN])}
        plotting.save(plotting.image_grid(shown, COLUMNS), path)
    if drawn:
        name, pixels = list(drawn.items())[-1]
        some = pixels[: 4 * COLUMNS]
        nearest = real[metrics.nearest(judge.flat(some), judge.flat(real))[1]]
        pairs = {name: scaled(some), "nearest training images": scaled(nearest)}
        plotting.save(plotting.image_grid(pairs, COLUMNS, beside=2), folder / "neighbours.png")


def draw_beside(runs: Sequence[str], results: Sequence[dict], path: pathlib.Path) -> None:
    """Grids of all methods beside each other, each at its most evaluations; of samples kept.

    Of several seeds the first one is shown. The noise is the same for all runs of a seed: images of
    one place in two grids begin at the same point.
    """
    shown: dict[str, np.ndarray] = {}
    for run, result in zip(runs, results, strict=True):
        rows = {row["method"]: row for row in sorted(result["rows"], key=lambda row: row["nfe"])}
        for method, row in rows.items():
            file = pathlib.Path(run) / "samples" / f"{slug(method)}-{row['nfe']}.npz"
            name = f"{method}, NFE {row['nfe']}"
            if file.is_file() and name not in shown:
                with np.load(file) as kept:
                    shown[name] = scaled(kept["images"][: BESIDE**2])
    if shown:
        plotting.save(plotting.image_grid(shown, BESIDE, beside=3), path)


def draw_losses(run: Run, stages: Sequence[str]) -> None:
    """Losses of the stages' trainings."""
    for stage in stages:
        steps, losses = run.stage(stage).logged("loss")
        curve = plotting.loss_curve(steps, losses, run.config["steps_per_call"])
        plotting.save(curve, run.out / "pictures" / f"loss-{stage}.png")


def draw_phases(
    run: Run, noise, change: tuple[np.ndarray, np.ndarray], drawn: dict[str, np.ndarray], name: str
) -> None:
    """Source, end of the first phase and end of the second, of the same particles.

    ``change`` is from :func:`experiments.images.sampling.phase_change`, ``name`` of the samples.
    """
    if name not in drawn:
        return
    final, (middle, tau) = drawn[name], change
    count = 2 * COLUMNS
    predicted = f"predicted times {tau.min():.2f} to {tau.max():.2f}"
    blocks = {
        "source": noise[:count],
        f"end of the first phase, {predicted}": middle[:count],
        f"end of the second phase, {name}": scaled(final[:count]),
    }
    shape = final.shape[1:]
    shown = {title: np.asarray(block).reshape(-1, *shape) for title, block in blocks.items()}
    plotting.save(plotting.image_grid(shown, COLUMNS), run.out / "pictures" / "phases.png")


def scaled(pixels) -> np.ndarray:
    return np.asarray(images.scale(pixels))
