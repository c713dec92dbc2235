"""assignment: brute force, invariants, errors."""

import itertools

import numpy as np
import pytest

from sinkflow.assignment import assignment, assignment_many


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def total(x, y, order):
    return np.sum((x - y[list(order)]) ** 2)


def test_matches_brute_force(rng):
    x, y = rng.normal(size=(2, 6, 3))
    best = min(total(x, y, order) for order in itertools.permutations(range(6)))
    assert total(x, y, assignment(x, y)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 257])
def test_recovers_a_permutation(rng, n):
    x, order = rng.normal(size=(n, 2)), rng.permutation(n)
    matched = assignment(x, x[order])
    np.testing.assert_array_equal(x[order][matched], x)


def test_on_the_line_sorts(rng):
    x, y = rng.normal(size=(2, 100, 1))
    ranks = np.argsort(np.argsort(x[:, 0]))
    np.testing.assert_array_equal(y[assignment(x, y), 0], np.sort(y[:, 0])[ranks])


def test_many_is_each(rng):
    pairs = [tuple(rng.normal(size=(2, 20, 2))) for _ in range(5)]
    for order, (x, y) in zip(assignment_many(pairs), pairs, strict=True):
        np.testing.assert_array_equal(order, assignment(x, y))


def test_errors_name_the_shapes_and_the_cloud(rng):
    x = rng.normal(size=(4, 2))
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 2\)"):
        assignment(x, x[:3])
    with pytest.raises(ValueError, match="y has non-finite points"):
        assignment(x, np.where(x > 0, x, np.nan))
