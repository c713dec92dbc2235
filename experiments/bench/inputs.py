"""The problems' clouds, written to files."""

import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from experiments.bench.pools import samplers
from experiments.bench.problems import (
    FixedProblem,
    FixedTrack,
    PoolProblem,
    PoolTrack,
    VelocityProblem,
    VelocityTrack,
)

SETS = 3  # input sets of each problem
# (clouds, n, d) of track A; the sizes and the dimensions of track B. From small to large, because
# JAX's peak of memory is that of its process.
FIXED = {
    "gpu": [
        (1, 1024, 784),
        (256, 256, 784),
        (1, 8192, 2),
        (1, 8192, 64),
        (1, 8192, 784),
        (1, 32768, 784),
    ],
    "cpu": [(1, 1024, 2), (1, 1024, 784), (16, 256, 784)],
}
GRID = {"gpu": ((256, 1024, 8192), (2, 64, 784)), "cpu": ((256, 1024), (2, 784))}
# d, steps, step size, blur, GeomLoss's scaling: images and the plane as the first author ran them
POOLS = [(784, 5, 0.2, 1.0, 0.85), (2, 100, 0.02, 0.05, 0.95)]
POOL_CLOUDS = {"gpu": 256, "cpu": 4}


def save_pair(folder: pathlib.Path, name: str, pair) -> list[str]:
    """Files of two clouds."""
    paths = [str(folder / f"{name}-{side}.npy") for side in "xy"]
    for path, cloud in zip(paths, pair, strict=True):
        np.save(path, np.asarray(cloud, np.float32))
    return paths


def fixed_problems(
    folder: pathlib.Path, device: str, seed: int, track: FixedTrack
) -> Iterator[FixedProblem]:
    """Track A: standard normal clouds, the second shifted by one; epsilon is 0.1 d."""
    for clouds, n, d in track.shapes or FIXED[device]:
        key = f"{clouds}x{n}-{d}" if clouds > 1 else f"{n}-{d}"
        files = []
        for number in range(SETS):
            rng = np.random.default_rng([seed, clouds, n, d, number])
            shape = (clouds, n, d) if clouds > 1 else (n, d)
            pair = [rng.standard_normal(shape, np.float32) + np.float32(k) for k in (0, 1)]
            files.append(save_pair(folder, f"A-{key}-{number}", pair))
        yield FixedProblem(key, clouds, n, d, files, track.passes, 0.1 * d)


def velocity_problems(
    folder: pathlib.Path,
    cache: pathlib.Path,
    device: str,
    seed: int,
    dims: Sequence[int],
    track: VelocityTrack,
) -> Iterator[VelocityProblem]:
    """Track B: clouds as in track C, epsilon a fraction of the mean cost."""
    usual_sizes, usual_dims = GRID[device]
    for n, d in itertools.product(track.sizes or usual_sizes, dims or usual_dims):
        files, costs = [], []
        for number in range(SETS):
            key = jax.random.fold_in(jax.random.key(seed), number)
            draws = zip(samplers(d), jax.random.split(key), strict=True)
            pair = [np.asarray(draw(key, n), np.float32) for draw, key in draws]
            files.append(save_pair(folder, f"B-{n}-{d}-{number}", pair))
            costs.append(mean_cost(*pair))
        cost = float(np.mean(costs))
        epsilon = track.ratio * cost
        references = [str(reference_file(cache, pair, epsilon)) for pair in files]
        asked = epsilon, cost, track.tolerances, references
        yield VelocityProblem(f"{n}-{d}", 1, n, d, files, *asked)


def reference_file(cache: pathlib.Path, pair, epsilon: float) -> pathlib.Path:
    """Where the reference of these clouds is kept, for this run and later ones."""
    digest = hashlib.sha256(repr(epsilon).encode())
    for path in pair:
        digest.update(pathlib.Path(path).read_bytes())
    return cache.absolute() / f"{digest.hexdigest()[:20]}.npy"


def pool_problems(
    device: str, seed: int, dims: Sequence[int], track: PoolTrack
) -> Iterator[PoolProblem]:
    """Track C: the first author's two settings."""
    clouds, n = track.pool_clouds or POOL_CLOUDS[device], track.pool_particles
    for d, steps, step_size, blur, scaling in POOLS:
        if dims and d not in dims:
            continue
        count = track.pool_steps or steps
        # On a CPU one cloud fills the machine.
        side_by_side = clouds if device == "gpu" else 1
        asked = count, step_size, blur**2, scaling, seed, side_by_side
        yield PoolProblem(f"{clouds}x{n}-{d}-{count}steps", clouds, n, d, *asked)


def mean_cost(x, y) -> float:
    """Mean of ½‖x − y‖² over all pairs."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    squares = [np.mean(np.sum(cloud**2, axis=1)) for cloud in (x, y)]
    return float(0.5 * sum(squares) - x.mean(axis=0) @ y.mean(axis=0))
