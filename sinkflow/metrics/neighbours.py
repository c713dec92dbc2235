"""Metrics of nearest neighbours: precision, recall, coverage, and what was memorised."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from sinkflow.metrics import _samples
from sinkflow.metrics._samples import ROWS

__all__ = ["PrecisionRecallCoverage", "memorised", "nearest", "precision_recall_coverage"]

DIGITS_LOST = 4 * np.finfo(np.float64).eps  # a coordinate, in squares of distances by products


class PrecisionRecallCoverage(NamedTuple):
    """Shares of samples in [0, 1]; what they are shares of says the function of like name."""

    precision: float
    recall: float
    coverage: float


def precision_recall_coverage(
    real: Any, generated: Any, *, neighbours: int = 3, coverage_neighbours: int = 5
) -> PrecisionRecallCoverage:
    """Are the samples like real ones, and are all kinds of real ones among them?

    The ball of a point reaches to its k-th nearest neighbour in its own set. Precision is the
    share of generated points in a real point's ball, recall that of real points in a generated
    point's ball, coverage that of real points whose ball has a generated point in it. A few points
    far from the others have large balls: generated ones raise recall, real ones precision, and
    coverage is hardly moved.

    Args:
      real: features [n, d].
      generated: features [m, d]; m = n if numbers are to be compared with others.
      neighbours: k of precision and recall.
      coverage_neighbours: k of coverage.

    Raises:
      ValueError: no more points than neighbours.

    Numerics:
      All distances are sums of squared differences: one pair of points has the same distance
      wherever it comes up, so that copies lie in the balls that end at them.

    Source:
      Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2 (precision and recall); Naeem et
      al. 2020, arXiv:2002.09797 (coverage).
    """
    real, generated, _ = _samples.in_unit(*_samples.pair(real=real, generated=generated))
    real_radii, wide_radii = _radii("real", real, neighbours, coverage_neighbours)
    (radii,) = _radii("generated", generated, neighbours)

    def compare(rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        distances = _samples.squares(real[rows], generated)
        precise = np.any(distances <= real_radii[rows, None], axis=0)
        recalled = np.any(distances <= radii, axis=1)
        return precise, recalled, distances.min(axis=1) <= wide_radii[rows]

    precise, recalled, covered = zip(*_samples.by_rows(compare, len(real)), strict=True)
    shares = np.any(precise, axis=0), np.concatenate(recalled), np.concatenate(covered)
    return PrecisionRecallCoverage(*(float(np.mean(share)) for share in shares))


def nearest(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distance [length] from every x to its nearest y, and that y's index.

    Numerics:
      Found by brute force over matrix products, because trees are of no use in hundreds of
      dimensions: 10,000 against 60,000 images of 784 pixels take 10 to 20 s on two cores.
      What these cannot tell apart is compared once more by differences, and so is the distance
      itself: it is exactly zero for a copy, however far from the origin.
    """
    x, y, unit = _samples.in_unit(*_samples.pair(x=x, y=y))
    centre = y.mean(axis=0)
    moved, sizes = y - centre, np.sum((y - centre) ** 2, axis=1)
    blocks = (x[start : start + ROWS] for start in range(0, len(x), ROWS))
    index = np.concatenate([_nearest(block, y, centre, moved, sizes) for block in blocks])
    distances = np.linalg.norm(x - y[index], axis=1) * unit
    _samples.within_float64("the largest distance", distances.max())
    return distances, index


def _nearest(
    x: np.ndarray, y: np.ndarray, centre: np.ndarray, moved: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Indices of the nearest y of a block; ``moved`` is y - ``centre``, ``sizes`` its squares."""
    around = x - centre
    squares = euclidean_distances(around, moved, Y_norm_squared=sizes[None], squared=True)
    # Each square is off by its share of the terms that cancel in it: sizes, and the centre's own.
    terms = np.sum(around**2, axis=1)[:, None] + sizes.max()
    close = squares <= squares.min(axis=1, keepdims=True) + DIGITS_LOST * x.shape[1] * terms
    index = squares.argmin(axis=1)
    for row in np.flatnonzero(close.sum(axis=1) > 1):
        candidates = np.flatnonzero(close[row])
        index[row] = candidates[_samples.squares(x[row : row + 1], y[candidates])[0].argmin()]
    return index


def memorised(generated: Any, real: Any, quantile: float = 0.01) -> float:
    """Share of generated samples that are suspiciously close to the training set.

    Args:
      generated: distance [n] from each to its nearest training sample.
      real: the same [m] of real samples that are not in the training set.
      quantile: of ``real``, below which a distance is suspicious.

    Returns:
      A share in [0, 1]; other real samples would have ``quantile``, and copies 1.

    Raises:
      ValueError: no distances, distances that are NaN or negative, or a quantile outside [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; it lies in [0, 1]")
    generated, real = _distances("generated", generated), _distances("real", real)
    return float(np.mean(generated < np.quantile(real, quantile)))


def _distances(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.all(values >= 0):
        raise ValueError(
            f"{name} has shape {values.shape} and {int(np.sum(~(values >= 0)))} entries that are "
            "no distances; give at least one distance, [samples], none NaN or negative"
        )
    return values


def _radii(name: str, points: np.ndarray, *counts: int) -> list[np.ndarray]:
    """Squared distance of every point to its k-th nearest other one, for each k of ``counts``."""
    if not 1 <= min(counts) <= max(counts) < len(points):
        raise ValueError(
            f"{name} has {len(points)} samples and neighbours are {counts}; "
            "they must be at least 1 and fewer than the samples"
        )

    def closest(rows: slice) -> np.ndarray:
        squares = _samples.squares(points[rows], points)
        own = np.arange(len(squares))
        squares[own, rows.start + own] = np.inf  # the point itself; its copies count
        return np.partition(squares, [count - 1 for count in counts], axis=1)[:, : max(counts)]

    nearby = np.concatenate(_samples.by_rows(closest, len(points)))
    return [nearby[:, count - 1] for count in counts]
