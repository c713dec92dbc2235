"""Distances between samples; shares no code with the solver that it judges."""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import ot
import scipy.spatial
from sklearn.metrics.pairwise import euclidean_distances

SUM_ERROR = 1e-5  # of probabilities; those of float32 are off by less
ITERATIONS = 10**7  # of the network simplex; POT's default stops short at a few thousand points
DIGITS_LOST = 4 * np.finfo(np.float64).eps  # a coordinate, in squares of distances by products
ROWS = 500  # of a matrix of kernels or distances that is held at a time


class PrecisionRecallCoverage(NamedTuple):
    """Shares of samples in [0, 1]; what they are shares of says the function of like name."""

    precision: float
    recall: float
    coverage: float


def wasserstein2(x: Any, y: Any) -> float:
    r"""Exact 2-Wasserstein distance, :math:`\min_\pi \langle\|x_i - y_j\|^2, \pi\rangle^{1/2}`.

    Args:
      x: samples [n, d] [length], uniform weights.
      y: samples [m, d].

    Raises:
      ValueError: not two clouds of one dimension, non-finite samples, or a distance beyond
        float64.
      RuntimeError: the network simplex did not finish.

    Source:
      Network simplex of POT (``ot.emd2``), in float64 on one core.
    """
    x, y, unit = _in_unit(*_pair(x=x, y=y))  # else coordinates of 1e160 have infinite squares
    cost = scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    value, log = ot.emd2([], [], cost, numItermax=ITERATIONS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"exact OT of {len(x)} x {len(y)} points failed: {log['warning']}")
    return _within_float64("the distance", np.sqrt(max(value, 0.0)) * unit)


def wasserstein2_many(pairs: Sequence[tuple[Any, Any]], progress: Callable = iter) -> list[float]:
    """:func:`wasserstein2` of every pair, one thread per core.

    Args:
      pairs: sample clouds (x, y).
      progress: wraps the iteration over results, for a progress bar.
    """
    # Threads suffice: POT's simplex runs without the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        return list(progress(executor.map(lambda pair: wasserstein2(*pair), pairs)))


def excess(distance: float, floor: float) -> float:
    """What a distance has above its floor, in squares: sqrt(max(distance^2 - floor^2, 0))."""
    return float(np.sqrt(max(distance**2 - floor**2, 0.0)))


def frechet_distance(x: Any, y: Any) -> float:
    r"""Fréchet distance between Gaussians fitted to two samples of features.

    .. math:: \|m_x - m_y\|^2 + \mathrm{tr}(S_x + S_y - 2 (S_x^{1/2} S_y S_x^{1/2})^{1/2})

    Args:
      x: features [n, d], at least two.
      y: features [m, d], at least two.

    Returns:
      The squared distance [feature units^2], as FID reports it; never below zero.

    Raises:
      ValueError: fewer than two samples, which have no covariance, or a distance beyond float64.

    Source:
      Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500.
    """
    x, y = _pair(x=x, y=y)
    _check_two("a covariance", x=x, y=y)
    x, y, unit = _in_unit(x, y)
    covariance_x, covariance_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_y @ root), 0)).sum()
    shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    value = shift + np.trace(covariance_x) + np.trace(covariance_y) - 2 * cross
    # Of equal sets the rounding alone is left, of either sign.
    return _within_float64("the squared distance", max(float(value), 0.0) * unit * unit)


def kernel_distance(x: Any, y: Any) -> float:
    r"""Squared maximum mean discrepancy with the cubic kernel, without bias: the formula of KID.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{n (n - 1)}
        + \frac{\sum_{i \ne j} k(y_i, y_j)}{m (m - 1)}
        - \frac{2 \sum_{i, j} k(x_i, y_j)}{n m}, \quad k(a, b) = (a \cdot b / d + 1)^3

    Args:
      x: features [n, d], at least two.
      y: features [m, d], at least two.

    Returns:
      The distance of the whole sets, by chance below zero if they are much alike. KID's authors
      average over blocks, which has the same mean and more variance.

    Source:
      Binkowski et al. 2018, arXiv:1801.01401.
    """
    x, y = _pair(x=x, y=y)
    _check_two("the unbiased distance", x=x, y=y)
    within = [
        (_kernel_sum(z, z) - np.sum((np.sum(z * z, axis=1) / z.shape[1] + 1) ** 3))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    value = sum(within) - 2 * _kernel_sum(x, y) / (len(x) * len(y))
    return _within_float64("the kernel distance", value)


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
    real, generated, _ = _in_unit(*_pair(real=real, generated=generated))
    real_radii, wide_radii = _radii("real", real, neighbours, coverage_neighbours)
    (radii,) = _radii("generated", generated, neighbours)
    precise, recalled, covered = np.zeros(len(generated), bool), [], []
    for start in range(0, len(real), ROWS):
        rows = slice(start, start + ROWS)
        distances = _squares(real[rows], generated)
        precise |= np.any(distances <= real_radii[rows, None], axis=0)
        recalled.append(np.any(distances <= radii, axis=1))
        covered.append(distances.min(axis=1) <= wide_radii[rows])
    shares = precise, np.concatenate(recalled), np.concatenate(covered)
    return PrecisionRecallCoverage(*(float(np.mean(share)) for share in shares))


def nearest(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distance [length] from every x to its nearest y, and that y's index.

    Numerics:
      Found by brute force over matrix products, because trees are of no use in hundreds of
      dimensions: 10,000 against 60,000 images of 784 pixels take 10 to 20 s on two cores.
      What these cannot tell apart is compared once more by differences, and so is the distance
      itself: it is exactly zero for a copy, however far from the origin.
    """
    x, y, unit = _in_unit(*_pair(x=x, y=y))
    centre = y.mean(axis=0)
    moved, sizes = y - centre, np.sum((y - centre) ** 2, axis=1)
    blocks = (x[start : start + ROWS] for start in range(0, len(x), ROWS))
    index = np.concatenate([_nearest(block, y, centre, moved, sizes) for block in blocks])
    distances = np.linalg.norm(x - y[index], axis=1) * unit
    _within_float64("the largest distance", distances.max())
    return distances, index


def _nearest(x, y, centre, moved, sizes):
    """Indices of the nearest y of a block; ``moved`` is y - ``centre``, ``sizes`` its squares."""
    around = x - centre
    squares = euclidean_distances(around, moved, Y_norm_squared=sizes[None], squared=True)
    # Each square is off by its share of the terms that cancel in it: sizes, and the centre's own.
    terms = np.sum(around**2, axis=1)[:, None] + sizes.max()
    close = squares <= squares.min(axis=1, keepdims=True) + DIGITS_LOST * x.shape[1] * terms
    index = squares.argmin(axis=1)
    for row in np.flatnonzero(close.sum(axis=1) > 1):
        candidates = np.flatnonzero(close[row])
        index[row] = candidates[_squares(x[row : row + 1], y[candidates])[0].argmin()]
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


def total_variation(p: Any, q: Any) -> float:
    """Total variation distance between two probability vectors, in [0, 1].

    Raises:
      ValueError: other shapes, or what is no probability vector: counts, for one.
    """
    p, q = _probabilities("p", p), _probabilities("q", q)
    if p.shape != q.shape:
        raise ValueError(f"p and q have shapes {p.shape} and {q.shape}; they must be the same")
    return float(0.5 * np.abs(p - q).sum())


def _probabilities(name, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.all(values >= 0) or not abs(values.sum() - 1) <= SUM_ERROR:
        raise ValueError(
            f"{name} has shape {values.shape}, sum {values.sum():.6g} and least entry "
            f"{np.min(values, initial=np.inf):.6g}; a probability vector is [classes], "
            "non-negative and sums to 1"
        )
    return values


def _distances(name, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.all(values >= 0):
        raise ValueError(
            f"{name} has shape {values.shape} and {int(np.sum(~(values >= 0)))} entries that are "
            "no distances; give at least one distance, [samples], none NaN or negative"
        )
    return values


def _pair(**clouds) -> tuple[np.ndarray, np.ndarray]:
    """Two named clouds, checked, in float64."""
    (name_x, name_y), (x, y) = clouds, (_samples(name, z) for name, z in clouds.items())
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{name_x} and {name_y} differ in dimension: {x.shape} and {y.shape}")
    return x, y


def _kernel_sum(x, y):
    """Sum over all pairs of (x . y / d + 1)^3; a product of roots, for numpy's power is slow."""
    total = 0.0
    for start in range(0, len(x), ROWS):
        roots = x[start : start + ROWS] @ (y.T / x.shape[1]) + 1
        total += np.vdot(roots * roots, roots)
    return total


def _radii(name, points, *counts):
    """Squared distance of every point to its k-th nearest other one, for each k of ``counts``."""
    if not 1 <= min(counts) <= max(counts) < len(points):
        raise ValueError(
            f"{name} has {len(points)} samples and neighbours are {counts}; "
            "they must be at least 1 and fewer than the samples"
        )
    nearby = []
    for start in range(0, len(points), ROWS):
        squares = _squares(points[start : start + ROWS], points)
        own = np.arange(len(squares))
        squares[own, start + own] = np.inf  # the point itself; its copies count
        nearby.append(np.partition(squares, [count - 1 for count in counts], axis=1))
    return [np.concatenate([block[:, count - 1] for block in nearby]) for count in counts]


def _squares(x, y):
    """Squared distances [n, m] by differences: alike for equal pairs, zero for copies."""
    return scipy.spatial.distance.cdist(x, y, "sqeuclidean")


def _in_unit(x, y):
    """Both clouds in a unit in which squares neither overflow nor vanish, and that unit.

    A power of two, so that no digit changes on the way there and back.
    """
    largest = max(np.max(np.abs(x)), np.max(np.abs(y)))
    unit = 2.0 ** (float(np.frexp(largest)[1]) - 1) if largest > 0 else 1.0
    return x / unit, y / unit, unit


def _within_float64(what, value) -> float:
    if not np.isfinite(value):
        raise ValueError(f"{what} is beyond float64's range; scale the samples down first")
    return float(value)


def _check_two(what, **clouds):
    for name, samples in clouds.items():
        if len(samples) < 2:
            raise ValueError(f"{name} has {len(samples)} sample; {what} needs at least 2")


def _samples(name, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}; samples are [count, dimension]")
    if not np.all(np.isfinite(values)):
        bad = int(np.sum(~np.isfinite(values).all(axis=1)))
        raise ValueError(f"{name} has {bad} non-finite samples out of {len(values)}")
    return values
