"""Distances between samples; share no code with the solver that they judge."""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ot
import scipy.spatial

from sinkflow.metrics import _samples
from sinkflow.metrics._samples import ROWS

__all__ = [
    "excess",
    "frechet_distance",
    "kernel_distance",
    "total_variation",
    "wasserstein1",
    "wasserstein2",
    "wasserstein2_many",
]

SUM_ERROR = 1e-5  # of probabilities; those of float32 are off by less
ITERATIONS = 10**7  # of the network simplex; POT's default stops short at a few thousand points


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
    x, y, unit = _samples.in_unit(
        *_samples.pair(x=x, y=y)
    )  # else coordinates of 1e160 have infinite squares
    value = _transport_cost(scipy.spatial.distance.cdist(x, y, "sqeuclidean"))
    return _samples.within_float64("the distance", np.sqrt(value) * unit)


def wasserstein1(x: Any, y: Any) -> float:
    r"""Exact 1-Wasserstein distance, :math:`\min_\pi \langle\|x_i - y_j\|_2, \pi\rangle`.

    Arguments, errors and source are those of :func:`wasserstein2`. It is never larger.

    Example:
      >>> wasserstein1([[0.0], [1.0]], [[0.0], [3.0]])
      1.0
    """
    x, y, unit = _samples.in_unit(*_samples.pair(x=x, y=y))
    value = _transport_cost(scipy.spatial.distance.cdist(x, y))
    return _samples.within_float64("the distance", value * unit)


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
    x, y = _samples.pair(x=x, y=y)
    _samples.check_two("a covariance", x=x, y=y)
    x, y, unit = _samples.in_unit(x, y)
    covariance_x, covariance_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_y @ root), 0)).sum()
    shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    value = shift + np.trace(covariance_x) + np.trace(covariance_y) - 2 * cross
    # Of equal sets the rounding alone is left, of either sign.
    return _samples.within_float64("the squared distance", max(float(value), 0.0) * unit * unit)


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
    x, y = _samples.pair(x=x, y=y)
    _samples.check_two("the unbiased distance", x=x, y=y)
    within = [
        (_kernel_sum(z, z) - np.sum((np.sum(z * z, axis=1) / z.shape[1] + 1) ** 3))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    value = sum(within) - 2 * _kernel_sum(x, y) / (len(x) * len(y))
    return _samples.within_float64("the kernel distance", value)


def total_variation(p: Any, q: Any) -> float:
    """Total variation distance between two probability vectors, in [0, 1].

    Raises:
      ValueError: other shapes, or what is no probability vector: counts, for one.
    """
    p, q = _probabilities("p", p), _probabilities("q", q)
    if p.shape != q.shape:
        raise ValueError(f"p and q have shapes {p.shape} and {q.shape}; they must be the same")
    return float(0.5 * np.abs(p - q).sum())


def _transport_cost(cost: np.ndarray) -> float:
    """Least cost between uniform weights."""
    value, log = ot.emd2([], [], cost, numItermax=ITERATIONS, log=True)
    if log["warning"] is not None:
        rows, columns = cost.shape
        raise RuntimeError(f"exact OT of {rows} x {columns} points failed: {log['warning']}")
    return max(value, 0.0)


def _probabilities(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.all(values >= 0) or not abs(values.sum() - 1) <= SUM_ERROR:
        raise ValueError(
            f"{name} has shape {values.shape}, sum {values.sum():.6g} and least entry "
            f"{np.min(values, initial=np.inf):.6g}; a probability vector is [classes], "
            "non-negative and sums to 1"
        )
    return values


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum over all pairs of (x . y / d + 1)^3; a product of roots, for numpy's power is slow."""
    total = 0.0
    for start in range(0, len(x), ROWS):
        roots = x[start : start + ROWS] @ (y.T / x.shape[1]) + 1
        total += np.vdot(roots * roots, roots)
    return total
