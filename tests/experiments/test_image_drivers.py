"""The image drivers in miniature: stages, resumption, samples, scores, pictures."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from experiments import mnist, table_images
from experiments.harness.settings import made, replaced
from experiments.images import pipeline, scoring
from experiments.images.config import stage_steps

TRAPS = ("floor", "gaussian", "shuffled")
pytestmark = pytest.mark.slow

SMOKE = {**mnist.Config.SMOKE, "smoke": True, "batch_size": 16}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A run of NSGF++ and its result; first one stage alone, as on one of several devices."""
    out = tmp_path_factory.mktemp("images") / "run"
    config = made(mnist.Config, **SMOKE, out=str(out))
    assert pipeline.main(replaced(config, stages=("predictor",))) == {}
    assert not (out / "result.json").exists()
    return config, out, pipeline.main(config)


def test_run_in_stages_ends_with_samples_scores_and_pictures(smoke):
    config, out, result = smoke
    assert json.loads(json.dumps(result)) == json.loads((out / "result.json").read_text())
    done = [(row["method"], row["nfe"]) for row in result["rows"]]
    assert done == [("NSGF", 2), ("NSGF", 5), ("NSGF++", 5)]
    for row in result["rows"]:
        assert np.isfinite(row["fd"]) and row["seconds_per_10k"] > 0
    assert result["references"]["floor"]["fd"] < result["references"]["shuffled"]["fd"]
    assert result["resumed_from"] == config.training.predictor_steps
    assert 0 < result["predicted_time"]["mean"] < 1
    assert [record["unconverged"] for record in result["pools"]] == [0, 0]
    names = {path.name for path in (out / "pictures").iterdir()}
    assert names >= {"nsgfpp-5.png", "neighbours.png", "phases.png", "loss-velocity.png"}
    for name in names:
        with PIL.Image.open(out / "pictures" / name) as image:
            assert np.asarray(image.convert("L"), float).std() > 1


def test_samples_are_bytes_of_any_number(smoke):
    config, out, _ = smoke
    assert config.sampling.num_samples % config.sampling.sample_batch  # the last batch is cut
    count, kept = config.sampling.num_samples, config.sampling.num_kept
    drawn = scoring.load_samples(out / "samples" / "nsgfpp-5.npz", count, (28, 28, 1))
    first = scoring.load_samples(out / "kept-nsgfpp-5.npz", kept, (28, 28, 1))
    np.testing.assert_array_equal(first, drawn[:kept])
    assert not (out / "kept-nsgf-2.npz").exists()


def test_the_tables_are_made_of_what_the_driver_wrote(smoke, tmp_path):
    config, out, _ = smoke
    table = table_images.main(table_images.Config(runs=(str(out),), out=str(tmp_path)))
    done = [("NSGF", 2), ("NSGF", 5), ("NSGF++", 5)]
    names = [*((m, str(nfe)) for m, nfe in done), *((f"*{n}*", "") for n in TRAPS)]
    assert [tuple(row[:2]) for row in table.rows] == names


def test_another_start_samples_without_training(smoke):
    config, out, first = smoke
    before = (out / "velocity" / "metrics.jsonl").read_text()
    again = pipeline.main(replaced(config, nfe=(5,), num_samples=40))
    assert again["resumed_from"] == sum(stage_steps(config.method, config.training).values())
    # What the training took is still known.
    assert again["training"] == first["training"]
    assert {s: r["resumed_from"] for s, r in again["training"].items()} == dict.fromkeys(
        ("velocity", "predictor", "straight")
    )
    assert again["training"]["velocity"]["seconds"]["train velocity"] > 0.1
    assert (out / "velocity" / "metrics.jsonl").read_text() == before
    assert [row["nfe"] for row in again["rows"]] == [5, 5]


def test_training_with_other_settings_is_refused(smoke):
    config, out, _ = smoke
    before = (out / "config.json").read_text()
    with pytest.raises(ValueError, match=r"channels: 8 there, 16 here"):
        pipeline.main(replaced(config, channels=16))
    assert (out / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("command", "method", "judged"),
    [
        ("mnist --dataset fashion --method ot-cfm", "OT-CFM", True),
        ("cifar10", "NSGF++", False),
        ("cifar10 --dataset photographs", "NSGF++", False),
    ],
)
def test_smoke_runs_take_less_than_90_seconds_of_two_cores(command, method, judged, tmp_path):
    name, *options = command.split()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = spent()
    arguments = [sys.executable, "-m", f"experiments.{name}", *options, "--smoke"]
    subprocess.run([*arguments, "--out", str(tmp_path)], check=True, env=environment)
    # Of the process, so that it does not depend on what else runs.
    assert spent() - before < 2 * 90
    result = json.loads((tmp_path / "result.json").read_text())
    row = result["rows"][-1]
    assert row["method"] == method and ("fd" in row) == judged and row["nearest"] > 0
    assert result["references"]["shuffled"]["nearest"] > result["references"]["floor"]["nearest"]
    shape = (28, 28, 1) if judged else (32, 32, 3)
    (file,) = (tmp_path / "samples").glob(f"{method.lower().replace('+', 'p')}-5.npz")
    with np.load(file) as drawn:
        assert drawn["images"].shape == (result["config"]["num_samples"], *shape)
