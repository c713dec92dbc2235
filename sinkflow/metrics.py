"""Distances between samples; shares no code with the solver that it judges."""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ot
import scipy.spatial

ITERATIONS = 10**7  # of the network simplex; POT's default stops short at a few thousand points


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
    x, y = _samples("x", x), _samples("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y differ in dimension: {x.shape} and {y.shape}")
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
    x, y = _samples("x", x), _samples("y", y)
    covariance_x, covariance_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_y @ root), 0)).sum()
    shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return float(shift + np.trace(covariance_x) + np.trace(covariance_y) - 2 * cross)


def nearest(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distance [length] from every x to its nearest y, and that y's index."""
    return scipy.spatial.KDTree(_samples("y", y)).query(_samples("x", x))


def total_variation(p: Any, q: Any) -> float:
    """Total variation distance between two probability vectors, in [0, 1]."""
    return float(0.5 * np.abs(np.asarray(p, np.float64) - np.asarray(q, np.float64)).sum())


def _samples(name, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}; samples are [count, dimension]")
    if not np.all(np.isfinite(values)):
        bad = int(np.sum(~np.isfinite(values).all(axis=1)))
        raise ValueError(f"{name} has {bad} non-finite samples out of {len(values)}")
    return values
