"""How fast Sinkhorn solves are: sinkflow against OTT, GeomLoss, FlashSinkhorn and POT.

Command:  python -m experiments.bench_sinkhorn                  (on the CPU)
          python -m experiments.bench_sinkhorn --device gpu     (peers: pip install -e '.[bench]')
Runtime:  about six minutes on two CPU cores, ten on an H200 with --time-limit 4. --time-limit
          bounds the repeated calls of a row, --budget the whole.
Expected: bench.json with a row for each peer and problem, its tables in bench.md, and the times
          of track B in bench.png; a peer that is missing or fails has its reason for a row.
Source:   arXiv:2401.14069 for the flows of track C; peers are cited in experiments/bench/peers.

Track A: microseconds per pass (one n x m softmin) at a fixed epsilon and number of passes.
Track B: time to a velocity within a tolerance of a float64 reference, each peer at its best knob.
Track C: a whole trajectory pool; peers are timed at states of the flow and multiplied up.
"""

import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable
from typing import ClassVar, Literal

import jax

from experiments.bench import inputs, problems, solvers
from experiments.bench.record import Record
from experiments.bench.sinkhorn_report import PEERS, publish, summary
from experiments.harness import cli, folders, provenance
from experiments.harness.run import recorded
from experiments.harness.settings import check_positive_counts, flat

DEFAULT_PEERS = {"gpu": PEERS[:-1], "cpu": ("sinkflow", "ott", "geomloss", "pot")}
LEAST_PASSES = 12  # GeomLoss makes eight beside those it is asked for


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and for how long."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where the workers run; it also decides the sizes."""
    track: tuple[Literal["A", "B", "C"], ...] = ("A", "B", "C")
    """Tracks to measure; rows of others that the output folder has are kept."""
    peers: tuple[str, ...] = ()
    """Of sinkflow, ott, geomloss, flash (FlashSinkhorn with its default tiles), flash-tuned (with
    its search for tiles) and pot, in the order to run them, sinkflow first; by default all that run
    on the device, POT on a CPU only."""
    time_limit: float = 10.0
    """Seconds of repeated calls for each row; compilation comes on top."""
    budget: float = 0.0
    """Seconds after which no row is begun; 0: no end."""
    dims: tuple[int, ...] = ()
    """Dimensions of track B, likewise; in track C they choose among 784 and 2."""
    fixed: problems.FixedTrack = dataclasses.field(default_factory=problems.FixedTrack)
    velocity: problems.VelocityTrack = dataclasses.field(default_factory=problems.VelocityTrack)
    pool: problems.PoolTrack = dataclasses.field(default_factory=problems.PoolTrack)
    seed: int = 0
    """Everything random follows from it."""
    out: str = "runs/bench-sinkhorn"
    """Output folder."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {
        "peers": ("sinkflow", "ott"),
        "time_limit": 0.2,
        "shapes": ((1, 64, 2),),
        "sizes": (64,),
        "dims": (2,),
        "passes": 40,
        "tolerances": (1e-2, 1e-3),
        "pool_clouds": 2,
        "pool_particles": 64,
        "pool_steps": 3,
        "out": "runs/bench-sinkhorn-smoke",
    }


def main(config: Config) -> dict:
    """Measures what is selected; from the record alone makes the tables and the picture."""
    unknown = set(config.peers) - set(PEERS)
    if unknown:
        raise ValueError(f"peers has {sorted(unknown)}; choose among {', '.join(PEERS)}")
    check_positive_counts(pool_particles=config.pool.pool_particles)
    if config.fixed.passes < LEAST_PASSES or config.fixed.passes % 2:
        raise ValueError(
            f"passes is {config.fixed.passes}; it must be even, {LEAST_PASSES} or more"
        )
    # This process draws inputs on the CPU; the device is its workers'.
    jax.config.update("jax_platforms", "cpu")
    out = pathlib.Path(config.out)
    folders.opened(out)
    cache = out / "references"
    cache.mkdir(exist_ok=True)
    facts = {
        "config": recorded(flat(config)),
        "versions": provenance.versions(),
        "host_cores": os.cpu_count(),
    }
    record = Record(out / "bench.json", ("track", "problem", "peer", "label"), summary, facts)
    deadline = time.time() + config.budget if config.budget else None
    device, seed = config.device, config.seed
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tracks: dict[str, Iterable[problems.Problem]] = {
            "A": inputs.fixed_problems(folder, device, seed, config.fixed),
            "B": inputs.velocity_problems(
                folder, cache, device, seed, config.dims, config.velocity
            ),
            "C": inputs.pool_problems(device, seed, config.dims, config.pool),
        }
        session = solvers.Session(record, folder, device, config.time_limit, deadline)
        asked = [problem for track in config.track for problem in tracks[track]]
        solvers.run(session, asked, config.peers or DEFAULT_PEERS[device])
    return publish(record.path)


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
