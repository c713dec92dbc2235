"""FlashSinkhorn, arXiv:2602.03067."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench.peers.base import Sweep
from experiments.bench.peers.torch import SCALINGS, TorchPeer, annealed_passes

ITERATIONS = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)


class Flash(TorchPeer):
    """FlashSinkhorn: Triton kernels that store no matrix. CUDA only."""

    PACKAGES = ("flash-sinkhorn", "torch", "triton")
    TUNED = False

    def __init__(self):
        super().__init__()
        import flash_sinkhorn

        if not self.on_gpu:
            raise RuntimeError("it needs CUDA")
        options = {"half_cost": True, "debias": False, "autotune": self.TUNED}
        self.loss = functools.partial(flash_sinkhorn.SamplesLoss, "sinkhorn", **options)

    def _kinds(self):
        """Label to options. TF32 is the library's default."""
        kinds = {
            f"{backend}, {'TF32' if tf32 else 'no TF32'}": {"backend": backend, "allow_tf32": tf32}
            for tf32 in (True, False)
            for backend in ("symmetric", "alternating")
        }
        return dict(list(kinds.items())[:2]) if self.TUNED else kinds

    def fixed(self, passes, clouds, n):
        # The symmetric backend adds a full update before and after its iterations.
        counts = {"symmetric": passes // 2 - 2, "alternating": passes // 2}

        def solve(options, x, y, epsilon):
            count = counts[options["backend"]]
            fixed = {"use_epsilon_scaling": False, "eps": epsilon, "n_iters": count}
            return self.loss(potentials=True, **options, **fixed)(x, y), passes

        # Without TF32 once, to show what it costs, where that ends soon.
        slow = clouds > 1 or n > 10_000
        left_out = {"alternating, no TF32"} | ({"symmetric, no TF32"} if slow else set())
        return {
            label: functools.partial(solve, options)
            for label, options in self._kinds().items()
            if label not in left_out
        }

    def velocities(self, ratio, most):
        def annealed(options, x, y, epsilon, scaling):
            loss = self.loss(blur=math.sqrt(epsilon), scaling=scaling, **options)
            passes = functools.partial(annealed_passes, x, y, epsilon, scaling)
            return self._velocity(loss, x, y), passes

        def alternating(options, x, y, epsilon, count):
            fixed = {"use_epsilon_scaling": False, "eps": epsilon, "n_iters": count}
            return self._velocity(self.loss(**options, **fixed), x, y), 4 * count

        return {
            label: Sweep(SCALINGS, functools.partial(annealed, options))
            if options["backend"] == "symmetric"
            else Sweep(ITERATIONS, functools.partial(alternating, options))
            for label, options in self._kinds().items()
        }

    def _velocity(self, loss, x, y):
        # Its cost is averaged over particles: n times its gradient is each particle's own.
        moving = x.detach().requires_grad_(True)
        towards = [self.torch.autograd.grad(loss(moving, other), moving)[0] for other in (y, x)]
        return x.shape[0] * (towards[1] - towards[0])

    def procedure(self, epsilon, scaling):
        def run(x, y):
            return self._velocity(self.loss(blur=math.sqrt(epsilon), scaling=scaling), x, y)

        return {"one cloud at a time, TF32": (False, run)}


class TunedFlash(Flash):
    """FlashSinkhorn with its own search for tile sizes."""

    TUNED = True

    def procedure(self, epsilon, scaling):
        return {}


def multiscale() -> Callable[..., tuple[np.ndarray, float, str]]:
    """Its multiscale solver: (x, y, epsilon, tolerance) to g [m], seconds, and what it says.

    It knows points of three dimensions, stores which blocks of the plan matter, and ends when the
    marginal error of a sample of points is below the tolerance.
    """
    peer = Flash()
    import flash_sinkhorn

    def solve(x: Any, y: Any, epsilon: float, tolerance: float) -> tuple[np.ndarray, float, str]:
        options = {"half_cost": True, "debias": False, "backend": "multiscale", "tol": tolerance}
        blur = math.sqrt(epsilon)
        loss = flash_sinkhorn.SamplesLoss("sinkhorn", blur=blur, potentials=True, **options)
        x, y = peer.put(x), peer.put(y)
        peer.wait(None)
        begin = time.perf_counter()
        _, g = loss(x, y)
        peer.wait(None)
        seconds = time.perf_counter() - begin
        return g.cpu().numpy(), seconds, str(loss.last_multiscale_info)

    return solve
