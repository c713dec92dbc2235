"""Layers: what a backend decides for itself changes no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow.nets import _layers


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_products_of_shifted_copies_are_the_convolution_and_its_gradients(key, strides, size):
    key_x, key_k, key_w = jax.random.split(key, 3)
    x = jax.random.normal(key_x, (2, 8, 6, 3))
    kernel = jax.random.normal(key_k, (4, size, size, 3))
    weight = jax.random.normal(key_w, (2, 8 // strides, 6 // strides, 4))

    def values(convolve):
        total = lambda x, kernel: jnp.sum(weight * convolve(x, kernel, strides))
        return convolve(x, kernel, strides), *jax.grad(total, (0, 1))(x, kernel)

    pairs = zip(values(_layers.shifted_products), values(_layers.convolution), strict=True)
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_only_a_cpu_multiplies_shifted_copies(key, monkeypatch):
    used = []
    monkeypatch.setattr(
        _layers,
        "shifted_products",
        lambda x, *_: used.append("cpu") or jnp.zeros((*x.shape[:3], 4)),
    )
    monkeypatch.setattr(
        _layers, "convolution", lambda x, *_: used.append("gpu") or jnp.zeros((*x.shape[:3], 4))
    )
    layer = _layers.Conv(4, dtype=jnp.float32)
    layer.init(key, jnp.zeros((1, 4, 4, 2)))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer.init(key, jnp.zeros((1, 4, 4, 2)))
    assert used == ["cpu", "gpu"]
