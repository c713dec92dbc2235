"""OTT-JAX, arXiv:2201.12324."""

import functools
import math
from collections.abc import Callable

from experiments.bench.peers.base import THRESHOLDS, JaxPeer, Sweep

OTT_ROUND = 10  # iterations between two errors, the library's default


class Ott(JaxPeer):
    """OTT-JAX, dense point clouds, log domain; its x to x solves are those of its divergence."""

    PACKAGES = ("ott-jax", "jax", "jaxlib")
    PRECISION = "float32, matmul highest"

    def __init__(self):
        super().__init__()
        self.jax.config.update("jax_default_matmul_precision", "highest")

    def fixed(self, passes, clouds, n):
        from ott.geometry import pointcloud
        from ott.solvers import linear

        count = passes // 2
        limits = {"min_iterations": count, "max_iterations": count, "inner_iterations": count}

        def solve(x, y, epsilon):
            geometry = pointcloud.PointCloud(x, y, epsilon=2 * epsilon)
            out = linear.solve(geometry, threshold=-1.0, **limits)
            return (out.f, out.g), 2 * count

        batched = self.jax.vmap(solve, (0, 0, None), (0, None))
        return {"plain": self.jax.jit(solve if clouds == 1 else batched)}

    def velocities(self, ratio, most):
        from ott.geometry import epsilon_scheduler
        from ott.solvers.linear.acceleration import Momentum

        decay = 0.9
        rounds = math.ceil(max(0.0, -math.log(ratio) / math.log(decay)) / OTT_ROUND)
        annealing = rounds * OTT_ROUND

        def annealed(epsilon):
            return epsilon_scheduler.Epsilon(epsilon, init=ratio, decay=decay)

        def unscheduled(epsilon):
            return epsilon

        # Lehmann's momentum looks at two errors, so it can start after the second one.
        late = Momentum(start=annealing + 2 * OTT_ROUND)
        variants: dict[str, tuple[Callable, dict]] = {
            # One less: at its minimum of iterations it stops, unless it has an error by then.
            "annealed, adaptive momentum": (
                annealed,
                {"momentum": late, "min_iterations": annealing - 1},
            ),
            "adaptive momentum": (unscheduled, {"momentum": Momentum(start=2 * OTT_ROUND)}),
            "momentum 1.5": (unscheduled, {"momentum": Momentum(value=1.5)}),
        }
        return {
            label: Sweep(
                THRESHOLDS, self.jax.jit(functools.partial(self._velocity, most, *variant))
            )
            for label, variant in variants.items()
        }

    def _velocity(self, most, schedule, options, x, y, epsilon, threshold):
        from ott.geometry import pointcloud
        from ott.solvers import linear
        from ott.solvers.linear.acceleration import Momentum

        def images(y, epsilon, options):
            out = linear.solve(
                pointcloud.PointCloud(x, y, epsilon=epsilon),
                threshold=threshold,
                max_iterations=most,
                **options,
            )
            plan = out.matrix
            return plan @ y / plan.sum(axis=1, keepdims=True), 2 * out.n_iters

        symmetric = {"parallel_dual_updates": True, "momentum": Momentum(value=0.5)}
        towards_target, passes = images(y, schedule(2 * epsilon), options)
        towards_self, self_passes = images(x, 2 * epsilon, symmetric)
        return towards_target - towards_self, passes + self_passes
