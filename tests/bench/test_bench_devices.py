"""The benchmark of several devices: its rows, its table, its processes in miniature."""

import json

import pytest

from experiments import bench_devices
from experiments.bench import devices_session as session
from experiments.bench.record import Record
from experiments.harness.settings import made, replaced

SMOKE = made(bench_devices.Config, **bench_devices.Config.SMOKE, smoke=True)


def found(task, scaling, devices, rate):
    row = {"task": task, "scaling": scaling, "devices": devices, "rate": rate, "commit": "c"}
    return {**row, "device": "d", "seconds": 1.0, "fastest_slowest": [0.9, 1.2]}


def test_one_device_has_a_row_for_each_task_and_more_have_two():
    rows = session.rows(("unet", "pool"), (1, 4))
    names = [tuple(row.values()) for row in rows]
    assert names[:2] == [("unet", "weak", 1), ("pool", "weak", 1)]
    assert sorted(names[2:]) == [(t, s, 4) for t in ("pool", "unet") for s in ("strong", "weak")]


def test_efficiency_is_a_share_of_as_many_times_one_device():
    rows = [found("unet", "weak", 1, 100.0), found("unet", "weak", 2, 190.0)]
    rows += [found("unet", "strong", 2, 150.0)]
    missing = {"task": "pool", "scaling": "weak", "devices": 2, "not_run": "no GPU", "commit": "c"}
    record = {"rows": [*rows, missing], "precision": "float32\n"}
    compared = {row["scaling"]: row for row in session.compared(record) if row["devices"] == 2}
    assert compared["strong"]["speedup"] == pytest.approx(1.5)
    assert compared["strong"]["efficiency"] == pytest.approx(0.75)
    table = session.report(record)
    assert "| unet | weak | 2 | 190 images/s | 1 | 0.9 | 1.2 | 1.90 | 95% |" in table
    assert "not run: no GPU" in table and "float32" in table


def test_rows_that_are_there_are_not_measured_again(tmp_path):
    record = Record(tmp_path / "devices.json", session.IDENTITY, session.summary, {})
    record.rows = [found("unet", "weak", 1, 1.0)]
    wanted = session.rows(("unet", "pool"), (1,))
    assert [row["task"] for row in session.missing(record, wanted)] == ["pool"]


def test_a_process_sees_the_first_of_the_devices_that_are_named():
    seen = session.environment("gpu", 2, {"CUDA_VISIBLE_DEVICES": "5,6,7"})
    assert seen["CUDA_VISIBLE_DEVICES"] == "5,6"
    assert session.environment("gpu", 2, {})["CUDA_VISIBLE_DEVICES"] == "0,1"
    flags = session.environment("cpu", 2, {"XLA_FLAGS": "--a"})["XLA_FLAGS"]
    assert flags == "--a --xla_force_host_platform_device_count=2"


def test_work_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="clouds is 2; 4 devices cannot share it evenly"):
        bench_devices.main(replaced(SMOKE, counts=(1, 4), out=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_smoke_run_measures_every_row_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    monkeypatch.delenv("XLA_FLAGS")
    config = replaced(SMOKE, out=str(tmp_path), tasks=("unet", "pool"))
    record = bench_devices.main(config)
    assert len(record["rows"]) == 6 and all(row["rate"] > 0 for row in record["rows"]), record
    assert json.loads((tmp_path / "devices.json").read_text()) == record
    assert (tmp_path / "devices.md").read_text() == session.report(record)
    capsys.readouterr()
    assert bench_devices.main(config)["rows"] == record["rows"]
    assert "ready after" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="batch: 8 there, 16 here"):
        bench_devices.main(replaced(config, batch=16))
