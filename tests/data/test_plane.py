"""Samplers of the plane against their written definitions, and the digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits

from sinkflow import data

N = 20_000  # one standard error of a mean is then 0.7% of the standard deviation
LIMIT = 5  # standard errors; about one chance in two million a comparison
TABLES = {"plain": data.SAMPLERS, "stratified": data.STRATIFIED}
both = pytest.mark.parametrize("kind", TABLES)


def draw(name, key, n=N, kind="plain"):
    return np.asarray(TABLES[kind][name](key, n), np.float64)


def centres_of_eight():
    return 5 * np.array([[np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)] for k in range(8)])


def by_definition(name, n=200_000):
    """The same laws written a second time, in numpy, from the text of EVALUATION.md."""
    rng = np.random.default_rng(0)
    if name == "gaussian":
        return rng.normal(size=(n, 2))
    if name == "8gaussians":
        return centres_of_eight()[rng.integers(8, size=n)] + 0.5623 * rng.normal(size=(n, 2))
    if name == "moons":
        theta = rng.uniform(0, np.pi, n // 2)
        upper = np.column_stack([np.cos(theta), np.sin(theta)])
        lower = np.column_stack([1 - np.cos(theta), 0.5 - np.sin(theta)])
        return (np.concatenate([upper, lower]) + rng.normal(0, 0.2, (n, 2))) * 3 - 1
    if name == "scurve":
        t = rng.uniform(-1.5 * np.pi, 1.5 * np.pi, n)
        curve = np.column_stack([np.sin(t), np.sign(t) * (np.cos(t) - 1)])
        return (curve + rng.normal(0, 0.05, (n, 2))) * 1.5
    if name == "checkerboard":
        x1 = rng.uniform(-2, 2, n)
        x2 = rng.uniform(0, 1, n) - 2 * rng.integers(0, 2, n) + np.floor(x1) % 2
        return 2 * np.column_stack([x1, x2])
    raise KeyError(name)


def moments(points):
    """Monomials of the coordinates up to degree 4, [points, 14]."""
    x, y = (points / 5).T
    return np.stack([x**i * y**j for i in range(5) for j in range(5 - i) if i + j], axis=1)


def cells_of_checkerboard(points):
    """Column and row, in 0..3, of the square of side 2 in which each point lies."""
    return np.floor(points / 2).astype(int) + 2


@both
@pytest.mark.parametrize("name", data.SAMPLERS)
def test_samples_are_finite_float32_pairs_that_follow_from_the_key(key, name, kind):
    sampler = TABLES[kind][name]
    first, second = sampler(key, 50), sampler(key, 50)
    assert first.shape == (50, 2) and first.dtype == jnp.float32
    assert np.all(np.isfinite(first))
    np.testing.assert_array_equal(first, second)
    # The order of magnitude of a particle, not one last digit: other keys, other clouds.
    assert np.max(np.abs(first - sampler(jax.random.key(1), 50))) > 0.05


@both
@pytest.mark.parametrize("name", data.SAMPLERS)
def test_samplers_run_under_jit_and_vmap(key, name, kind):
    sampler = TABLES[kind][name]
    clouds = jax.jit(jax.vmap(lambda k: sampler(k, 16)))(jax.random.split(key, 3))
    assert clouds.shape == (3, 16, 2)
    np.testing.assert_allclose(clouds[1], sampler(jax.random.split(key, 3)[1], 16), atol=1e-5)


@both
@pytest.mark.parametrize("name", data.SAMPLERS)
def test_moments_equal_those_of_the_definition(key, name, kind):
    # Stratified clouds have the same law, with less spread: the limit of plain ones is safe.
    expected, actual = moments(by_definition(name)), moments(draw(name, key, kind=kind))
    error = expected.std(axis=0) * np.sqrt(1 / len(expected) + 1 / N)
    assert np.max(np.abs(actual.mean(axis=0) - expected.mean(axis=0)) / error) < LIMIT


@both
@pytest.mark.parametrize("name", data.SAMPLERS)
def test_projections_have_the_distribution_of_the_definition(key, name, kind):
    # Moments of degree 4 cannot see the shape of a marginal; Kolmogorov-Smirnov can.
    expected, actual = by_definition(name), draw(name, key, kind=kind)
    for direction in ([1, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]):
        test = scipy.stats.ks_2samp(actual @ direction, expected @ direction)
        assert test.pvalue > 1e-5, direction


@both
def test_eight_gaussians_have_std_05623_around_centres_of_radius_5(key, kind):
    points, centres = draw("8gaussians", key, kind=kind), centres_of_eight()
    squared = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
    mode = squared.argmin(axis=1)
    # Neighbours are 3.8 apart, 3.4 standard deviations to the border: few are misassigned.
    counts = np.bincount(mode, minlength=8)
    np.testing.assert_allclose(counts / N, 1 / 8, atol=LIMIT * np.sqrt(7 / 64 / N))
    noise = points - centres[mode]
    error = 0.5623 / np.sqrt(2 * N)
    np.testing.assert_allclose(noise.std(axis=0), 0.5623, atol=LIMIT * error)
    for k in range(8):
        np.testing.assert_allclose(points[mode == k].mean(axis=0), centres[k], atol=0.06)


@both
def test_scurve_lies_within_its_noise_of_the_curve(key, kind):
    t = np.linspace(-1.5 * np.pi, 1.5 * np.pi, 3_000)
    curve = 1.5 * np.column_stack([np.sin(t), np.sign(t) * (np.cos(t) - 1)])
    points = draw("scurve", key, 2_000, kind)
    distance = np.sqrt(((points[:, None] - curve[None]) ** 2).sum(axis=2)).min(axis=1)
    noise = 1.5 * 0.05
    assert distance.max() < 5 * noise
    # Across the curve only one of the two noise coordinates shows: |N(0, noise)|.
    assert distance.mean() == pytest.approx(noise * np.sqrt(2 / np.pi), rel=0.08)


@both
def test_checkerboard_fills_exactly_eight_squares_uniformly(key, kind):
    points = draw("checkerboard", key, kind=kind)
    assert np.abs(points).max() <= 4
    cells = cells_of_checkerboard(points)
    count = np.zeros((4, 4))
    np.add.at(count, tuple(cells.T), 1)
    # Definition by hand: column -2 (first) has floor(x1) even, so rows -2 and 0.
    filled = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]], bool)
    assert np.all(count[~filled] == 0)
    error = np.sqrt(7 / 64 * N)
    np.testing.assert_allclose(count[filled], N / 8, atol=LIMIT * error)
    place = points / 2 - np.floor(points / 2)
    for axis in range(2):
        assert scipy.stats.kstest(place[:, axis], "uniform").pvalue > 1e-5


@pytest.mark.parametrize("n", [64, 67])
def test_stratified_eight_gaussians_have_equal_modes(key, n):
    # Equal modes are equal counts only if noise carries no point over to a neighbour's side.
    points = draw("8gaussians", key, n, "stratified")
    squared = ((points[:, None] - centres_of_eight()[None]) ** 2).sum(axis=2)
    assert np.sqrt(squared.min(axis=1)).max() < 1.9  # half the distance of two centres
    counts = np.bincount(squared.argmin(axis=1), minlength=8)
    assert counts.max() - counts.min() == (0 if n % 8 == 0 else 1) and counts.sum() == n


@pytest.mark.parametrize("n", [64, 67])
def test_stratified_checkerboard_has_equal_squares(key, n):
    cells = cells_of_checkerboard(draw("checkerboard", key, n, "stratified"))
    _, counts = np.unique(cells, axis=0, return_counts=True)
    assert len(counts) == 8
    assert counts.max() - counts.min() == (0 if n % 8 == 0 else 1)


def test_stratified_moons_have_equal_halves(key):
    # The halves overlap by noise in the plane, so look at the mean instead: with equal halves
    # the half is no longer a source of spread, which leaves angle and noise.
    keys = jax.random.split(key, 300)
    means = {
        kind: np.stack([draw("moons", k, 64, kind).mean(axis=0) for k in keys]) for kind in TABLES
    }
    half = 3 * np.array([1.0, 0.5 - 4 / np.pi])  # lower centre minus upper centre
    shared = means["plain"].var(axis=0)
    saved = shared - means["stratified"].var(axis=0)
    assert np.all(saved > 0.7 * half**2 / 4 / 64)


def test_stratified_gaussian_is_evenly_spread(key):
    # A random cloud of 1,024 points differs from its law by ~0.04 (KS); the lattice by ~0.002.
    points = draw("gaussian", key, 1024, "stratified")
    for direction in ([1, 0], [0, 1]):
        assert scipy.stats.kstest(points @ direction, "norm").statistic < 0.006


def test_stratified_gaussian_keeps_its_digits_at_a_million_points(key):
    points = np.asarray(data.gaussian(key, 10**6, stratified=True), np.float64)
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(np.cov(points, rowvar=False), np.eye(2), atol=2e-3)
    assert len(np.unique(points[-1000:, 0])) > 990


def test_stratified_scurve_has_one_angle_in_every_cell(key):
    points = draw("scurve", key, 600, "stratified") / 1.5
    # The nearest point of the curve gives the angle back up to its noise. Independent angles
    # would be 0.03 off (KS at 600 points), dealt ones are off by that noise alone.
    t = np.linspace(-1.5 * np.pi, 1.5 * np.pi, 5_000)
    curve = np.column_stack([np.sin(t), np.sign(t) * (np.cos(t) - 1)])
    angle = t[((points[:, None] - curve[None]) ** 2).sum(axis=2).argmin(axis=1)]
    assert scipy.stats.kstest(angle, "uniform", (-1.5 * np.pi, 3 * np.pi)).statistic < 0.02


@pytest.mark.parametrize("name", data.TASKS)
def test_tasks_name_samplers_that_exist(name):
    task = data.task(name)
    assert task.source in data.SAMPLERS and task.target in data.SAMPLERS


def test_the_five_tasks_of_the_paper_are_there():
    targets = data.SAMPLERS.keys() - {"gaussian"}
    from_noise = {target: ("gaussian", target) for target in targets}
    assert dict(data.TASKS) == {**from_noise, "8gaussians-moons": ("8gaussians", "moons")}
    assert data.STRATIFIED.keys() == data.SAMPLERS.keys()


def test_unknown_task_lists_the_names():
    with pytest.raises(ValueError, match="'spiral'") as error:
        data.task("spiral")
    assert all(name in str(error.value) for name in data.TASKS)


def test_digits_are_scaled_images_with_labels():
    images, labels = data.digits()
    assert images.shape == (1797, 64) and images.dtype == np.float32
    assert labels.shape == (1797,) and labels.dtype == np.int32
    assert images.min() == -1 and images.max() == 1  # the grey levels 0 and 16
    assert sorted(set(labels.tolist())) == list(range(10))
    grey, digit = load_digits(return_X_y=True)
    np.testing.assert_array_equal(8 * (images + 1), grey)
    np.testing.assert_array_equal(labels, digit)


@pytest.mark.parametrize("bits", [0, 255, 2**32 - 256, 2**32 - 1])
def test_stratified_gaussian_is_finite_at_both_ends_of_its_bits(key, monkeypatch, bits):
    # Rounded to 24 bits, the largest cell's centre was 1 in float32, and its quantile infinite.
    shift = lambda key, shape, dtype: jnp.full(shape, bits, dtype)
    monkeypatch.setattr(jax.random, "bits", shift)
    point = np.asarray(data.gaussian.__wrapped__(key, 1, stratified=True))
    end = scipy.stats.norm.ppf(2.0**-24) if bits < 2**31 else -scipy.stats.norm.ppf(2.0**-24)
    np.testing.assert_allclose(point, np.full((1, 2), end), rtol=1e-6)


def test_stratified_gaussian_of_the_key_that_gave_infinity():
    points = data.gaussian(jax.random.key(2540), 2048, stratified=True)
    assert np.all(np.isfinite(points)) and np.max(np.abs(points)) < 5.3


@both
@pytest.mark.parametrize("name", data.SAMPLERS)
def test_samplers_are_finite_for_many_keys_and_allow_strict_promotion(key, name, kind):
    with jax.numpy_dtype_promotion("strict"):
        clouds = jax.vmap(lambda key: TABLES[kind][name](key, 512))(jax.random.split(key, 2_000))
    assert np.all(np.isfinite(clouds))
