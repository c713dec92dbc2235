"""Images in a grid."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from sinkflow.plotting._shared import check_entries, finite
from sinkflow.plotting.figures import figure

__all__ = ["image_grid"]

IMAGE, TITLE = 0.7, 0.35  # inches of an image's side, and of a title's line


def image_grid(rows: Mapping[str, np.ndarray], columns: int = 10, *, beside: int = 1) -> Figure:
    """Images [n, h, w] or [n, h, w, c] in [-1, 1], in titled blocks.

    The last row of a block is filled up with black.

    Args:
      rows: a block of images for each title.
      columns: images beside each other in a block.
      beside: blocks beside each other; so the same image of two blocks is soon found.

    Raises:
      ValueError: no blocks or columns, or a block that is empty, no images or not finite.
    """
    check_entries("rows", rows)
    for name, count in (("columns", columns), ("beside", beside)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    blocks = {title: _mosaic(_images(title, images), columns) for title, images in rows.items()}
    beside = min(beside, len(blocks))
    counts = [-(-len(images) // columns) for images in rows.values()]
    heights = [max(counts[at : at + beside]) for at in range(0, len(counts), beside)]
    fig, axes = figure(beside, len(heights), size=columns * IMAGE)
    axes[0, 0].get_gridspec().set_height_ratios(heights)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, mosaic) in zip(axes.flat, blocks.items(), strict=False):
        axis.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=9)
    fig.set_size_inches(beside * columns * IMAGE, sum(heights) * IMAGE + len(heights) * TITLE)
    return fig


def _mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Brightness in [0, 1], black lines of a pixel between the images and around all."""
    margins = ((0, -len(images) % columns), (1, 0), (1, 0), (0, 0))
    padded = np.pad(images, margins, constant_values=-1.0)
    count, height, width, channels = padded.shape
    blocks = padded.reshape(count // columns, columns, height, width, channels)
    mosaic = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
    framed = np.pad(mosaic, ((0, 1), (0, 1), (0, 0)), constant_values=-1.0)
    return np.clip((framed + 1) / 2, 0, 1)


def _images(name: str, images: np.ndarray) -> np.ndarray:
    """Images [n, h, w, c], checked."""
    images = np.asarray(images)
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(f"{name} has shape {images.shape}; images are [n, h, w] or [n, h, w, c]")
    return finite(name, images if images.ndim == 4 else images[..., None])
