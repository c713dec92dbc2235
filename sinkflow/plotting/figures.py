"""What all pictures share: a figure without global state, and its file."""

import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sinkflow.checkpoint import whole_file

__all__ = ["figure", "save"]


def figure(
    columns: int = 1, rows: int = 1, size: float = 3.0, *, ratio: float = 1.0
) -> tuple[Figure, np.ndarray]:
    """An Agg figure of equal panels; no pyplot, so no global state.

    Args:
      columns: panels beside each other.
      rows: panels one under another.
      size: width of a panel [inch].
      ratio: height of a panel over its width.

    Returns:
      The figure and its axes [rows, columns].
    """
    fig = Figure(figsize=(size * columns, size * ratio * rows), layout="compressed")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False)


def save(fig: Figure, path: str | pathlib.Path) -> None:
    """Writes the figure (PNG), cut to what is drawn; the file appears only when complete."""
    with whole_file(path) as partial:
        fig.savefig(partial, format="png", dpi=110, bbox_inches="tight", pad_inches=0.06)
