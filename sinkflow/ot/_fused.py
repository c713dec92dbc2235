"""When solves of small clouds go to the kernel for Hopper GPUs, and what they hand it.

The kernel iterates as :mod:`sinkflow.ot._iterations` does with the storage "half". What comes
before it, the costs, their bound and the error to stop at, and what comes after it, the
certificate in full precision, are made by the functions that every solve has.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _cost, _inputs, _iterations, _kernel, _loops
from sinkflow.ot._certificate import certify
from sinkflow.ot._shapes import VectorM, VectorN
from sinkflow.ot.limits import Storage
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Bool, Int, Scalar

# Versions of jax by whose compiler the kernel was run on a GPU: with these "auto" takes it.
VERSIONS: tuple[str, ...] = ()
CAPABILITY = "9.0"  # has the warpgroups' matrix products, which newer GPUs have no more
LARGEST = 256  # points of a cloud
LARGEST_CAP = 2**31 - 6  # a round beyond it still counts in int32


def storage_for(storage: Storage, x: Any, y: Any) -> Storage:
    """What to keep for two clouds: :func:`sinkflow.ot._kernel.storage_for`, or "fused".

    Raises:
      ValueError: unknown storage, or "fused" where it cannot be.
    """
    _inputs.check_storage(storage)
    if storage == "fused":
        reason = _refusal(x, y)
        if reason is not None:
            raise ValueError(f"storage 'fused' is not possible: {reason}; give it 'auto'")
        return storage
    if storage == "auto" and VERSIONS and _unfit(x, y) is None:
        reason = _unlisted() or _broken()
        if reason is None:
            return "fused"
        warnings.warn(f"solves are not fused: {reason}", RuntimeWarning, stacklevel=2)
    return _kernel.storage_for(storage, x, y)


def _refusal(x: Any, y: Any) -> str | None:
    """Why the kernel cannot solve these clouds here, or None."""
    return _unfit(x, y) or _broken()


def _unfit(x: Any, y: Any) -> str | None:
    """Why the kernel is not made for these clouds or this device."""
    largest = max(x.shape[0], y.shape[0])
    if largest > LARGEST:
        return f"the clouds have up to {LARGEST} points, not {largest}"
    if x.dtype != jnp.float32 or y.dtype != jnp.float32:
        return f"the clouds are in float32, not {jnp.promote_types(x.dtype, y.dtype)}"
    if any(jax.typeof(cloud).mat.varying for cloud in (x, y)):
        return "the clouds vary over the axes of a jax.shard_map that checks them"
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", None)
    if device.platform != "gpu" or capability != CAPABILITY:
        have = f"{device.device_kind} ({device.platform})"
        return f"it takes a GPU of compute capability {CAPABILITY}, and {have} is there"
    return None


def _unlisted() -> str | None:
    if jax.__version__ in VERSIONS:
        return None
    return f"the kernel was run with jax {', '.join(VERSIONS)}, not with {jax.__version__}"


@functools.cache
def _broken() -> str | None:
    """What goes wrong in a tiny solve by the kernel, on this device and by this jax."""
    try:
        with jax.ensure_compile_time_eval():
            right = bool(_tried())
    except Exception as error:  # of whatever kind: Mosaic's interface changes with jax
        return f"its kernel does not run ({type(error).__name__}: {error})"
    return None if right else "its kernel is wrong on this device"


def _tried() -> Bool[Array, ""]:
    """Whether both kernels solve a problem of 70 and 3 points as the other solves do."""
    x = jnp.linspace(-1.0, 1.0, 70, dtype=jnp.float32)[:, None]
    y = jnp.array([[-0.5], [0.0], [0.5]], jnp.float32)
    a, b = jnp.full(70, 1 / 70, jnp.float32), jnp.array([0.25, 0.5, 0.25], jnp.float32)
    epsilon, threshold, cap = jnp.float32(0.02), jnp.float32(1e-3), jnp.asarray(100)
    right = []
    for fused, plain, cost, weights in (
        (_solve, _iterations.sinkhorn, _kernel.make_cost(x, y, "half"), (a, b)),
        (_solve_self, _iterations.sinkhorn_self, _kernel.make_cost(x, x, "half"), (a,)),
    ):
        given = cost, epsilon, *weights, None, threshold, cap
        out, expected = jax.jit(fused)(*given), plain(*given, "half")
        right.append(out.converged & (out.num_iterations == expected.num_iterations))
        right.append(jnp.abs(out.value - expected.value) <= 1e-4 * expected.value)
    return jnp.all(jnp.stack(right))


def sinkhorn(
    cost: _cost.Cost,
    epsilon: Scalar,
    a: VectorN,
    b: VectorM,
    g_init: VectorM | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
) -> SinkhornOutput:
    """:func:`sinkflow.ot._iterations.sinkhorn` by the kernel, if compiled for a GPU."""
    given = cost, epsilon, a, b, g_init, threshold, max_iterations
    return _on_gpu(_solve, _iterations.sinkhorn, given)


def sinkhorn_self(
    cost: _cost.Cost,
    epsilon: Scalar,
    a: VectorN,
    f_init: VectorN | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
) -> SinkhornOutput:
    """The same for a cloud and itself."""
    given = cost, epsilon, a, f_init, threshold, max_iterations
    return _on_gpu(_solve_self, _iterations.sinkhorn_self, given)


def _on_gpu(fused: Callable, plain: Callable, given: tuple[Any, ...]) -> SinkhornOutput:
    # One program may be compiled for a CPU as well, to which its arrays were moved.
    elsewhere = functools.partial(plain, storage="full")
    return jax.lax.platform_dependent(*given, cuda=fused, default=elsewhere)


def _solve(
    cost: _cost.Cost,
    epsilon: Scalar,
    a: VectorN,
    b: VectorM,
    g_init: VectorM | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
) -> SinkhornOutput:
    from sinkflow.ot import _fused_kernel

    assert cost.matrix is not None
    (n, m), warm = cost.shape, g_init is not None
    bound = cost.bound(a, b)
    finite = jnp.isfinite(bound + jnp.sum(a) + jnp.sum(b)) & (epsilon < jnp.inf)
    first = jnp.where(finite, jnp.maximum(_iterations.ANNEALING * bound, epsilon), epsilon)
    goal = _iterations._goal(threshold, "half", cost, epsilon, a, b)
    size = _fused_kernel.padded(n, m)
    run = _batched(lambda batch: _fused_kernel.solver(batch, n, m, warm))
    f, g, _, count = run(
        _filled(cost.matrix, size, size),
        *(_filled(weights / jnp.max(weights), size) for weights in (a, b)),
        *([] if g_init is None else [_filled(jnp.where(b > 0, g_init, 0), size)]),
        jnp.stack([epsilon, first, goal, jnp.max(a), jnp.max(b)]),
        _cap(max_iterations, finite),
    )
    f, g = _inputs.nan_unless(finite, f[:n]), g[:m]
    f, g = (
        _joined(f, a, cost, g, epsilon, b),
        _joined(g, b, cost.transposed, f, epsilon, a),
    )
    return certify(cost, f, g, epsilon, a, b, threshold, count.astype(max_iterations.dtype))


def _solve_self(
    cost: _cost.Cost,
    epsilon: Scalar,
    a: VectorN,
    f_init: VectorN | None,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
) -> SinkhornOutput:
    from sinkflow.ot import _fused_kernel

    assert cost.matrix is not None
    n, warm = a.shape[0], f_init is not None
    finite = jnp.isfinite(_centred.mean(a, jnp.sum(cost.x**2, axis=1)) + jnp.sum(a))
    goal = _iterations._goal(threshold, "half", cost, epsilon, a, a)
    starts = [_iterations._self_start(cost.x, epsilon, a)]
    starts += [] if f_init is None else [jnp.where(a > 0, f_init, 0)]
    size = _fused_kernel.padded(n, n)
    run = _batched(lambda batch: _fused_kernel.self_solver(batch, n, warm))
    f, _, count = run(
        _filled(cost.matrix, size, size),
        _filled(a / jnp.max(a), size),
        *(_filled(start, size) for start in starts),
        jnp.stack([epsilon, goal, jnp.max(a)]),
        _cap(max_iterations, finite),
    )
    f = _joined(f[:n], a, cost, f[:n], epsilon, a)
    return certify(cost, f, f, epsilon, a, a, threshold, count.astype(max_iterations.dtype))


def _joined(
    f: VectorN, a: VectorN, cost: _cost.Cost, g: VectorM, epsilon: Scalar, b: VectorM
) -> VectorN:
    """Potentials, those of points without mass as of points that join the solved problem.

    The kernel leaves out columns without mass.
    """

    def joined(f: Array, a: Array, cost: _cost.Cost, g: Array, epsilon: Array, b: Array) -> Array:
        joining = _kernel.softmin(cost, jnp.where(b > 0, g, 0), epsilon, b)
        return jnp.where(a == 0, joining, f)

    return _loops.only_if(jnp.any(a == 0), joined, f, f, a, cost, g, epsilon, b)


def _filled(array: Array, *shape: int) -> Array:
    """Filled with zeros at the end of each axis."""
    widths = [(0, full - size) for full, size in zip(shape, array.shape, strict=True)]
    return jnp.pad(array, widths)


def _cap(max_iterations: Int[Array, ""], finite: Bool[Array, ""]) -> Int[Array, ""]:
    """The kernel's cap; what is not finite has one round, which tells."""
    return jnp.where(finite, jnp.minimum(max_iterations, LARGEST_CAP), 0).astype(jnp.int32)


def _batched(kernel_for: Callable[[int], Callable]) -> Callable:
    """``kernel_for(size of the batch)`` for one problem, of which a vmap makes batches.

    Whatever is mapped becomes one batch, the grid of one launch.
    """

    @jax.custom_batching.custom_vmap
    def run(*batch: Array) -> tuple[Array, ...]:
        return tuple(kernel_for(batch[0].shape[0])(*batch))

    @run.def_vmap
    def mapped(size: int, batched: list[bool], *batches: Array) -> tuple[Any, Any]:
        whole = [
            batch if own else jnp.broadcast_to(batch, (size, *batch.shape))
            for batch, own in zip(batches, batched, strict=True)
        ]
        found = run(*(batch.reshape(-1, *batch.shape[2:]) for batch in whole))
        found = tuple(leaf.reshape(size, -1, *leaf.shape[1:]) for leaf in found)
        return found, tuple(True for _ in found)

    def one(*problem: Array) -> tuple[Array, ...]:
        return tuple(leaf[0] for leaf in run(*(leaf[None] for leaf in problem)))

    return one
