"""Tables of the image models: rows, what is left out, what is refused."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import table_images
from experiments.harness import files
from experiments.images import comparison, config
from experiments.images.comparison import training_table


def result_of(method, fds, **changes):
    settings = {
        **{"dataset": "mnist", "num_samples": 100, "channels": 8, "multipliers": [1, 2]},
        **{"num_blocks": 1, "batch_size": 16, "attention": [], "dropout": 0.0},
        **{"learning_rate": 1e-3, "clip": 1.0, "ema_decay": 0.999},
        **{"velocity_steps": 10, "predictor_steps": 10, "straight_steps": 10, "method": method},
        **{"stepper": "ab2", "sample_batch": 10, "seed": 0, "smoke": False},
        **{"pairs": "independent", **changes},
    }
    took = {"train straight": 2.5, "compile": 1.0, "pool": 0.5}
    rows = [
        {"method": method, "nfe": nfe, "fd": fd, "kd": 2.0, "recall": 0.5, "seconds_per_10k": 3.0}
        for nfe, fd in fds.items()
    ]
    references = {"floor": {"fd": 2.0, "kd": 0.0, "recall": 0.9}}
    return {
        "rows": rows,
        "references": references,
        "dropped": ["recall"],
        "config": settings,
        "dataset": "mnist",
        "num_samples": 100,
        "classifier": "abc",
        "device": {"kind": "cpu", "count": 1, "host_cores": 2},
        "commit": "123456789abc",
        "training": {"straight": {"seconds": took, "resumed_from": None, "device_memory_gb": 3.0}},
    }


@pytest.fixture
def results(tmp_path):
    def write(*results):
        paths = []
        for number, result in enumerate(results):
            folder = tmp_path / f"run{number}"
            folder.mkdir()
            files.write_json(folder / "result.json", result)
            paths.append(str(folder))
        return table_images.Config(runs=tuple(paths), out=str(tmp_path / "table"))

    return write


def test_table_has_a_row_for_each_method_and_count_and_drops_blind_metrics(results, tmp_path):
    two_phases = result_of("NSGF++", {10: 20.0, 60: 5.25})
    two_phases["rows"].insert(1, {**two_phases["rows"][0], "method": "NSGF"})
    config = results(two_phases, result_of("FM", {100: 7.0}))
    table = table_images.main(config)
    assert table.header == ["method", "NFE", "FD ↓", "KD ↓", "s per 10k"]
    assert table.rows == [
        ["NSGF++", "10", "20", "2", "3"],
        ["NSGF++", "60", "5.25", "2", "3"],
        ["NSGF", "10", "20", "2", "3"],
        ["FM", "100", "7", "2", "3"],
        ["*floor*", "", "2", "0", ""],
    ]
    text = (tmp_path / "table" / "table.md").read_text()
    assert "| FM | 100 | 7 | 2 | 3 |" in text and "miss a trap: recall" in text
    assert "commit 123456789abc" in text
    assert "| FM | 2.5 | 0.5 | 1.0 | 3.0 |" in text
    assert (tmp_path / "table" / "table.tex").read_text().isascii()
    assert (tmp_path / "table" / "fd.png").stat().st_size > 5_000


def test_a_scheme_that_failed_has_a_row_without_numbers(results):
    broken = result_of("FM", {100: 7.0})
    broken["rows"].append({"method": "FM", "nfe": 2, "failed": "3 of 100 samples are not finite"})
    table = table_images.main(results(broken))
    assert ["FM", "2", "3 of 100 samples are not finite", "", ""] in table.rows


def test_a_training_without_a_record_leaves_its_cells_empty():
    lost = {**result_of("FM", {100: 7.0}), "training": {}}
    assert training_table([lost]).rows == [["FM", "0.0", "0.0", "unknown"]]


def test_a_table_of_failures_says_so(results):
    broken = result_of("FM", {})
    broken["rows"].append({"method": "FM", "nfe": 2, "failed": "3 of 100 samples are not finite"})
    table = table_images.main(results(broken))
    assert table.rows[0] == ["FM", "2", "3 of 100 samples are not finite"]
    assert all(len(row) == len(table.header) for row in table.rows)


def test_a_resumed_training_is_said_to_be_one():
    resumed = result_of("FM", {100: 7.0})
    resumed["training"]["straight"]["resumed_from"] = 1000
    assert training_table([resumed]).rows[0][:2] == ["FM", "2.5 from step 1,000"]


def test_a_training_on_another_device_is_said_to_be_one():
    moved = result_of("FM", {100: 7.0})
    moved["training"]["straight"] |= {"device": {"kind": "tpu"}, "commit": "abc"}
    label = training_table([moved]).rows[0][0]
    assert label == "FM (trained on tpu, commit abc)"
    moved["training"]["straight"] |= {"device": {"kind": "cpu"}, "commit": moved["commit"]}
    assert training_table([moved]).rows[0][0] == "FM"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "tpu"}, "device tpu instead of cpu"), ({"count": 2}, "device count 2 instead of 1")],
)
def test_times_on_other_devices_are_refused(results, change, message):
    other = result_of("FM", {100: 7.0})
    other["device"] |= change
    with pytest.raises(ValueError, match=message):
        table_images.main(results(result_of("NSGF++", {10: 20.0}), other))


def test_hosts_may_differ_in_their_cores(results):
    other = result_of("FM", {100: 7.0})
    other["device"]["host_cores"] = 64
    assert len(table_images.main(results(result_of("NSGF++", {10: 20.0}), other)).rows) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 16}, "channels 16 instead of 8"),
        ({"straight_steps": 40}, "60 optimiser steps instead of 30"),
        ({"dataset": "fashion"}, "dataset fashion instead of mnist"),
        ({"stepper": "euler"}, "stepper euler instead of ab2"),
        ({"smoke": True}, "smoke True instead of False"),
    ],
)
def test_unfair_comparisons_are_refused(results, changes, message):
    config = results(result_of("NSGF++", {10: 1.0}), result_of("FM", {10: 1.0}, **changes))
    with pytest.raises(ValueError, match=message):
        table_images.main(config)


def test_two_runs_of_a_method_and_seed_are_refused(results):
    twice = results(result_of("FM", {10: 1.0}), result_of("FM", {10: 2.0}))
    with pytest.raises(ValueError, match=r"two runs have rows of \('FM', 10\) and seed 0"):
        table_images.main(twice)


def test_seeds_of_a_method_have_mean_deviation_and_bars(results, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "sinkflow.plotting.curves", lambda panels, *_, **__: drawn.update(panels) or Figure()
    )
    seeds = [result_of("FM", {10: fd, 60: 2 * fd}, seed=k) for k, fd in enumerate((1.0, 2.0, 6.0))]
    seeds[1]["rows"].reverse()
    table = table_images.main(results(result_of("OT-CFM", {10: 4.0}, seed=7), *seeds))
    assert table.header[:4] == ["method", "NFE", "seeds", "FD ↓"]
    assert [row[:4] for row in table.rows] == [
        ["OT-CFM", "10", "1", "4"],
        ["FM", "10", "3", "3 ± 2.2"],  # by hand: the root of (4 + 1 + 9) / 3
        ["FM", "60", "3", "6 ± 4.3"],
        ["*floor*", "", "", "2"],
    ]
    assert all(len(row) == len(table.header) for row in table.rows)
    alone, several = (drawn["mnist"][name] for name in ("OT-CFM", "FM"))
    assert alone.error is None and (alone.x, alone.y) == ([10], [4.0])
    np.testing.assert_allclose(several.y, [3, 6])
    np.testing.assert_allclose(several.error, np.array([1, 2]) * np.sqrt(14 / 3))
    names = [row[0] for row in training_table([*seeds]).rows]
    assert names == ["FM, seed 0", "FM, seed 1", "FM, seed 2"]


def test_a_seed_that_failed_is_counted_and_not_drawn(results):
    seeds = [result_of("FM", {10: 1.0}, seed=k) for k in range(3)]
    seeds[2]["rows"] = [{"method": "FM", "nfe": 10, "failed": "3 of 100 samples are not finite"}]
    table = table_images.main(results(*seeds))
    assert table.rows[0][2:4] == ["3", "1 of 3 seeds: 3 of 100 samples are not finite"]
    assert comparison.distances(seeds) == {}


def test_seeds_of_a_method_have_the_same_settings(results):
    other = result_of("FM", {10: 1.0}, seed=1, row_power=2.0)
    with pytest.raises(ValueError, match=r"no other seed of .*run0: row_power 2.0 instead of 1.0"):
        table_images.main(results(result_of("FM", {10: 1.0}, row_power=1.0), other))


def test_variants_of_a_method_have_labels_of_their_own():
    names = {
        ("nsgf++", "independent", 0.0): "NSGF++",
        ("nsgf++", "sinkhorn", 0.0): "NSGF++, Sinkhorn pairs",
        ("nsgf++", "exact", 0.0): "NSGF++, exact pairs",
        ("ot-cfm", "independent", 0.0): "OT-CFM",
        ("ot-cfm", "exact", 0.5): "OT-CFM, two networks",
        ("ot-cfm", "sinkhorn", 0.0): "OT-CFM, Sinkhorn pairs",
        ("fm", "independent", 0.5): "FM, two networks",
    }
    assert {settings: config.label_of(*settings) for settings in names} == names


def test_another_classifier_is_another_judge(results):
    other = {**result_of("FM", {10: 2.0}), "classifier": "def"}
    with pytest.raises(ValueError, match="classifier def instead of abc"):
        table_images.main(results(result_of("NSGF++", {10: 1.0}), other))


def test_distances_to_other_inception_weights_are_refused(results):
    same = {"split": "test", "count": 100, "resize": "b", "torch_fidelity": "0.4", "fid": 1.0}
    first, second = result_of("NSGF++", {10: 1.0}), result_of("FM", {10: 2.0})
    first["rows"][0]["inception"] = {**same, "weights_sha256": "aa"}
    second["rows"][0]["inception"] = {**same, "weights_sha256": "bb"}
    with pytest.raises(ValueError, match="Inception's weights_sha256 bb instead of aa"):
        table_images.main(results(first, second))


def test_unfinished_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*result\.json; start the run"):
        table_images.main(table_images.Config(runs=(str(tmp_path),)))
