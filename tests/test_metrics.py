"""Metrics against closed forms and brute force."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from sinkflow import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_translation_costs_its_length(rng):
    x = rng.normal(size=(40, 3))
    shift = np.array([1.0, -2.0, 2.0])
    assert metrics.wasserstein2(x, x + shift) == pytest.approx(3.0, rel=1e-9)
    assert metrics.wasserstein2(x, x) == pytest.approx(0.0, abs=1e-7)


def test_on_the_line_the_sorted_matching_is_best(rng):
    x, y = rng.normal(size=(50, 1)), rng.exponential(size=(50, 1))
    expected = np.sqrt(np.mean((np.sort(x, axis=0) - np.sort(y, axis=0)) ** 2))
    assert metrics.wasserstein2(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_five_points_match_brute_force(seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 5, 2))
    costs = [
        np.mean(np.sum((x - y[list(p)]) ** 2, axis=1)) for p in itertools.permutations(range(5))
    ]
    assert metrics.wasserstein2(x, y) == pytest.approx(np.sqrt(min(costs)), rel=1e-9)


def test_unequal_sizes_split_mass():
    # By hand: points 0 and 3 against 0, 0, 3: the plan moves mass 1/6 from 3 to 0.
    x, y = np.array([[0.0], [3.0]]), np.array([[0.0], [0.0], [3.0]])
    assert metrics.wasserstein2(x, y) == pytest.approx(np.sqrt(9 / 6), rel=1e-9)


def test_repeating_every_point_changes_nothing(rng):
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(7, 2))
    expected = metrics.wasserstein2(x, y)
    assert metrics.wasserstein2(np.repeat(x, 3, axis=0), y) == pytest.approx(expected, rel=1e-9)


def test_wasserstein2_is_symmetric_and_scales_with_length(rng):
    x, y = rng.normal(size=(20, 2)), rng.normal(size=(30, 2)) + 1
    value = metrics.wasserstein2(x, y)
    assert metrics.wasserstein2(y, x) == pytest.approx(value, rel=1e-9)
    assert metrics.wasserstein2(10 * x, 10 * y) == pytest.approx(10 * value, rel=1e-9)


def test_many_equals_each_in_order(rng):
    pairs = [(rng.normal(size=(12, 2)), rng.normal(size=(9, 2)) + k) for k in range(5)]
    expected = [metrics.wasserstein2(*pair) for pair in pairs]
    assert metrics.wasserstein2_many(pairs) == expected
    assert sorted(expected) != expected[::-1] and len(set(expected)) == 5


def test_many_passes_results_through_the_progress_bar(rng):
    seen = []
    bar = lambda results: (seen.append(value) or value for value in results)
    pairs = [(np.zeros((2, 2)), np.ones((2, 2))), (np.zeros((2, 2)), np.zeros((2, 2)))]
    assert metrics.wasserstein2_many(pairs, progress=bar) == seen
    assert seen == pytest.approx([np.sqrt(2), 0])


def test_many_raises_what_one_pair_raises(rng):
    good = rng.normal(size=(4, 2))
    with pytest.raises(ValueError, match="1 non-finite samples out of 4"):
        metrics.wasserstein2_many(
            [(good, good), (good, np.full((4, 2), [[0], [0], [0], [np.inf]]))]
        )


@pytest.mark.parametrize(
    ("distance", "floor", "expected"), [(5.0, 3.0, 4.0), (3.0, 3.0, 0.0), (2.0, 3.0, 0.0)]
)
def test_excess_subtracts_squares(distance, floor, expected):
    assert metrics.excess(distance, floor) == pytest.approx(expected)


def with_moments(rng, mean, covariance, n=200):
    """Samples whose empirical mean and covariance are exactly the given ones."""
    noise = rng.normal(size=(n, len(mean)))
    noise -= noise.mean(axis=0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(noise.T @ noise / (n - 1))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_diagonal_gaussians_is_the_closed_form(rng):
    std_x, std_y = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 1.5])
    x = with_moments(rng, np.zeros(3), np.diag(std_x**2))
    y = with_moments(rng, np.array([1.0, 0.0, -2.0]), np.diag(std_y**2))
    expected = 1 + 4 + np.sum((std_x - std_y) ** 2)  # squared distance: |m|^2 + |s_x - s_y|^2
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_matches_the_formula_with_matrix_roots(rng):
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    y = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)) + 1
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cov_x @ cov_y)  # not symmetric: another route to the same trace
    shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    expected = shift + np.trace(cov_x + cov_y - 2 * np.real(root))
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-7)
    assert metrics.frechet_distance(y, x) == pytest.approx(expected, rel=1e-7)


def test_frechet_of_singular_covariances_is_finite(rng):
    # Fewer samples than features; a cloud against itself is at distance zero.
    x = rng.normal(size=(5, 20))
    assert metrics.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)
    assert metrics.frechet_distance(x, x + 1) == pytest.approx(20.0, abs=1e-6)


def test_frechet_of_single_features(rng):
    x = with_moments(rng, np.zeros(1), np.eye(1))
    y = with_moments(rng, np.ones(1), 4 * np.eye(1))
    assert metrics.frechet_distance(x, y) == pytest.approx(1 + 1, rel=1e-9)


def test_nearest_matches_brute_force(rng):
    x, y = rng.normal(size=(15, 3)), rng.normal(size=(20, 3))
    table = np.linalg.norm(x[:, None] - y[None], axis=2)
    distance, index = metrics.nearest(x, y)
    np.testing.assert_allclose(distance, table.min(axis=1))
    np.testing.assert_array_equal(index, table.argmin(axis=1))


def test_total_variation_by_hand():
    assert metrics.total_variation([0.5, 0.5, 0.0], [0.5, 0.0, 0.5]) == pytest.approx(0.5)
    assert metrics.total_variation([1, 0], [0, 1]) == pytest.approx(1.0)
    assert metrics.total_variation([0.2, 0.8], [0.2, 0.8]) == 0


@pytest.mark.parametrize(
    "measure", [metrics.wasserstein2, metrics.frechet_distance, metrics.nearest]
)
def test_non_finite_samples_are_counted_and_named(rng, measure):
    good, bad = rng.normal(size=(10, 2)), rng.normal(size=(10, 2))
    bad[[2, 5]] = np.nan
    bad[7, 1] = -np.inf
    with pytest.raises(ValueError, match="y has 3 non-finite samples out of 10"):
        measure(good, bad)
    with pytest.raises(ValueError, match="x has 3 non-finite samples out of 10"):
        measure(bad, good)


@pytest.mark.parametrize("shape", [(4,), (0, 2), (4, 0), (2, 2, 2)])
def test_what_is_no_cloud_is_refused(shape):
    with pytest.raises(ValueError, match="samples are"):
        metrics.wasserstein2(np.zeros(shape), np.zeros((4, 2)))


def test_different_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 3\)"):
        metrics.wasserstein2(np.zeros((4, 2)), np.zeros((4, 3)))


def test_an_unfinished_simplex_raises(rng, monkeypatch):
    monkeypatch.setattr(metrics, "ITERATIONS", 3)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="exact OT of 60 x 60 points"):
        metrics.wasserstein2(rng.normal(size=(60, 2)), rng.normal(size=(60, 2)))
