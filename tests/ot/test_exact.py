"""assignment and transport plans: brute force, two oracles, invariants, errors."""

import itertools

import numpy as np
import pytest
import scipy

from sinkflow.ot import exact as module
from sinkflow.ot.exact import assignment, assignment_many, transport_plan


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def total(x, y, order):
    return np.sum((x - y[list(order)]) ** 2)


def test_matches_brute_force(rng):
    x, y = rng.normal(size=(2, 6, 3))
    best = min(total(x, y, order) for order in itertools.permutations(range(6)))
    assert total(x, y, assignment(x, y)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(5, 1), (64, 2), (300, 10)])
def test_matches_the_hungarian_algorithm(rng, n, d):
    x, y = rng.normal(size=(2, n, d))
    rows, expected = scipy.optimize.linear_sum_assignment(
        scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    )
    np.testing.assert_array_equal(assignment(x, y), expected)


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


def weighted(rng, n=11, m=7, d=3):
    """Clouds of different size, two weights of each zero."""
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 1.0
    a, b = rng.uniform(0.2, 1, n), rng.uniform(0.2, 1, m)
    a[:2], b[-2:] = 0, 0
    return x, y, a / a.sum(), b / b.sum()


def half_squares(x, y):
    return 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1)


def test_plan_matches_linear_programming(rng):
    x, y, a, b = weighted(rng)
    plan, cost = transport_plan(x, y, a, b)
    rows, columns = np.repeat(np.eye(11), 7, axis=1), np.tile(np.eye(7), 11)
    solved = scipy.optimize.linprog(
        half_squares(x, y).ravel(),
        A_eq=np.concatenate([rows, columns]),
        b_eq=np.concatenate([a, b]),
    )
    np.testing.assert_allclose(cost, solved.fun, rtol=1e-9)
    np.testing.assert_allclose(cost, np.sum(plan * half_squares(x, y)), rtol=1e-12)
    np.testing.assert_allclose(plan, solved.x.reshape(11, 7), atol=1e-9)


def test_plan_has_its_marginals_and_few_entries(rng):
    x, y, a, b = weighted(rng)
    plan, _ = transport_plan(x, y, a, b)
    assert plan.dtype == np.float64 and plan.min() >= 0
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-14)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-14)
    assert np.count_nonzero(plan) <= np.count_nonzero(a) + np.count_nonzero(b) - 1


def test_uniform_plan_is_the_assignment(rng):
    x, y = rng.normal(size=(2, 40, 2))
    plan, cost = transport_plan(x, y)
    order = assignment(x, y)
    np.testing.assert_allclose(plan, np.eye(40)[order] / 40, atol=1e-15)
    assert cost == pytest.approx(0.5 * total(x, y, order) / 40, rel=1e-12)


def test_float32_weights_are_normalised(rng):
    x, y, a, b = weighted(rng)
    plan, cost = transport_plan(x, y, np.float32(a), np.float32(b))
    assert plan.sum() == pytest.approx(1, abs=1e-14)
    assert cost == pytest.approx(transport_plan(x, y, a, b)[1], rel=1e-5)


def test_weights_merge_points(rng):
    x, y, *_ = weighted(rng)
    merged = transport_plan(x[:2], y, np.array([0.25, 0.75]))[1]
    repeated = transport_plan(x[[0, 1, 1, 1]], y)[1]
    assert merged == pytest.approx(repeated, rel=1e-12)


WRONG = [
    ({"x": np.zeros(4)}, r"x has shape \(4,\); a cloud is \[points, dimension\]"),
    ({"y": np.zeros((0, 2))}, r"y has shape \(0, 2\): the cloud is empty"),
    ({"y": np.zeros((3, 5))}, r"x and y differ in dimension: \(4, 2\) and \(3, 5\)"),
    ({"x": np.full((4, 2), np.nan)}, "x has non-finite points"),
    ({"y": np.full((3, 2), np.inf)}, "y has non-finite points"),
    ({"a": np.full(3, 1 / 3)}, r"a has shape \(3,\); there are 4 points"),
    ({"b": np.array([1.5, -0.5, 0.0])}, r"b contains -0\.5; weights are finite, non-negative"),
    ({"b": np.array([0.5, 0.5, np.nan])}, r"b contains nan; weights are"),
    ({"a": np.ones(4)}, r"a sums to 4\.0; weights sum to 1"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_transport_problems_raise(wrong, message):
    with pytest.raises(ValueError, match=message):
        transport_plan(**{"x": np.zeros((4, 2)), "y": np.ones((3, 2)), **wrong})


@pytest.mark.filterwarnings("ignore:numItermax reached")
def test_an_unfinished_simplex_is_an_error(rng, monkeypatch):
    x, y = rng.normal(size=(2, 50, 2))
    monkeypatch.setattr(module, "ITERATIONS", 3)
    for solve in (assignment, transport_plan):
        with pytest.raises(RuntimeError, match="exact transport of 50 x 50 points failed"):
            solve(x, y)
