"""Sinkhorn solvers behind the same few calls, each imported only when it is made.

All take the cost ½‖x − y‖² and its epsilon. ``fixed`` and ``velocities`` return functions of
arrays that ``put`` has laid on the device; beside its answer each gives the number of passes (one
pass is one n x m softmin), as a number, an array or a function to call later, outside the clock.

Source: OTT, arXiv:2201.12324; GeomLoss, arXiv:1810.08278; FlashSinkhorn, arXiv:2602.03067; POT,
JMLR 22(78); the first author's velocity (two cold GeomLoss solves and autograd): arXiv:2401.14069.
"""

import functools
import importlib.metadata
import math
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

TINY = 1e-30  # a threshold that float32 does not reach: the number of passes is what is asked for
THRESHOLDS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
SCALINGS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
ITERATIONS = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
OTT_ROUND = 10  # iterations between two errors, the library's default


class Sweep(NamedTuple):
    """Knobs from fast to slow, and (x, y, epsilon, knob) -> velocity, passes."""

    knobs: Sequence[float]
    velocity: Callable[..., tuple[Any, Any]]


class Peer:
    """What the benchmark asks of a library; the defaults are those of NumPy on a CPU."""

    PACKAGES: tuple[str, ...] = ()
    PRECISION = "float32"

    def fixed(self, passes: int, clouds: int, n: int) -> dict[str, Callable]:
        """Label to (x, y, epsilon) -> potentials, passes; stacked clouds if ``clouds`` > 1."""
        raise NotImplementedError

    def velocities(self, ratio: float, most: int) -> dict[str, Sweep]:
        """Label to the ways of reaching a velocity, within ``most`` iterations of a solve.

        ``ratio`` is the mean cost over epsilon.
        """
        raise NotImplementedError

    def procedure(self, epsilon: float, scaling: float) -> dict[str, tuple[bool, Callable]]:
        """Label to whether it takes stacked clouds, and (x, y) -> velocity, as NSGF calls it."""
        return {}

    def put(self, array: np.ndarray) -> Any:
        return np.ascontiguousarray(array)

    def wait(self, result: Any) -> None:
        """Returns when the result is there."""

    def forget(self) -> None:
        """Starts a new peak of memory, if the library can."""

    def memory(self) -> int | None:
        """Peak bytes on the device, None where they are not counted."""
        return None

    def device(self) -> str:
        return f"cpu ({platform.machine()})"

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.PACKAGES}


class JaxPeer(Peer):
    """JAX arrays."""

    def __init__(self):
        import jax

        self.jax = jax

    def put(self, array):
        return self.jax.device_put(array)

    def wait(self, result):
        self.jax.block_until_ready(result)

    def memory(self):
        return (self.jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def device(self):
        return self.jax.local_devices()[0].device_kind


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


PEERS: dict[str, type[Peer]] = {
    "sinkflow": Sinkflow,
    "ott": Ott,
    "geomloss": GeomLoss,
    "flash": Flash,
    "flash-tuned": TunedFlash,
    "pot": Pot,
}
