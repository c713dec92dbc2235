"""Colours and checks of all pictures."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

# Of Okabe and Ito's palette, which those with any kind of colour blindness tell apart.
BLUE, RED, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
TARGET, SAMPLE, SOURCE = "0.7", BLUE, RED
# From dark to bright also in grey, and without viridis's yellow, which white swallows.
TIME = LinearSegmentedColormap.from_list(
    "time", ["#440154", "#3b528b", "#21918c", "#5ec962", "#b5c51f"]
)


def check_entries(name: str, entries: Mapping) -> None:
    """Raises ValueError if there is nothing to draw."""
    if not entries:
        raise ValueError(f"{name} is empty; there is nothing to draw")


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values, or ValueError if one is not finite."""
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{name} has {bad} of {values.size} numbers that are not finite")
    return values
