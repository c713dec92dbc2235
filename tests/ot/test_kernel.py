"""kernel: the same sums however costs are stored, and the choice between the ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow import Limits, barycentric_map, sinkhorn, sinkhorn_self, sinkhorn_velocity
from sinkflow.ot import _cost, _kernel
from tests.helpers import plan

N, M = 17, 11


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three rows, of which the last is not full; traces made with others are dropped."""
    monkeypatch.setattr(_kernel, "CHUNK", 3 * M)
    jax.clear_caches()
    yield
    jax.clear_caches()


def problem(key, d):
    keys = jax.random.split(key, 4)
    x, y = jax.random.normal(keys[0], (N, d)), jax.random.normal(keys[1], (M, d)) + 1.0
    a, b = jax.random.uniform(keys[2], N, minval=0.2), jax.random.uniform(keys[3], M, minval=0.2)
    return x, y, a / a.sum(), (b.at[0].set(0.0)) / b[1:].sum()


@pytest.mark.parametrize("d", [2, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("storage", ["half", "chunks"])
def test_storage_does_not_change_the_solve(key, small_chunks, d, storage):
    x, y, a, b = problem(key, d)
    epsilon = 0.05 * d
    tolerance = 1e-3 if storage == "half" else 2e-5
    options = {"a": a, "b": b}
    full = sinkhorn(x, y, epsilon, limits=Limits(tolerance, storage="full"), **options)
    other = sinkhorn(x, y, epsilon, limits=Limits(tolerance, storage=storage), **options)
    assert full.converged & other.converged
    expected, found = (plan(x, y, epsilon, out, a, b) for out in (full, other))
    np.testing.assert_allclose(found, expected, atol=5 * tolerance)
    np.testing.assert_allclose(other.value, full.value, rtol=tolerance)
    np.testing.assert_allclose(other.neighbours, full.neighbours, rtol=10 * tolerance)
    warm = sinkhorn(
        x, y, epsilon, limits=Limits(tolerance, storage=storage), g_init=full.g, **options
    )
    assert warm.converged & (warm.num_iterations <= 5)
    one, two = (sinkhorn_self(x, epsilon, limits=Limits(storage=s), a=a) for s in ("full", storage))
    assert one.converged & two.converged
    np.testing.assert_allclose(two.f, one.f, atol=2e-3 * epsilon)
    velocities = [
        sinkhorn_velocity(x, y, epsilon, a=a, b=b, limits=Limits(tolerance, storage=s))[0]
        for s in ("full", storage)
    ]
    np.testing.assert_allclose(*velocities, atol=20 * tolerance)


def test_half_precision_says_what_it_cannot_reach(key):
    """Its sums are off by their rounding; the certificate is not."""
    x, y, a, b = problem(key, 2)
    out = sinkhorn(x, y, 0.1, a=a, b=b, limits=Limits(1e-6, 300, "half"))
    found = plan(x, y, 0.1, out, a, b)
    truth = max(np.abs(found.sum(1) - a).sum(), np.abs(found.sum(0) - b).sum())
    assert not out.converged
    assert 1e-6 < truth < 1e-3
    np.testing.assert_allclose(out.marginal_error, truth, atol=2e-6)


def test_half_precision_holds_the_density_of_many_points():
    """A matching of n points has the density n, which float16 ends below at 65,504."""
    x = jnp.zeros((2, 1))
    exponent = np.log(3e5)  # as if each had one partner among 300,000
    cost = _cost.Cost(x, x, jnp.zeros((2, 2)))
    f = jnp.full(2, exponent)
    rows, columns = _kernel.density(cost, f, jnp.zeros(2), 1.0, "half")
    assert jnp.isfinite(rows(jnp.ones(2))).all()
    assert jnp.isfinite(columns(jnp.ones(2))).all()


def test_rows_in_pieces_equal_all_at_once(key, small_chunks):
    x, y, _, b = problem(key, 8)
    g = jax.random.normal(key, M)
    images, neighbours = barycentric_map(x, y, g, 0.3, b)
    logits = (np.asarray(g)[None] - 0.5 * ((np.asarray(x)[:, None] - y[None]) ** 2).sum(-1)) / 0.3
    weights = np.exp(logits - logits.max(1, keepdims=True)) * np.asarray(b)[None]
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(images, weights @ y, atol=1e-4)
    np.testing.assert_allclose(neighbours, 1 / (weights**2).sum(1), rtol=1e-4)
    assert _kernel.make_cost(x, y, "full").matrix.shape == (N, M)
    assert _kernel.make_cost(x, y, "chunks").matrix is None


def test_gradients_in_pieces(key, small_chunks):
    x, y, a, b = problem(key, 2)

    def value(x, storage):
        return sinkhorn(x, y, 0.3, a=a, b=b, limits=Limits(1e-5, storage=storage)).value

    gradients = [jax.grad(value)(x, storage) for storage in ("full", "chunks")]
    np.testing.assert_allclose(*gradients, atol=2e-5)


@pytest.mark.parametrize(
    ("n", "memory", "expected"),
    [
        (1_000, 2**33, "full"),
        (30_000, 2**33, "half"),  # 7.2 GB and 5.4 GB, of 6.4
        (40_000, 2**33, "chunks"),
        (100_000, 112 * 2**30, "full"),
    ],
)
def test_storage_is_what_fits(monkeypatch, n, memory, expected):
    monkeypatch.setattr(_kernel, "_device_memory", lambda: memory)
    cloud = jax.ShapeDtypeStruct((n, 2), jnp.float32)
    assert _kernel.storage_for("auto", cloud, cloud) == expected


def test_storage_is_taken_as_asked_or_refused(key):
    x, y, _, _ = problem(key, 2)
    many = jax.ShapeDtypeStruct((10**6, 2), jnp.float32)
    assert _kernel.storage_for("chunks", x, y) == "chunks"
    assert _kernel.storage_for("full", many, many) == "full"
    with pytest.raises(ValueError, match="unknown storage 'disk'; choose one of auto, full"):
        sinkhorn(x, y, 0.1, limits=Limits(storage="disk"))
