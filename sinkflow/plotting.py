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
    """One panel for each entry: its samples [n, 2] over the target's [m, 2]."""
    fig, axes = figure(len(samples))
    for axis, (title, points) in zip(axes[0], samples.items(), strict=True):
        _points(axis, target, TARGET)
        _points(axis, np.asarray(points), SAMPLE)
        _frame(axis, target)
        axis.set_title(title)
    return fig


def trajectories(states: np.ndarray, target: np.ndarray, title: str = "") -> Figure:
    """Paths of particles, states [steps + 1, n, 2], from start (orange) to end (blue)."""
    states = np.asarray(states)
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
    """Training loss against optimiser steps."""
    fig, axes = figure(size=4.0)
    axes[0, 0].plot(steps, losses, color=SAMPLE)
    axes[0, 0].set(xlabel="optimiser steps", ylabel="training loss", yscale="log")
    return fig


def image_grid(rows: Mapping[str, np.ndarray], columns: int = 10) -> Figure:
    """Images [n, h, w] or [n, h, w, c] in [-1, 1], titled blocks one under another."""
    fig, axes = figure(1, len(rows), size=columns * 0.7)
    for axis, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
        images = np.asarray(images)
        images = images[: len(images) // columns * columns]
        images = images if images.ndim == 4 else images[..., None]
        padded = np.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), constant_values=-1.0)
        count, height, width, channels = padded.shape
        blocks = padded.reshape(count // columns, columns, height, width, channels)
        mosaic = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
        mosaic = np.clip((mosaic + 1) / 2, 0, 1)
        axis.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    tallest = [len(images) // columns for images in rows.values()]
    fig.set_size_inches(columns * 0.7, sum(tallest) * 0.7 + 0.35 * len(rows))
    return fig


def class_histogram(shares: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Share of each class, a group of bars for each entry of ``shares``."""
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
    """Animates states [frames, n, 2] over the target; the file appears only when complete."""
    states = np.asarray(states)
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


def _points(axis, points, color):
    axis.plot(points[:, 0], points[:, 1], ".", color=color, ms=2)


def _frame(axis, points):
    """Equal axes around the points, so that strays do not shrink the picture."""
    low, high = np.min(points, axis=0) - 0.7, np.max(points, axis=0) + 0.7
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
