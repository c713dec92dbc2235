"""The grid of image methods and seeds: what it runs, skips and leaves to others."""

import subprocess
import sys

import pytest

from experiments import grid_images
from experiments.harness import stopping
from experiments.harness.files import slug, write_json
from experiments.harness.run import recorded
from experiments.harness.settings import flat
from experiments.images import grid, pipeline
from experiments.images.checks import check
from tests.experiments.test_table_images import result_of


@pytest.fixture
def config(tmp_path):
    return grid_images.Config(
        methods=("ot-cfm", "fm"), seeds=(0, 3), out=str(tmp_path / "grid"), smoke=True
    )


@pytest.fixture
def made(monkeypatch):
    """Names of the runs that are made, without their work."""
    names = []

    def run(config, material):
        names.append(config.folder().name)
        result = result_of(config.label(), {2: 3.0 + config.seed})
        config.folder().mkdir(exist_ok=True)
        own = recorded(flat(config))
        write_json(config.folder() / "result.json", {**result, "config": own})

    monkeypatch.setattr(pipeline, "main", run)
    return names


def test_every_run_is_named_after_its_label_and_can_be(tmp_path):
    runs = grid.configs(tmp_path, list(grid.RUNS), (2,), smoke=False)
    assert list(runs) == [f"{slug(one.label())}-2" for one in runs.values()]
    for one in runs.values():
        check(one)
        assert one.seed == 2 and one.flow.pair_size == (
            4096 if one.flow.pairs == "sinkhorn" else 256
        )


def test_a_grid_makes_what_is_missing_and_ends_with_the_table(config, made, tmp_path):
    table = grid_images.main(config)
    assert made == ["ot-cfm-0", "ot-cfm-3", "fm-0", "fm-3"]
    rows = [row[:4] for row in table.rows]
    assert rows[:2] == [["OT-CFM", "2", "2", "4.5 ± 1.5"], ["FM", "2", "2", "4.5 ± 1.5"]]
    assert (tmp_path / "grid" / "table.md").exists() and (tmp_path / "grid" / "fd.png").exists()
    (tmp_path / "grid" / "fm-3" / "result.json").unlink()
    assert grid_images.main(config).rows == table.rows and made[4:] == ["fm-3"]


def test_a_run_of_another_process_is_left_to_it(config, made, tmp_path):
    out = tmp_path / "grid"
    out.mkdir()
    holding = f"import pathlib, sys; from experiments.harness import folders; folders.take({out!r}"
    holding = f"{holding.replace('PosixPath', 'pathlib.Path')}, 'fm-0'); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        other.stdout.readline()
        assert grid_images.main(config) is None
        assert made == ["ot-cfm-0", "ot-cfm-3", "fm-3"]
    finally:
        other.communicate("\n")
    assert len(grid_images.main(config).rows) == 3 and made[3:] == ["fm-0"]


def test_a_run_of_other_settings_is_refused(config, made):
    grid_images.main(config)
    file = config.folder() / "fm-0" / "result.json"
    write_json(file, {"config": {**grid.read_object(file)["config"], "batch_size": 99}})
    with pytest.raises(ValueError, match=r"fm-0.*another batch_size \(99 instead of 16\)"):
        grid_images.main(config)


def test_an_unknown_method_is_named(config, tmp_path):
    with pytest.raises(ValueError, match=r"methods has \['gan'\]; choose among fm, fm-two"):
        grid.configs(tmp_path, ("fm", "gan"), (0,), smoke=True)


@pytest.mark.slow
def test_a_stopped_grid_goes_on(config, monkeypatch, tmp_path):
    config = grid_images.Config(methods=("fm",), seeds=(0, 1), out=config.out, smoke=True)
    whole = pipeline.report

    def stop(*_):
        raise stopping.Stopped("asked to")

    monkeypatch.setattr(pipeline, "report", stop)
    with pytest.raises(stopping.Stopped):
        grid_images.main(config)
    monkeypatch.setattr(pipeline, "report", whole)
    table = grid_images.main(config)
    assert [row[:3] for row in table.rows[:2]] == [["FM", "2", "2"], ["FM", "5", "2"]]
    first, second = (
        grid.read_object(tmp_path / "grid" / f"fm-{seed}" / "result.json") for seed in (0, 1)
    )
    assert (first["resumed_from"], second["resumed_from"]) == (50, None)
    assert first["rows"] != second["rows"]
