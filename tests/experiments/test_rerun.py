"""A run again from its record: equal, or what differs is named."""

import json
import math
import sys

import pytest

from experiments import cifar10, digits, generator, mnist, plane, rerun
from experiments.generators.config import preset
from experiments.harness import cli, comparing
from experiments.harness.files import write_json
from experiments.harness.run import Run, recorded
from experiments.harness.settings import flat, made, replaced
from experiments.pages.blocks import RESULTS

TINY = {
    **{"num_particles": 16, "num_clouds": 1, "hidden_dims": (8,), "batch_size": 64},
    **{"train_steps": 20, "steps_per_call": 10, "checkpoint_every": 10, "nfe": (1, 2)},
    **{"num_samples": 32, "num_floors": 1},
}
CONFIGS = {
    "plane": made(plane.Config, **TINY, task="moons"),
    "digits": digits.Config(seed=3),
    "mnist": made(mnist.Config, **mnist.Config.SMOKE, dataset="fashion", smoke=True),
    "cifar10": cifar10.Config(method="fm"),
    "generator": preset("digits", labels=True),
}


def again(path, out, **options):
    """Whether a rerun is equal."""
    return rerun.main(rerun.Config(path, out=str(out), **options))


def altered(path, where, change):
    """A copy of a record in which one entry is another."""
    record = json.loads(path.read_text())
    inner = record
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = change(inner[where[-1]])
    copy = path.parent / f"altered-{'-'.join(map(str, where))}.json"
    write_json(copy, record)
    return copy


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of a tiny run in the plane."""
    out = tmp_path_factory.mktemp("plane") / "run"
    plane.main(replaced(CONFIGS["plane"], out=str(out)))
    return out / "result.json"


@pytest.mark.slow
def test_a_run_again_is_equal_and_a_finished_one_is_refused(record, tmp_path, capsys):
    assert again(record, tmp_path / "again")
    said = capsys.readouterr().out
    assert " values equal, 0 differ, 0 by more than 0\n" in said
    assert "times" not in said and "settings that the record lacks" not in said
    first, second = (
        json.loads((at / "metrics.jsonl").read_text().splitlines()[-1])
        for at in (record.parent, tmp_path / "again")
    )
    assert first == second
    with pytest.raises(ValueError, match="a finished run is there; remove it or choose another"):
        again(record, tmp_path / "again")


@pytest.mark.slow
def test_an_altered_number_is_caught_and_named(record, tmp_path, capsys):
    wrong = altered(record, ("w2", "1"), lambda value: value * (1 + 1e-6))
    assert not again(wrong, tmp_path / "again")
    said = capsys.readouterr().out.partition("**Values that differ**")[2]
    assert "| w2.1 | " in said and " 1e-06 |" in said
    assert " 1 differ, 1 by more than 0\n" in said
    assert "w2.2" not in said and "floor" not in said


@pytest.fixture
def replayed(record, monkeypatch):
    """The plane's driver as one that gives the tiny run's record at once."""

    def main(config):
        write_json(Run(config).out / "result.json", json.loads(record.read_text()))

    monkeypatch.setattr(plane, "main", main)
    return record


@pytest.mark.slow
def test_the_tolerance_is_none_unless_versions_or_device_are_others(replayed, tmp_path, capsys):
    close = altered(replayed, ("w2", "1"), lambda value: value * 1.001)
    assert not again(close, tmp_path / "a")
    assert again(close, tmp_path / "b", tolerance=0.002)
    for where in (("versions", "jax"), ("device", "kind")):
        other = altered(close, where, lambda value: "another")
        capsys.readouterr()
        assert again(other, tmp_path / where[0])
        assert f"| {'.'.join(where)} | another | " in capsys.readouterr().out
    far = altered(other, ("w2", "1"), lambda value: value * 1.02)
    assert not again(far, tmp_path / "far")
    commit = altered(close, ("commit",), lambda value: "another")
    assert not again(commit, tmp_path / "commit")  # code may differ, versions do not


@pytest.mark.slow
def test_the_exit_status_tells(replayed, tmp_path, monkeypatch, capsys):
    wrong = altered(replayed, ("floor",), lambda value: value + 1)
    for path, code in ((replayed, 0), (wrong, 1)):
        flags = [str(path), "--out", str(tmp_path / path.stem)]
        monkeypatch.setattr(sys, "argv", ["rerun", *flags])
        with pytest.raises(SystemExit) as stop, cli.clear_errors():
            rerun.start()
        assert stop.value.code == code
    assert "| floor | " in capsys.readouterr().out


@pytest.mark.parametrize("name", rerun.DRIVERS)
def test_the_settings_of_every_driver_come_back(name, capsys):
    config = CONFIGS[name]
    asked = json.loads(json.dumps(recorded(flat(config))))
    module = {"plane": plane, "digits": digits, "mnist": mnist, "cifar10": cifar10}
    config_class = module.get(name, generator).Config
    folders = {"out": "here", "data_dir": ""}
    assert rerun.settings_of(config_class, asked, folders) == replaced(config, out="here")
    assert capsys.readouterr().out == ""
    asked.pop("seed")
    rerun.settings_of(config_class, asked, folders)
    assert "lacks have today's defaults: {'seed': 0}" in capsys.readouterr().out
    assert callable(module.get(name, generator).main)


def test_images_are_looked_for_on_this_machine_and_all_stages_are_trained():
    asked = {**flat(CONFIGS["mnist"]), "data_dir": "/theirs", "stages": ["straight"]}
    del asked["out"], asked["tensorboard"]
    found = rerun.settings_of(mnist.Config, asked, {"out": "here", "data_dir": "/ours"})
    assert found.data_dir == "/ours" and found.stages == () and found.out == "here"


@pytest.mark.parametrize(
    ("name", "named", "message"),
    [
        ("table-generators-mnist", "", "it has no config or device, as a single run's"),
        (
            "table-plane",
            "table_plane",
            "driver is table_plane; single runs of plane, digits",
        ),
        ("plane-moons-geodesic", "", "it does not name its driver; give --driver plane, digits"),
        ("plane-moons-geodesic", "digits", "task is no setting; there are "),
        ("bench-cpu", "plane", "it has no config or device"),
    ],
)
def test_records_that_are_of_no_single_run_are_refused(name, named, message, tmp_path):
    path = RESULTS / f"{name}.json"
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        again(path, tmp_path / "out", driver=named)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"config": 1}', '{"config": {}, "device": {}}'])
def test_broken_records_are_named(content, tmp_path):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json"):
        again(tmp_path / "result.json", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        again(tmp_path / "none.json", tmp_path / "out")


def test_help_has_units(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rerun", "--help"])
    with pytest.raises(SystemExit):
        rerun.start()
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[share of the larger]" in said and "Exit status 0" in said and "--out" in said


def test_what_differs_is_found_whatever_its_kind():
    first = {"w2": {"1": 1.0, "2": 0}, "rows": [{"fd": 2.0, "seconds": 1}], "device": {"kind": "a"}}
    second = {"w2": {"1": 1.1, "2": 0.0}, "rows": [{"fd": 2, "seconds": 9}], "times": {"x": 1}}
    equal, found = comparing.compared(first, second)
    assert equal == 3 and [one.name for one in found] == ["w2.1"]
    assert found[0].relative == pytest.approx(0.1 / 1.1)
    for a, b in ((1.0, "1.0"), (1, True), (None, 0), (math.nan, 1.0), (math.inf, 1.0)):
        assert comparing.relative(a, b) == math.inf
    assert comparing.relative(0.0, 1e-300) == comparing.relative(-1.0, 0.0) == 1.0
    _, found = comparing.compared({"x": [1, 2]}, {"x": [1], "y": 3})
    assert [one.name for one in found] == ["len(x)", "x[1]", "y"]
    assert [one[1:3] for one in found] == [(2, 1), (2, comparing.ABSENT), (comparing.ABSENT, 3)]
    seen = comparing.circumstances(first, second)
    assert [one[:3] for one in seen] == [("device.kind", "a", comparing.ABSENT)]
