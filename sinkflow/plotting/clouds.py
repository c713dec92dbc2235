"""Clouds of the plane over their target: samples, paths, velocities.

A target of a thousand points or more is drawn as its density, so that samples that stray from it
show.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sinkflow.checkpoint import whole_file
from sinkflow.plotting._plane import (
    MANY,
    TARGET_KEY,
    box_around,
    checked,
    draw_target,
    explain,
    frame,
)
from sinkflow.plotting._shared import SAMPLE, SOURCE, TIME, check_entries
from sinkflow.plotting.figures import figure

__all__ = [
    "flow_gif",
    "samples_against_target",
    "trajectories",
    "velocities",
]

SMALLEST, ARROW = 0.03, 0.1  # shortest path with an arrow [share of the span]; arrow's size [inch]


def samples_against_target(samples: Mapping[str, np.ndarray], target: np.ndarray) -> Figure:
    """One panel for each entry: its samples [n, 2] (blue) over the target's [m, 2] (grey).

    All panels show the same part of the plane: the target's, and what strays up to a fifth of its
    size beyond. How many samples lie farther out is said below.

    Raises:
      ValueError: no entry, or a cloud that is empty, not in the plane or not finite.
    """
    check_entries("samples", samples)
    target = checked("target", target)
    samples = {title: checked(title, points) for title, points in samples.items()}
    box = box_around(target, *samples.values())
    fig, axes = figure(len(samples), size=3.2, ratio=box.panel(3.2))
    for axis, (title, points) in zip(axes[0], samples.items(), strict=True):
        draw_target(axis, target, box)
        few = len(points) < MANY
        axis.plot(*points.T, ".", color=SAMPLE, ms=4 if few else 2.5, mew=0)
        frame(axis, box, title, first=axis is axes[0, 0], beyond=points)
    explain(fig, {"samples": {"marker": "o", "color": SAMPLE}, **TARGET_KEY})
    return fig


def trajectories(
    states: np.ndarray,
    target: np.ndarray,
    title: str = "",
    label: str = "step",
    times: np.ndarray | None = None,
) -> Figure:
    """Paths of particles, states [steps + 1, n, 2], from start (ring) to end (dot), over a target.

    Colour is time; an arrow half-way shows the direction.

    Args:
      states: where the particles are, one state after the other.
      target: points [m, 2] of where they ought to go.
      title: of the picture.
      label: what the colour is, with its unit.
      times: of each state, [steps + 1]; by default its number.

    Raises:
      ValueError: states or a target that are empty, not in the plane or not finite, or times that
        are not one for each state.
    """
    states, target = checked("states", states, axes=3), checked("target", target)
    counted = times is None
    times = np.arange(len(states)) if counted else np.asarray(times)
    _check_times(states, times)
    box = box_around(np.concatenate([target, states[0]]), states.reshape(-1, 2))
    fig, axes = figure(size=5.0, ratio=box.panel(5.0))
    axis = axes[0, 0]
    draw_target(axis, target, box)
    colours = {"cmap": TIME, "norm": Normalize(times[0], max(times[-1], times[0] + 1e-9))}
    pieces = np.stack([states[:-1], states[1:]], axis=2).reshape(-1, 2, 2)
    between = np.repeat((times[:-1] + times[1:]) / 2, states.shape[1])
    lines = LineCollection(list(pieces), array=between, lw=0.8, zorder=2, **colours)
    axis.add_collection(lines)
    places, directions, when = _half_way(states, times, float(SMALLEST * box.span().max()))
    if len(places):
        # Heads without shafts, of the same size wherever they are.
        shape = {"units": "inches", "width": 0.2 * ARROW, "headwidth": 4, "headlength": 5}
        size = {"scale": 1 / ARROW, "scale_units": "inches", "headaxislength": 4.5, "pivot": "mid"}
        along = {"angles": "xy", "zorder": 3, **shape, **size, **colours}
        axis.quiver(*places.T, *directions.T, when, **along)
    first, last = TIME(0.0), TIME(1.0)
    begin = {"marker": "o", "color": "white", "mec": first, "ms": 3.2, "mew": 0.8}
    end = {"marker": "o", "color": last, "mec": "0.2", "ms": 3.2, "mew": 0.4}
    axis.plot(*states[0].T, ls="", zorder=4, **begin)
    axis.plot(*states[-1].T, ls="", zorder=5, **end)
    frame(axis, box, title, beyond=states[-1])
    ticks = MaxNLocator(6, integer=counted)
    bar = fig.colorbar(lines, ax=axis, label=label, pad=0.02, aspect=30, ticks=ticks)
    bar.ax.tick_params(labelsize=8)
    explain(fig, {"start": begin, "end": end, **TARGET_KEY})
    return fig


def velocities(x: np.ndarray, velocity: np.ndarray, target: np.ndarray, title: str = "") -> Figure:
    """Particles x [n, 2] (red) over the target [m, 2], with their velocities as arrows.

    An arrow ends where its particle would be after one unit of flow time.

    Raises:
      ValueError: clouds that are empty, not in the plane or not finite, or differ in number.
    """
    x, velocity, target = checked("x", x), checked("velocity", velocity), checked("target", target)
    if x.shape != velocity.shape:
        raise ValueError(f"x and velocity differ in shape: {x.shape} and {velocity.shape}")
    box = box_around(np.concatenate([target, x, x + velocity]))
    fig, axes = figure(size=4.0, ratio=box.panel(4.0))
    axis = axes[0, 0]
    draw_target(axis, target, box)
    axis.quiver(*x.T, *velocity.T, angles="xy", scale_units="xy", scale=1, width=0.003, color="0.3")
    axis.plot(*x.T, ".", color=SOURCE, ms=5, mew=0)
    frame(axis, box, title)
    return fig


def flow_gif(
    states: np.ndarray, target: np.ndarray, path: str | pathlib.Path, times: np.ndarray
) -> None:
    """Animates states [frames, n, 2] over the target; the file appears only when complete.

    Raises:
      ValueError: as :func:`trajectories`.
    """
    states, target = checked("states", states, axes=3), checked("target", target)
    _check_times(states, times)
    box = box_around(np.concatenate([target, states[0]]), states.reshape(-1, 2))
    fig, axes = figure(size=4.5, ratio=box.panel(4.5))
    axis = axes[0, 0]
    draw_target(axis, target, box)
    (dots,) = axis.plot([], [], ".", color=SAMPLE, ms=5, mew=0)
    frame(axis, box, f"time {times[0]:.2f}", beyond=states[-1])
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # the frames stand still

    def draw(frame: int) -> tuple[Line2D]:
        dots.set_data(states[frame, :, 0], states[frame, :, 1])
        axis.set_title(f"time {times[frame]:.2f}")
        return (dots,)

    frames = [*range(len(states)), *[len(states) - 1] * 8]  # rest on the result
    animation = FuncAnimation(fig, draw, frames=frames, blit=False)
    with whole_file(path) as partial:
        animation.save(partial, writer=PillowWriter(fps=12), dpi=80)


def _check_times(states: np.ndarray, times: np.ndarray) -> None:
    if len(times) != len(states):
        raise ValueError(f"there are {len(states)} states and {len(times)} times; give as many")


def _half_way(
    states: np.ndarray, times: np.ndarray, shortest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places [k, 2], directions [k, 2] of length 1 and times [k] half along each path's length."""
    steps = np.diff(states, axis=0)
    lengths = np.linalg.norm(steps, axis=-1)
    done = np.cumsum(lengths, axis=0)
    if not len(steps):
        return np.empty((0, 2)), np.empty((0, 2)), np.empty(0)
    at = np.argmax(done >= done[-1] / 2, axis=0)
    some = np.flatnonzero(done[-1] > shortest)
    at = at[some]
    share = 1 - (done[at, some] - done[-1, some] / 2) / lengths[at, some]
    places = states[at, some] + share[:, None] * steps[at, some]
    directions = steps[at, some] / lengths[at, some][:, None]
    return places, directions, times[at] + share * (times[at + 1] - times[at])
