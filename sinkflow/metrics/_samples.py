"""Samples for metrics: checked, in float64, in a unit in which their squares are finite."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import scipy.spatial

ROWS = 500  # of a matrix of kernels or distances that one thread holds at a time
Result = TypeVar("Result")


def by_rows(function: Callable[[slice], Result], count: int) -> list[Result]:
    """``function`` of each :data:`ROWS` rows of ``count``, in order, one thread per core.

    Threads suffice: SciPy computes distances without the interpreter's lock.
    """
    blocks = [slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        return list(executor.map(function, blocks))


def pair(**clouds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two named clouds, checked, in float64."""
    (name_x, name_y), (x, y) = clouds, (samples(name, z) for name, z in clouds.items())
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{name_x} and {name_y} differ in dimension: {x.shape} and {y.shape}")
    return x, y


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances [n, m] by differences: alike for equal pairs, zero for copies."""
    return scipy.spatial.distance.cdist(x, y, "sqeuclidean")


def in_unit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Both clouds in a unit in which squares neither overflow nor vanish, and that unit.

    A power of two, so that no digit changes on the way there and back.
    """
    largest = max(np.max(np.abs(x)), np.max(np.abs(y)))
    unit = 2.0 ** (float(np.frexp(largest)[1]) - 1) if largest > 0 else 1.0
    return x / unit, y / unit, unit


def within_float64(what: str, value: float) -> float:
    if not np.isfinite(value):
        raise ValueError(f"{what} is beyond float64's range; scale the samples down first")
    return float(value)


def check_two(what: str, **clouds: np.ndarray) -> None:
    for name, samples in clouds.items():
        if len(samples) < 2:
            raise ValueError(f"{name} has {len(samples)} sample; {what} needs at least 2")


def samples(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}; samples are [count, dimension]")
    if not np.all(np.isfinite(values)):
        bad = int(np.sum(~np.isfinite(values).all(axis=1)))
        raise ValueError(f"{name} has {bad} non-finite samples out of {len(values)}")
    return values
