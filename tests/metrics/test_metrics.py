"""Metrics against closed forms and brute force."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from sinkflow import metrics
from sinkflow.metrics import distances, neighbours


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


@pytest.mark.parametrize("scale", [1.0, 1e160])
def test_wasserstein1_on_the_line_is_the_area_between_quantiles(rng, scale):
    x, y = np.sort(rng.normal(size=(2, 40)), axis=1)
    found = metrics.wasserstein1(scale * x[:, None], scale * y[:, None])
    assert found == pytest.approx(scale * np.mean(np.abs(x - y)), rel=1e-9)


def test_wasserstein1_is_below_wasserstein2(rng):
    x, y = rng.normal(size=(20, 3)), rng.normal(1.0, 2.0, size=(30, 3))
    assert 0 < metrics.wasserstein1(x, y) < metrics.wasserstein2(x, y)
    assert metrics.wasserstein1(x, x) == 0
    moved = metrics.wasserstein1(x, x + np.array([3.0, 0.0, 4.0]))  # a shift costs its length
    assert moved == pytest.approx(5.0, rel=1e-12)
    with pytest.raises(ValueError, match="differ in dimension"):
        metrics.wasserstein1(x, y[:, :2])


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


def test_nearest_of_a_copy_is_at_distance_zero(rng):
    # Far from the origin |x|^2 - 2 x.y + |y|^2 has no digits left for a small distance.
    y = 1e4 + rng.normal(size=(50, 30))
    x = np.concatenate([y[[7, 3]], y[[11]] + 1e-3])
    distance, index = metrics.nearest(x, y)
    np.testing.assert_array_equal(index, [7, 3, 11])
    np.testing.assert_array_equal(distance[:2], 0)
    assert distance[2] == pytest.approx(1e-3 * np.sqrt(30), rel=1e-6)


def test_kernel_distance_by_hand():
    # d = 1, so k(a, b) = (a b + 1)^3; within x and y it is 1, across 1, 1, 1 and 27.
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    assert metrics.kernel_distance(x, y) == pytest.approx(1 + 1 - 2 * 30 / 4)


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_kernel_distance_matches_a_loop_over_pairs(rng, monkeypatch, rows):
    monkeypatch.setattr(distances, "ROWS", rows)
    x, y = rng.normal(size=(9, 3)), rng.exponential(size=(11, 3))
    kernel = lambda a, b: (np.dot(a, b) / 3 + 1) ** 3
    within = [
        np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
        for z in (x, y)
    ]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.kernel_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_one_distribution_is_zero_on_average(rng):
    draws = [metrics.kernel_distance(*rng.normal(size=(2, 10, 4))) for _ in range(400)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 3 * error  # with the diagonals it would be 12 errors above
    shifted = [metrics.kernel_distance(x, y + 1) for x, y in rng.normal(size=(400, 2, 10, 4))]
    assert np.mean(shifted) > 10 * error


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize(("neighbours", "coverage_neighbours"), [(1, 1), (3, 5), (4, 2)])
def test_precision_recall_coverage_are_their_definitions(
    rng, monkeypatch, rows, neighbours, coverage_neighbours
):
    monkeypatch.setattr("sinkflow.metrics.neighbours.ROWS", rows)
    real, generated = rng.normal(size=(20, 2)), 0.8 * rng.normal(size=(17, 2)) + 1
    length = lambda a, b: np.linalg.norm(a - b)

    def radius(points, i, k):
        return sorted(length(points[i], z) for j, z in enumerate(points) if j != i)[k - 1]

    def inside(x, points, k):
        return any(length(x, z) <= radius(points, j, k) for j, z in enumerate(points))

    precision = np.mean([inside(x, real, neighbours) for x in generated])
    recall = np.mean([inside(x, generated, neighbours) for x in real])
    covered = [
        any(length(x, z) <= radius(real, i, coverage_neighbours) for z in generated)
        for i, x in enumerate(real)
    ]
    counts = {"neighbours": neighbours, "coverage_neighbours": coverage_neighbours}
    found = metrics.precision_recall_coverage(real, generated, **counts)
    assert found == pytest.approx((precision, recall, np.mean(covered)))
    assert 0 < found.precision < 1 and 0 < found.recall < 1 and 0 < found.coverage < 1


def test_precision_recall_coverage_of_known_sets(rng):
    real = rng.normal(size=(100, 3))
    assert metrics.precision_recall_coverage(real, real) == (1, 1, 1)
    assert metrics.precision_recall_coverage(real, real + 100) == (0, 0, 0)


def test_a_dropped_mode_lowers_recall_and_coverage_an_invented_one_precision(rng):
    one, fresh = rng.normal(size=(2, 600, 2))
    two, half = (np.concatenate([z[:300], z[300:] + 50]) for z in rng.normal(size=(2, 600, 2)))
    kept = metrics.precision_recall_coverage(two, half)
    assert min(kept) > 0.85
    dropped = metrics.precision_recall_coverage(two, fresh)
    assert dropped.precision > 0.85 and dropped.recall <= 0.5 and dropped.coverage <= 0.5
    invented = metrics.precision_recall_coverage(one, half)
    assert invented.recall > 0.85 and invented.coverage > 0.85 and invented.precision <= 0.5


def test_outliers_raise_recall_but_not_coverage(rng):
    real = rng.normal(size=(200, 2))
    far = [[100, 0], [-100, 0], [0, 100], [0, -100]]  # balls that reach to the middle
    collapsed = np.concatenate([np.zeros((196, 2)), far])
    found = metrics.precision_recall_coverage(real, collapsed)
    assert found.recall > 0.95 and found.coverage < 0.1


@pytest.mark.parametrize(("real", "generated"), [(5, 10), (10, 3)])
def test_more_neighbours_than_points_are_refused(rng, real, generated):
    name, count = ("real", 5) if real == 5 else ("generated", 3)
    with pytest.raises(ValueError, match=f"{name} has {count} samples and neighbours are"):
        metrics.precision_recall_coverage(
            rng.normal(size=(real, 2)), rng.normal(size=(generated, 2))
        )


def test_the_unbiased_distance_needs_two_samples():
    with pytest.raises(ValueError, match="y has 1 sample; the unbiased distance needs at least 2"):
        metrics.kernel_distance(np.zeros((4, 2)), np.zeros((1, 2)))


def test_memorised_counts_what_is_closer_than_the_quantile():
    real = np.arange(101.0)  # the quantile of 1% is 1, of 10% is 10
    assert metrics.memorised([0.0, 0.9, 1.0, 1.1], real) == 0.5
    assert metrics.memorised([0.0, 0.9, 1.0, 1.1], real, quantile=0.1) == 1
    assert metrics.memorised(real, real, quantile=0.1) == pytest.approx(0.1, abs=0.01)


def test_total_variation_by_hand():
    assert metrics.total_variation([0.5, 0.5, 0.0], [0.5, 0.0, 0.5]) == pytest.approx(0.5)
    assert metrics.total_variation([1, 0], [0, 1]) == pytest.approx(1.0)
    assert metrics.total_variation([0.2, 0.8], [0.2, 0.8]) == 0


@pytest.mark.parametrize(
    "measure",
    [metrics.wasserstein2, metrics.frechet_distance, metrics.nearest, metrics.kernel_distance],
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


@pytest.mark.parametrize(
    "measure",
    [
        metrics.wasserstein2,
        metrics.frechet_distance,
        metrics.nearest,
        metrics.kernel_distance,
        metrics.precision_recall_coverage,
    ],
)
def test_different_dimensions_are_refused(measure):
    with pytest.raises(ValueError, match=r"differ in dimension: \(4, 2\) and \(4, 3\)"):
        measure(np.zeros((4, 2)), np.zeros((4, 3)))


def test_an_unfinished_simplex_raises(rng, monkeypatch):
    monkeypatch.setattr(distances, "ITERATIONS", 3)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="exact OT of 60 x 60 points"):
        metrics.wasserstein2(rng.normal(size=(60, 2)), rng.normal(size=(60, 2)))


def test_copies_lie_in_the_balls_that_end_at_them(rng):
    for shift in (0.0, 1e6):
        points = np.repeat(rng.normal(size=(20, 7)), 8, axis=0) + shift
        assert metrics.precision_recall_coverage(points, points) == (1, 1, 1)
        other = points[rng.permutation(len(points))]
        assert metrics.precision_recall_coverage(points, other) == (1, 1, 1)
        # Radii are zero: what is no copy is in no ball.
        assert metrics.precision_recall_coverage(points, points + 1e-3) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(10, 64), (3, 2), (40, 5)])
def test_frechet_distance_of_a_set_to_itself_is_never_negative(rng, shape):
    for scale in (1e-6, 1.0, 1e6):
        x = scale * rng.normal(size=shape)
        assert 0 <= metrics.frechet_distance(x, x) < 1e-5 * scale**2


@pytest.mark.parametrize("scale", [2.0**-600, 2.0**800])
def test_distances_scale_with_any_unit(rng, scale):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(25, 3))
    assert metrics.wasserstein2(scale * x, scale * y) == scale * metrics.wasserstein2(x, y)
    distance, index = metrics.nearest(x, y)
    np.testing.assert_array_equal(metrics.nearest(scale * x, scale * y)[0], scale * distance)
    np.testing.assert_array_equal(metrics.nearest(scale * x, scale * y)[1], index)
    found = metrics.precision_recall_coverage(scale * x, scale * y)
    assert found == metrics.precision_recall_coverage(x, y)


def test_wasserstein2_of_1e300_is_the_translation():
    x = np.zeros((4, 2))
    assert metrics.wasserstein2(x, x + 1e300) == pytest.approx(np.sqrt(2) * 1e300, rel=1e-12)


def test_nearest_finds_copies_among_near_ones_far_from_the_origin(rng):
    cluster = rng.normal(size=(200, 16))
    # By products alone, 1e-5 apart at 1e4 is lost; with two such clusters no centre helps.
    near = np.concatenate([1e4 + 1e-5 * cluster[:100], -1e4 + 1e-5 * cluster[100:]])
    order = rng.permutation(len(near))
    distance, index = metrics.nearest(near[order], near)
    np.testing.assert_array_equal(distance, 0)
    np.testing.assert_array_equal(near[index], near[order])
    far = 1e8 + cluster
    np.testing.assert_array_equal(metrics.nearest(far, far)[1], np.arange(200))


def test_nearest_does_not_depend_on_the_block(rng, monkeypatch):
    x, y = rng.normal(size=(23, 4)), np.repeat(rng.normal(size=(9, 4)), 2, axis=0)
    expected = metrics.nearest(x, y)
    monkeypatch.setattr(neighbours, "ROWS", 5)
    np.testing.assert_array_equal(metrics.nearest(x, y), expected)
