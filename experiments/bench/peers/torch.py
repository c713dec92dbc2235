"""PyTorch's tensors, and what GeomLoss and FlashSinkhorn have in common."""

import math

import numpy as np

from experiments.bench.peers.base import Peer

SCALINGS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


class TorchPeer(Peer):
    """Torch tensors, without TF32 in its own products."""

    PACKAGES: tuple[str, ...] = ("torch",)

    def __init__(self):
        import torch

        self.torch = torch
        self.on_gpu = torch.cuda.is_available()
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def put(self, array):
        return self.torch.from_numpy(np.array(array)).to("cuda" if self.on_gpu else "cpu")

    def wait(self, result):
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def forget(self):
        if self.on_gpu:
            self.torch.cuda.reset_peak_memory_stats()

    def memory(self):
        return self.torch.cuda.max_memory_allocated() if self.on_gpu else None

    def device(self):
        return self.torch.cuda.get_device_name() if self.on_gpu else super().device()


def annealed_passes(x, y, epsilon: float, scaling: float) -> int:
    """Passes of the (x, y) and the (x, x) solve of GeomLoss and of FlashSinkhorn, which share it.

    Epsilon falls from the bounding box's squared diagonal by scaling² an iteration: one iteration
    at the first value, one at each and one at the last, then a full update, of two softmins each.
    """
    total = 0
    for other in (y, x):
        both = np.concatenate(
            [np.asarray(cloud.cpu()).reshape(-1, x.shape[-1]) for cloud in (x, other)]
        )
        diameter = float(np.linalg.norm(both.max(axis=0) - both.min(axis=0)))
        schedule = np.arange(2 * math.log(diameter), math.log(epsilon), 2 * math.log(scaling))
        total += 2 * (1 + (len(schedule) + 2) + 1)
    return total
