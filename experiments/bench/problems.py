"""Problems of the solvers' benchmark, and the settings of its tracks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class FixedProblem(NamedTuple):
    """Track A: a number of passes at a fixed epsilon. ``files`` are the input sets, x and y."""

    key: str
    clouds: int
    n: int
    d: int
    files: Sequence[Sequence[str]]
    passes: int
    epsilon: float
    track: str = "A"


class VelocityProblem(NamedTuple):
    """Track B: a velocity within each of ``tolerances`` of its reference, a file for each set."""

    key: str
    clouds: int
    n: int
    d: int
    files: Sequence[Sequence[str]]
    epsilon: float
    mean_cost: float
    tolerances: Sequence[float]
    references: Sequence[str]
    not_run: str = ""
    """Why there is no reference; empty where there is."""
    track: str = "B"


class PoolProblem(NamedTuple):
    """Track C: a whole pool of flows. ``files`` and ``references`` are of what is judged."""

    key: str
    clouds: int
    n: int
    d: int
    steps: int
    step_size: float
    epsilon: float
    scaling: float
    seed: int
    clouds_per_call: int
    files: Sequence[Sequence[str]] = ()
    references: Sequence[str] = ()
    track: str = "C"


Problem = FixedProblem | VelocityProblem | PoolProblem
KINDS = {"A": FixedProblem, "B": VelocityProblem, "C": PoolProblem}


def from_json(record: Mapping[str, Any]) -> Problem:
    """The problem whose fields a plan's file holds."""
    return KINDS[record["track"]](**record)


@dataclasses.dataclass(frozen=True)
class FixedTrack:
    """Track A: one pass."""

    shapes: tuple[tuple[int, int, int], ...] = ()
    """Clouds, n and d of track A's problems; by default those of the device."""
    passes: int = 100
    """Passes of track A."""


@dataclasses.dataclass(frozen=True)
class VelocityTrack:
    """Track B: time to a velocity."""

    sizes: tuple[int, ...] = ()
    """Points of each cloud in track B, likewise."""
    ratio: float = 0.005
    """Epsilon of track B over the mean cost."""
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """Relative errors of the velocity in track B."""


@dataclasses.dataclass(frozen=True)
class PoolTrack:
    """Track C: a whole pool."""

    pool_clouds: int = 0
    """Clouds of track C; 0: 256 on a GPU, 4 on a CPU."""
    pool_particles: int = 256
    """Particles of each of them."""
    pool_steps: int = 0
    """Steps of its flows; 0: as the first author ran them."""
