"""Exact assignment and plans for other costs than half squares."""

import itertools

import numpy as np
import pytest
import scipy

from sinkflow.ot.exact import assignment, solve_assignment, solve_transport, transport_plan


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_assignment_matches_brute_force(rng):
    cost = rng.normal(size=(6, 6))
    best = min(sum(cost[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(6)))
    order = solve_assignment(cost)
    assert cost[np.arange(6), order].sum() == pytest.approx(best, rel=1e-12)


def test_assignment_of_half_squares_is_that_of_the_clouds(rng):
    x, y = rng.normal(size=(2, 30, 2))
    cost = scipy.spatial.distance.cdist(x, y, "sqeuclidean") / 2
    np.testing.assert_array_equal(solve_assignment(cost), assignment(x, y))
    plan, value = solve_transport(cost)
    expected, wanted = transport_plan(x, y)
    np.testing.assert_array_equal(plan, expected)
    assert value == wanted


@pytest.mark.parametrize("p", [1, 2])
def test_transport_matches_linear_programming(rng, p):
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(7, 2))
    a, b = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(7))
    cost = scipy.spatial.distance.cdist(x, y, "minkowski", p=p)
    plan, value = solve_transport(cost, a, b)
    rows = np.kron(np.eye(5), np.ones(7)), np.kron(np.ones(5), np.eye(7))
    lp = scipy.optimize.linprog(cost.ravel(), A_eq=np.vstack(rows), b_eq=np.concatenate([a, b]))
    assert value == pytest.approx(lp.fun, rel=1e-9)
    np.testing.assert_allclose(plan.sum(axis=1), a, rtol=1e-9)
    np.testing.assert_allclose(plan.sum(axis=0), b, rtol=1e-9)
    assert np.count_nonzero(plan) <= 11


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve_assignment(np.zeros((2, 3))), "solve_transport takes any matrix"),
        (lambda: assignment(np.zeros((2, 2)), np.zeros((3, 2))), "transport_plan takes any"),
        (lambda: solve_assignment(np.zeros((0, 0))), "not empty"),
        (lambda: solve_transport(np.zeros(3)), "it is"),
        (lambda: solve_transport([[np.nan, 1.0]]), "1 entries that are not finite"),
        (lambda: solve_transport(np.zeros((2, 3)), a=[0.5, 0.6]), "a sums to"),
        (lambda: solve_transport(np.zeros((2, 3)), b=[0.5, 0.5]), "b has shape"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
