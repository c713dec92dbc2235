"""Rows of the generators' table, their cells, and one-step samples carried on by a flow."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments import table_generators
from experiments.generators import comparison, grid, refinement
from experiments.generators.checks import check
from experiments.generators.config import preset
from experiments.generators.training import Generator
from sinkflow.fit import Field

RECORDS = pathlib.Path(experiments.__file__).parent / "results"


def rows(out, groups=("objective",), seeds=(0,), **changes):
    return grid.rows(out, "mnist", groups, seeds, **changes)


def test_every_row_can_be_run_and_has_a_cell_of_its_own(tmp_path):
    made = rows(tmp_path, grid.GROUPS, (0, 1))
    for row in made:
        check(row.config)
    assert len({row.file for row in made}) == len(made) == 2 * sum(map(len, grid.GROUPS.values()))


def test_rows_of_a_group_differ_in_what_they_name(tmp_path):
    for group in grid.GROUPS:
        made = [grid.settings(row.config) for row in rows(tmp_path, (group,))]
        assert len({json.dumps(settings) for settings in made}) == len(made)


def test_the_tutorials_epsilon_belongs_to_the_whole_squared_distance(tmp_path):
    found = {row.label: row.config for row in rows(tmp_path, ("tutorial",))}
    config = found["epsilon 1, L 50, m 300"]
    assert config.epsilon == (0.5,) and config.epsilon_unit == "length2"
    assert (config.num_iterations, config.n, config.m) == (50, 300, 300)


def test_a_cell_of_other_settings_is_refused(tmp_path):
    row = rows(tmp_path)[0]
    assert grid.read(row) is None
    row.file.parent.mkdir(parents=True)
    made = {"group": "objective", "row": row.label, "seed": 0, "commit": "abc", "versions": {}}
    made |= {"device": {"kind": "cpu"}, "config": grid.settings(row.config)}
    cell = {**made, "config": {**made["config"], "clip": 7.0}}
    row.file.write_text(json.dumps(cell))
    with pytest.raises(ValueError, match="another clip"):
        grid.read(row)
    row.file.write_text(json.dumps(made))
    assert grid.read(row) == json.loads(row.file.read_text())


def test_an_unknown_group_is_named(tmp_path):
    config = table_generators.Config(groups=("objektive",), out=str(tmp_path))
    with pytest.raises(ValueError, match="objektive"):
        table_generators.main(config)
    assert not list(tmp_path.iterdir())


def test_a_table_is_the_mean_over_seeds_and_says_what_failed():
    def cell(seed, **scores):
        known = {"device": {"kind": "CPU"}, "config": {"train_steps": 7}}
        return {"group": "rate", "seed": seed, **known, **scores}

    cells = [cell(0, row="a", fd=1.0), cell(1, row="a", fd=3.0), cell(0, row="b", failed="NaN")]
    found = comparison.table("mnist", "rate", cells)
    assert found.title == "mnist, one evaluation, 7 steps, CPU"
    assert [line[:2] for line in found.rows] == [["a", "2 ± 1"], ["b", "NaN"]]


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_cells_of_the_records_are_rows_of_the_grid(dataset):
    record = json.loads((RECORDS / f"table-generators-{dataset}.json").read_text())
    known = {(group, label) for group, own in grid.GROUPS.items() for label in own}
    for cell in record["cells"]:
        assert (cell["group"], cell["row"]) in known
        own = grid.GROUPS[cell["group"]][cell["row"]]
        config = preset(dataset, **own)
        assert all(
            cell["config"][name] == json.loads(json.dumps(getattr(config, name))) for name in own
        )


@pytest.mark.slow
def test_a_row_in_miniature_is_run_once(tmp_path, capsys):
    config = table_generators.Config(groups=("final",), smoke=True, out=str(tmp_path))
    first = table_generators.main(config)
    assert "1 of 1 rows to run" in capsys.readouterr().out
    assert table_generators.main(config) == first
    assert "0 of 1 rows to run" in capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "record.json").read_text())["cells"]
    assert cell["unconverged"] == 0 and cell["solves"] == 2 * cell["steps"] * 4  # clouds
    assert cell["fd"] > 0 and 0 < cell["variance_ratio"] < 2
    assert (tmp_path / "samples-final.png").is_file() and (tmp_path / "table.md").is_file()


def refined(starts=(0.75,), counts=(1, 3)):
    """Schemes of a generator that repeats its latent point, and of a field of constant velocity."""
    made = Generator(preset("mnist", latent=2), lambda z, labels: jnp.tile(z, (1, 2)))
    field = Field(lambda params, x, t: jnp.full_like(x, params), 8.0)
    return refinement.schemes(made, field, starts, counts, "ab2")


def test_refined_samples_begin_between_noise_and_image_and_follow_the_flow():
    x = jnp.arange(12.0).reshape(2, 6)  # latent points of two, noise of four
    image, noise = np.tile(x[:, :2], (1, 2)), np.asarray(x[:, 2:])
    alone, *others = refined()
    assert (alone.nfe, [scheme.nfe for scheme in others]) == (1, [2, 4])
    np.testing.assert_array_equal(alone.carry(x), image)
    for scheme in others:
        expected = 0.25 * noise + 0.75 * image + 0.25 * 8.0
        np.testing.assert_allclose(scheme.carry(x), expected, rtol=1e-6)
