"""The same training on any number of devices: parameters to rounding, checkpoints that move."""

import functools
import shutil

import jax
import numpy as np
import pytest

from sinkflow import parallel
from tests import devices
from tests.tested import recording, write_record

COUNTS = (2, 4, 8) if recording() else (8,)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Parameters of two cases on one device."""
    folder = tmp_path_factory.mktemp("alone")
    devices.process(1, folder, devices.STEPS, "SGD", "Adam")
    return folder


@pytest.mark.parametrize("case", ["SGD", "Adam"])
def test_four_devices_train_as_one(alone, case):
    assert jax.local_device_count() == 4
    one, four = devices.read(alone, case), devices.trained(case, None, devices.STEPS)
    start = devices.CASES[case]()[0].params
    moved = devices.difference(jax.flatten_util.ravel_pytree(start)[0], one)
    assert devices.difference(four, one) < devices.ROUNDING < moved / 100


@pytest.mark.parametrize("case", ["SGD", pytest.param("UNet with dropout", marks=pytest.mark.slow)])
def test_shard_map_trains_as_pmap_bit_for_bit(case, monkeypatch):
    expected = devices.trained(case, None, 4)
    by = functools.partial(parallel.pmap_step, by="shard_map")
    monkeypatch.setattr(parallel, "pmap_step", by)
    np.testing.assert_array_equal(devices.trained(case, None, 4), expected)


@pytest.mark.slow
def test_any_number_of_devices_trains_as_one(tmp_path):
    """All cases on one device and on :data:`COUNTS`."""
    for count in (1, *COUNTS):
        devices.process(count, tmp_path / str(count), devices.STEPS, *devices.CASES, "pool")
    for case in (*devices.CASES, "pool"):
        one = devices.read(tmp_path / "1", case)
        found = {n: devices.difference(devices.read(tmp_path / str(n), case), one) for n in COUNTS}
        print(case, found)
        assert max(found.values()) < devices.ROUNDING
        values = {f"on {count}": found[count] for count in COUNTS}
        write_record("devices", case, {"steps": devices.STEPS, **values})


@pytest.mark.slow
def test_checkpoints_move_between_numbers_of_devices(tmp_path):
    """Begun on two devices, finished on four and on one."""
    cases, half = ("SGD", "Adam"), devices.STEPS // 2
    cases += ("UNet with dropout",) if recording() else ()
    devices.process(1, tmp_path / "undisturbed", devices.STEPS, *cases)
    devices.process(2, tmp_path / "begun", half, *cases)
    for count in (4, 1):
        shutil.copytree(tmp_path / "begun", tmp_path / str(count))
        devices.process(count, tmp_path / str(count), devices.STEPS, *cases)
    for case in cases:
        whole = devices.read(tmp_path / "undisturbed", case)
        begun = devices.read(tmp_path / "begun", case)
        assert devices.difference(begun, whole) > 100 * devices.ROUNDING  # it was not finished
        found = {
            n: devices.difference(devices.read(tmp_path / str(n), case), whole) for n in (4, 1)
        }
        print(case, found)
        assert max(found.values()) < devices.ROUNDING
        values = {f"on {count}": value for count, value in found.items()}
        write_record("devices", f"{case}, begun on 2", {"steps": devices.STEPS, **values})
