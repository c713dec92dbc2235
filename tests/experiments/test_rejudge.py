"""Kept samples before two classifiers: scores, rankings, and files that are refused."""

import json
import pathlib

import numpy as np
import pytest

from experiments import rejudge
from experiments.images import judge, rankings
from sinkflow.data.images import Images
from sinkflow.metrics import weights

COUNT = weights.BATCH  # one batch of one size compiles once


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Enlarged digits and mirrored ones, in files of one stem; the config and its result."""
    folder = tmp_path_factory.mktemp("rejudge")
    pixels = judge.smoke_images("train").pixels[:COUNT]
    for name, shown in (("real", pixels), ("mirrored", pixels[:, :, ::-1])):
        (folder / name).mkdir()
        np.savez_compressed(folder / name / "fm-60.npz", images=shown)
    paths = tuple(str(folder / name / "fm-60.npz") for name in ("real", "mirrored"))
    config = rejudge.Config(paths, num_samples=COUNT, out=str(folder / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "load", lambda name, folder, split: judge.smoke_images(split))
        return config, rejudge.main(config)


def test_each_classifier_scores_every_file_as_its_judge_does(judged):
    config, result = judged
    written = json.loads((pathlib.Path(config.out) / "result.json").read_text())
    assert written == json.loads(json.dumps(result))
    train, test = (judge.smoke_images(split) for split in ("train", "test"))
    splits = train, rankings.in_random_order(test)
    real, mirrored = config.samples  # their stems are the same, so they go by their paths
    for network, found in result["judged"].items():
        judging = judge.Judge("mnist", *splits, num_images=COUNT, network=network)
        expected = judging.quality(splits[0].pixels[:COUNT])
        assert found["rows"][real] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert found["rows"][real]["fd"] < found["rows"][mirrored]["fd"]
        assert found["references"].keys() == {"floor", "gaussian", "shuffled"}
    first, second = (found["rows"][real]["fd"] for found in result["judged"].values())
    assert first != pytest.approx(second, rel=0.01)  # two networks looked
    table = (pathlib.Path(config.out) / "table.md").read_text()
    assert "FD ↓ convolutional | FD ↓ mixer" in table and "*shuffled*" in table
    assert real in table and mirrored in table


def test_test_images_are_compared_in_no_order_of_the_file():
    labels = np.arange(200, dtype=np.uint8)
    mixed = rankings.in_random_order(
        Images(np.tile(labels[:, None, None, None], (1, 2, 2, 1)), labels)
    )
    np.testing.assert_array_equal(mixed.pixels[:, 1, 1, 0], mixed.labels)
    np.testing.assert_array_equal(np.sort(mixed.labels), labels)
    assert (
        70 < mixed.labels[:50].mean() < 130
    )  # about that of all, 99.5, and not of the first, 24.5


def test_pairs_that_are_ordered_differently_are_named_with_their_values():
    found = {
        "one": {"a": {"fd": 1.0, "recall": 0.5}, "b": {"fd": 2.0, "recall": 0.6}},
        "other": {"a": {"fd": 4.0, "recall": 0.7}, "b": {"fd": 3.0, "recall": 0.8}},
    }
    assert rankings.disagreements(found, ["fd", "recall"]) == [
        "FD ↓: one has a 1, b 2; other has a 4, b 3"
    ]
    assert rankings.disagreements(found, ["recall"]) == []
    found["other"]["a"]["fd"] = 3.0  # a tie is no other order
    assert rankings.disagreements(found, ["fd"]) == []


@pytest.mark.parametrize(
    ("paths", "message"),
    [((), "name at least one file"), (("a.npz", "a.npz"), "none twice")],
)
def test_no_file_or_one_twice_is_refused(paths, message):
    with pytest.raises(ValueError, match=message):
        rankings.read(paths, 3)


@pytest.mark.parametrize(
    "images", [np.zeros((4, 28, 28, 1), np.uint8), np.zeros((3, 28, 28, 1), np.float32)]
)
def test_other_arrays_are_refused(images, tmp_path):
    path = tmp_path / "fm.npz"
    np.savez_compressed(path, images=images)
    with pytest.raises(ValueError, match=r"fm\.npz .*; --num-samples says how many images"):
        rankings.read([str(path)], 3)
