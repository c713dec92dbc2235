"""Image models: rows, pairs and pools by their definitions, settings, scoring."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import mnist, sample
from experiments.harness.run import Run
from experiments.harness.settings import made, replaced
from experiments.images import pipeline, pools, rows, sampling, scoring, stages
from experiments.images.checks import check, check_data
from experiments.images.config import METHODS, keys_of, stage_steps
from experiments.images.sampling import Scheme, schemes, two_phases
from sinkflow import nets, pool
from sinkflow.fit import Field
from sinkflow.nets import unet

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
    return made(Tiny, **SMALL, out=str(tmp_path / "run"))


@pytest.fixture
def pixels(key):
    return jax.random.randint(key, (200, 4, 4, 1), 0, 256).astype(jnp.uint8)


def stages_of(config, pixels):
    """The stages that a run of the config trains."""
    return stages.make_stages(
        Run(config),
        pixels,
        keys_of(config.seed),
        method=config.method,
        data_set=config.data_set(),
        flow=config.flow,
        network=config.network,
        training=config.training,
    )


def trained(config, pixels):
    """Fields of a run of the config."""
    return stages.train_stages(
        Run(config),
        stages_of(config, pixels),
        keys_of(config.seed),
        method=config.method,
        chosen=config.stages,
        refresh_every=config.flow.refresh_every,
        training=config.training,
    )


def flow_pools(config, pixels):
    """Makes the pools of flows of a run of the config."""
    keys = keys_of(config.seed)
    clouds = pools.samplers(pixels, keys["epsilon"], mirror=False)
    return pools.flow_pools(Run(config), keys["flows"], clouds, config.flow)


def drawing(config):
    """How a run of the config draws images."""
    key = keys_of(config.seed)["noise"]
    return sampling.drawing_of(config.sampling, config.data_set(), key)


def ends(batch):
    """Where straight paths end, as bytes: x + (1 - t) velocity."""
    rows = batch.rows
    end = rows.x + (1 - rows.t)[:, None] * rows.velocity
    return np.asarray((end + 1) * 127.5)


def assert_images(end, pixels, atol):
    """Every end is one of the images."""
    known = np.asarray(pixels, np.float64).reshape(len(pixels), -1)
    gaps = np.abs(end[:, None] - known[None]).max(axis=2).min(axis=1)
    assert gaps.max() < atol


def test_straight_rows_end_at_images_and_start_at_noise(key, pixels):
    batch = rows.straight_rows(pixels, key, 500, 0.0, mirror=False)
    assert_images(ends(batch), pixels, atol=0.01)
    x, t, velocity = batch.rows
    start = x - t[:, None] * velocity
    assert abs(float(jnp.mean(start))) < 0.05 and abs(float(jnp.std(start)) - 1) < 0.05
    assert 0 <= float(t.min()) < 0.02 and 0.98 < float(t.max()) < 1


@pytest.mark.slow
def test_straight_rows_of_a_second_phase_begin_at_its_start(key, config, pixels):
    config = replaced(config, straight_start=0.25, pairs="exact", pair_size=16)
    late = rows.straight_rows(pixels, key, 500, 0.25, mirror=False)
    assert 0.25 <= float(late.rows.t.min()) < 0.27 and 0.98 < float(late.rows.t.max()) < 1
    assert_images(ends(late), pixels, atol=0.01)
    for method, pairs, first in (
        ("nsgf++", "exact", 0.25),
        ("nsgf++", "independent", 0.25),
        ("ot-cfm", "independent", 0.0),
    ):
        variant = replaced(config, method=method, pairs=pairs)
        parts = stages_of(variant, pixels)
        for name in {"straight", "predictor"} & parts.keys():
            data = parts[name].data(0)
            times = jnp.concatenate(
                [parts[name].draw(data, k).rows.t for k in jax.random.split(key, 9)]
            )
            assert first <= float(times.min()) < first + 0.1 and float(times.max()) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fm", "ot-cfm"])
def test_two_networks_share_the_time(config, pixels, method):
    parts = stages_of(replaced(config, method=method, split=0.4), pixels)
    assert list(parts) == ["first", "second"]
    for name, (least, most) in {"first": (0, 0.4), "second": (0.4, 1)}.items():
        data = parts[name].data(0)
        drawn = [parts[name].draw(data, k).rows.t for k in jax.random.split(jax.random.key(1), 40)]
        times = np.concatenate(drawn)
        assert least <= times.min() < least + 0.02 and most - 0.02 < times.max() <= most


def test_two_networks_are_one_field_that_hands_over(config):
    constant = lambda params, x, t: jnp.broadcast_to(params[None], x.shape)
    fields = {name: Field(constant, jnp.full(16, v)) for name, v in (("first", 10), ("second", 1))}
    how = replaced(config, nfe=(1, 5), stepper="euler").sampling
    ways = schemes("FM, two networks", "fm", how, fields, 0.4)
    assert [(way.label, way.nfe) for way in ways] == [(ways[0].label, 1), ("FM, two networks", 5)]
    one, five = (way.carry(jnp.zeros((3, 16))) for way in ways)
    np.testing.assert_allclose(one, 10.0)
    # Steps at 0 and 0.2 are of the first network, those at 0.4, 0.6 and 0.8 of the second.
    np.testing.assert_allclose(five, 0.4 * 10 + 0.6 * 1, rtol=1e-5)


def test_the_first_phase_alone_is_not_sampled_again_with_other_pairs(config):
    fields = dict.fromkeys(("velocity", "straight", "predictor"), Field(None, None))
    how = replaced(config, nfe=(2, 5)).sampling
    found = {
        label: [(way.label, way.nfe) for way in schemes(label, "nsgf++", how, fields)]
        for label in ("NSGF++", "NSGF++, Sinkhorn pairs")
    }
    assert found == {
        "NSGF++": [("NSGF", 2), ("NSGF", 5), ("NSGF++", 5)],
        "NSGF++, Sinkhorn pairs": [("NSGF++, Sinkhorn pairs", 5)],
    }


def test_the_second_network_begins_as_the_first(config, pixels):
    config = replaced(config, method="fm", split=0.5, stages=("second",))
    with pytest.raises(ValueError, match="second begins as first; train that stage first"):
        trained(config, pixels)


def test_mirrored_rows_end_at_images_or_their_mirrors(key, pixels):
    batch = rows.straight_rows(pixels, key, 500, 0.0, mirror=True)
    both = jnp.concatenate([pixels, pixels[:, :, ::-1]])
    assert_images(ends(batch), both, atol=0.01)
    with pytest.raises(AssertionError):
        assert_images(ends(batch), pixels, atol=0.01)


@pytest.mark.slow
def test_pool_of_flows_ends_at_images(key, config, pixels):
    flows = flow_pools(replaced(config, neighbours=1.01), pixels)(0)
    assert flows.x.dtype == flows.velocity.dtype == jnp.float16
    last = rows.pool_rows(
        pool.Pool(*(leaf[:, -1:].astype(jnp.float32) for leaf in flows)), key, 300
    )
    # Nearly one neighbour each, so that most paths end at an image, to the digits of float16.
    known = np.asarray(pixels, np.float64).reshape(len(pixels), -1)
    gaps = np.abs(ends(last)[:, None] - known[None]).max(axis=2).min(axis=1)
    assert np.median(gaps) < 2
    [record] = stages.pool_records(Run(config))
    assert record["unconverged"] == 0 and record["neighbours"][-1] < 1.1


@pytest.mark.slow
def test_parts_of_a_training_have_clouds_of_their_own(config, pixels):
    make = flow_pools(config, pixels)
    first, again, other = make(0), make(0), make(1)
    np.testing.assert_array_equal(first.x, again.x)
    assert np.mean(np.asarray(first.x[:, 0]) == np.asarray(other.x[:, 0])) < 0.01


@pytest.mark.parametrize("pairs", ["exact", "sinkhorn"])
@pytest.mark.slow
def test_optimal_pairs_stay_pairs_and_are_cheaper(config, pixels, pairs):
    keys = keys_of(config.seed)
    clouds = pools.samplers(pixels, keys["epsilon"], mirror=False)
    run = Run(config)
    rows = pools.pair_pools(run, keys["pairs"], clouds, config.flow, pairs)(0)
    counted = [(seen["solves"], seen["unconverged"]) for seen in stages.pool_records(run, "pairs")]
    assert counted == ([(4, 0)] if pairs == "sinkhorn" else [])
    assert rows.x.shape == (64, 1, 16)
    end = np.asarray(rows.x + rows.velocity, np.float64)[:, 0]
    assert_images((end + 1) * 127.5, pixels, atol=1.0)  # float16
    cost = float(jnp.mean(jnp.sum(rows.velocity.astype(jnp.float32) ** 2, axis=2)))
    # Independent pairs cost d (1 + 1/3) on average; these choose among 16.
    assert cost < 0.8 * 16 * (1 + 1 / 3)


def test_impossible_neighbours_say_what_is_possible(config):
    same = jnp.zeros((200, 4, 4, 1), jnp.uint8)  # every target is the same image
    with pytest.raises(RuntimeError, match=r"no epsilon gives clouds of 32 images 1.5 neighbours"):
        flow_pools(config, same)(0)


def test_methods_train_for_the_same_number_of_steps(config):
    totals = {method: sum(stage_steps(method, config.training).values()) for method in METHODS}
    assert set(totals.values()) == {20_000}
    two = stage_steps("fm", replaced(config, split=0.3).training)
    assert two == {"first": 6_000, "second": 14_000}


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
        ({"method": "fm", "pairs": "sinkhorn"}, "pairs is 'sinkhorn'; fm has its own"),
        ({"method": "fm", "stages": ("velocity",)}, "fm has no stage 'velocity'; it has straight"),
        ({"method": "fm", "split": 1.0}, r"split is 1\.0; it lies in \[0, 1\)"),
        ({"method": "fm", "split": 0.0001}, "first_steps is 0"),
        ({"split": 0.5}, r"split is 0\.5; it is for fm and ot-cfm"),
        ({"method": "flow-map", "split": 0.5}, r"split is 0\.5; it is for fm and ot-cfm"),
        ({"method": "flow-map", "pairs": "exact"}, "pairs is 'exact'; flow-map has its own"),
    ],
)
def test_settings_that_cannot_be_are_named(config, changes, message):
    with pytest.raises(ValueError, match=message):
        check(replaced(config, **changes))


def test_clouds_larger_than_the_data_are_named(config):
    for changes, name in (({}, "num_particles"), ({"pairs": "exact"}, "pair_size")):
        wrong = replaced(config, num_particles=16, num_clouds=2, **changes)
        wrong = replaced(wrong, **{name: 64})
        with pytest.raises(ValueError, match=f"{name} is 64; there are 40 training images"):
            check_data(wrong.method, wrong.flow, 40)
        check_data(wrong.method, wrong.flow, 64)
    check_data("fm", config.flow, 1)


def test_a_rival_has_no_first_phase_to_check(config):
    check(replaced(config, method="fm", phase_end=0.3))
    with pytest.raises(ValueError, match="straight_start"):
        check(replaced(config, phase_end=0.3))


def test_memory_ahead_counts_what_is_kept_by_hand(config):
    big = {"num_particles": 1000, "num_clouds": 10, "clouds_per_call": 5, "flow_steps": 5}
    pixels = np.zeros((1000, 784), np.uint8)
    line = pipeline.memory_ahead("nsgf++", made(mnist.Config, **big).flow, pixels)
    pool = 2 * 10_000 * 5 * 784 * 4 / 1e9
    total = 0.000784 + pool + pool / 2 + 5 * 16 * 1000**2 / 1e9
    assert f"{total:.2f} and a training step's (images 0.00, pool {pool:.2f}" in line
    assert "(images 0.00)" in pipeline.memory_ahead("fm", mnist.Config().flow, pixels)


def test_an_image_run_is_not_for_the_sampler_of_vectors(config):
    Run(replaced(mnist.Config(), out=config.out))
    with pytest.raises(ValueError, match="mnist draws its samples itself; start it again"):
        sample.main(sample.Config(run=config.out, num_samples=1, nfe=1))


def test_two_phases_follow_each_field_over_its_own_part(config):
    constant = lambda params, x, t: jnp.broadcast_to(params[None], x.shape)
    fields = {
        "velocity": Field(constant, jnp.full(16, 10.0)),
        "straight": Field(constant, jnp.full(16, 1.0)),
        "predictor": Field(lambda params, x: jnp.full(x.shape[0], params), jnp.array(0.25)),
    }
    x0 = jnp.zeros((3, 16))
    # Euler's method: steps that remember would carry the first field into the second.
    config = replaced(config, phase_end=0.7, stepper="euler")
    end = two_phases(config.sampling, fields, 10)(x0)
    np.testing.assert_allclose(end, 0.7 * 10 + (1 - 0.25) * 1, rtol=1e-5)  # by hand


@pytest.mark.slow
def test_networks_on_vectors_are_those_on_images(key):
    model = unet.UNet(8, (1,), 1, dtype=jnp.float32)
    network = nets.on_vectors(model, (4, 4, 1), jnp.zeros(1))
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
    config = replaced(
        config,
        **{"method": "fm", "channels": 8, "multipliers": (1,), "num_blocks": 1, "batch_size": 32},
        **{"velocity_steps": 10, "predictor_steps": 10, "straight_steps": 180},
        **{"learning_rate": 1e-2, "nfe": (10,), "sample_batch": 8},
    )
    pixels = jnp.broadcast_to(image[None], (64, 4, 4, 1))
    fields = trained(config, pixels)
    [scheme] = schemes(config.label(), config.method, config.sampling, fields)
    end = scheme.carry(drawing(config).noise(0))
    wanted = rows.vectors(None, image[None], mirror=False)
    assert float(jnp.max(jnp.mean(jnp.abs(end - wanted), axis=1))) < 0.2  # it was 1.2 at first


@pytest.mark.slow
def test_a_flow_map_carries_noise_to_the_image_in_any_number_of_steps(config):
    image = jnp.where(jnp.arange(16).reshape(4, 4, 1) % 3 == 0, 255, 0).astype(jnp.uint8)
    config = replaced(
        config,
        **{"method": "flow-map", "channels": 8, "multipliers": (1,), "num_blocks": 1},
        **{"velocity_steps": 10, "predictor_steps": 10, "straight_steps": 180, "batch_size": 32},
        **{"learning_rate": 1e-2, "nfe": (1, 2, 5), "sample_batch": 8},
    )
    run = Run(config)
    (stage,) = stages_of(config, jnp.broadcast_to(image[None], (64, 4, 4, 1))).values()
    # Every flow goes straight to the one image: what epsilon makes of it is no part of this.
    noise = jax.random.normal(jax.random.key(5), (256, 16))
    wanted = rows.vectors(None, image[None], mirror=False)
    straight = pool.from_pairs(noise, jnp.broadcast_to(wanted, noise.shape))
    field = stages.train_stage(
        run,
        "map",
        stage._replace(data=lambda part: straight),
        jax.random.key(0),
        num_steps=200,
        refresh_every=10,
        training=config.training,
    )
    ways = schemes(config.label(), config.method, config.sampling, {"map": field})
    assert [(way.label, way.nfe) for way in ways] == [("Flow map", nfe) for nfe in (1, 2, 5)]
    for way in ways:
        end = way.carry(drawing(config).noise(0))
        assert float(jnp.max(jnp.mean(jnp.abs(end - wanted), axis=1))) < 0.3  # it was 1.2 at first


@pytest.mark.slow
def test_rows_of_a_flow_map_are_pairs_of_states_of_flows(config, pixels):
    (stage,) = stages_of(replaced(config, method="flow-map"), pixels).values()
    own = stage.draw(stage.data(0), jax.random.key(1)).rows
    assert own.x.shape == own.velocity.shape == (8, 16)
    assert bool(jnp.all((own.s >= 0) & (own.s <= own.t) & (own.t <= 1)))


def test_a_stage_begins_with_given_parameters_and_leaves_them(config):
    training = replaced(config, learning_rate=1e-12).training
    linear = lambda params, x, t: x * params[0] + t[:, None] * params[1]
    params = jnp.array([0.3, -0.7])
    network = nets.Network(lambda key: jnp.zeros(2), linear)
    data = pool.Rows(jnp.ones((8, 16)), jnp.full(8, 0.5), jnp.zeros((8, 16)))
    loss = lambda apply_fn, params, rows: jnp.mean(apply_fn(params, rows.x, rows.t) ** 2)
    stage = stages.Stage(network, loss, lambda data, key: data, lambda part: data)
    field = stages.train_stage(
        Run(config),
        "straight",
        stage,
        jax.random.key(0),
        num_steps=10,
        refresh_every=10,
        training=training,
        params=params,
    )
    np.testing.assert_allclose(field.params, [0.3, -0.7], atol=1e-6)
    np.testing.assert_array_equal(params, jnp.array([0.3, -0.7]))  # its memory was not given away


def test_the_straight_flow_alone_asks_for_the_velocity(config, pixels):
    config = replaced(config, stages=("predictor", "straight"))
    with pytest.raises(ValueError, match="straight begins as velocity; train that stage first"):
        trained(config, pixels)
    assert not (config.folder() / "predictor").exists()


def test_samples_that_are_not_finite_have_a_row_that_says_so(config):
    config = replaced(config, num_samples=6, sample_batch=4)
    carry = lambda x: jnp.where(x[:, :1] > 0, jnp.nan, x)
    scheme = Scheme("NSGF", 2, carry)
    row, pixels = scoring.judged(Run(config), drawing(config), scheme, None)
    noise = jnp.concatenate([drawing(config).noise(k) for k in (0, 1)])[:6]
    bad = int((noise[:, 0] > 0).sum())
    assert row == {"method": "NSGF", "nfe": 2, "failed": f"{bad} of 6 samples are not finite"}
    assert pixels is None and bad > 0
    assert row["failed"] in scoring.row_line(row)


def test_an_interrupted_scoring_goes_on_and_other_samples_are_drawn_anew(config, monkeypatch):
    monkeypatch.setenv("SINKFLOW_COMMIT", "123456789abc")
    config = replaced(config, num_samples=6, sample_batch=4)
    run, calls = Run(config), []

    def score(pixels):
        calls.append(len(pixels))
        return {"fd": 1.0}

    scheme = Scheme("NSGF", 2, lambda x: 0.5 * x)
    row, pixels = scoring.judged(run, drawing(config), scheme, score)
    again, same = scoring.judged(run, drawing(config), scheme, score)
    assert row == again and calls == [6] and pixels.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(pixels, same)
    scoring.judged(run, drawing(replaced(config, num_samples=5)), scheme, score)
    assert calls == [6, 5]


def test_kept_images_are_read_back(config):
    run, pixels = Run(config), np.arange(96, dtype=np.uint8).reshape(6, 4, 4, 1)
    scheme = Scheme("OT-CFM, Sinkhorn pairs", 60, lambda x: x)
    line = scoring.keep(run, scheme, pixels[:5])
    path = run.out / "kept-ot-cfm-sinkhorn-pairs-60.npz"
    assert line.startswith(f"{path}: 5 images, 0.00 MB")
    np.testing.assert_array_equal(scoring.load_samples(path, 5, (4, 4, 1)), pixels[:5])
    with pytest.raises(ValueError, match="kept-ot-cfm"):
        scoring.load_samples(path, 6, (4, 4, 1))


@pytest.mark.parametrize("commit", ["123456789abc-dirty", "unknown"])
def test_scores_of_code_that_no_commit_names_are_not_kept(config, monkeypatch, commit):
    monkeypatch.setenv("SINKFLOW_COMMIT", commit)
    config = replaced(config, num_samples=6, sample_batch=4)
    scheme = Scheme("NSGF", 2, lambda x: 0.5 * x)
    scores = [
        scoring.judged(Run(config), drawing(config), scheme, lambda pixels, fd=fd: {"fd": fd})[0]
        for fd in (1.0, 2.0)
    ]
    assert [row["fd"] for row in scores] == [1.0, 2.0]
