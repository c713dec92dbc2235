"""Curves against a count, training losses, shares of classes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sinkflow.plotting._shared import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    check_entries,
    finite,
)
from sinkflow.plotting.figures import figure

__all__ = ["Curve", "class_histogram", "curves", "loss_curve"]

COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "os^Dv<>pXP*"  # another number than of colours: their pairs repeat late
DASHES = (":", "--", "-.")
SPREAD = 1.25  # factor between the first and the last of curves that share an x


class Curve(NamedTuple):
    """Points of a curve, by x; ``error`` [n] is what a bar shows on each side of y."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    error: Sequence[float] | np.ndarray | None = None


def curves(
    panels: Mapping[str, Mapping[str, Curve]],
    xlabel: str,
    ylabel: str,
    *,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    most: float = math.inf,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Curves on logarithmic axes; the legend has a place of its own.

    A label has the same colour, marker and dashes in all panels. Where there are error bars, points
    of the same x stand a little beside each other.

    Args:
      panels: for each panel's title its curves by label.
      xlabel: of all panels.
      ylabel: of all panels.
      levels: for a panel's title, grey horizontal lines by label.
      most: what is above is drawn at the upper edge, as a triangle that points up.
      columns: panels beside each other; by default about as many as one under another.
      title: of the legend.

    Raises:
      ValueError: no panel or no curve, or one whose numbers are not positive and finite.
    """
    check_entries("panels", panels)
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    check_entries("curves", dict.fromkeys(labels))
    columns = columns or min(math.ceil(math.sqrt(len(panels))), len(panels))
    fig, axes = figure(columns, -(-len(panels) // columns), size=3.4, ratio=0.9)
    handles: dict[str, Line2D] = {}
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        _draw_panel(axis, panel, labels, most, handles)
        for index, (label, value) in enumerate((levels or {}).get(name, {}).items()):
            line = axis.axhline(value, color="0.45", ls=DASHES[index % len(DASHES)], zorder=1)
            handles.setdefault(label, line)
        axis.set_title(name, fontsize=10)
        _plain_ticks(axis.yaxis, *axis.get_ylim())
    for axis in axes[-1]:
        axis.set_xlabel(xlabel, fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel, fontsize=9)
    rest = axes.flat[len(panels) :]
    for axis in rest:
        axis.axis("off")
    for above in axes[-2:-1, columns - len(rest) :].flat:  # nothing stands under these
        above.set_xlabel(xlabel, fontsize=9)
    ordered = [label for label in [*labels, *handles] if label in handles]
    entries = {label: handles[label] for label in dict.fromkeys(ordered)}
    size = {"title": title or None, "fontsize": 8, "title_fontsize": 8}
    if len(rest):
        rest[0].legend(entries.values(), entries, loc="upper left", **size)
    else:
        legend = fig.legend(entries.values(), entries, loc="outside right upper", **size)
        width, height = fig.get_size_inches()
        fig.set_size_inches(width + legend.get_window_extent().width / fig.dpi, height)
    return fig


def _draw_panel(
    axis: Axes, panel: Mapping[str, Curve], labels: list[str], most: float, handles: dict
) -> None:
    """The curves of one panel; ``handles`` gets a line for each new label."""
    axis.set(xscale="log", yscale="log")
    beside = any(curve.error is not None for curve in panel.values())
    for label, (xs, ys, errors) in panel.items():
        index = labels.index(label)
        x, y = finite(label, np.asarray(xs, float)), finite(label, np.asarray(ys, float))
        if x.shape != y.shape or x.ndim != 1 or not x.size or min(x.min(), y.min()) <= 0:
            raise ValueError(
                f"{label} has x {xs} and y {ys}; give as many positive numbers, one at least"
            )
        if beside and len(labels) > 1:
            x = x * SPREAD ** (index / (len(labels) - 1) - 0.5)
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "ls": ("-", "--", ":")[index // len(COLOURS) % 3],
            "marker": MARKERS[index % len(MARKERS)],
        }
        error = None if errors is None else np.where(y > most, 0, errors)
        drawn = axis.errorbar(
            x, np.minimum(y, most), error, ms=3.5, lw=1.1, elinewidth=0.9, capsize=2, **style
        )
        high = y > most
        if high.any():
            above: dict[str, Any] = {"marker": 6, "ms": 7, "ls": "", "clip_on": False}
            axis.plot(x[high], np.full(high.sum(), most), color=style["color"], **above)
            handles.setdefault(f"above {most:g}", Line2D([], [], color="0.3", **above))
        handles.setdefault(label, drawn.lines[0])
    counts = sorted({float(value) for curve in panel.values() for value in curve.x})
    _set_ticks(axis.xaxis, np.asarray(counts))
    if any(max(curve.y) > most for curve in panel.values()):
        axis.set_ylim(top=most)


def _plain_ticks(axis: Axis, low: float, high: float) -> None:
    """A few round numbers of a logarithmic axis, not powers of ten alone."""
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = np.sort(np.outer(powers, steps).ravel())
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    else:
        ticks = np.asarray(MaxNLocator(4).tick_values(low, high))
        ticks = ticks[(low <= ticks) & (ticks <= high)]
    _set_ticks(axis, ticks)


def _set_ticks(axis: Axis, ticks: np.ndarray) -> None:
    axis.set_major_locator(FixedLocator(ticks.tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_tick_params(labelsize=8)


def loss_curve(
    steps: Sequence[int], losses: Sequence[float], averaged: int | None = None
) -> Figure:
    """Training loss against optimiser steps, logarithmic unless a loss is not positive.

    Args:
      steps: number of each loss.
      losses: one for each step.
      averaged: how many optimiser steps each loss is the mean of; the axis says so.

    Raises:
      ValueError: no losses, or not one for each step.
    """
    if len(losses) == 0 or len(steps) != len(losses):
        raise ValueError(
            f"there are {len(steps)} steps and {len(losses)} losses; give one loss for each step, "
            "and at least one"
        )
    fig, axes = figure(size=4.5, ratio=0.75)
    axis = axes[0, 0]
    axis.plot(steps, losses, color=BLUE, marker="." if len(steps) <= 50 else "", lw=1.2)
    smoothing = f"\nmean of {averaged:,} steps each" if averaged and averaged > 1 else ""
    axis.set_xlabel("optimiser steps", fontsize=9)
    axis.set_ylabel(f"training loss{smoothing}", fontsize=9)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if min(losses) > 0:
        axis.set_yscale("log")
        _plain_ticks(axis.yaxis, *axis.get_ylim())
    axis.tick_params(labelsize=8)
    return fig


def class_histogram(shares: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Share of each class, a group of bars for each entry of ``shares``.

    Raises:
      ValueError: no entry, or one that is not one finite number for each name.
    """
    check_entries("shares", shares)
    for label, share in shares.items():
        if np.shape(share) != (len(names),) or not np.all(np.isfinite(share)):
            raise ValueError(
                f"{label} has shape {np.shape(share)}; it is one finite share for each of the "
                f"{len(names)} names"
            )
    fig, axes = figure(size=5.5, ratio=0.6)
    width = 0.8 / len(shares)
    for index, (label, share) in enumerate(shares.items()):
        places = np.arange(len(names)) + (index - (len(shares) - 1) / 2) * width
        axes[0, 0].bar(places, share, width, label=label, color=COLOURS[index % len(COLOURS)])
    axes[0, 0].set(
        xticks=range(len(names)), xticklabels=names, xlabel="class", ylabel="share of images"
    )
    fig.legend(loc="outside upper center", ncols=len(shares), fontsize=9)
    return fig
