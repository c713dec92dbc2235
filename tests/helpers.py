"""Clouds, weights and plans that several tests take."""

import jax
import numpy as np


def clouds(key, d=2, *, n, m):
    """Source and target around different points [n, d], [m, d]."""
    key_x, key_y = jax.random.split(key)
    return jax.random.normal(key_x, (n, d)), jax.random.normal(key_y, (m, d)) + 1.0


def weights(key, *, n, m):
    """Non-uniform weights [n], [m] of sum 1, two of each zero."""
    key_a, key_b = jax.random.split(key)
    a = jax.random.uniform(key_a, n, minval=0.2).at[:2].set(0.0)
    b = jax.random.uniform(key_b, m, minval=0.2).at[-2:].set(0.0)
    return a / a.sum(), b / b.sum()


def float64(*arrays):
    return tuple(np.asarray(array, np.float64) for array in arrays)


def half_squares(x, y):
    """The ground cost [n, m] in float64, by differences."""
    x, y = float64(x, y)
    return 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1)


def plan(x, y, epsilon, out, a=None, b=None):
    """The plan that the returned potentials stand for, in float64; uniform weights by default."""
    f, g = float64(out.f, out.g)
    a, b = (
        np.full(len(p), 1 / len(p)) if w is None else float64(w)[0] for p, w in ((f, a), (g, b))
    )
    return a[:, None] * b[None] * np.exp((f[:, None] + g[None] - half_squares(x, y)) / epsilon)
