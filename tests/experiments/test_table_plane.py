"""The synthetic table in miniature: every method and ablation, resumed, from cells to tables."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import table_plane
from experiments.harness.settings import flat, made, replaced
from experiments.vectors import grid, methods, pairs, seeds
from experiments.vectors.cells import slug
from sinkflow import data

SMOKE = made(table_plane.Config, **table_plane.Config.SMOKE, smoke=True)
ABLATIONS = grid.variants("ablations")
MOONS = data.task("moons")
TURNS = ("EPT", "JKO-Flow")


def keys():
    return jax.random.split(jax.random.key(0), SMOKE.seeds)


def flow(**changes):
    """The smoke run's flow of fewer particles."""
    return replaced(SMOKE, **changes).flow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("table")
    config = replaced(SMOKE, out=str(out), tasks=("moons",))
    return config, out, table_plane.main(config)


@pytest.mark.slow
def test_every_method_has_a_row_and_a_cell_for_each_seed(finished):
    config, out, (table, _) = finished
    assert [row[0] for row in table.rows] == list(table_plane.METHODS)
    assert table.header[1:3] == ["NFE 1", "NFE 5"]
    cells = [json.loads(path.read_text()) for path in out.glob("cells/*/moons-*.json")]
    assert len(cells) == len(table_plane.METHODS) * config.seeds
    assert {"floor", "stratified_floor", "w2", "commit", "device", "settings"} <= cells[0].keys()
    # One and the same evaluation for all methods of a seed.
    assert len({cell["floor"] for cell in cells if cell["seed"] == 0}) == 1


@pytest.mark.slow
def test_a_two_phase_method_has_no_scheme_of_one_evaluation(finished):
    rows = {row[0]: row for row in finished[2][0].rows}
    assert rows["NSGF++"][1] == "n/a"
    assert float(rows["NSGF++"][2].split()[0]) > 0


@pytest.mark.slow
def test_a_field_of_its_own_grid_has_samples_at_its_own_count_alone():
    """And these are Euler's steps of the table's flow-time NSGF, trained with the same keys."""
    config = replaced(SMOKE, num_particles=64, **methods.FLOW_TIME, step_size=0.4, flow_steps=5)
    setting = seeds.Setting(MOONS, config.flow, config.network, config.training, config.sampling)
    own = seeds.Keys(keys(), keys())
    x0 = jax.random.normal(jax.random.key(1), (SMOKE.seeds, 32, 2))
    learned = methods.nsgf_own_grid(setting, own, spent)
    assert learned.draw(x0, 1) is None and learned.draw(x0, 10) is None
    expected = methods.nsgf(setting, own, spent).draw(x0, 5)
    np.testing.assert_allclose(learned.draw(x0, 5), expected, rtol=1e-5, atol=1e-5)


@contextlib.contextmanager
def spent(phase):
    """A clock that nobody reads."""
    yield


def test_methods_of_one_count_have_counts_of_the_table():
    counts = {
        label: made(table_plane.Config, **table_plane.METHODS[label][1]).flow.flow_steps
        for label in ("NSGF flow time, own 10 steps", "NSGF flow time, own 100 steps", *TURNS)
    }
    assert list(counts.values()) == [10, 100, 100, 10]
    assert set(counts.values()) <= set(table_plane.Config().sampling.nfe)


@pytest.mark.slow
@pytest.mark.parametrize("label", TURNS)
def test_samples_of_maps_in_turn_go_through_all_of_them(label):
    """They have the maps' own count alone, and a path whose end is the first seed's sample."""
    config = replaced(SMOKE, num_particles=64, flow_steps=5)
    setting = seeds.Setting(MOONS, config.flow, config.network, config.training, config.sampling)
    x0 = jax.random.normal(jax.random.key(1), (SMOKE.seeds, 32, 2))
    learned = table_plane.METHODS[label][0](setting, seeds.Keys(keys(), keys()), spent)
    assert learned.draw(x0, 1) is None and learned.draw(x0, 10) is None
    states = learned.paths(x0[:1])
    np.testing.assert_array_equal(states[0], x0[0])
    assert len(states) == 6 and float(jnp.abs(states[1:] - states[:-1]).max(axis=(1, 2)).min()) > 0
    np.testing.assert_allclose(learned.draw(x0, 5)[0], states[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_table_is_the_mean_over_the_cells(finished):
    config, out, (table, _) = finished
    values = [
        json.loads((out / "cells" / "rf-2" / f"moons-{seed}.json").read_text())["w2"]["5"]
        for seed in range(config.seeds)
    ]
    row = next(row for row in table.rows if row[0] == "RF-2")
    assert row[2].startswith(f"{np.mean(values):.3f} ± {np.std(values):.3f} (")
    assert " | ".join(row) in (out / "table.md").read_text()
    assert r"RF-2 & " in (out / "table.tex").read_text()
    assert (out / "w2.png").stat().st_size > 5_000


@pytest.mark.slow
def test_a_missing_cell_is_run_again_and_only_that(finished, capsys):
    config, out, tables = finished
    lost = out / "cells" / "fm" / "moons-1.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    again = table_plane.main(config)
    assert f"1 of {len(table_plane.METHODS)} groups" in capsys.readouterr().out
    assert json.loads(lost.read_text())["w2"] == pytest.approx(before["w2"], rel=1e-4)
    assert [row[:3] for row in again[0].rows] == [row[:3] for row in tables[0].rows]


def test_names_of_folders_are_distinct():
    labels = [*table_plane.METHODS, *ABLATIONS]
    assert len({slug(label) for label in labels}) == len(labels)


def test_no_draw_shares_its_keys_with_another():
    evaluation, training = grid.seed_keys(0, SMOKE.seeds, "moons")
    streams = [evaluation, training.fit, *(training.root(number) for number in range(3))]
    used = [
        jax.random.key_data(jax.vmap(jax.random.split)(keys)).reshape(-1, 2) for keys in streams
    ]
    assert len({tuple(key) for key in np.concatenate(used).tolist()}) == 5 * SMOKE.seeds * 2


def test_unknown_rows_are_named():
    with pytest.raises(ValueError, match=r"\['GAN'\]"):
        grid.variants("methods", ("GAN",))


def test_ablations_change_only_what_they_name():
    base = flat(SMOKE)
    for label, (_, changes) in ABLATIONS.items():
        settings = flat(replaced(SMOKE, **changes))
        changed = {name for name, value in settings.items() if value != base[name]}
        if "time" in changed:
            changed -= methods.FLOW_TIME.keys()  # it comes with the steps it can be followed by
        assert len(changed) <= 2, (label, changed)


@pytest.mark.slow
def test_pairs_are_the_points_that_the_flows_start_from():
    few = flow(num_particles=32, num_clouds=2, epsilon=0.5)
    x, y = pairs.draw_pairs(few, MOONS, keys(), 16)
    rows, _ = pairs.flow_pool(few, MOONS, keys(), independent_self=False)
    np.testing.assert_allclose(x.reshape(SMOKE.seeds, -1, 2), rows.x[:, :, 0], rtol=1e-6)
    again = pairs.draw_pairs(few, MOONS, keys(), 32)[1]
    np.testing.assert_array_equal(again.reshape(y.shape), y)


def test_optimal_partners_stay_pairs():
    x, y = pairs.draw_pairs(flow(num_particles=32, num_clouds=2), MOONS, keys(), 32)
    partners = pairs.optimal_partners(x, y)
    assert jnp.sum((x - partners) ** 2) < jnp.sum((x - y) ** 2)
    for cloud, other in zip(y.reshape(-1, 32, 2), partners.reshape(-1, 32, 2), strict=True):
        np.testing.assert_array_equal(np.sort(cloud, axis=0), np.sort(other, axis=0))
    rows = pairs.pair_pool(x, partners)
    np.testing.assert_allclose(rows.x + rows.velocity, partners.reshape(rows.x.shape), atol=1e-5)


@pytest.mark.slow
def test_sinkhorn_partners_at_small_epsilon_cost_as_little_as_the_optimal_ones():
    few = flow(num_particles=16, num_clouds=1)
    x, y = pairs.draw_pairs(few, data.task("8gaussians-moons"), keys(), 16)

    def cost(partners):
        return float(jnp.mean(jnp.sum((x - partners) ** 2, axis=-1)))

    best = cost(pairs.optimal_partners(x, y))
    partners, seen = pairs.sinkhorn_partners(1e-2, x, y, keys())
    drawn = cost(partners)
    assert seen["solves"] == x.shape[0] * x.shape[1] and seen["unconverged"] == 0
    assert best * 0.95 < drawn < best * 1.05  # rows are drawn, columns only in expectation
    assert cost(y) > 2 * best


def test_refreshed_pools_must_divide_the_training():
    config = replaced(SMOKE, refreshes=3)
    setting = seeds.Setting(MOONS, config.flow, config.network, config.training, config.sampling)
    with pytest.raises(ValueError, match="multiple of steps_per_call"):
        seeds.fit_seeds(setting, seeds.Keys(keys(), keys()), None, None)
