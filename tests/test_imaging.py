"""Image models: rows, pairs and pools by their definitions, settings, tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import common, imaging, mnist, sample, stages, table_images
from experiments.image_config import check, check_data
from sinkflow import pool, unet

SMALL = {
    "num_particles": 32,
    "num_clouds": 2,
    "clouds_per_call": 2,
    "pair_size": 16,
    "refresh_every": 10,
    "steps_per_call": 10,
    "checkpoint_every": 10,
    "batch_size": 8,
}


@dataclasses.dataclass(frozen=True)
class Tiny(mnist.Config):
    """Images of 4x4 pixels."""

    SHAPE = (4, 4, 1)


@pytest.fixture
def config(tmp_path):
    return Tiny(**SMALL, out=str(tmp_path / "run"))


@pytest.fixture
def pixels(key):
    return jax.random.randint(key, (200, 4, 4, 1), 0, 256).astype(jnp.uint8)


def ends(rows):
    """Where straight paths end, as bytes: x + (1 - t) velocity."""
    end = rows.x + (1 - rows.t)[:, None] * rows.velocity
    return np.asarray((end + 1) * 127.5)


def assert_images(end, pixels, atol):
    """Every end is one of the images."""
    known = np.asarray(pixels, np.float64).reshape(len(pixels), -1)
    gaps = np.abs(end[:, None] - known[None]).max(axis=2).min(axis=1)
    assert gaps.max() < atol


def test_straight_rows_end_at_images_and_start_at_noise(key, pixels):
    rows = stages.straight_rows(pixels, key, 500, 0.0, mirror=False)
    assert_images(ends(rows), pixels, atol=0.01)
    start = rows.x - rows.t[:, None] * rows.velocity
    assert abs(float(jnp.mean(start))) < 0.05 and abs(float(jnp.std(start)) - 1) < 0.05
    assert 0 <= float(rows.t.min()) < 0.02 and 0.98 < float(rows.t.max()) < 1


@pytest.mark.slow
def test_straight_rows_of_a_second_phase_begin_at_its_start(key, config, pixels):
    config = dataclasses.replace(config, straight_start=0.25, pairs="exact", pair_size=16)
    late = stages.straight_rows(pixels, key, 500, 0.25, mirror=False)
    assert 0.25 <= float(late.t.min()) < 0.27 and 0.98 < float(late.t.max()) < 1
    assert_images(ends(late), pixels, atol=0.01)
    for method, pairs, first in (
        ("nsgf++", "exact", 0.25),
        ("nsgf++", "independent", 0.25),
        ("ot-cfm", "independent", 0.0),
    ):
        made = dataclasses.replace(config, method=method, pairs=pairs)
        parts = stages.make_stages(common.Run(made), made, pixels)
        for name in {"straight", "predictor"} & parts.keys():
            data = parts[name].data(0)
            times = jnp.concatenate([parts[name].draw(data, k).t for k in jax.random.split(key, 9)])
            assert first <= float(times.min()) < first + 0.1 and float(times.max()) > 0.9


def test_mirrored_rows_end_at_images_or_their_mirrors(key, pixels):
    rows = stages.straight_rows(pixels, key, 500, 0.0, mirror=True)
    both = jnp.concatenate([pixels, pixels[:, :, ::-1]])
    assert_images(ends(rows), both, atol=0.01)
    with pytest.raises(AssertionError):
        assert_images(ends(rows), pixels, atol=0.01)


@pytest.mark.slow
def test_pool_of_flows_ends_at_images(key, config, pixels):
    run = common.Run(config)
    rows = stages.flow_pools(run, dataclasses.replace(config, neighbours=1.01), pixels)(0)
    assert rows.x.dtype == rows.velocity.dtype == jnp.float16
    last = stages.pool_rows(
        pool.Pool(*(leaf[:, -1:].astype(jnp.float32) for leaf in rows)), key, 300
    )
    # Nearly one neighbour each, so that most paths end at an image, to the digits of float16.
    known = np.asarray(pixels, np.float64).reshape(len(pixels), -1)
    gaps = np.abs(ends(last)[:, None] - known[None]).max(axis=2).min(axis=1)
    assert np.median(gaps) < 2
    [record] = imaging.pool_records(run)
    assert record["unconverged"] == 0 and record["neighbours"][-1] < 1.1


def test_parts_of_a_training_have_clouds_of_their_own(config, pixels):
    make = stages.flow_pools(common.Run(config), config, pixels)
    first, again, other = make(0), make(0), make(1)
    np.testing.assert_array_equal(first.x, again.x)
    assert np.mean(np.asarray(first.x[:, 0]) == np.asarray(other.x[:, 0])) < 0.01


@pytest.mark.parametrize("pairs", ["exact", "sinkhorn"])
@pytest.mark.slow
def test_optimal_pairs_stay_pairs_and_are_cheaper(config, pixels, pairs):
    config = dataclasses.replace(config, pairs=pairs)
    rows = stages.pair_pools(common.Run(config), config, pixels)(0)
    assert rows.x.shape == (64, 1, 16)
    end = np.asarray(rows.x + rows.velocity, np.float64)[:, 0]
    assert_images((end + 1) * 127.5, pixels, atol=1.0)  # float16
    cost = float(jnp.mean(jnp.sum(rows.velocity.astype(jnp.float32) ** 2, axis=2)))
    # Independent pairs cost d (1 + 1/3) on average; these choose among 16.
    assert cost < 0.8 * 16 * (1 + 1 / 3)


def test_impossible_neighbours_say_what_is_possible(config):
    same = jnp.zeros((200, 4, 4, 1), jnp.uint8)  # every target is the same image
    with pytest.raises(RuntimeError, match=r"no epsilon gives clouds of 32 images 1.5 neighbours"):
        stages.flow_pools(common.Run(config), config, same)(0)


def test_methods_train_for_the_same_number_of_steps(config):
    totals = {
        method: sum(dataclasses.replace(config, method=method).steps().values())
        for method in stages.STAGES
    }
    assert set(totals.values()) == {20_000}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, "batch_size is 6"),
        ({"refresh_every": 15}, "refresh_every is 15"),
        ({"straight_steps": 5}, "straight_steps is 5"),
        ({"pair_size": 24}, "multiple of pair_size, 24"),
        ({"clouds_per_call": 3}, "clouds_per_call is 3; it must divide 2"),
        ({"phase_end": 1.5}, "phase_end is 1.5"),
        ({"row_power": 0.0}, r"row_power is 0\.0; it lies in \(0, inf\)"),
        ({"neighbours": 0.5}, r"neighbours is 0\.5; it lies in \(1, num_particles\)"),
        ({"step_size": 3.0}, r"step_size is 3\.0; it lies in \(0, 1\]"),
        ({"num_samples": 5}, r"num_samples is 5; it lies in \[6, inf\)"),
        ({"phase_end": 0.4}, r"straight_start is 0\.4; it lies in \[0, phase_end\), below 0\.4"),
        ({"nfe": (5, 0)}, "nfe 0 is 0"),
        ({"nfe": ()}, "nfe is empty"),
        ({"method": "fm", "pairs": "exact"}, "pairs is 'exact'; fm has its own"),
        ({"method": "fm", "stages": ("velocity",)}, "fm has no stage 'velocity'; it has straight"),
    ],
)
def test_settings_that_cannot_be_are_named(config, changes, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(config, **changes))


def test_clouds_larger_than_the_data_are_named(config):
    for changes, name in (({}, "num_particles"), ({"pairs": "exact"}, "pair_size")):
        wrong = dataclasses.replace(config, num_particles=16, num_clouds=2, **changes)
        wrong = dataclasses.replace(wrong, **{name: 64})
        with pytest.raises(ValueError, match=f"{name} is 64; there are 40 training images"):
            check_data(wrong, 40)
        check_data(wrong, 64)
    check_data(dataclasses.replace(config, method="fm"), 1)


def test_a_rival_has_no_first_phase_to_check(config):
    check(dataclasses.replace(config, method="fm", phase_end=0.3))
    with pytest.raises(ValueError, match="straight_start"):
        check(dataclasses.replace(config, phase_end=0.3))


def test_memory_ahead_counts_what_is_kept_by_hand(config):
    big = {"num_particles": 1000, "num_clouds": 10, "clouds_per_call": 5, "flow_steps": 5}
    pixels = np.zeros((1000, 784), np.uint8)
    line = imaging.memory_ahead(mnist.Config(**big), pixels)
    pool = 2 * 10_000 * 5 * 784 * 4 / 1e9
    total = 0.000784 + pool + pool / 2 + 5 * 16 * 1000**2 / 1e9
    assert f"{total:.2f} and a training step's (images 0.00, pool {pool:.2f}" in line
    assert "(images 0.00)" in imaging.memory_ahead(mnist.Config(method="fm"), pixels)


def test_an_image_run_is_not_for_the_sampler_of_vectors(config):
    common.Run(dataclasses.replace(mnist.Config(), out=config.out))
    with pytest.raises(ValueError, match="mnist draws its samples itself; start it again"):
        sample.main(sample.Config(run=config.out, num_samples=1, nfe=1))


def test_two_phases_follow_each_field_over_its_own_part(config):
    constant = lambda params, x, t: jnp.broadcast_to(params[None], x.shape)
    fields = {
        "velocity": stages.Field(constant, jnp.full(16, 10.0)),
        "straight": stages.Field(constant, jnp.full(16, 1.0)),
        "predictor": stages.Field(lambda params, x: jnp.full(x.shape[0], params), jnp.array(0.25)),
    }
    x0 = jnp.zeros((3, 16))
    # Euler's method: steps that remember would carry the first field into the second.
    config = dataclasses.replace(config, phase_end=0.7, stepper="euler")
    end = imaging.two_phases(config, fields, 10)(x0)
    np.testing.assert_allclose(end, 0.7 * 10 + (1 - 0.25) * 1, rtol=1e-5)  # by hand


@pytest.mark.slow
def test_networks_on_vectors_are_those_on_images(key):
    model = unet.UNet(8, (1,), 1, dtype=jnp.float32)
    network = stages.on_vectors(model, (4, 4, 1), jnp.zeros(1))
    params = network.init(key)
    assert params.ndim == 1
    x, t = jax.random.normal(key, (3, 16)), jnp.array([0.1, 0.5, 0.9])
    noisy = params + 0.1 * jax.random.normal(key, params.shape)
    tree = ravel_pytree(model.init(key, jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)))[1]
    expected = model.apply(tree(noisy), x.reshape(3, 4, 4, 1), t).reshape(3, 16)
    np.testing.assert_allclose(network.apply_fn(noisy, x, t), expected, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(expected)) > 0.01


@pytest.mark.slow
def test_a_trained_stage_carries_noise_to_the_image(config):
    image = jnp.where(jnp.arange(16).reshape(4, 4, 1) % 3 == 0, 255, 0).astype(jnp.uint8)
    config = dataclasses.replace(
        config,
        **{"method": "fm", "channels": 16, "multipliers": (1,), "num_blocks": 1, "batch_size": 32},
        **{"velocity_steps": 10, "predictor_steps": 10, "straight_steps": 280},
        **{"learning_rate": 1e-2, "nfe": (10,), "sample_batch": 8},
    )
    pixels = jnp.broadcast_to(image[None], (64, 4, 4, 1))
    fields = imaging.train_stages(common.Run(config), config, pixels)
    [scheme] = imaging.schemes(config, fields)
    end = scheme.carry(imaging.noise(config, 0))
    wanted = stages.vectors(None, image[None], mirror=False)
    assert float(jnp.max(jnp.mean(jnp.abs(end - wanted), axis=1))) < 0.2  # it was 1.2 at first


def test_a_stage_begins_with_given_parameters_and_leaves_them(config):
    config = dataclasses.replace(config, learning_rate=1e-12, straight_steps=10)
    linear = lambda params, x, t: x * params[0] + t[:, None] * params[1]
    params = jnp.array([0.3, -0.7])
    network = stages.Network(lambda key: jnp.zeros(2), linear)
    rows = stages.Rows(jnp.ones((8, 16)), jnp.full(8, 0.5), jnp.zeros((8, 16)), None)
    loss = lambda apply_fn, params, rows: jnp.mean(apply_fn(params, rows.x, rows.t) ** 2)
    stage = stages.Stage(network, loss, lambda data, key: data, lambda part: rows)
    field = stages.learn(common.Run(config), config, "straight", stage, params)
    np.testing.assert_allclose(field.params, [0.3, -0.7], atol=1e-6)
    np.testing.assert_array_equal(params, jnp.array([0.3, -0.7]))  # its memory was not given away


def test_the_straight_flow_alone_asks_for_the_velocity(config, pixels):
    config = dataclasses.replace(config, stages=("predictor", "straight"))
    with pytest.raises(ValueError, match="begins as the velocity; train that stage first"):
        imaging.train_stages(common.Run(config), config, pixels)
    assert not (config.folder() / "predictor").exists()


def test_samples_that_are_not_finite_have_a_row_that_says_so(config):
    config = dataclasses.replace(config, num_samples=6, sample_batch=4)
    carry = lambda x: jnp.where(x[:, :1] > 0, jnp.nan, x)
    scheme = imaging.Scheme("NSGF", 2, carry)
    row, pixels = imaging.judged(common.Run(config), config, scheme, None)
    noise = jnp.concatenate([imaging.noise(config, k) for k in (0, 1)])[:6]
    bad = int((noise[:, 0] > 0).sum())
    assert row == {"method": "NSGF", "nfe": 2, "failed": f"{bad} of 6 samples are not finite"}
    assert pixels is None and bad > 0
    assert row["failed"] in imaging.row_line(row)


def test_an_interrupted_scoring_goes_on_and_other_samples_are_drawn_anew(config, monkeypatch):
    monkeypatch.setenv("SINKFLOW_COMMIT", "123456789abc")
    config = dataclasses.replace(config, num_samples=6, sample_batch=4)
    run, calls = common.Run(config), []

    def score(pixels):
        calls.append(len(pixels))
        return {"fd": 1.0}

    scheme = imaging.Scheme("NSGF", 2, lambda x: 0.5 * x)
    row, pixels = imaging.judged(run, config, scheme, score)
    again, same = imaging.judged(run, config, scheme, score)
    assert row == again and calls == [6] and pixels.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(pixels, same)
    imaging.judged(run, dataclasses.replace(config, num_samples=5), scheme, score)
    assert calls == [6, 5]


@pytest.mark.parametrize("commit", ["123456789abc-dirty", "unknown"])
def test_scores_of_code_that_no_commit_names_are_not_kept(config, monkeypatch, commit):
    monkeypatch.setenv("SINKFLOW_COMMIT", commit)
    config = dataclasses.replace(config, num_samples=6, sample_batch=4)
    scheme = imaging.Scheme("NSGF", 2, lambda x: 0.5 * x)
    scores = [
        imaging.judged(common.Run(config), config, scheme, lambda pixels, fd=fd: {"fd": fd})[0]
        for fd in (1.0, 2.0)
    ]
    assert [row["fd"] for row in scores] == [1.0, 2.0]


# The table.


def result_of(method, fds, **changes):
    settings = {
        **{"dataset": "mnist", "num_samples": 100, "channels": 8, "multipliers": [1, 2]},
        **{"num_blocks": 1, "batch_size": 16, "attention": [], "dropout": 0.0},
        **{"learning_rate": 1e-3, "clip": 1.0, "ema_decay": 0.999},
        **{"velocity_steps": 10, "predictor_steps": 10, "straight_steps": 10, "method": method},
        **{"stepper": "ab2", "sample_batch": 10, "seed": 0, "smoke": False, **changes},
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
            common.write_json(folder / "result.json", result)
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
    assert table_images.training_table([lost]).rows == [["FM", "0.0", "0.0", "unknown"]]


def test_a_table_of_failures_says_so(results):
    broken = result_of("FM", {})
    broken["rows"].append({"method": "FM", "nfe": 2, "failed": "3 of 100 samples are not finite"})
    table = table_images.main(results(broken))
    assert table.rows[0] == ["FM", "2", "3 of 100 samples are not finite"]
    assert all(len(row) == len(table.header) for row in table.rows)


def test_a_resumed_training_is_said_to_be_one():
    resumed = result_of("FM", {100: 7.0})
    resumed["training"]["straight"]["resumed_from"] = 1000
    assert table_images.training_table([resumed]).rows[0][:2] == ["FM", "2.5 from step 1,000"]


def test_a_training_on_another_device_is_said_to_be_one():
    moved = result_of("FM", {100: 7.0})
    moved["training"]["straight"] |= {"device": {"kind": "tpu"}, "commit": "abc"}
    label = table_images.training_table([moved]).rows[0][0]
    assert label == "FM (trained on tpu, commit abc)"
    moved["training"]["straight"] |= {"device": {"kind": "cpu"}, "commit": moved["commit"]}
    assert table_images.training_table([moved]).rows[0][0] == "FM"


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


def test_runs_of_one_method_or_two_judges_are_refused(results):
    twice = results(result_of("FM", {10: 1.0}), result_of("FM", {10: 2.0}))
    with pytest.raises(ValueError, match=r"two runs have rows of \('FM', 10\)"):
        table_images.main(twice)


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
