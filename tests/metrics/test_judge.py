"""Judge: scores of features that are known, floor, traps, and what misses them."""

import numpy as np
import pytest

from sinkflow.metrics import judge, wasserstein2


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def sign_and_size(samples):
    """Features [n, 2]; the class tells whether the first coordinate is positive."""
    features = np.stack([samples[:, 0], np.abs(samples).sum(axis=1)], axis=1)
    return features, (samples[:, 0] > 0).astype(int)


def test_scores_are_those_of_what_features_fn_sees(rng):
    train, test, samples = rng.normal(size=(3, 40, 3))
    seen = []

    def scores(real, generated):
        seen.append((real, generated))
        return {
            "w2": wasserstein2(generated.vectors, real.vectors),
            "ones": generated.classes.sum(),
        }

    row = judge.Judge(train, test, sign_and_size, scores_fn=scores)(samples)
    real, generated = seen[0]
    np.testing.assert_array_equal(real.features, sign_and_size(test)[0])
    np.testing.assert_array_equal(generated.vectors, samples)
    assert row["w2"] == wasserstein2(samples, test) and row["ones"] == np.sum(samples[:, 0] > 0)
    distances = np.linalg.norm(samples[:, None] - train[None], axis=-1).min(axis=1)
    assert row["nearest"] == pytest.approx(distances.mean())


def test_without_features_only_distances_are_scored(rng):
    train, test = rng.normal(size=(2, 20, 3))
    row = judge.Judge(train, test, None)(train)
    assert row == {"nearest": 0.0, "memorised": 1.0}


def test_the_floor_is_the_mean_over_draws(rng):
    train, test = rng.normal(size=(60, 2, 2)), rng.normal(size=(20, 2, 2))
    flat = lambda samples: sign_and_size(samples.reshape(-1, 4))
    judging = judge.Judge(train, test, flat)
    draws = [train[:20], train[20:40]]
    floor = judging.floor(draws)
    for name in judge.QUALITY:
        means = np.mean([judging(samples)[name] for samples in draws])
        assert floor[name] == pytest.approx(means), name
    assert floor["nearest"] == pytest.approx(judging.test_distances.mean())
    assert floor["nearest"] > 0 and judging(train[:20])["nearest"] == 0


def test_a_generator_of_one_class_is_told_by_its_classes(rng):
    train, test = np.abs(rng.normal(size=(2, 50, 2)))
    row = judge.Judge(train, test, sign_and_size)(test)
    assert row["class_tv"] == pytest.approx(0.9)  # all of one class of ten
    assert row["fd"] == 0 and row["precision"] == row["coverage"] == 1


def test_traps_keep_what_they_should(rng):
    samples = rng.normal(size=(2_000, 3)) @ np.diag([1, 2, 3]) + 5
    fitted = judge.fitted_gaussian(rng, samples, 50_000)
    np.testing.assert_allclose(fitted.mean(axis=0), samples.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(fitted.T), np.cov(samples.T), atol=0.3)
    mixed = judge.shuffled(rng, samples)
    np.testing.assert_array_equal(np.sort(mixed, axis=1), np.sort(samples, axis=1))
    assert np.mean(mixed == samples) < 0.5
