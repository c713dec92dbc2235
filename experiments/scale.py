"""One Sinkhorn velocity of very many particles, on one device or several, with its certificate.

Command:  python -m experiments.scale                                    (a million points, a GPU)
          python -m experiments.scale --num-particles 100000 --dim 784
          python -m experiments.scale --num-particles 20000                (a CPU, half a minute)
          python -m experiments.scale --devices 2              (each solve spread over two GPUs)
Runtime:  on an H200 three minutes for a million points (two solves, the first of them cut short),
          half a minute for 100,000 in 784 dimensions.
Expected: result.json with the time, compilation apart, and the certificates of both solves.
Source:   the clouds are those of experiments.bench_sinkhorn, track B.
"""

import dataclasses
import pathlib
import time
from typing import ClassVar

import jax
import numpy as np

from experiments.bench import pools
from experiments.harness import cli
from experiments.harness.run import Run
from experiments.harness.settings import check_positive_counts, require_finite
from experiments.harness.spread import spread_over
from sinkflow import Limits, sinkhorn_velocity
from sinkflow.ot.regularisation import mean_cost


@dataclasses.dataclass(frozen=True)
class Config:
    """How many points, and how sharp a plan."""

    num_particles: int = 1_000_000
    """Points of each cloud."""
    dim: int = 2
    """2: eight Gaussians to moons. Else: a normal cloud to ten clusters in a cube."""
    ratio: float = 0.02
    """Epsilon over the mean cost."""
    threshold: float = 1e-3
    """L1 marginal error [mass, total 1] of each solve."""
    storage: str = "auto"
    """What solves keep on the device: full, half, chunks, or auto, the first that fits."""
    devices: int = 1
    """Over how many devices each solve is spread, by the points of its first cloud."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = ""
    """Output folder; by default one under runs/, named after the sizes."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {"num_particles": 500}
    SELECTION: ClassVar[tuple[str, ...]] = ()

    def folder(self):
        """``out``, or runs/scale-N-D, with the number of devices if they are several."""
        spread = f"-on-{self.devices}" if self.devices > 1 else ""
        name = f"runs/scale-{self.num_particles}-{self.dim}{spread}"
        return pathlib.Path(self.out or name + ("-smoke" if self.smoke else ""))


def main(config: Config) -> dict:
    """Solves, and writes down how long it took and what the certificates say."""
    counts = {"num_particles": config.num_particles, "dim": config.dim, "devices": config.devices}
    check_positive_counts(**counts)
    devices, storage = spread_over(config.devices, config.storage)
    run = Run(config)
    key_x, key_y = jax.random.split(jax.random.key(config.seed))
    source, target = pools.samplers(config.dim)
    x, y = source(key_x, config.num_particles), target(key_y, config.num_particles)
    regularisation = config.ratio * mean_cost(x, y)

    print(f"{counts}, {devices[0].device_kind}")

    def solve(threshold):
        begin = time.perf_counter()
        limits = Limits(threshold, storage=storage)
        velocity, info = sinkhorn_velocity(x, y, regularisation, limits=limits)
        return *jax.block_until_ready((velocity, info)), time.perf_counter() - begin

    # No L1 error is above 2: this call compiles, anneals and stops.
    *_, first = solve(3.0)
    print(f"{first:.1f} s to compile and to anneal once", flush=True)
    velocity, info, seconds = solve(config.threshold)
    require_finite("velocity", velocity)
    solves = {"cloud to target": info.xy, "cloud to itself": info.xx}
    fields = ("marginal_error", "num_iterations", "converged", "entropy", "neighbours")
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    result = run.finish(
        seconds=seconds,
        first_call_seconds=first,
        epsilon=float(regularisation),
        mean_speed=float(np.mean(np.linalg.norm(np.asarray(velocity), axis=1))),
        peak_bytes=peaks[0],
        peak_bytes_of_devices=peaks,
        **{
            name: {field: getattr(out, field).item() for field in (*fields, "diagonal_mass")}
            for name, out in solves.items()
        },
    )
    print(f"{seconds:.2f} s; {solves_text(result)}")
    return result


def solves_text(result: dict) -> str:
    """The certificates in a line."""
    return "; ".join(
        f"{name}: {values['num_iterations']} iterations, marginal error "
        f"{values['marginal_error']:.1e}, {'' if values['converged'] else 'NOT '}converged, "
        f"{values['neighbours']:.3g} neighbours"
        for name, values in result.items()
        if name.startswith("cloud to")
    )


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
