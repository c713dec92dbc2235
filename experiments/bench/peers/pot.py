"""POT, JMLR 22(78)."""

import functools

import numpy as np

from experiments.bench.peers.base import THRESHOLDS, Peer, Sweep


class Pot(Peer):
    """POT on NumPy."""

    PACKAGES = ("POT", "numpy")
    METHODS = ("sinkhorn_stabilized", "sinkhorn_log")  # the faster one first

    def __init__(self):
        import ot

        self.ot = ot

    def _solve(self, method, x, y, epsilon, count, threshold):
        weights = [np.full(len(cloud), 1 / len(cloud), cloud.dtype) for cloud in (x, y)]
        cost = self.ot.dist(x, y) / 2
        limits = {"numItermax": count, "stopThr": threshold, "log": True, "warn": False}
        plan, log = self.ot.sinkhorn(*weights, cost, epsilon, method=method, **limits)
        return plan, 2 * (log.get("niter", log.get("n_iter")) + 1)

    def fixed(self, passes, clouds, n):
        if clouds > 1:
            return {}
        return {
            method: lambda x, y, epsilon, method=method: self._solve(
                method, x, y, epsilon, passes // 2, -1
            )
            for method in self.METHODS
        }

    def velocities(self, ratio, most):
        def velocity(method, x, y, epsilon, threshold):
            images, total = [], 0
            for other in (y, x):
                plan, passes = self._solve(method, x, other, epsilon, most, threshold)
                images.append(plan @ other / plan.sum(axis=1, keepdims=True))
                total += passes
            return images[0] - images[1], total

        return {
            method: Sweep(THRESHOLDS, functools.partial(velocity, method))
            for method in self.METHODS
        }
