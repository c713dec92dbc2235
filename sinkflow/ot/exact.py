"""Exact assignment and exact transport of weighted clouds, on the host."""

import concurrent.futures
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ot
import scipy.spatial

from sinkflow.ot import _inputs

__all__ = [
    "assignment",
    "assignment_many",
    "solve_assignment",
    "solve_transport",
    "transport_plan",
]

ITERATIONS = 10**7  # of the network simplex; POT's default stops short at a few thousand points


def assignment(x: Any, y: Any) -> np.ndarray:
    """Indices j, x_i matched to y_{j[i]}, minimal in the sum of squared distances.

    Args:
      x: points [n, d] [length].
      y: points [n, d].

    Raises:
      ValueError: clouds of different shape, empty, or with non-finite points.
      RuntimeError: the network simplex did not finish.

    Source:
      The assignment problem. Network simplex of POT (``ot.emd``): between uniform weights its
      plan is a vertex, that is a permutation. Measured faster than the Hungarian algorithm of
      scipy from a thousand points on, and, unlike it, it runs without the interpreter's lock.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or x.shape != y.shape or not x.size:
        raise ValueError(
            f"x and y must be clouds of one shape: {x.shape} and {y.shape}; an assignment needs as "
            "many targets as sources, transport_plan takes any two clouds of one dimension"
        )
    return solve_assignment(_half_squares(x, y))


def solve_assignment(cost: Any) -> np.ndarray:
    r"""Column j[i] that row i is matched to, minimal in :math:`\sum_i C_{i, j[i]}`.

    Args:
      cost: any costs [n, n] [units of the cost], negative ones too.

    Raises:
      ValueError: no square matrix, empty, or non-finite costs.
      RuntimeError: the network simplex did not finish.

    Source:
      As :func:`assignment`.

    Example:
      >>> solve_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]]).tolist()
      [1, 0, 2]
    """
    cost = _cost_matrix(cost)
    if cost.shape[0] != cost.shape[1]:
        raise ValueError(
            f"cost has shape {cost.shape}; an assignment needs as many columns as rows, "
            "solve_transport takes any matrix"
        )
    return np.argmax(_plan(cost, [], []), axis=1)


def assignment_many(pairs: Sequence[tuple[Any, Any]]) -> list[np.ndarray]:
    """:func:`assignment` of every pair (x, y), one thread per core."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        return list(executor.map(lambda pair: assignment(*pair), pairs))


def transport_plan(x: Any, y: Any, a: Any = None, b: Any = None) -> tuple[np.ndarray, float]:
    r"""Exact optimal transport between two weighted clouds, without regularisation.

    .. math:: \min_{\pi \ge 0,\ \pi 1 = a,\ \pi^\top 1 = b} \langle C, \pi\rangle, \qquad
              C_{ij} = \tfrac12\|x_i - y_j\|^2

    Args:
      x: points [n, d] [length].
      y: points [m, d].
      a: weights of ``x`` [n], sum 1; default uniform. Zeros are allowed.
      b: weights of ``y`` [m], likewise.

    Returns:
      The plan [n, m] [mass, total 1], a vertex: at most n + m - 1 entries are not 0; and
      its cost [length^2].

    Raises:
      ValueError: not two clouds of one dimension, non-finite points, or weights that are
        negative, not finite or do not sum to 1.
      RuntimeError: the network simplex did not finish.

    Source:
      Kantorovich's problem, Peyre and Cuturi, arXiv:1803.00567, eq. 2.11. Network simplex of
      POT (``ot.emd``), in float64 on one core.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    _inputs.check_clouds(x, y)
    return solve_transport(_half_squares(x, y), a, b)


def solve_transport(cost: Any, a: Any = None, b: Any = None) -> tuple[np.ndarray, float]:
    r"""Exact optimal transport for a given cost matrix, whatever its ground cost.

    .. math:: d_C(a, b) = \min_{\pi \ge 0,\ \pi 1 = a,\ \pi^\top 1 = b} \langle C, \pi\rangle

    With distances for costs it is :math:`W_1`.

    Args:
      cost: any costs [n, m] [units of the cost], negative ones too.
      a: weights of the rows [n], sum 1; default uniform. Zeros are allowed.
      b: weights of the columns [m], likewise.

    Returns:
      The plan [n, m] [mass, total 1] and its cost, as :func:`transport_plan`.

    Raises:
      ValueError: no matrix, empty, non-finite costs, or wrong weights.
      RuntimeError: the network simplex did not finish.

    Source:
      As :func:`transport_plan`.

    Example:
      >>> plan, cost = solve_transport([[0, 1], [1, 0]], b=[0.75, 0.25])
      >>> plan.tolist(), cost
      ([[0.5, 0.0], [0.25, 0.25]], 0.25)
    """
    cost = _cost_matrix(cost)
    marginals = []
    for name, weights, count in (("a", a, cost.shape[0]), ("b", b, cost.shape[1])):
        weights = np.full(count, 1 / count) if weights is None else weights
        _inputs.check_weights(name, weights, count)
        marginals.append(np.asarray(weights, np.float64))
    plan = _plan(cost, *(weights / weights.sum() for weights in marginals))
    return plan, float(np.sum(plan * cost))


def _cost_matrix(cost: Any) -> np.ndarray:
    cost = np.ascontiguousarray(cost, np.float64)
    if cost.ndim != 2 or not cost.size:
        raise ValueError(f"cost has shape {cost.shape}; it is [n, m], not empty")
    if not np.isfinite(cost).all():
        raise ValueError(f"cost has {np.sum(~np.isfinite(cost))} entries that are not finite")
    return cost


def _half_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    for name, points in (("x", x), ("y", y)):
        if not np.isfinite(points).all():
            raise ValueError(f"{name} has non-finite points")
    return 0.5 * scipy.spatial.distance.cdist(x, y, "sqeuclidean")


def _plan(
    cost: np.ndarray, a: np.ndarray | Sequence[float], b: np.ndarray | Sequence[float]
) -> np.ndarray:
    plan, log = ot.emd(a, b, cost, numItermax=ITERATIONS, log=True)
    if log["warning"] is not None:
        size = f"{cost.shape[0]} x {cost.shape[1]}"
        raise RuntimeError(f"exact transport of {size} points failed: {log['warning']}")
    return plan
