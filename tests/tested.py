"""What tests count, for the page "What we test": written on demand, by a whole campaign alone."""

import functools
import json
import os

from experiments.harness import provenance
from experiments.harness.files import write_json
from experiments.pages.blocks import RESULTS

FLIPS = 200
"""Changed bits of each kind of files in the gate."""


def flips_per_kind() -> int:
    """SINKFLOW_FLIPS asks a campaign for more."""
    return int(os.environ.get("SINKFLOW_FLIPS", FLIPS))


def recording() -> bool:
    """Whether a campaign runs, the whole of what the gate runs in a reduced form."""
    return bool(os.environ.get("SINKFLOW_RECORD"))


def write_record(name: str, row: str, values: dict) -> None:
    """Puts a row into experiments/results/tested-NAME.json, where SINKFLOW_RECORD is set."""
    if not recording():
        return
    path = RESULTS / f"tested-{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    write_json(path, {"rows": dict(sorted({**rows, row: {**values, **_circumstances()}}.items()))})


@functools.cache
def _circumstances() -> dict:
    """Commit, versions and device, looked at once: a first row makes the checkout dirty."""
    device = provenance.device()
    device.pop("count")  # of this process; drivers that it starts have their own
    return {"commit": provenance.commit(), "versions": provenance.versions(), "device": device}
