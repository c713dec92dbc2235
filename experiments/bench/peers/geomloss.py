"""GeomLoss, arXiv:1810.08278."""

import functools
import math

from experiments.bench.peers.base import Sweep
from experiments.bench.peers.torch import SCALINGS, TorchPeer, annealed_passes


class GeomLoss(TorchPeer):
    """GeomLoss, dense ("tensorized") backend: averaged updates, annealed."""

    PACKAGES = ("geomloss", "torch")
    PRECISION = "float32, TF32 off"

    def __init__(self):
        super().__init__()
        import geomloss

        options = {"p": 2, "debias": False, "potentials": True, "backend": "tensorized"}
        self.loss = functools.partial(geomloss.SamplesLoss, "sinkhorn", **options)

    def fixed(self, passes, clouds, n):
        # Its iterations all anneal. From a start 1 + 1e-3 times the wanted blur, in as many steps
        # as are wanted, epsilon is as good as fixed.
        widening, steps = 1e-3, passes // 2 - 4

        def solve(x, y, epsilon):
            blur = math.sqrt(epsilon)
            scaling = math.exp(-math.log1p(widening) / (steps - 0.5))
            loss = self.loss(blur=blur, scaling=scaling, diameter=blur * (1 + widening))
            return loss(x, y), passes

        return {"averaged": solve}

    def velocities(self, ratio, most):
        def velocity(x, y, epsilon, scaling):
            found = self._velocity(x, y, math.sqrt(epsilon), scaling)
            return found, functools.partial(annealed_passes, x, y, epsilon, scaling)

        return {"scaling": Sweep(SCALINGS, velocity)}

    def _velocity(self, x, y, blur, scaling):
        loss = self.loss(blur=blur, scaling=scaling)
        moving = x.detach().requires_grad_(True)
        weights = self.torch.full_like(moving[..., 0], 1 / x.shape[-2], requires_grad=False)
        gradients = []
        for other in (y, moving):
            f, _ = loss(weights, moving, weights, other)
            gradients += self.torch.autograd.grad(f.sum(), moving)
        return gradients[1] - gradients[0]

    def procedure(self, epsilon, scaling):
        run = functools.partial(self._velocity, blur=math.sqrt(epsilon), scaling=scaling)
        return {"one cloud at a time": (False, run), "all clouds in one call": (True, run)}
