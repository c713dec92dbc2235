"""The driver of the time predictor, and what bounds all predictors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import predictor
from experiments.harness.settings import made
from experiments.vectors import predicting
from sinkflow import data, pool

EIGHT = data.task("8gaussians")


@pytest.mark.slow
def test_the_smoke_run_writes_its_record_and_picture(tmp_path):
    config = made(
        predictor.Config, **predictor.Config.SMOKE, smoke=True, out=str(tmp_path / "times")
    )
    result = predictor.main(config)
    folder = tmp_path / "times-smoke"
    assert json.loads((folder / "result.json").read_text())["rows"] == result["rows"]
    assert list(result["rows"]) == ["8gaussians", "8gaussians-moons", "8x8 digits"]
    assert [row["dim"] for row in result["rows"].values()] == [2, 2, 64]
    assert result["rows"]["8gaussians"]["least"] < result["constant"]
    assert (folder / "predictor.png").stat().st_size > 5_000


def test_the_constants_of_the_bound_are_those_of_the_sampler(key):
    y = np.asarray(data.STRATIFIED["8gaussians"](key, 8000))
    gaps = y[:, None] - predicting.MODES[None]
    nearest = np.argmin((gaps**2).sum(axis=2), axis=1)
    own = gaps[np.arange(len(y)), nearest]
    np.testing.assert_allclose(np.bincount(nearest), 1000, atol=5)
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(own.var(axis=0), predicting.MODE_VARIANCE, rtol=0.05)


def test_no_table_of_times_by_place_is_below_the_bound(key):
    """The mean time of each of 6,400 cells, of points that it was not made from."""
    place = predicting.plane(EIGHT)

    def points(key, n):
        key_pairs, key_t = jax.random.split(key)
        t = jax.random.uniform(key_t, (n,))
        paths = pool.from_pairs(*place.pairs(key_pairs, n))
        x = pool.at(paths, jnp.arange(n), t).x
        cell = np.clip((np.asarray(x) + 7) / 14 * 80, 0, 79).astype(int)
        return np.asarray(x), np.asarray(t), cell[:, 0] * 80 + cell[:, 1]

    _, t, cell = points(jax.random.fold_in(key, 0), 400_000)
    counts = np.bincount(cell, minlength=6400)
    means = np.bincount(cell, t, minlength=6400) / np.maximum(counts, 1)
    x, t, cell = points(jax.random.fold_in(key, 1), 50_000)
    missed = np.sqrt(np.mean((means[cell] - t) ** 2))
    least = predicting.least_missed(x[:5000])
    assert 0.97 * least < missed < 1.05 * least


def test_digits_of_the_trial_are_not_those_of_the_training(key):
    place = predicting.digits()
    seen, fresh = (
        {image.tobytes() for image in np.asarray(pairs(key, 3000)[1])}
        for pairs in (place.pairs, place.fresh)
    )
    every = data.digits()[0]
    held = {image.tobytes() for image in every[-predicting.HELD_OUT :]}
    assert fresh <= held and not seen & held


def test_scores_by_hand():
    t = np.array([0.5, 0.48, 0.1, 0.9])
    predicted = np.array([0.6, 0.4, 0.1, 0.7])
    found = predicting.scores(predicting.Tried(np.zeros((4, 2)), t, predicted))
    assert found["missed"] == pytest.approx(np.sqrt((0.01 + 0.0064 + 0.04) / 4))
    assert (found["half_mean"], found["half_std"]) == pytest.approx((0.5, 0.1))
