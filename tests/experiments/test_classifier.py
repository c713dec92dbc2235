"""The classifier: its network, its training driver, and the weights that are shipped."""

import dataclasses
import hashlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classifier as driver
from experiments.harness import cli
from experiments.harness.settings import made
from experiments.images import classify, judge
from sinkflow.data import images
from sinkflow.nets import classifier

TINY = {**driver.Config.SMOKE, "train_steps": 40, "steps_per_call": 20, "checkpoint_every": 20}


@pytest.fixture(scope="module")
def model():
    x = jax.random.normal(jax.random.key(1), (5, *classifier.SHAPE))
    network = classifier.Classifier()
    return network, jax.jit(network.init)(jax.random.key(0), x), x


@pytest.fixture(scope="module")
def mixer():
    x = jax.random.normal(jax.random.key(2), (5, *classifier.SHAPE))
    network = classifier.MixerClassifier()
    return network, jax.jit(network.init)(jax.random.key(0), x), x


@pytest.mark.parametrize("name", ["model", "mixer"])
def test_network_has_the_documented_size(name, request):
    network, params, _ = request.getfixturevalue(name)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"{count:,} parameters" in type(network).__doc__


def normed(h, layer):
    """Channels of mean 0 and variance 1, scaled and moved, as Flax's LayerNorm."""
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    return h * layer["scale"] + layer["bias"]


def test_mixer_mixes_patches_then_channels(mixer):
    network, params, x = mixer
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    dense = lambda h, layer: np.asarray(h) @ layer["kernel"] + layer["bias"]
    mlp = lambda h, own, name: dense(jax.nn.gelu(dense(h, own[f"{name}_hidden"])), own[name])
    corners = [(i, j) for i in range(0, 28, 4) for j in range(0, 28, 4)]
    cut = [np.asarray(x)[:, i : i + 4, j : j + 4, 0].reshape(5, 16) for i, j in corners]
    h = dense(np.stack(cut, axis=1), layers["stem"])
    for own in (layers["layers_0"], layers["layers_1"]):
        across = normed(h, own["LayerNorm_0"]).swapaxes(1, 2)
        h = h + mlp(across, own, "patches").swapaxes(1, 2)
        h = h + mlp(normed(h, own["LayerNorm_1"]), own, "channels")
    expected = normed(h, layers["norm"]).mean(axis=1)
    found = network.apply(params, x, method="features")
    assert found.shape == (5, network.num_features) and np.asarray(found).std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    logits = dense(expected, layers["head"])
    np.testing.assert_allclose(network.apply(params, x), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_logits_are_the_head_of_the_features(model):
    network, params, x = model
    features = network.apply(params, x, method="features")
    assert features.shape == (5, 128) and features.dtype == jnp.float32
    assert features.min() == 0 and features.max() > 0
    head = params["params"]["head"]
    expected = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-5, atol=1e-6)


def test_network_matches_the_convolutions_of_xla(model):
    network, params, x = model
    layers, h = params["params"], x
    for index, (size, stride) in enumerate([(5, 2), (3, 1), (3, 2)]):
        layer = layers[f"convolutions_{index}"]
        kernel = layer["kernel"].reshape(size, size, h.shape[-1], -1)
        padding = [(size // 2, size // 2)] * 2
        h = jax.lax.conv_general_dilated(
            h, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jnp.maximum(h + layer["bias"][None, None, None], 0)
        if index == 1:
            h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    hidden = layers["hidden"]
    expected = jnp.maximum(h.reshape(5, -1) @ hidden["kernel"] + hidden["bias"][None], 0)
    found = network.apply(params, x, method="features")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 32, 32, 1), (2, 28, 28, 3)])
@pytest.mark.parametrize("name", ["model", "mixer"])
def test_other_images_are_refused(name, shape, request):
    network, params, _ = request.getfixturevalue(name)
    with pytest.raises(ValueError, match=r"the classifier is for \(28, 28, 1\)"):
        network.apply(params, jnp.zeros(shape))


def test_shifted_images_are_moved_by_every_amount_and_black_comes_in(key):
    pixels = np.zeros((300, 7, 7, 1), np.uint8)
    pixels[:, 3, 3] = np.arange(300)[:, None] % 200 + 1
    moved = np.asarray(classify.shifted(key, pixels, 2))
    image, row, column, _ = np.nonzero(moved)
    np.testing.assert_array_equal(image, np.arange(300))
    np.testing.assert_array_equal(moved[image, row, column], pixels[:, 3, 3])
    assert {*zip(row.tolist(), column.tolist(), strict=True)} == {
        (i, j) for i in range(1, 6) for j in range(1, 6)
    }
    np.testing.assert_array_equal(classify.shifted(key, pixels, 0), pixels)


def test_batches_keep_images_and_labels_together(key):
    labels = np.arange(250, dtype=np.uint8)
    pixels = np.tile(labels[:, None, None, None], (1, 4, 4, 1))
    batch = classify.sample(images.Images(pixels, labels), key, batch_size=64, shift=0)
    assert batch.pixels.shape == (64, 4, 4, 1) and batch.pixels.dtype == jnp.uint8
    np.testing.assert_array_equal(batch.pixels[:, 0, 0, 0], batch.labels)
    assert len(np.unique(batch.labels)) > 40


def test_command_is_what_a_reader_types():
    command = lambda **settings: made(driver.Config, **settings).command()
    program = "python -m experiments.classifier --dataset"
    assert command() == f"{program} mnist"
    shipped = command(dataset="fashion", data_dir="/some/where", out="/else", ship=True)
    assert shipped == f"{program} fashion --ship"
    assert command(network="mixer") == f"{program} mnist --network mixer"
    assert command(train_steps=700) == f"{program} mnist --train-steps 700"
    assert command(**driver.Config.SMOKE, smoke=True) == f"{program} mnist --smoke"


@pytest.fixture(scope="module")
def small_images():
    """Enlarged 8x8 digits in the place of every data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "load", lambda name, folder, split, smoke: judge.smoke_images(split))
        yield


@pytest.fixture(scope="module")
def trained(small_images, tmp_path_factory):
    """Config and result of a run in miniature."""
    out = tmp_path_factory.mktemp("run") / "fashion"
    config = made(driver.Config, **TINY, dataset="fashion", out=str(out))
    return config, driver.main(config)


@pytest.mark.slow
def test_training_writes_weights_that_score_what_the_record_says(trained):
    config, result = trained
    out = pathlib.Path(config.out)
    params, record = judge.read_classifier("fashion", out)
    content = (out / "fashion.npz").read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest() and len(content) < 1_000_000
    with np.load(out / "fashion.npz") as file:
        assert {file[name].dtype for name in file.files} == {np.dtype(np.float16)}
    test = judge.smoke_images("test")
    score = np.mean(judge.look(params, test.pixels)[1] == test.labels)
    assert record["test_accuracy"] == result["test_accuracy"] == score > 0.5
    assert record["num_test"] == 512 and record["settings"]["seed"] == 0
    assert {"commit", "versions", "device"} <= record.keys()
    assert config.out not in json.dumps(record)
    assert not [path for path in out.rglob("*") if "partial" in path.name]


@pytest.mark.slow
def test_finished_training_is_shipped_without_training_again(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "CLASSIFIERS", tmp_path / "shipped")
    config, first = trained
    again = driver.main(dataclasses.replace(config, ship=True, data_dir="elsewhere"))
    assert first["resumed_from"] is None and again["resumed_from"] == TINY["train_steps"]
    shipped, own = (
        judge.read_classifier("fashion", at) for at in (judge.CLASSIFIERS, pathlib.Path(config.out))
    )
    assert shipped.record == own.record
    assert shipped.record["test_accuracy"] == first["test_accuracy"]
    command = shipped.record["command"]
    assert command.startswith("python -m experiments.classifier --dataset fashion")
    assert "--ship" in command and "elsewhere" not in json.dumps(shipped.record)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ship": True}, "ship is set in a smoke run, whose weights mean nothing"),
        ({"shift": -1}, "shift is -1; it must be at least 0"),
        ({"batch_size": 66}, "batch_size is 66; it must be a positive multiple of 4 devices"),
    ],
)
def test_impossible_settings_are_a_clear_error(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        driver.main(made(driver.Config, **{**TINY, **wrong}, smoke=True, out=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_help_explains_every_setting(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["driver", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.cli(driver.Config, driver.__doc__)
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "Command:" in text and "[pixels]" in text


SHIPPED = [
    ("mnist", "convolutional", 0.993),
    ("fashion", "convolutional", 0.91),
    ("mnist", "mixer", 0.98),
    ("fashion", "mixer", 0.87),
]


@pytest.mark.parametrize(("dataset", "network", "least"), SHIPPED)
def test_shipped_weights_are_those_of_their_record(dataset, network, least):
    path = judge.CLASSIFIERS / f"{judge.file_stem(dataset, network)}.npz"
    params, record = judge.read_classifier(dataset, network=network)
    assert path.stat().st_size < 1_000_000
    model = judge.NETWORKS[network]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *classifier.SHAPE)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert record["num_test"] == 10_000 and record["test_accuracy"] > least
    assert record["command"].startswith(f"python -m experiments.classifier --dataset {dataset}")
    assert not record["settings"]["smoke"] and "/" not in json.dumps(record)
