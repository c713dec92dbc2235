"""Pictures of flows, samples and training; the only module that imports matplotlib."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sinkflow.checkpoint import whole_file

TARGET, SAMPLE, PATH = "0.7", "tab:blue", "tab:orange"


def figure(columns: int = 1, rows: int = 1, size: float = 3.0) -> tuple[Figure, np.ndarray]:
    """An Agg figure of equal square panels; no pyplot, so no global state."""
    fig = Figure(figsize=(size * columns, size * rows), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False)


def save(fig: Figure, path: str | pathlib.Path) -> None:
    """Writes the figure (PNG); the file appears only when complete."""
    with whole_file(path) as partial:
        fig.savefig(partial, format="png", dpi=110)


def samples_against_target(samples: Mapping[str, np.ndarray], target: np.ndarray) -> Figure:
    """One panel for each entry: its samples [n, 2] over the target's [m, 2].

    Raises:
      ValueError: no entry, or a cloud that is empty, not in the plane or not finite.
    """
    _check_entries("samples", samples)
    target = _plane("target", target)
    samples = {title: _plane(title, points) for title, points in samples.items()}
    fig, axes = figure(len(samples))
    for axis, (title, points) in zip(axes[0], samples.items(), strict=True):
        _points(axis, target, TARGET)
        _points(axis, np.asarray(points), SAMPLE)
        _frame(axis, target)
        axis.set_title(title)
    return fig


def trajectories(states: np.ndarray, target: np.ndarray, title: str = "") -> Figure:
    """Paths of particles, states [steps + 1, n, 2], from start (orange) to end (blue).

    Raises:
      ValueError: states or a target that are empty, not in the plane or not finite.
    """
    states, target = _plane("states", states, axes=3), _plane("target", target)
    fig, axes = figure(size=5.0)
    axis = axes[0, 0]
    _points(axis, target, TARGET)
    axis.plot(states[..., 0], states[..., 1], color=PATH, lw=0.5, alpha=0.5)
    _points(axis, states[0], PATH)
    _points(axis, states[-1], SAMPLE)
    _frame(axis, np.concatenate([target, states[0]]))
    axis.set_title(title)
    return fig


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> Figure:
    """Training loss against optimiser steps.

    Raises:
      ValueError: no losses, or not one for each step.
    """
    if len(losses) == 0 or len(steps) != len(losses):
        raise ValueError(
            f"there are {len(steps)} steps and {len(losses)} losses; give one loss for each step, "
            "and at least one"
        )
    fig, axes = figure(size=4.0)
    axes[0, 0].plot(steps, losses, color=SAMPLE)
    axes[0, 0].set(xlabel="optimiser steps", ylabel="training loss", yscale="log")
    return fig


def image_grid(rows: Mapping[str, np.ndarray], columns: int = 10) -> Figure:
    """Images [n, h, w] or [n, h, w, c] in [-1, 1], titled blocks one under another.

    The last row of a block is filled up with black.

    Raises:
      ValueError: no blocks or columns, or a block that is empty, no images or not finite.
    """
    _check_entries("rows", rows)
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    rows = {title: _images(title, images) for title, images in rows.items()}
    fig, axes = figure(1, len(rows), size=columns * 0.7)
    for axis, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
        margins = ((0, -len(images) % columns), (1, 0), (1, 0), (0, 0))
        padded = np.pad(images, margins, constant_values=-1.0)
        count, height, width, channels = padded.shape
        blocks = padded.reshape(count // columns, columns, height, width, channels)
        mosaic = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
        mosaic = np.clip((mosaic + 1) / 2, 0, 1)
        axis.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    tallest = [-(-len(images) // columns) for images in rows.values()]
    fig.set_size_inches(columns * 0.7, sum(tallest) * 0.7 + 0.35 * len(rows))
    return fig


def class_histogram(shares: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Share of each class, a group of bars for each entry of ``shares``.

    Raises:
      ValueError: no entry, or one that is not one finite number for each name.
    """
    _check_entries("shares", shares)
    for label, share in shares.items():
        if np.shape(share) != (len(names),) or not np.all(np.isfinite(share)):
            raise ValueError(
                f"{label} has shape {np.shape(share)}; it is one finite share for each of the "
                f"{len(names)} names"
            )
    fig, axes = figure(size=5.0)
    width = 0.8 / len(shares)
    for index, (label, share) in enumerate(shares.items()):
        places = np.arange(len(names)) + (index - (len(shares) - 1) / 2) * width
        axes[0, 0].bar(places, share, width, label=label)
    axes[0, 0].set(xticks=range(len(names)), xticklabels=names, ylabel="share of samples")
    axes[0, 0].legend()
    return fig


def flow_gif(
    states: np.ndarray, target: np.ndarray, path: str | pathlib.Path, times: np.ndarray
) -> None:
    """Animates states [frames, n, 2] over the target; the file appears only when complete.

    Raises:
      ValueError: as :func:`trajectories`, or times that are not one for each frame.
    """
    states, target = _plane("states", states, axes=3), _plane("target", target)
    if len(times) != len(states):
        raise ValueError(f"there are {len(states)} states and {len(times)} times; give as many")
    fig, axes = figure(size=4.0)
    axis = axes[0, 0]
    _points(axis, target, TARGET)
    (dots,) = axis.plot([], [], ".", color=SAMPLE, ms=2)
    _frame(axis, np.concatenate([target, states[0]]))

    def draw(frame):
        dots.set_data(states[frame, :, 0], states[frame, :, 1])
        axis.set_title(f"time {times[frame]:.2f}")
        return (dots,)

    frames = [*range(len(states)), *[len(states) - 1] * 8]  # rest on the result
    animation = FuncAnimation(fig, draw, frames=frames, blit=False)
    with whole_file(path) as partial:
        animation.save(partial, writer=PillowWriter(fps=12), dpi=80)


def _check_entries(name, entries):
    if not entries:
        raise ValueError(f"{name} is empty; there is nothing to draw")


def _plane(name, points, axes: int = 2) -> np.ndarray:
    """Points of the plane [..., 2], checked; matplotlib's own words name axis limits."""
    points = np.asarray(points)
    if points.ndim != axes or points.shape[-1] != 2 or 0 in points.shape:
        raise ValueError(f"{name} has shape {points.shape}; give points of the plane, [..., 2]")
    return _finite(name, points)


def _images(name, images) -> np.ndarray:
    """Images [n, h, w, c], checked."""
    images = np.asarray(images)
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(f"{name} has shape {images.shape}; images are [n, h, w] or [n, h, w, c]")
    return _finite(name, images if images.ndim == 4 else images[..., None])


def _finite(name, values) -> np.ndarray:
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{name} has {bad} of {values.size} numbers that are not finite")
    return values


def _points(axis, points, color):
    axis.plot(points[:, 0], points[:, 1], ".", color=color, ms=2)


def _frame(axis, points):
    """Equal axes around the points, so that strays do not shrink the picture."""
    low, high = np.min(points, axis=0) - 0.7, np.max(points, axis=0) + 0.7
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
