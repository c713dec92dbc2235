"""Fused solves: their kernels in Mosaic's interpreter, compiled for an H100, and on one."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import Limits
from sinkflow.ot import _centred, _fused, _iterations, _kernel, _warpgroup
from sinkflow.ot.divergence import sinkhorn_velocity
from sinkflow.ot.matrix import sinkhorn_matrix
from sinkflow.ot.solver import sinkhorn, sinkhorn_self
from tests import helpers

plgpu = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
ROOT = pathlib.Path(__file__).parents[2]
FUSED = Limits(storage="fused")
THRESHOLD = jnp.float32(1e-3)
EPSILON = jnp.float32(0.05)


@pytest.fixture
def interpreted():
    """Kernels run on the CPU, each warpgroup a thread; two that race for memory are an error."""
    if not hasattr(plgpu, "force_gpu_interpret_mode"):
        pytest.skip("no interpreter in this version of jax")
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        yield


@pytest.fixture
def reads_of_products_seen(monkeypatch):
    """The interpreter does not look for races in what products read: these are read before."""
    wgmma = plgpu.wgmma

    def read_first(accumulator, a, b):
        plgpu.load(a)
        plgpu.load(b)
        wgmma(accumulator, a, b)

    monkeypatch.setattr(plgpu, "wgmma", read_first)


def problem(key, n, m, massless=0):
    """Centred clouds, and weights of which the first of a and the last of b are 0."""
    x, y = helpers.clouds(key, 2, n=n, m=m)
    a, b = helpers.weights(key, n=n, m=m)
    if massless:
        a, b = a.at[:massless].set(0), b.at[-massless:].set(0)
    a, b = a / jnp.sum(a), b / jnp.sum(b)
    moved = _centred.centred(x, y, a, b)
    return moved.x, moved.y, a, b


def both(x, y, a, b, g=None, cap=5_000, epsilon=EPSILON):
    """The solve by the kernel, and the one whose iterations it makes."""
    cost = _kernel.make_cost(x, y, "half")
    given = cost, epsilon, a, b, g, THRESHOLD, jnp.asarray(cap)
    return jax.jit(lambda *given: _fused._solve(*given))(*given), _iterations.sinkhorn(
        *given, "half"
    )


def both_self(x, a, f=None, cap=5_000, epsilon=EPSILON):
    cost = _kernel.make_cost(x, x, "half")
    given = cost, epsilon, a, f, THRESHOLD, jnp.asarray(cap)
    return jax.jit(lambda *given: _fused._solve_self(*given))(*given), _iterations.sinkhorn_self(
        *given, "half"
    )


def assert_alike(fused, plain, a, b, epsilon=EPSILON):
    """As many iterations, and of the rest what densities leave that float16 rounds by 5e-4."""
    assert fused.num_iterations == plain.num_iterations
    assert fused.converged == plain.converged
    np.testing.assert_allclose(fused.marginal_error, plain.marginal_error, atol=2e-4, rtol=2e-2)
    np.testing.assert_allclose(fused.value, plain.value, rtol=1e-4)
    massive = np.asarray(a) > 0, np.asarray(b) > 0
    found, expected = (
        np.asarray(out.f)[massive[0], None] + np.asarray(out.g)[None, massive[1]]
        for out in (fused, plain)
    )
    np.testing.assert_allclose(found, expected, atol=2e-3 * float(epsilon))


@pytest.mark.parametrize(
    "n, m, massless", [(20, 70, 4), pytest.param(50, 30, 0, marks=pytest.mark.slow)]
)
def test_the_kernel_iterates_as_the_solver_does(key, interpreted, n, m, massless):
    x, y, a, b = problem(key, n, m, massless)
    fused, plain = both(x, y, a, b)
    assert fused.converged and fused.num_iterations > 20
    assert_alike(fused, plain, a, b)
    # What has no mass has the potential that the other one gives it.
    cost = _kernel.make_cost(x, y, "full")
    joining = _kernel.softmin(cost, fused.g, EPSILON, b)
    np.testing.assert_allclose(fused.f[:massless], joining[:massless], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [0, 7, 20])
def test_the_kernel_stops_at_the_cap(key, interpreted, cap):
    x, y, a, b = problem(key, 50, 30)
    fused, plain = both(x, y, a, b, cap=cap, epsilon=EPSILON / 20)
    assert not fused.converged
    # Unfinished potentials have the rounding of the larger epsilons on the way down.
    assert_alike(fused, plain, a, b, EPSILON)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.02, 100.0, jnp.nan])
def test_the_kernel_starts_where_it_is_told_if_that_is_near(key, interpreted, size):
    x, y, a, b = problem(key, 50, 30, 3)
    cold, _ = both(x, y, a, b)
    g = cold.g + size * jax.random.normal(key, (30,))
    fused, plain = both(x, y, a, b, g)
    assert_alike(fused, plain, a, b)
    if size < 1:
        assert fused.num_iterations < cold.num_iterations
    else:
        assert fused.num_iterations == cold.num_iterations
    again, _ = both(x, y, a, b, cold.g)
    assert again.num_iterations == 0 and again.converged


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.01, 0.3, 3.0])
def test_the_kernel_of_a_cloud_and_itself(key, interpreted, epsilon):
    x, _, a, _ = problem(key, 70, 30, 3)
    epsilon = jnp.float32(epsilon)
    fused, plain = both_self(x, a, epsilon=epsilon)
    assert fused.converged and fused.num_iterations > 0
    assert_alike(fused, plain, a, a, epsilon)
    for size in (1e-3, 100.0, jnp.nan):
        f = fused.f + size * epsilon * jax.random.normal(key, a.shape)
        assert_alike(*both_self(x, a, f, epsilon=epsilon), a, a, epsilon)
    assert_alike(*both_self(x, a, cap=5, epsilon=epsilon), a, a, epsilon)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_what_is_not_finite_ends_the_kernel(key, interpreted, wrong):
    x, y, a, b = problem(key, 50, 30)
    broken = x.at[3, 0].set(wrong)
    for fused, _ in (both(broken, y, a, b, cap=50), both_self(broken, a, cap=50)):
        assert not fused.converged and fused.num_iterations <= 10
        assert not fused.marginal_error < 1e-3
    for epsilon in (jnp.nan, jnp.inf):
        for out in (
            both(x, y, a, b, cap=50, epsilon=jnp.float32(epsilon))[0],
            both_self(x, a, cap=50, epsilon=jnp.float32(epsilon))[0],
        ):
            assert not out.converged and out.num_iterations <= 10


@pytest.mark.slow
def test_whatever_is_mapped_is_one_launch(key, interpreted, monkeypatch):
    from sinkflow.ot import _fused_kernel

    launched, solver = [], _fused_kernel.solver
    monkeypatch.setattr(
        _fused_kernel, "solver", lambda batch, *rest: launched.append(batch) or solver(batch, *rest)
    )
    x, y, a, b = problem(key, 30, 20)
    xs = jnp.stack([0.5 * x, x])
    epsilons = jnp.array([0.05, 0.5, 2.0], jnp.float32)

    def solve(x, epsilon):
        cost = _kernel.make_cost(x, y, "half")
        return _fused._solve(cost, epsilon, a, b, None, THRESHOLD, jnp.asarray(100))

    outs = jax.jit(jax.vmap(jax.vmap(solve, (0, None)), (None, 0)))(xs, epsilons)
    assert launched[-1] == 6
    for i, epsilon in enumerate(epsilons):
        for j, cloud in enumerate(xs):
            one = jax.jit(solve)(cloud, epsilon)
            assert outs.num_iterations[i, j] == one.num_iterations
            np.testing.assert_array_equal(outs.f[i, j], one.f)


@pytest.mark.slow
@pytest.mark.skipif(
    tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12),
    reason="the interpreter of this version of jax does not see these races",
)
@pytest.mark.parametrize("same, meetings", [(False, 4), (True, 3)])
def test_every_meeting_of_warpgroups_is_needed(
    key, interpreted, reads_of_products_seen, monkeypatch, same, meetings
):
    """With all of them there is no race; without any one there is."""
    x, y, a, b = problem(key, 70, 70)
    solve = (lambda: both_self(x, a, cap=10)) if same else (lambda: both(x, y, a, b, cap=10))
    meet, met = _warpgroup.Warpgroup.meet, []

    def meet_but(left_out):
        def maybe(group):
            met.append(left_out)
            if met.count(left_out) == left_out:
                return plgpu.commit_smem()
            return meet(group)

        return maybe

    jax.block_until_ready(solve())
    for left_out in range(1, meetings + 1):
        monkeypatch.setattr(_warpgroup.Warpgroup, "meet", meet_but(left_out))
        with pytest.raises(Exception, match="RACE DETECTED"):
            jax.block_until_ready(solve())
        reset_interpreter()


def reset_interpreter():
    """The interpreter asks for it after an error."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    gpu_callbacks.reset_gpu_interpret_mode_state()


def test_fused_says_why_it_cannot(key, unchecked_shapes):
    x, y = helpers.clouds(key, 2, n=20, m=20)
    for solve in (
        lambda: sinkhorn(x, y, 0.1, limits=FUSED),
        lambda: sinkhorn_self(x, 0.1, limits=FUSED),
    ):
        with pytest.raises(ValueError, match=r"'fused' is not possible: .* 9\.0, and cpu"):
            solve()
    with pytest.raises(ValueError, match="up to 256 points, not 300"):
        sinkhorn(jnp.zeros((300, 2)), y, 0.1, limits=FUSED)
    with jax.enable_x64(True), pytest.raises(ValueError, match="in float32, not float64"):
        sinkhorn(np.zeros((30, 2)), np.ones((3, 2)), 0.1, limits=FUSED)
    with pytest.raises(ValueError, match="two clouds by their points"):
        sinkhorn_matrix(jnp.ones((3, 3)), 0.1, limits=FUSED)
    with pytest.raises(ValueError, match=r"choose one of auto, full, half, chunks$"):
        from sinkflow import Sharded

        Sharded(jax.sharding.Mesh(np.array(jax.devices()), ("rows",)), "fused")


def test_a_kernel_that_does_not_run_is_no_error_of_auto(key, monkeypatch):
    x, y = helpers.clouds(key, 2, n=20, m=20)
    monkeypatch.setattr(_fused, "_unfit", lambda *_: None)
    monkeypatch.setattr(_fused, "VERSIONS", (jax.__version__,))
    _fused._broken.cache_clear()
    with pytest.warns(RuntimeWarning, match="not fused: its kernel does not run"):
        assert _fused.storage_for("auto", x, y) == "full"
    with pytest.raises(ValueError, match="not possible: its kernel does not run"):
        _fused.storage_for("fused", x, y)
    monkeypatch.setattr(_fused, "VERSIONS", ("0.0.1",))
    with pytest.warns(RuntimeWarning, match=r"was run with jax 0\.0\.1, not with"):
        assert _fused.storage_for("auto", x, y) == "full"
    _fused._broken.cache_clear()


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="older versions do not trace the kernel")
def test_a_program_for_the_cpu_solves_as_ever(key, monkeypatch):
    """Where a GPU was seen when it was traced, but the arrays lie on a CPU."""
    x, y = helpers.clouds(key, 2, n=20, m=20)
    monkeypatch.setattr(_fused, "_refusal", lambda *_: None)
    expected = sinkhorn_velocity(x, y, 0.1, limits=Limits(storage="full"))
    found = sinkhorn_velocity(x, y, 0.1, limits=FUSED)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other)
    slope = lambda limits: jax.grad(lambda x: sinkhorn(x, y, 0.1, limits=limits).value)(x)
    np.testing.assert_array_equal(slope(FUSED), slope(Limits(storage="full")))


@pytest.mark.slow
def test_the_first_use_tries_the_kernels(interpreted):
    assert _fused._tried()


@pytest.mark.slow
def test_a_wrong_kernel_is_found_at_first_use(interpreted, monkeypatch):
    monkeypatch.setattr(_warpgroup, "LOG2E", 1.0)
    jax.clear_caches()
    assert not _fused._tried()


def process(module, *words, **variables):
    own = ("XLA_FLAGS", "NPROC", "JAX_PLATFORMS")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    environment = {**kept, "PYTHONPATH": str(ROOT), **variables}
    words = [sys.executable, "-m", module, *words]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("jax_cuda13_plugin") and importlib.util.find_spec("nvidia")),
    reason="jax[cuda13] is not there",
)
def test_kernels_compiled_for_an_h100_keep_to_their_registers():
    """And spill little, outside of the iterations."""
    done = process("tests.ot.hopper", "xy 256", "xx 256")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if "registers" in line]
    assert len(lines) == 4
    for line in lines:
        registers, stack, shared = [int(word) for word in line.split() if word.isdigit()][-3:]
        assert registers <= 128, line
        assert stack <= (400 if line.startswith("xy") else 16), line
        assert shared <= 227 * 1024, line


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="no GPU is there")
def test_fused_solves_on_this_gpu():
    done = process("tests.ot.on_hopper")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
