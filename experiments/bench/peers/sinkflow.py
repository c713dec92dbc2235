"""This library."""

import functools

from experiments.bench.peers.base import THRESHOLDS, TINY, JaxPeer, Sweep


class Sinkflow(JaxPeer):
    """This library."""

    PACKAGES = ("jax", "jaxlib")

    def fixed(self, passes, clouds, n):
        import sinkflow

        def solve(x, y, epsilon, storage):
            # Annealing counts: it is part of these iterations, not on top of them.
            limits = sinkflow.Limits(TINY, passes // 2, storage)
            out = sinkflow.sinkhorn(x, y, epsilon, limits=limits)
            return (out.f, out.g), 2 * out.num_iterations

        return {
            f"annealed{label}": self._jit(functools.partial(solve, storage=storage), clouds)
            for label, storage in self.storages().items()
        }

    def storages(self) -> dict[str, str]:
        """Labels of the ways to store densities; float16 is for what reads it fast."""
        ways = {"": "full"}
        return ways if "cpu" in self.device() else {**ways, ", stored in float16": "half"}

    def _jit(self, solve, clouds):
        return self.jax.jit(solve if clouds == 1 else self.jax.vmap(solve, (0, 0, None)))

    def velocities(self, ratio, most):
        import sinkflow

        def velocity(x, y, epsilon, threshold, storage):
            limits = sinkflow.Limits(threshold, most, storage)
            v, info = sinkflow.sinkhorn_velocity(x, y, epsilon, limits=limits)
            return v, 2 * info.xy.num_iterations + info.xx.num_iterations

        return {
            f"threshold{label}": Sweep(
                THRESHOLDS, self.jax.jit(functools.partial(velocity, storage=storage))
            )
            for label, storage in self.storages().items()
        }
