"""Fused solves on a GPU of compute capability 9.0, against those that XLA compiles.

``python -m tests.ot.on_hopper`` prints a line for each check, and ends with 1 if any fails.
"""

import functools
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.ot import _fused
from sinkflow.ot.divergence import sinkhorn_divergence, sinkhorn_velocity
from sinkflow.ot.limits import Limits
from sinkflow.ot.solver import sinkhorn, sinkhorn_self

THRESHOLD = 1e-3
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def clouds(count, n, m, d, seed=0, spread=0.5):
    """Batches of normal clouds x [count, n, d] and y [count, m, d]."""
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[0], (count, n, d))
    return x, spread * jax.random.normal(keys[1], (count, m, d)) + 1 / d


def weights(count, n, seed=0, zeros=0):
    """Batches of weights [count, n], of which the last ones are 0."""
    values = jax.random.uniform(jax.random.key(seed), (count, n), minval=0.1)
    values = values.at[:, n - zeros :].set(0)
    return values / jnp.sum(values, axis=1, keepdims=True)


def limits(storage, threshold=THRESHOLD, cap=5_000):
    return Limits(threshold, cap, storage)


@functools.partial(jax.jit, static_argnames=("storage", "cap"))
def solved(x, y, epsilon, a=None, b=None, g=None, storage="fused", cap=5_000):
    solve = lambda x, y, a, b, g: sinkhorn(
        x, y, epsilon, a=a, b=b, g_init=g, limits=limits(storage, cap=cap)
    )
    return jax.vmap(solve)(x, y, a, b, g)


@functools.partial(jax.jit, static_argnames=("storage", "cap"))
def solved_self(x, epsilon, a=None, f=None, storage="fused", cap=5_000):
    solve = lambda x, a, f: sinkhorn_self(
        x, epsilon, a=a, f_init=f, limits=limits(storage, cap=cap)
    )
    return jax.vmap(solve)(x, a, f)


def alike(fused, plain, converged=True, same=0.95):
    """That a batch ended as the other did, and what it looks like.

    ``same`` is the share of clouds of equal iteration counts: an error near the threshold may end
    a solve a round sooner or later, a race ends many.
    """
    fused, plain = jax.device_get((fused, plain))
    if converged:
        assert np.all(fused.converged), f"{np.sum(~fused.converged)} not converged"
        assert np.all(fused.marginal_error <= THRESHOLD)
    equal = fused.num_iterations == plain.num_iterations
    apart = np.max(np.abs(fused.num_iterations - plain.num_iterations))
    line = f"iterations {fused.num_iterations.mean():.1f} and {plain.num_iterations.mean():.1f}"
    line += f", equal {equal.mean():.3f}, apart {apart}"
    assert equal.mean() >= same, line
    scale = np.abs(plain.value) + np.abs(plain.value).mean()
    values = np.max(np.abs(fused.value - plain.value)[equal] / scale[equal])
    assert values < 1e-4, f"values differ by {values}"
    worst = np.max(fused.marginal_error)
    return f"{line}, error {worst:.2e}, values within {values:.1e}"


@check
def tiny_solve_at_first_use():
    """Why it is not possible, if so."""
    x = jnp.zeros((8, 2))
    reason = _fused._refusal(x, x)
    assert reason is None, reason


@check
def plane():
    lines = []
    for epsilon in (1.0, 0.1, 0.02):
        x, y = clouds(64, 256, 256, 2)
        lines.append(alike(solved(x, y, epsilon), solved(x, y, epsilon, storage="half")))
    return "; ".join(lines)


@check
def high_dimension():
    x, y = clouds(64, 256, 256, 784)
    return "; ".join(
        alike(solved(x, y, epsilon), solved(x, y, epsilon, storage="half"))
        for epsilon in (100.0, 10.0, 3.0)
    )


@check
def sizes_and_weights():
    lines = []
    for n, m, zeros in ((256, 256, 10), (200, 180, 0), (64, 256, 3), (130, 1, 0), (3, 70, 1)):
        x, y = clouds(40, n, m, 2, seed=n)
        a, b = weights(40, n, 1, zeros), weights(40, m, 2, min(zeros, m - 1))
        fused = solved(x, y, 0.05, a, b)
        plain = solved(x, y, 0.05, a, b, storage="half")
        lines.append(f"{n} x {m}: {alike(fused, plain)}")
        full = solved(x, y, 0.05, a, b, storage="full")
        f, exact = (np.asarray(out.f + out.g.mean(1, keepdims=True)) for out in (fused, full))
        assert np.all(np.isfinite(f)) and np.max(np.abs(f - exact)) < 0.05, "potentials"
    return "; ".join(lines)


@check
def one_heavy_point():
    x, y = clouds(40, 256, 256, 2)
    a = jnp.full((40, 256), 1e-6).at[:, 0].set(1 - 255e-6)
    return alike(solved(x, y, 0.1, a, a[:, ::-1]), solved(x, y, 0.1, a, a[:, ::-1], storage="half"))


@check
def one_cloud():
    x, y = clouds(1, 256, 256, 2)
    solve = lambda storage: sinkhorn(x[0], y[0], 0.05, limits=limits(storage))
    outs = [jax.tree.map(lambda leaf: leaf[None], solve(name)) for name in ("fused", "half")]
    return alike(*outs)


@check
def reruns_are_equal_bit_for_bit():
    x, y = clouds(300, 256, 256, 2)
    outs = [jax.device_get(solved(x, y, 0.02)) for _ in range(5)]
    for out in outs[1:]:
        for leaf, first in zip(out, outs[0], strict=True):
            np.testing.assert_array_equal(leaf, first)


@check
def batches_of_batches():
    x, y = clouds(12, 100, 70, 2)
    epsilons = jnp.array([0.1, 0.5])
    solve = lambda x, y, epsilon: sinkhorn(x, y, epsilon, limits=limits("fused"))
    nested = jax.vmap(jax.vmap(solve, (0, 0, None)), (None, None, 0))(x, y, epsilons)
    for k, epsilon in enumerate(epsilons):
        one = solved(x, y, epsilon)
        np.testing.assert_array_equal(nested.f[k], one.f)
        np.testing.assert_array_equal(nested.num_iterations[k], one.num_iterations)


@check
def warm_starts():
    x, y = clouds(64, 256, 200, 2)
    start = solved(x, y, 0.1).g
    moved = x + 0.02 * jax.random.normal(jax.random.key(5), x.shape)
    lines = []
    for name, g in (
        ("near", start),
        ("own", start),
        ("far", 100 * start),
        ("NaN", start * jnp.nan),
    ):
        cloud = x if name == "own" else moved
        fused, plain = (solved(cloud, y, 0.1, g=g, storage=kind) for kind in ("fused", "half"))
        lines.append(f"{name}: {alike(fused, plain)}")
        if name == "own":
            assert np.mean(np.asarray(fused.num_iterations) == 0) > 0.9
    return "; ".join(lines)


@check
def caps():
    x, y = clouds(20, 256, 256, 2)
    lines = []
    for cap in (0, 7, 20):
        fused, plain = (solved(x, y, 0.005, storage=kind, cap=cap) for kind in ("fused", "half"))
        assert not np.any(fused.converged)
        lines.append(alike(fused, plain, converged=False))
    return "; ".join(lines)


@check
def a_cloud_and_itself():
    lines = []
    for d, epsilon in ((2, 0.002), (2, 0.3), (2, 30.0), (784, 1.0)):
        x, _ = clouds(64, 256, 256, d)
        fused, plain = (solved_self(x, epsilon, storage=kind) for kind in ("fused", "half"))
        lines.append(f"d {d}, epsilon {epsilon}: {alike(fused, plain)}")
        warm = fused.f + 0.01 * epsilon
        fused, plain = (solved_self(x, epsilon, f=warm, storage=k) for k in ("fused", "half"))
        lines.append(f"warm: {alike(fused, plain)}")
    x, _ = clouds(30, 90, 90, 2)
    a = weights(30, 90, 3, 5)
    lines.append(alike(solved_self(x, 0.1, a), solved_self(x, 0.1, a, storage="half")))
    return "; ".join(lines)


@check
def what_is_not_finite_ends():
    x, y = clouds(4, 256, 256, 2)
    for wrong in (jnp.nan, jnp.inf):
        out = solved(x.at[1, 3, 0].set(wrong), y, 0.1)
        assert not out.converged[1] and out.num_iterations[1] <= 10
        assert np.all(np.delete(np.asarray(out.converged), 1))
        own = solved_self(x.at[1, 3, 0].set(wrong), 0.1)
        assert not own.converged[1] and own.num_iterations[1] <= 10
    for epsilon in (jnp.nan, jnp.inf, 0.0, -1.0):
        for out in (solved(x, y, epsilon), solved_self(x, epsilon)):
            assert not np.any(out.converged) and np.all(out.num_iterations <= 10)


@check
def gradients_and_velocities():
    x, y = clouds(1, 128, 100, 2)
    x, y = x[0], y[0]
    value = lambda x, kind: sinkhorn_divergence(x, y, 0.1, limits=limits(kind))[0]
    slopes = [jax.jit(jax.grad(value), static_argnums=1)(x, kind) for kind in ("fused", "full")]
    velocities = [sinkhorn_velocity(x, y, 0.1, limits=limits(kind)) for kind in ("fused", "full")]
    assert velocities[0][1].converged
    apart = [
        float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))
        for one, other in (slopes, [velocity for velocity, _ in velocities])
    ]
    assert max(apart) < 3e-3, apart
    return f"apart {apart[0]:.1e} and {apart[1]:.1e}"


@check
def many_problems_of_all_kinds():
    """Scales over eight decades, weights over four: as many iterations as the other solve."""
    lines = []
    for seed in range(6):
        x, y = clouds(64, 120, 256, 3, seed=seed, spread=10.0 ** (seed - 3))
        spread = jnp.mean(jnp.sum(x**2, axis=2)) + jnp.mean(jnp.sum(y**2, axis=2))
        a, b = weights(64, 120, seed, 3) ** 3, weights(64, 256, seed + 9) ** 3
        a, b = (w / jnp.sum(w, axis=1, keepdims=True) for w in (a, b))
        epsilon = spread * 10.0 ** (-3 + seed % 4)
        fused, plain = (solved(x, y, epsilon, a, b, storage=kind) for kind in ("fused", "half"))
        lines.append(alike(fused, plain, same=0.9))
    return "; ".join(lines)


def main():
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}")
    failed = 0
    for function in CHECKS:
        try:
            print(f"ok    {function.__name__}: {function() or ''}", flush=True)
        except Exception as error:
            failed += 1
            print(f"WRONG {function.__name__}: {type(error).__name__}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc(limit=-3, file=sys.stdout)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
