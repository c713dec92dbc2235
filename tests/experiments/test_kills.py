"""Every driver and stage, killed at random moments and started again, ends as if nothing had been.

SINKFLOW_KILLS=5 kills each driver so often; else a few are killed twice.
"""

import os
import secrets
import shutil

import pytest

from tests import kills
from tests.tested import write_record

PLANE = "--train-steps 400 --steps-per-call 10 --checkpoint-every 20 --num-clouds 1"
DRIVERS = {
    "plane": f"plane --smoke {PLANE} --num-samples 32 --nfe 1",
    "digits": "digits --smoke --num-floors 1 --nfe 1 2",
    "images": "mnist --smoke",
    "optimal pairs": "mnist --smoke --method ot-cfm",
    "generator": "generator --smoke",
    "generator of classes": "generator --smoke --dataset digits --labels",
    "grid of the plane": "table_plane --smoke --tasks moons --only NSGF NSGF++ Generator",
    "grid of generators": "table_generators --smoke --groups final --seeds 0 1",
    "classifier": "classifier --smoke",
}
TRAINED = "mnist --smoke --nfe 2"
DRAWN = "mnist --smoke --nfe 2 5 10 --num-samples 300 --sample-batch 20"
ASKED = int(os.environ.get("SINKFLOW_KILLS", 0))
CHOSEN = DRIVERS if ASKED else {name: DRIVERS[name] for name in ("generator", "grid of the plane")}
SEED = secrets.randbits(32)
pytestmark = pytest.mark.slow


def check(name, program, tmp_path, before=None):
    """Kills ``program`` in a folder of its own and compares what it leaves with a whole run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        if before is not None:
            shutil.copytree(before, out)
    undisturbed = program.finished(whole)
    assert undisturbed.code == 0, undisturbed.output
    print(f"seed {SEED}")
    # The first start has compiled what the others load.
    made = kills.survived(program, broken, ASKED or 2, 0.6 * undisturbed.seconds, SEED)
    found = [kills.content(out) for out in (whole, broken)]
    assert found[0] and kills.differences(*found) == []
    assert kills.unfinished(broken) == []
    assert made == (ASKED or 2)
    write_record("kills", name, {"kills": made, "seed": SEED})


@pytest.mark.parametrize("name", CHOSEN)
def test_a_killed_driver_ends_like_an_undisturbed_one(name, tmp_path):
    check(name, kills.Program(DRIVERS[name], tmp_path / "programs"), tmp_path)


@pytest.mark.skipif(not ASKED, reason="of a campaign, with SINKFLOW_KILLS")
def test_killed_sampling_and_scoring_end_like_undisturbed_ones(tmp_path):
    programs, before = tmp_path / "programs", tmp_path / "trained"
    trained = kills.Program(TRAINED, programs).finished(before)
    assert trained.code == 0, trained.output
    check("sampling and scoring", kills.Program(DRAWN, programs), tmp_path, before)


def test_what_differs_is_seen(tmp_path):
    """The comparison can fail."""
    for name, loss, seconds in (("a", 0.1, 1), ("b", 0.1, 2), ("c", 0.10000000000000002, 1)):
        (tmp_path / name).mkdir()
        line = f'{{"step": 1, "loss": {loss}, "times": {{"train": {seconds}}}}}\n'
        (tmp_path / name / "metrics.jsonl").write_text(line)
    a, b, c = (kills.content(tmp_path / name) for name in "abc")
    assert kills.differences(a, b) == [] and kills.differences(a, c) == ["metrics.jsonl"]
