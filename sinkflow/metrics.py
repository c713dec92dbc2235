"""Distances between samples; shares no code with the solver that it judges."""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import ot
import scipy.spatial
from sklearn.metrics import pairwise_distances_argmin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

ITERATIONS = 10**7  # of the network simplex; POT's default stops short at a few thousand points
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
      ValueError: not two clouds of one dimension, or non-finite samples.
      RuntimeError: the network simplex did not finish.

    Source:
      Network simplex of POT (``ot.emd2``), in float64 on one core.
    """
    x, y = _pair(x=x, y=y)
    cost = scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    value, log = ot.emd2([], [], cost, numItermax=ITERATIONS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"exact OT of {len(x)} x {len(y)} points failed: {log['warning']}")
    return float(np.sqrt(max(value, 0.0)))


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
      x: features [n, d].
      y: features [m, d].

    Returns:
      The squared distance [feature units^2], as FID reports it.

    Source:
      Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500.
    """
    x, y = _pair(x=x, y=y)
    covariance_x, covariance_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_y @ root), 0)).sum()
    shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return float(shift + np.trace(covariance_x) + np.trace(covariance_y) - 2 * cross)


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
    for name, count in (("x", len(x)), ("y", len(y))):
        if count < 2:
            raise ValueError(f"{name} has {count} sample; the unbiased distance needs at least 2")
    within = [
        (_kernel_sum(z, z) - np.sum((np.sum(z * z, axis=1) / z.shape[1] + 1) ** 3))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return float(sum(within) - 2 * _kernel_sum(x, y) / (len(x) * len(y)))


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

    Source:
      Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2 (precision and recall); Naeem et
      al. 2020, arXiv:2002.09797 (coverage).
    """
    real, generated = _pair(real=real, generated=generated)
    real_radii, wide_radii = _radii("real", real, neighbours, coverage_neighbours)
    (radii,) = _radii("generated", generated, neighbours)
    precise, recalled, covered = np.zeros(len(generated), bool), [], []
    for start in range(0, len(real), ROWS):
        rows = slice(start, start + ROWS)
        distances = euclidean_distances(real[rows], generated)
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
      The distance itself is of the difference, and so exactly zero for a copy.
    """
    x, y = _pair(x=x, y=y)
    index = pairwise_distances_argmin(x, y)
    return np.linalg.norm(x - y[index], axis=1), index


def memorised(generated: Any, real: Any, quantile: float = 0.01) -> float:
    """Share of generated samples that are suspiciously close to the training set.

    Args:
      generated: distance [n] from each to its nearest training sample.
      real: the same [m] of real samples that are not in the training set.
      quantile: of ``real``, below which a distance is suspicious.

    Returns:
      A share in [0, 1]; other real samples would have ``quantile``, and copies 1.
    """
    return float(np.mean(np.asarray(generated) < np.quantile(real, quantile)))


def total_variation(p: Any, q: Any) -> float:
    """Total variation distance between two probability vectors, in [0, 1]."""
    return float(0.5 * np.abs(np.asarray(p, np.float64) - np.asarray(q, np.float64)).sum())


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
    """Distance of every point to its k-th nearest other point, for each k of ``counts``."""
    if not 1 <= min(counts) <= max(counts) < len(points):
        raise ValueError(
            f"{name} has {len(points)} samples and neighbours are {counts}; "
            "they must be at least 1 and fewer than the samples"
        )
    search = NearestNeighbors(n_neighbors=max(counts), algorithm="brute").fit(points)
    distances, _ = search.kneighbors()  # without points: of the fitted ones, but not to themselves
    return [distances[:, count - 1] for count in counts]


def _samples(name, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}; samples are [count, dimension]")
    if not np.all(np.isfinite(values)):
        bad = int(np.sum(~np.isfinite(values).all(axis=1)))
        raise ValueError(f"{name} has {bad} non-finite samples out of {len(values)}")
    return values
