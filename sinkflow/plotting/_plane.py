"""A part of the plane as the axes of a picture, with a target drawn in it.

A target of many points is drawn as its density, so that samples that stray from it show; one of few
points is drawn as these.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sinkflow.plotting._shared import TARGET, finite

MANY = 1000  # points of a target from which on its density is drawn
BINS = 80  # of the density, along the longer side
BLUR = np.exp(-0.5 * (np.arange(-4, 5) / 1.2) ** 2)  # over neighbouring bins
SHADES, DENSITY = 7, LinearSegmentedColormap.from_list("density", ["0.93", "0.6"])
TARGET_KEY = {"target": {"marker": "s", "color": TARGET}}  # its entry in a legend
MARGIN, BEYOND = 0.06, 0.2  # shares of the span: around all, and where strays are left out


class Box(NamedTuple):
    """A part of the plane: its lower left and upper right corner."""

    low: np.ndarray
    high: np.ndarray

    def span(self) -> np.ndarray:
        """Width and height [length]."""
        return self.high - self.low

    def panel(self, size: float) -> float:
        """Height over width of a panel as wide as ``size`` [inch], with its title and labels."""
        width, height = self.span()
        beside, above_and_below = 0.5, 0.65
        return float((size - beside) * height / width + above_and_below) / size

    def outside(self, points: np.ndarray) -> int:
        """How many points [n, 2] are not in it."""
        return int(np.sum(np.any((points < self.low) | (points > self.high), axis=-1)))


def checked(name: str, points: np.ndarray, axes: int = 2) -> np.ndarray:
    """Points of the plane [..., 2], checked; matplotlib's own words name axis limits."""
    points = np.asarray(points)
    if points.ndim != axes or points.shape[-1] != 2 or 0 in points.shape:
        raise ValueError(f"{name} has shape {points.shape}; give points of the plane, [..., 2]")
    return finite(name, points)


def box_around(points: np.ndarray, *others: np.ndarray) -> Box:
    """Around the points, and around the others as far as they do not stray far from these."""
    first, last = points.min(axis=0), points.max(axis=0)
    reach = BEYOND * np.max(last - first)
    low = np.min([first, *(np.maximum(z.min(axis=0), first - reach) for z in others)], axis=0)
    high = np.max([last, *(np.minimum(z.max(axis=0), last + reach) for z in others)], axis=0)
    # No narrower than a fifth of the length, so that a cloud on a line has a picture, too.
    longest = np.max(high - low) or 1.0
    half = np.maximum(high - low, longest / 5) / 2 + MARGIN * longest
    centre = (low + high) / 2
    return Box(centre - half, centre + half)


def draw_target(axis: Axes, target: np.ndarray, box: Box) -> None:
    """The target's points, or the density of many."""
    if len(target) < MANY:
        axis.plot(*target.T, ".", color=TARGET, ms=4, mew=0, zorder=0)
        return
    bins: list[int] = (BINS * box.span() / box.span().max()).astype(int).tolist()
    x, y = target.T
    density, *_ = np.histogram2d(x, y, bins=bins, range=list(zip(*box, strict=True)))
    for dimension in (0, 1):
        density = np.apply_along_axis(np.convolve, dimension, density, BLUR, mode="same")
    # Squares of evenly spaced numbers: what is thin shows beside what is dense.
    levels = density.max() * np.linspace(0.1, 1, SHADES + 1) ** 2
    middles = [
        low + (np.arange(n) + 0.5) * (high - low) / n
        for low, high, n in zip(*box, bins, strict=True)
    ]
    axis.contourf(*middles, density.T, levels=levels, cmap=DENSITY, zorder=0)


def frame(
    axis: Axes, box: Box, title: str, *, first: bool = True, beyond: np.ndarray | None = None
) -> None:
    """Equal axes around the box, in the plane's unit; says how many points lie outside."""
    (left, bottom), (right, top) = box
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axis.set_title(title, fontsize=10)
    said = ""
    if beyond is not None and (outside := box.outside(beyond)):
        said = f"\n{outside} of {len(beyond)} lie farther out"
    axis.set_xlabel(f"x₁ [length]{said}", fontsize=8)
    if first:
        axis.set_ylabel("x₂ [length]", fontsize=8)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.tick_params(labelsize=8, labelleft=first)


def explain(fig: Figure, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """A line of markers and what they stand for, below all panels."""
    handles = [Line2D([], [], ls="", **{"ms": 4, **style}) for style in entries.values()]
    fig.legend(
        handles,
        list(entries),
        loc="outside lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
    )
