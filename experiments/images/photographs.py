"""Real colour images that need no download: patches of scikit-learn's two sample photographs."""

import numpy as np

from sinkflow.data.images import Images

NAME = "photographs"
SIZE = 32  # height and width of a patch, as CIFAR-10's [pixels]
SEED = 0
COLUMNS = {"train": slice(0, 480), "test": slice(480, None)}  # of 640: no pixel is in both
COUNTS = {"train": 10_000, "test": 2_000}


def patches(split: str) -> Images:
    """Patches [n, 32, 32, 3] at places drawn by a fixed seed, and the number of their photograph.

    Patches of one split overlap; no pixel is in patches of both. Other versions of the JPEG decoder
    may give slightly other pixels.

    Args:
      split: "train" (10,000 patches of the left three quarters) or "test" (2,000 of the rest).

    Raises:
      ValueError: another split.

    Source: china.jpg and flower.jpg, which come with scikit-learn; Pillow, which decodes them,
      comes with matplotlib.
    """
    from sklearn.datasets import load_sample_images

    if split not in COLUMNS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(COLUMNS)}")
    regions = np.stack(load_sample_images().images)[:, :, COLUMNS[split]]
    every = np.lib.stride_tricks.sliding_window_view(regions, (SIZE, SIZE), axis=(1, 2))
    random = np.random.default_rng([SEED, list(COLUMNS).index(split)])
    places = random.integers(every.shape[:3], size=(COUNTS[split], 3))
    pixels = every[tuple(places.T)].transpose(0, 2, 3, 1)
    return Images(np.ascontiguousarray(pixels), places[:, 0].astype(np.uint8))
