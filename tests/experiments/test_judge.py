"""The judge of images: its data, what it tells apart, and the way to Inception."""

import hashlib
import json
import pickle
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.images import judge
from sinkflow import metrics
from sinkflow.data import images
from sinkflow.metrics import inception, weights

COUNT = 2 * weights.BATCH  # two batches of one size compile once


@pytest.fixture(scope="module")
def judging():
    """A judge of scikit-learn's digits, with the shipped classifier of MNIST."""
    splits = (judge.smoke_images(split) for split in ("train", "test"))
    return judge.Judge("mnist", *splits, num_images=COUNT)


@pytest.fixture(scope="module")
def references(judging):
    return judging.references()


def test_smoke_images_are_digits_at_the_size_of_mnist():
    train, test = (judge.smoke_images(split) for split in ("train", "test"))
    assert train.pixels.shape == (1280, 28, 28, 1) and test.pixels.shape == (512, 28, 28, 1)
    for split in (train, test):
        assert split.pixels.dtype == split.labels.dtype == np.uint8
        assert split.pixels.min() == 0 and split.pixels.max() == 255
        assert np.bincount(split.labels).min() > 0.08 * len(split.labels)
        assert not split.pixels[:, :2].any() and not split.pixels[:, :, -2:].any()
        np.testing.assert_array_equal(
            split.pixels[:, 2:26:3, 2:26:3], split.pixels[:, 4:26:3, 4::3][:, :, :8]
        )
    distance, _ = metrics.nearest(judge.flat(test.pixels), judge.flat(train.pixels))
    assert distance.min() > 0  # no image is in both
    with pytest.raises(ValueError, match="unknown split 'valid'; choose one of train, test"):
        judge.smoke_images("valid")


def test_generated_images_stand_in_only_for_a_missing_folder(tmp_path):
    assert len(judge.load("fashion", smoke=True).labels) == 1280
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        judge.load("fashion", str(tmp_path), smoke=True)


def test_classifier_survives_its_file_rounded(tmp_path):
    params = judge.MODEL.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    judge.write_classifier(tmp_path / "new", "toy", params, {"seed": 3})
    read, record = judge.read_classifier("toy", tmp_path / "new")
    chex.assert_trees_all_equal(read, jax.tree.map(np.float32, judge.half(params)))
    assert record["seed"] == 3 and record["dataset"] == "toy"


def test_a_classifier_that_is_missing_altered_or_too_large_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"toy.npz; train it: python -m .* --dataset toy"):
        judge.read_classifier("toy", tmp_path)
    with pytest.raises(ValueError, match="not finite in float16: bias; lower learning_rate"):
        judge.write_classifier(tmp_path, "toy", {"bias": np.array([1e6])}, {})
    assert not list(tmp_path.iterdir())
    judge.write_classifier(tmp_path, "toy", {"bias": np.zeros(2)}, {})
    content = bytearray((tmp_path / "toy.npz").read_bytes())
    content[-30] ^= 1
    (tmp_path / "toy.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"toy.sha256 does not fit .*another SHA-256: toy.npz\)"):
        judge.read_classifier("toy", tmp_path)
    (tmp_path / "toy.sha256").unlink()  # as in folders from before there was one
    with (
        pytest.warns(UserWarning, match=r"there is no .*toy\.sha256: damage of toy.npz or"),
        pytest.raises(ValueError, match="altered or of another training: its SHA-256 is"),
    ):
        judge.read_classifier("toy", tmp_path)


def test_features_do_not_depend_on_batches(judging, monkeypatch):
    monkeypatch.setattr(weights, "BATCH", 13)
    features, classes = judge.look(judging.weights.params, judging.test[:20])  # the second has 7
    assert features.shape == (20, 128) and set(classes) <= set(range(10))
    np.testing.assert_allclose(features, judging.real.features[:20], rtol=1e-4, atol=1e-4)


def test_scores_are_the_metrics_of_features_and_pixels(judging):
    pixels = judging.train[:COUNT][::-1]
    row = judging(pixels)
    features, classes = judge.look(judging.weights.params, pixels)
    real, _ = judge.look(judging.weights.params, judging.test)
    assert row["fd"] == pytest.approx(metrics.frechet_distance(features, real))
    assert row["kd"] == pytest.approx(metrics.kernel_distance(features, real))
    found = metrics.precision_recall_coverage(real, features)
    assert (row["precision"], row["recall"], row["coverage"]) == found
    shares = np.array([np.mean(classes == k) for k in range(10)])
    np.testing.assert_allclose(judge.shares(classes), shares)
    assert row["class_tv"] == pytest.approx(np.abs(shares - 0.1).sum() / 2)


def test_memorised_images_are_found_out(judging, references):
    # The very images that it was trained on score well, and are all copies.
    copies = judging(judging.floor_images)
    assert copies["nearest"] == 0 and copies["memorised"] == 1
    floor = references["floor"]
    assert {name: copies[name] for name in judge.QUALITY} == {
        name: floor[name] for name in judge.QUALITY
    }
    assert floor["nearest"] > 1 and floor["memorised"] == pytest.approx(0.01, abs=1 / COUNT)
    assert references["shuffled"]["memorised"] == 0
    distance, index = judging.nearest(judging.train[[5, 2]])
    np.testing.assert_array_equal(index, [5, 2])
    np.testing.assert_array_equal(distance, 0)


def test_floor_is_far_from_the_traps(references):
    assert list(references) == ["floor", "gaussian", "shuffled"]
    # Of recall, precision and classes less is to be hoped for so few and so coarse images.
    assert not {"fd", "kd", "coverage"} & set(judge.indistinct(references))
    assert references["floor"]["coverage"] > 0.8


def test_traps_are_what_they_are_called(judging):
    traps = judging.traps
    for pixels in traps.values():
        assert pixels.shape == judging.test.shape and pixels.dtype == np.uint8
    real = judging.train.reshape(1280, -1).astype(float)
    fitted = traps["gaussian"].reshape(COUNT, -1).astype(float)
    inner = np.abs(real.mean(axis=0) - 127) < 40  # clipping moves the others
    assert inner.sum() > 50
    np.testing.assert_allclose(fitted.mean(axis=0)[inner], real.mean(axis=0)[inner], atol=20)
    pairs = [np.corrcoef(x[:, inner], rowvar=False).ravel() for x in (real, fitted)]
    assert np.corrcoef(*pairs)[0, 1] > 0.95  # pixels are as correlated as the data's
    shuffled = traps["shuffled"].reshape(COUNT, -1)
    drawn = judging.floor_images.reshape(COUNT, -1)
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(drawn))
    assert np.mean(shuffled == drawn) < 0.7
    # One permutation for all would leave the pixels that are black in all images black.
    assert (drawn.max(axis=0) == 0).sum() > 100 and (shuffled.max(axis=0) == 0).sum() == 0


def test_indistinct_metrics_are_those_that_miss_a_trap():
    floor = {
        "fd": 1.0,
        "kd": -0.1,
        "precision": 0.9,
        "recall": 0.9,
        "coverage": 0.9,
        "class_tv": 0.1,
    }
    bad = {"fd": 9.0, "kd": 0.1, "precision": 0.1, "recall": 0.1, "coverage": 0.0, "class_tv": 0.9}
    table = lambda **changes: {"floor": floor, "gaussian": {**bad, **changes}, "shuffled": bad}
    assert judge.indistinct(table()) == []
    assert judge.indistinct(table(recall=0.5)) == ["recall"]
    assert judge.indistinct(table(fd=1.9, precision=0.95, kd=-0.2)) == ["fd", "kd", "precision"]
    assert judge.indistinct(table(class_tv=0.0)) == ["class_tv"]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((COUNT, 28, 28, 1), np.float32),
        np.zeros((COUNT - 1, 28, 28, 1), np.uint8),
        np.zeros((COUNT, 784), np.uint8),
    ],
)
def test_other_images_or_counts_are_refused(judging, pixels):
    with pytest.raises(ValueError, match=r"give uint8 .* of shape \(500, 28, 28, 1\)"):
        judging(pixels)


@pytest.mark.parametrize("count", [5, 513])
def test_impossible_numbers_of_images_are_refused(count):
    splits = [judge.smoke_images(split) for split in ("train", "test")]
    with pytest.raises(ValueError, match=f"num_images is {count}; this data set allows 6 to 512"):
        judge.Judge("mnist", *splits, num_images=count)


def test_without_a_classifier_pixels_are_compared():
    judging = judge.Judge(
        None, *(judge.smoke_images(split) for split in ("train", "test")), num_images=20
    )
    references = judging.references()
    assert list(references) == ["floor", "gaussian", "shuffled"]
    assert all(scores.keys() == {"nearest", "memorised"} for scores in references.values())
    assert judge.indistinct(references) == []
    assert judging(judging.train[:20]) == {"nearest": 0.0, "memorised": 1.0}


@pytest.fixture
def torch_fidelity(monkeypatch, tmp_path):
    """Stand-ins for torch and torch-fidelity; the weights file, and what they were called with."""
    called = {}

    def load(path, map_location, weights_only):
        assert weights_only
        if path.read_bytes() != b"weights":
            raise pickle.UnpicklingError

    def calculate_metrics(**options):
        called.update(options)
        values = ("frechet_inception_distance", "inception_score_mean", "inception_score_std")
        return dict(zip(values, (3.5, 2.5, 0.5), strict=True))

    subset = lambda data, rows: [data[row] for row in rows]
    torch = types.SimpleNamespace(
        load=load,
        from_numpy=lambda values: values,
        cuda=types.SimpleNamespace(is_available=lambda: False),
        utils=types.SimpleNamespace(data=types.SimpleNamespace(Subset=subset)),
    )
    fidelity = types.SimpleNamespace(calculate_metrics=calculate_metrics, __version__="0.4.0")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch_fidelity", fidelity)
    path = tmp_path / "inception.pth"
    path.write_bytes(b"weights")
    return path, called


def test_inception_scores_say_what_they_depend_on(torch_fidelity):
    path, called = torch_fidelity
    pixels, real = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28, 1)).astype(np.uint8)
    scores = inception.scores(pixels, real, path, split="train")
    assert (scores["fid"], scores["inception_score"], scores["inception_score_std"]) == (
        3.5,
        2.5,
        0.5,
    )
    assert scores["split"] == "train" and scores["count"] == 3 and "299x299" in scores["resize"]
    assert scores["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert json.loads(json.dumps(scores)) == scores
    for images_in, name in ((pixels, "input1"), (real, "input2")):
        assert [image.shape for image in called[name]] == [(3, 28, 28)] * 3
        for channel in range(3):
            np.testing.assert_array_equal(called[name][1][channel], images_in[1, :, :, 0])
    assert called["fid"] and called["isc"] and not called["cache"]
    assert called["feature_extractor_weights_path"] == str(path)


def test_inception_keeps_the_colours(torch_fidelity):
    path, called = torch_fidelity
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    inception.scores(pixels, pixels, path)
    np.testing.assert_array_equal(called["input1"][1][2], pixels[1, :, :, 2])


def test_inception_without_weights_library_or_images_is_a_clear_error(
    torch_fidelity, monkeypatch, tmp_path
):
    path, called = torch_fidelity
    pixels = np.zeros((2, 28, 28, 1), np.uint8)
    with pytest.raises(FileNotFoundError, match=r"no Inception weights in .*none.pth; download"):
        inception.scores(pixels, pixels, tmp_path / "none.pth")
    for wrong in (pixels[:1], pixels.astype(np.float32)):
        with pytest.raises(ValueError, match="give uint8 of one shape"):
            inception.scores(wrong, pixels, path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="something else than a PyTorch state_dict"):
        inception.scores(pixels, pixels, path)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(RuntimeError, match=r"FID and IS need pip install 'sinkflow\[eval\]'"):
        inception.scores(pixels, pixels, path)
    assert not called


def test_flat_images_are_vectors_from_minus_one_to_one():
    pixels = np.array([0, 255, 255, 0], np.uint8).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(judge.flat(pixels), [[-1, 1, 1, -1]])
    np.testing.assert_array_equal(images.unscale(judge.flat(pixels)), pixels.reshape(1, 4))
