"""The driver of one-step generators in miniature: runs, resumption, stops, bad input, samples."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from experiments import generator, sample
from experiments.generators import draws, training, updates
from experiments.generators.checks import check
from experiments.generators.config import IMAGES, preset
from experiments.harness import cli
from sinkflow import checkpoint, data, train
from sinkflow import generator as objectives

SMALL = {"hidden_dims": (8,), "n": 20, "m": 24, "k": 24, "train_steps": 20, "warmup_steps": 2}
SMALL |= {"steps_per_call": 5, "checkpoint_every": 5, "epsilon": (0.5,), "num_samples": 50}


def small(dataset="8gaussians-moons", **changes):
    return preset(dataset, smoke=True, **{**SMALL, **changes})


def is_picture(path: pathlib.Path) -> bool:
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("L"), float).std() > 1


def state_of(out):
    """The newest checkpoint's arrays."""
    config = json.loads((out / "config.json").read_text())
    made = training.restored(out)
    net = training.network(made.config)
    like = jax.eval_shape(
        lambda key: train.create(net.init(key), updates.make_optimizer(made.config)),
        jax.random.key(0),
    )
    return checkpoint.restore(out / "checkpoints", like, config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in the plane from beginning to end, on four devices."""
    out = tmp_path_factory.mktemp("generator") / "whole"
    return out, generator.main(small(out=str(out)))


def test_a_run_leaves_its_record_and_pictures(whole):
    out, result = whole
    assert json.loads(json.dumps(result)) == json.loads((out / "result.json").read_text())
    assert list(result["w2"]) == ["1"] and result["w2"]["1"] > result["stratified_floor"] > 0
    assert result["device"]["count"] == jax.local_device_count() == 4
    assert result["training"]["unconverged"] == 0
    assert result["training"]["solves"] == 20 * 2 * 4  # steps, solves of each, clouds
    assert result["epsilon"] == [0.5] and result["resumed_from"] is None
    for name in ("samples.png", "interpolation.png", "loss.png"):
        assert is_picture(out / name), name
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert all(line["solves"] == 40 and line["unconverged"] == 0 for line in lines)
    assert all(0 < line["marginal_error"] <= 3e-2 for line in lines)
    assert lines[0]["epsilon"] > 0.5 and lines[-1]["epsilon"] == pytest.approx(0.5)


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_like_an_unbroken_one(whole, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def interrupt(config):
        def look(step, info):
            if step == 15:
                raise Interrupted

        return look

    config = small(out=str(tmp_path))
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(training, "watch", interrupt)
        generator.main(config)
    result = generator.main(config)
    assert result["resumed_from"] == 10
    out, expected = whole
    assert result["w2"] == expected["w2"]
    assert (tmp_path / "metrics.jsonl").read_text() == (out / "metrics.jsonl").read_text()
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path), state_of(out))


def test_a_run_whose_solves_fail_stops_with_their_count(tmp_path):
    config = small(max_iterations=1, epsilon=(0.01,), epsilon_start=1.0, out=str(tmp_path))
    with pytest.raises(RuntimeError, match=r"step 5: \d+ of the last 40 solves missed their"):
        generator.main(config)
    assert not (tmp_path / "result.json").exists()


def test_the_stop_is_at_the_stated_share():
    info = updates.Info(*map(jnp.asarray, (1.0, 1.0, 0.5, 9.0, 2, 100, 0.1)))
    training.watch(small(max_unconverged=0.02))(10, info)
    training.watch(small(allow_unconverged=True, max_unconverged=0.0))(10, info)
    with pytest.raises(RuntimeError, match=r"step 10: 2 of the last 100 solves .* 0\.5\)"):
        training.watch(small(max_unconverged=0.019))(10, info)


@pytest.mark.slow
def test_digits_are_drawn_by_their_label(tmp_path):
    config = small("digits", labels=True, self_cloud="diagonal", out=str(tmp_path / "run"))
    result = generator.main(dataclasses.replace(config, m=40))
    assert 0 <= result["asked_accuracy"] <= 1 and len(result["class_shares"]["1"]) == 10
    assert result["training"]["solves"] == 20 * 2 * 4 * 10
    for name in ("samples", "neighbours", "interpolation", "loss", "classes"):
        assert is_picture(tmp_path / "run" / f"{name}.png"), name
    file = tmp_path / "drawn.npy"
    asked = sample.Config(str(tmp_path / "run"), num_samples=12, out=str(file), labels=(3, 7))
    drawn = sample.main(asked)
    assert drawn.shape == np.load(file).shape == (12, 64)
    made = training.restored(tmp_path / "run")
    [key] = jax.random.split(jax.random.key(0), 1)
    z = draws.latent(made.config, key, sample.BATCH)
    expected = made.draw(z, jnp.asarray([3, 7] * (sample.BATCH // 2)))[:12]
    np.testing.assert_array_equal(drawn, np.asarray(expected))
    with pytest.raises(ValueError, match=r"labels is \(10,\); classes are 0 to 9"):
        sample.main(dataclasses.replace(asked, labels=(10,)))


def test_samples_of_a_run_without_labels(whole, tmp_path):
    out, _ = whole
    config = sample.Config(str(out), num_samples=1_003, out=str(tmp_path / "x.npy"))
    assert sample.main(config).shape == (1_003, 2)
    with pytest.raises(ValueError, match="this generator was trained without"):
        sample.main(dataclasses.replace(config, labels=(1,)))
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        sample.main(dataclasses.replace(config, run=str(tmp_path)))


OBJECTIVES = [
    *({"objective": name} for name in ("transport", "energy", "drift")),
    {"objective": "transport", "domain": "scaling"},
    *(
        {"objective": "divergence", "self_cloud": cloud, "gradient": gradient}
        for cloud in objectives.SELF_CLOUDS
        for gradient in ("envelope", "implicit", "unrolled")
        if (cloud, gradient) != ("diagonal", "implicit")
    ),
    {"objective": "entropic", "gradient": "implicit"},
    {"epsilon": (0.1, 0.2), "normalize": True},
    {"labels": True, "dataset": "digits", "net": "conv"},
    {"labels": True, "dataset": "digits", "net": "unet", "objective": "energy"},
    {"dataset": "digits", "net": "unet", "head": "linear"},
    *({"dataset": name} for name in IMAGES),
]


@pytest.mark.parametrize("changes", OBJECTIVES, ids=lambda changes: "-".join(map(str, changes)))
def test_every_choice_makes_steps(changes):
    """Traced, not run: shapes fit, and every choice reaches its objective."""
    config = small(**{"num_iterations": 3, **changes})
    check(config)
    net = training.network(config)
    real = None
    if config.dataset not in data.TASKS:
        pixels = np.zeros((800, *config.SHAPE), np.uint8)
        real = draws.real_samples(config, pixels, np.arange(800) % 10)
    step = updates.make_step(config, net, jnp.ones(len(config.epsilon)), 1.0)
    steps = train.make_steps(step, config.steps_per_call, summary=updates.summary)
    state = jax.eval_shape(
        lambda key: train.create(net.init(key), updates.make_optimizer(config)),
        jax.random.key(0),
    )
    after, info = jax.eval_shape(steps, state, real, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )
    assert all(leaf.shape == () for leaf in info)


def test_inner_steps_follow_one_velocity():
    """The first is the optimiser step of inner_steps 1; each comes closer to where samples go."""
    one, two, eight = (
        small(clouds=1, inner_steps=count, train_steps=40 // count, warmup_steps=0)
        for count in (1, 2, 8)
    )
    net, key = training.network(one), jax.random.key(3)
    state = train.create(net.init(jax.random.key(2)), updates.make_optimizer(one))
    z = draws.latent(one, jax.random.split(key, 4)[1], one.n)

    def sampled(config):
        step = updates.make_step(config, net, jnp.ones(1), 1.0)
        after, seen = jax.jit(step)(state, None, key)
        assert int(after.step) == 1
        return net.apply_fn(after.params, z, jnp.zeros(one.n, int)), seen[0]

    (first, value), (second, again), (last, _) = map(sampled, (one, two, eight))
    np.testing.assert_allclose(again, value, rtol=1e-6)  # the loss is that of the velocity's cloud
    keys = jax.random.split(key, 4)
    y = draws.draw_real(one, None, keys[0], one.m)[0]
    other = net.apply_fn(state.params, draws.latent(one, keys[2], one.k), jnp.zeros(one.k, int))
    start = net.apply_fn(state.params, z, jnp.zeros(one.n, int))
    scale = [jnp.asarray(one.epsilon_start)]
    slope = jax.grad(lambda x: updates.objective(one)(x, other, y, keys[3], scale, 1.0)[0])(start)
    left = [jnp.mean((x - (start - one.n * slope)) ** 2) for x in (start, first, second, last)]
    assert left[0] > left[1] > left[2] > left[3]
    np.testing.assert_allclose(left[0], value, rtol=1e-4)  # half of |v|^2, in two dimensions


def test_real_samples_are_of_the_asked_classes():
    config = small("digits", labels=True)
    labels = np.arange(400) % 10
    labels[:100] = 0  # classes of different sizes
    samples = np.stack([labels, np.arange(400)], axis=1).astype(np.float32)
    real = draws.real_samples(config, samples, labels)
    assert len(real.counts) == 10 and int(real.counts.sum()) == 400
    drawn = draws.draw_real(config, real, jax.random.key(0), 8_000)
    assert drawn.shape == (10, 800, 2)
    np.testing.assert_array_equal(drawn[:, :, 0], np.arange(10)[:, None] * np.ones(800))
    seen = len(np.unique(np.asarray(drawn[:, :, 1])))
    assert seen == 400


def test_epsilon_is_in_its_unit():
    length = draws.units(small(epsilon=(0.3,)), None)[0]
    cost = draws.units(small(epsilon=(0.3,), epsilon_unit="mean-cost"), None)[0]
    assert length == pytest.approx([0.3]) and 1 < cost[0] / 0.3 < 20  # moons: its variance
    wanted = small(epsilon=(3.0,), epsilon_unit="neighbours", m=128)
    near, distance = draws.units(wanted, None)
    assert 1e-3 < near[0] < 1 and distance > 0


BAD = [
    ({"clouds": 6}, "clouds is 6; it must be a multiple of 4 devices: give --clouds 4"),
    ({"clouds": 0}, "clouds is 0; it must be at least 1"),
    ({"n": 1}, r"n is 1; it lies in \[2, inf\)"),
    ({"labels": True, "dataset": "digits", "k": 19}, r"k is 19; it lies in \[20, inf\)"),
    ({"labels": True}, "the plane has no labels and its net is mlp"),
    ({"net": "conv"}, "the plane has no labels and its net is mlp"),
    ({"objective": "divergence", "epsilon": (1.0, 2.0)}, "only regression adds several"),
    ({"objective": "drift", "inner_steps": 2}, "only regression has a velocity to follow"),
    ({"inner_steps": 0}, "inner_steps is 0"),
    ({"self_cloud": "diagonal", "gradient": "implicit"}, "choose envelope, the same at"),
    ({"epsilon_unit": "neighbours"}, "has more than 1 at any epsilon"),
    ({"epsilon": ()}, "epsilon is empty"),
    ({"epsilon": (-1.0,)}, r"epsilon is \(-1.0,\); it lies in \(0, inf\)"),
    ({"epsilon_start": 0.0}, r"epsilon_start is 0.0; it lies in \(0, inf\)"),
    ({"train_steps": 7}, "train_steps is 7; it must be a multiple of 5"),
    ({"warmup_steps": 20}, r"warmup_steps is 20; it lies in \[0, train_steps \* inner_steps\)"),
    ({"max_unconverged": 2.0}, r"max_unconverged is 2.0; it lies in \[0, 1\]"),
    ({"ema_decay": 1.0}, r"ema_decay is 1.0; it lies in \[0, 1\)"),
    ({"max_iterations": 0}, "max_iterations is 0; it must be at least 1"),
    ({"dataset": "digits", "num_samples": 900}, "at most half, 898"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(b[0])[:40] for b in BAD])
def test_bad_settings_are_named_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generator.main(small(**{"out": str(tmp_path / "run"), **changes}))
    assert not (tmp_path / "run").exists()


def test_defaults_are_those_of_the_data_set(monkeypatch):
    for flags in (["--dataset", "mnist"], ["--dataset=mnist"]):
        monkeypatch.setattr(sys, "argv", ["driver", *flags, "--n", "512"])
        config = cli.parse(generator.defaults(sys.argv[1:]), None)
        assert config == preset("mnist", n=512) and config.net == "conv"
    assert generator.defaults(["--smoke"]) == preset("8gaussians-moons", smoke=True)
    assert preset("digits").num_samples == 500 and preset("fashion").train_steps == 12_000
    for name in ("moons", "digits", *IMAGES):
        check(preset(name))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"labels": True, "net": "unet", "multipliers": (1, 2)}])
def test_images_in_miniature(changes, tmp_path):
    config = preset("mnist", smoke=True, out=str(tmp_path), train_steps=20, **changes)
    result = generator.main(config)
    [row] = result["rows"]
    assert row["nfe"] == 1 and np.isfinite(row["fd"]) and row["seconds_per_10k"] > 0
    assert result["references"]["floor"]["fd"] < result["references"]["shuffled"]["fd"]
    for name in ("samples", "neighbours", "interpolation", "loss"):
        assert is_picture(tmp_path / f"{name}.png"), name
    with np.load(tmp_path / "samples" / "generator-1.npz") as file:
        assert file["images"].shape == (config.num_samples, 28, 28, 1)
