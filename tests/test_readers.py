"""Files from elsewhere, damaged or forged: an error that names the file, and nothing worse.

SINKFLOW_FUZZ is the number of examples of each reader in a longer campaign, whose inputs are new
each time; one that fails is printed with what reproduces it.
"""

import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import re
import struct
import tracemalloc
import types
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import plane
from experiments.generators import grid
from experiments.generators.config import GeneratorConfig, preset
from experiments.harness.run import Run, read_settings
from experiments.harness.settings import checked, flat, made, naming
from experiments.images import comparison, stages
from experiments.images.scoring import load_samples
from experiments.pages.blocks import RESULTS
from experiments.vectors import cells
from sinkflow import _described, nets
from sinkflow.data import _files, images
from sinkflow.metrics import weights
from tests.tested import write_record

CAMPAIGN = "SINKFLOW_FUZZ"
MOST = 2**24  # bytes that a reader of these files may take, of which the largest has 400 kB
fuzzed = settings(
    max_examples=int(os.environ.get(CAMPAIGN, 40)),
    derandomize=CAMPAIGN not in os.environ,
    print_blob=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# What files may be changed to: other bytes, and other values of JSON.

NUMBERS = st.sampled_from([0, -1, 2**31, 2**63, -(10**400), 1e308, float("nan"), float("inf"), 0.5])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=3), own, max_size=3),
    max_leaves=5,
)


@st.composite
def other_bytes(draw, content):
    """The content with up to four pieces overwritten, cut out, doubled, or cut off behind."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = at + draw(st.sampled_from([1, 2, 4, 8, 64]))
        kind = draw(st.sampled_from(["write", "write", "flip", "cut", "double", "end"]))
        if kind == "write":
            content[at:end] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:end]
        elif kind == "double":
            content[at:at] = content[at:end]
        else:
            del content[at:]
    return bytes(content)


@st.composite
def other_json(draw, content):
    """The content with up to three of its values others, or missing."""
    value = {"": json.loads(content)}
    for _ in range(draw(st.integers(1, 3))):
        holder = value
        while holder:
            name = draw(
                st.sampled_from([*holder] if isinstance(holder, dict) else range(len(holder)))
            )
            if not isinstance(holder[name], dict | list) or draw(st.integers(0, 5)) == 0:
                if draw(st.integers(0, 3)) == 0 and holder is not value:
                    del holder[name]
                else:
                    holder[name] = draw(VALUES)
                break
            holder = holder[name]
    return json.dumps(value[""]).encode()


def refusal(read, path):
    """The message with which a reader refuses a file, or None where it takes it.

    Raises:
      AssertionError: a message that does not name the file, or memory that it is not worth. Other
        errors than ValueError pass through.
    """
    tracemalloc.start()
    try:
        read(path)
    except ValueError as error:
        assert str(path) in str(error), error
        return str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < MOST, f"{most} bytes for a file of {path.stat().st_size}"
    return None


# Readers, each with a file that it takes.


class Reader(NamedTuple):
    """``read(path)`` takes the content under that name."""

    name: str
    content: bytes
    read: Callable[[pathlib.Path], object]


def encoded(value):
    return json.dumps(value).encode()


def idx(shape, content):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def npy(shape, content, dtype="|u1"):
    """A file of version 1.0, whose header may lie."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def npz(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def record(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def folder_run(folder):
    """What stands in for a run where only its folder is looked at."""
    return types.SimpleNamespace(out=folder, log_file=folder / "metrics.jsonl")


def read_images(parse, shape, path):
    """As :func:`sinkflow.data.images.load` does, but for the checksum, which no forger meets."""
    package = _files.Package(f"https://there/{path.stem}.gz", "", {path.stem: None})
    found = _files.files(package, _files.Dataset(("",), {}, parse), path.parent)
    _files.check_images(parse(found), shape, found)


def parse_idx(found):
    pixels = _files._parse(images.read_idx, found[0])
    return images.Images(pixels[..., None], np.zeros(3, np.uint8))


def read_weights(path):
    """Weights with a record that vouches for them."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
    weights.read_classifier(path.parent, path.stem)


def read_about(path):
    """The record of weights."""
    path.with_suffix(".npz").write_bytes(b"")
    with pytest.raises(ValueError, match=path.stem) as stop:  # the weights are empty
        weights.read_classifier(path.parent, path.stem)
    if "altered or of another training" not in str(stop.value):
        raise stop.value


def read_config(config_class, path):
    values = {k: v for k, v in read_settings(path.parent).items() if k != "driver"}
    with naming(path):
        made(config_class, **checked(config_class, values))


def read_cells(path):
    cells.summaries(cells.read_cells(path.parents[2], ["nsgf"], ["moons"], 1))


def read_result(path):
    found = comparison.read(path)
    with naming(path):
        comparison.check_comparable(["it"], [found])
        comparison.make_table([found])
        comparison.training_table([found])


def read_samples(path):
    load_samples(path, 3, (2, 2, 1))


ROW = grid.Row("rate", "0.001", 0, pathlib.Path(), preset("mnist", num_samples=3))
CIRCUMSTANCES = {"commit": "abc", "versions": {}, "device": {"kind": "cpu"}}
CELL = {
    **{"w2": {"1": 0.5}, "floor": 0.1, "stratified_floor": 0.1, "certificates": {}},
    **{"seconds_of_all_seeds": {"train": 1.0}, **CIRCUMSTANCES},
}
ROW_CELL = {
    **{"group": "rate", "row": "0.001", "seed": 0, "config": grid.settings(ROW.config)},
    **{"epsilon": [0.1], "fd": 1.5, **CIRCUMSTANCES},
}
TRAINING = {"seconds": {"train": 1.0}, "resumed_from": None, "device_memory_gb": 1.5}
HALVES = {name: npy(f.shape, bytes(2 * f.size), "<f2") for name, f in weights._forms().items()}
PIXELS = idx((3, 2, 2), bytes(12))
CIFAR = (b"\3" + bytes(range(256)) * 12) * 3
read_pixels = functools.partial(read_images, parse_idx, (3, 2, 2, 1))
READERS = {
    "IDX": Reader("train-ubyte", PIXELS, read_pixels),
    "packed IDX": Reader("train-ubyte.gz", gzip.compress(PIXELS), read_pixels),
    "CIFAR": Reader(
        "data_batch_1", CIFAR, functools.partial(read_images, _files.read_batches, (3, 32, 32, 3))
    ),
    "weights": Reader("toy.npz", npz(HALVES, zipfile.ZIP_STORED), read_weights),
    "samples": Reader(
        "samples/fm-2.npz", npz({"images": npy((3, 2, 2, 1), bytes(12))}), read_samples
    ),
    "images of a row": Reader(
        "row.npy",
        npy((3, 28, 28, 1), bytes(3 * 784)),
        lambda path: grid.shown(ROW._replace(file=path.with_suffix(".json"))),
    ),
    "log": Reader(
        "metrics.jsonl",
        b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n',
        lambda path: Run.logged(folder_run(path.parent), "loss"),
    ),
    "network.json": Reader(
        "network.json",
        encoded(_described.description(nets.UNet(8, (1, 2)), 1.0)),
        lambda path: _described.read(path.parent),
    ),
    "config.json": Reader(
        "config.json",
        encoded({"driver": "plane", **flat(plane.Config())}),
        functools.partial(read_config, plane.Config),
    ),
    "config.json of a generator": Reader(
        "config.json",
        encoded({"driver": "generator", **flat(preset("mnist"))}),
        functools.partial(read_config, GeneratorConfig),
    ),
    "result.json": Reader("result.json", encoded(record("images-mnist-nsgfpp")), read_result),
    "cell": Reader("cells/nsgf/moons-0.json", encoded(CELL), read_cells),
    "cell of generators": Reader(
        "rate.json", encoded(ROW_CELL), lambda path: grid.read(ROW._replace(file=path))
    ),
    "training.json": Reader(
        "straight/training.json",
        encoded({**TRAINING, **CIRCUMSTANCES}),
        lambda path: stages.training_records(folder_run(path.parents[1]), ("straight",)),
    ),
    "record of a pool": Reader(
        "pools/0.json",
        encoded({"epsilon": 1.0}),
        lambda path: stages.pool_records(folder_run(path.parents[1])),
    ),
    "record of weights": Reader("toy.json", encoded({"sha256": "0" * 64}), read_about),
}


@pytest.fixture
def write(tmp_path):
    """Puts content under a reader's name."""

    def write(reader, content):
        path = tmp_path / reader.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(("label", "reader"), READERS.items(), ids=READERS)
def test_any_other_content_is_taken_or_refused_by_name(label, reader, write):
    assert refusal(reader.read, write(reader, reader.content)) is None
    refusals = []
    changed = other_bytes(reader.content)
    if ".json" in reader.name:
        changed |= other_json(reader.content.split(b"\n")[0])

    @fuzzed
    @given(changed)
    def fuzz(content):
        refusals.append(refusal(reader.read, write(reader, content)) is not None)

    fuzz()
    assert any(refusals)
    values = {"inputs": len(refusals), "refused": sum(refusals)}
    write_record("inputs", f"{label}, changed at random", values)


# What fuzzing found, and what it seldom meets.

JSON_READERS = {k: reader for k, reader in READERS.items() if reader.name.endswith(".json")}


def refused(reader, path):
    message = refusal(reader.read, path)
    assert message is not None
    return message


@pytest.mark.parametrize("reader", JSON_READERS.values(), ids=JSON_READERS)
@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff{}", b"[1]", b'{"a": 1', b"1" * 5_000]
)
def test_what_is_no_json_object_is_refused(reader, content, write):
    refused(reader, write(reader, content))


def described(**changes):
    """A network.json with other settings, or without those that are None."""
    value = json.loads(READERS["network.json"].content)
    settings = {**value["settings"], **changes}
    return encoded({**value, "settings": {k: v for k, v in settings.items() if v is not None}})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("IDX", idx((2**31, 2, 2), bytes(12)), r"the shape \[2147483648, 2, 2\] in its header"),
        ("IDX", idx((0, *[2**32 - 1] * 99), b""), "train-ubyte"),
        ("packed IDX", b"\x1f\x8b\x08", "cannot be unpacked"),
        ("CIFAR", b"", "has 0 bytes"),
        ("log", b'\x80"step": 1}\n', "line 1 is no JSON"),
        ("log", b'{"step": 1}\n{"loss": 1.0}\n', "line 2: step is missing"),
        ("weights", b"", "is not a zip"),
        ("weights", npz({**HALVES, "more": npy((1,), b"a")}), "more.npy"),
        ("samples", npz({"images": npy((2**40, 2, 2, 1), b"")}), "shape .1099511627776, 2, 2, 1"),
        ("samples", npz({"images": npy((3, 2, 2, 1), bytes(11))}), "has 11 bytes"),
        ("samples", npz({"images": npy((3, 2, 2, 1), bytes(2**25))}), "bytes or more"),
        (
            "samples",
            npz({"images": npy((3, 2, 2, 1), bytes(2**25))}, zipfile.ZIP_LZMA),
            "packed in",
        ),
        ("samples", npz({"images": npy((3, 2, 2, 1), b"", "|O")}), "holds object"),
        ("images of a row", npy((2**40, 28, 28, 1), b""), "shape .1099511627776"),
        ("images of a row", npy("(" * 5_000, b""), "row.npy"),
        ("images of a row", npy((3, 28, 28, 1), b"", "|O"), "holds object"),
        ("network.json", described(channels=None), "channels is missing"),
        ("network.json", described(channels="8"), "channels is '8'; it must be a whole number"),
        ("network.json", described(multipliers=[1, 2.5]), r"multipliers\[1\] is 2.5"),
        ("network.json", described(dtype="float3"), "dtype is 'float3'; it must be a floating one"),
        ("network.json", described(parent=1), "settings has .'parent'.; UNet has channels"),
        ("config.json", encoded({"driver": "plane", "epsilonn": 1.0}), "epsilonn is no setting"),
        ("config.json", encoded({"driver": "plane", "seed": 2**63}), "seed is 9223372036854775808"),
        (
            "config.json",
            encoded({"driver": "plane", "time": ["flow"]}),
            r"time is \['flow'\]; its type",
        ),
        ("config.json", encoded({"seed": 1}), "driver is missing"),
        ("cell", encoded({**CELL, "w2": [0.5]}), r"w2 is \[0.5\]; it must be an object"),
        ("cell of generators", encoded({**ROW_CELL, "fd": "1"}), "fd is '1'; it must be a number"),
        ("result.json", encoded({"rows": [{"method": "FM"}]}), "config is missing"),
    ],
)
def test_forged_files_are_refused_in_words(name, content, words, write):
    reader = READERS[name]
    assert re.search(words, refused(reader, write(reader, content)))


def test_a_gzip_bomb_is_not_unpacked(write, monkeypatch):
    monkeypatch.setattr(_files, "LARGEST", 2**21)
    message = refused(
        READERS["packed IDX"], write(READERS["packed IDX"], gzip.compress(bytes(2**25)))
    )
    assert "unpacks to more than 2097152 bytes" in message


class Evil:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    "name", ["IDX", "packed IDX", "CIFAR", "weights", "samples", "images of a row"]
)
def test_pickles_are_not_run(name, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(Evil())
    names = {"weights": HALVES, "samples": ["images"]}.get(name, ["x"])
    contents = [pickled, npy((), pickled, "|O"), npz(dict.fromkeys(names, npy((), pickled, "|O")))]
    for content in contents:
        refused(READERS[name], write(READERS[name], content))
    assert not (tmp_path / "evil").exists()


def test_a_table_of_a_run_that_does_not_say_how_long_it_trained():
    found = record("images-mnist-fm")
    found["training"]["straight"]["seconds"] = {}
    assert "unknown" in comparison.training_table([found]).rows[0]


def test_a_network_as_large_as_a_file_says_takes_no_memory():
    tracemalloc.start()
    model = nets.VelocityMLP((20_000, 20_000))
    nets.flattened(lambda key: model.init(key, jnp.zeros((1, 2)), jnp.zeros(1)), model.apply)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MOST  # its parameters have 1.6 GB
