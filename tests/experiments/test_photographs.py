"""Patches of photographs: what they are cut from, and that the splits share no pixel."""

import types

import numpy as np
import pytest
import sklearn.datasets

from experiments import cifar10
from experiments.images import judge, photographs


def test_patches_are_colour_images_of_both_photographs():
    train, test = (photographs.patches(split) for split in ("train", "test"))
    shapes = [(count, *cifar10.Config.SHAPE) for count in (10_000, 2_000)]
    assert [split.pixels.shape for split in (train, test)] == shapes
    for split in (train, test):
        assert split.pixels.dtype == split.labels.dtype == np.uint8
        assert 0.4 < split.labels.mean() < 0.6 and set(split.labels) == {0, 1}
        spread = split.pixels.astype(float).std(axis=3).mean()
        assert spread > 10  # colours: the three channels differ
    again = judge.load("photographs", smoke=True)
    np.testing.assert_array_equal(again.pixels, train.pixels)
    np.testing.assert_array_equal(again.labels, train.labels)


def test_splits_share_no_pixel_and_patches_are_cut_whole(monkeypatch):
    rows, columns = np.indices((427, 640))
    shown = np.stack([rows % 256, columns // 4, columns % 4], axis=-1).astype(np.uint8)
    pair = types.SimpleNamespace(images=[shown, shown[::-1]])
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: pair)
    seen = {}
    for split in ("train", "test"):
        pixels, labels = photographs.patches(split)
        column = 4 * pixels[..., 1].astype(int) + pixels[..., 2]
        assert (np.diff(column, axis=2) == 1).all()
        down = np.where(labels == 0, 1, -1)[:, None, None]
        assert (np.diff(pixels[..., 0].astype(int), axis=1) % 256 == down % 256).all()
        seen[split] = set(column.ravel())
    assert seen["train"] == set(range(480)) and seen["test"] == set(range(480, 640))


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'valid'; choose one of train, test"):
        photographs.patches("valid")
