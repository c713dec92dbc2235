"""A velocity or a coupling of very many particles, on one device or several, with its certificate.

Command:  python -m experiments.scale                                    (a million points, a GPU)
          python -m experiments.scale --num-particles 100000 --dim 784
          python -m experiments.scale --num-particles 20000                (a CPU, half a minute)
          python -m experiments.scale --devices 2              (each solve spread over two GPUs)
          python -m experiments.scale --dim 3 --work coupling --library flash-sinkhorn    (a rival)
Runtime:  on an H200 three minutes for a million points (two solves, the first of them cut short),
          half a minute for 100,000 in 784 dimensions.
Expected: result.json with the time, compilation apart, and the certificates of the solves.
Source:   the clouds are those of experiments.bench_sinkhorn, track B; the rival is the multiscale
          backend of FlashSinkhorn, arXiv:2602.03067.
"""

import dataclasses
import pathlib
from typing import ClassVar, Literal

import jax

from experiments.bench import large, pools
from experiments.harness import cli
from experiments.harness.run import Run
from experiments.harness.settings import check_positive_counts
from experiments.harness.spread import spread_over
from sinkflow import Limits
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
    work: Literal["velocity", "coupling"] = "velocity"
    """What is timed: a velocity, or its first half, the coupling of cloud and target."""
    library: Literal["sinkflow", "flash-sinkhorn"] = "sinkflow"
    """Who solves. flash-sinkhorn: its multiscale backend, on CUDA, which knows couplings of points
    of dim 3; what certifies them is ours."""
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
        """``out``, or runs/scale-N-D, with what else is not as by default."""
        others = "" if self.work == "velocity" else f"-{self.work}-{self.library}"
        spread = f"-on-{self.devices}" if self.devices > 1 else ""
        name = f"runs/scale-{self.num_particles}-{self.dim}{others}{spread}"
        return pathlib.Path(self.out or name + ("-smoke" if self.smoke else ""))


def main(config: Config) -> dict:
    """Solves, and writes down how long it took and what the certificates say."""
    counts = {"num_particles": config.num_particles, "dim": config.dim, "devices": config.devices}
    check_positive_counts(**counts)
    devices, storage = spread_over(config.devices, config.storage)
    limits = Limits(config.threshold, storage=storage)
    asked = config.work, config.library, config.dim, config.devices
    solve = large.solver(*asked, limits)
    run = Run(config)
    key_x, key_y = jax.random.split(jax.random.key(config.seed))
    source, target = pools.samplers(config.dim)
    x, y = source(key_x, config.num_particles), target(key_y, config.num_particles)
    regularisation = config.ratio * mean_cost(x, y)
    print(f"{counts}, {devices[0].device_kind}")

    first = solve(x, y, regularisation, True).seconds
    print(f"{first:.1f} s for a first call, which compiles", flush=True)
    done = solve(x, y, regularisation, False)
    fields = ("marginal_error", "num_iterations", "converged", "entropy", "neighbours")
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    result = run.finish(
        seconds=done.seconds,
        first_call_seconds=first,
        epsilon=float(regularisation),
        peak_bytes=peaks[0],
        peak_bytes_of_devices=peaks,
        **done.others,
        **{
            name: {field: getattr(out, field).item() for field in (*fields, "diagonal_mass")}
            for name, out in done.solves.items()
        },
    )
    print(f"{done.seconds:.2f} s; {solves_text(result)}")
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
