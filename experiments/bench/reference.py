"""Velocities in float64 that the benchmark judges by."""

import functools
import pathlib
import time
from collections.abc import Callable

import numpy as np

from experiments.bench.measure import NotRunError
from experiments.bench.peers.base import JaxPeer
from experiments.bench.problems import PoolProblem, VelocityProblem

REFERENCE = "reference"  # the peer that judges
BLOCK = 50  # iterations of the reference between two errors


class Reference(JaxPeer):
    """Velocities in float64 by plain log-domain updates, sharing no solver with any peer."""

    PACKAGES = ("jax", "jaxlib")
    PRECISION = "float64"

    def __init__(self):
        super().__init__()
        self.jax.config.update("jax_enable_x64", True)

    def solve(self, problem: VelocityProblem | PoolProblem) -> dict:
        """Writes the reference velocity of every input set that has none yet."""
        found: list[dict] = []
        for (file_x, file_y), file_v in zip(problem.files, problem.references, strict=True):
            if pathlib.Path(file_v).exists():
                found.append({"cached": True})
                continue
            begin = time.perf_counter()
            x, y = np.load(file_x), np.load(file_y)
            velocity, certificate = reference_velocity(x, y, problem.epsilon)
            if not certificate["converged"]:
                raise NotRunError(f"the reference did not converge: {certificate}")
            partial = pathlib.Path(file_v).with_suffix(".part.npy")
            np.save(partial, velocity)
            partial.rename(file_v)
            found.append({**certificate, "seconds": time.perf_counter() - begin})
        return {"sets": found}


def reference_velocity(x, y, epsilon: float, most: int = 100_000) -> tuple[np.ndarray, dict]:
    """T_xy(x) - T_xx(x) in the precision of JAX's default, meant for float64.

    Alternating log-sum-exp updates with epsilon halved down to its value, then over-relaxed from
    the decay of the error; x to x by averaged updates. Ends when both L1 marginal errors are below
    1e-10, or when they are below 1e-6 and the images' relative changes, as a geometric series, will
    add up to less than 1e-7. The velocity's relative error is then of the marginals' order.
    """
    import jax.numpy as jnp

    advance, advance_self, judge = reference_programs()
    window = 6  # errors between two relaxations
    x, y = jnp.asarray(x, float), jnp.asarray(y, float)

    def images(points, advance, annealed):
        norms = [0.5 * jnp.sum(cloud**2, axis=1) for cloud in (x, points)]
        cost = norms[0][:, None] + norms[1][None] - x @ points.T
        f, g = jnp.zeros(len(x)), jnp.zeros(len(points))
        current = float(jnp.max(cost)) if annealed else epsilon
        while current > epsilon:
            f, g = advance(cost, f, g, current, 1.0)
            current = max(current / 2, epsilon)
        relaxation, total = 1.0, 0
        past: list[float] = []
        error, image = judge(cost, f, g, epsilon, points)
        while True:
            f, g = advance(cost, f, g, epsilon, relaxation)
            total += BLOCK
            past.append(float(error))
            previous, (error, image) = image, judge(cost, f, g, epsilon, points)
            change = float(jnp.linalg.norm(image - previous) / jnp.linalg.norm(image))
            rate = float(error) / past[-1] if past[-1] else 0.0
            remaining = change * max(1.0, rate / (1 - rate)) if rate < 1 else np.inf
            converged = bool(error < 1e-10 or (error < 1e-6 and remaining < 1e-7))
            if converged or total >= most or not np.isfinite(error):
                break
            if annealed and len(past) == window:
                # A new relaxation changes the error's scale: not from its first two blocks.
                spectral = (float(error) / past[2]) ** (1 / ((window - 2) * BLOCK))
                relaxation = best_relaxation(spectral, relaxation)
                past = []
        return image, {"error": float(error), "iterations": total, "converged": converged}

    towards_target, xy = images(y, advance, True)
    towards_self, xx = images(x, advance_self, False)
    certificate = {"xy": xy, "xx": xx, "converged": xy["converged"] and xx["converged"]}
    return np.asarray(towards_target - towards_self), certificate


@functools.cache
def reference_programs() -> tuple[Callable, Callable, Callable]:
    """BLOCK updates of two clouds, of a cloud and itself, and (marginal error, images)."""
    import jax
    import jax.numpy as jnp

    def softmin(cost, g, epsilon, axis):
        z = (jnp.expand_dims(g, 1 - axis) - cost) / epsilon
        return -epsilon * (jax.nn.logsumexp(z, axis=axis) - jnp.log(cost.shape[axis]))

    @jax.jit
    def advance(cost, f, g, epsilon, relaxation):
        def both(_, potentials):
            f, g = potentials
            f = f + relaxation * (softmin(cost, g, epsilon, 1) - f)
            return f, g + relaxation * (softmin(cost, f, epsilon, 0) - g)

        return jax.lax.fori_loop(0, BLOCK, both, (f, g))

    @jax.jit
    def advance_self(cost, f, _, epsilon, relaxation):
        def average(_, f):
            return f + 0.5 * (softmin(cost, f, epsilon, 1) - f)

        f = jax.lax.fori_loop(0, BLOCK, average, f)
        return f, f

    @jax.jit
    def judge(cost, f, g, epsilon, points):
        errors = [
            jnp.mean(jnp.abs(jnp.expm1((own - softmin(cost, other, epsilon, axis)) / epsilon)))
            for own, other, axis in ((f, g, 1), (g, f, 0))
        ]
        plan = jax.nn.softmax((g[None] - cost) / epsilon, axis=1)
        return jnp.maximum(*errors), plan @ points

    return advance, advance_self, judge


def best_relaxation(rate: float, relaxation: float) -> float:
    """Young's: the plain rate behind an observed one, and what is best for it.

    A relaxation beyond the best one shows as a rate of relaxation - 1, and is reduced.
    """
    if rate >= 1 or rate <= 1.01 * (relaxation - 1):
        return 1 + 0.8 * (relaxation - 1)
    plain = (rate + relaxation - 1) ** 2 / (rate * relaxation**2)
    return float(min(2 / (1 + np.sqrt(max(1 - plain, 0.0))), 1.995))
