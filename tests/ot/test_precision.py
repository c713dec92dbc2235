"""Products keep the digits of float32, on tensor cores too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkflow.ot import _precision

DROPPED = 13  # low bits of float32 that TF32 does not have
LIMIT = 2**-20


def factors(key, n=70, d=784, m=80):
    """Rows and columns of sizes that differ by a thousand, in float32."""
    keys = jax.random.split(key, 3)
    sizes = 10 ** jax.random.uniform(keys[0], (n, 1), minval=-1.5, maxval=1.5)
    return sizes * jax.random.normal(keys[1], (n, d)), 1 + jax.random.normal(keys[2], (d, m))


def error(product, left, right):
    """Largest error against float64, relative to the lengths of row and column."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=0)
    return (np.abs(np.asarray(product, np.float64) - left @ right) / lengths).max()


def high(x):
    """What TF32 keeps."""
    return (np.asarray(x).view(np.int32) & -(1 << DROPPED)).view(np.float32)


@pytest.fixture
def tensor_cores(monkeypatch):
    """The program of a GPU; on a CPU it is lowered to the product that is exact."""
    monkeypatch.setattr(_precision, "_has_tensor_cores", lambda: True)


def test_a_product_on_this_device_has_the_digits_of_float32(key):
    left, right = factors(key)
    assert error(_precision.matmul(left, right), left, right) < LIMIT


def test_three_products_of_parts_have_the_digits_of_float32_and_one_has_not(key):
    """The claim of the docstring, in float64 sums: it is not about an order of additions."""
    left, right = (np.asarray(x, np.float32) for x in factors(key))
    (a, c), (b, d) = ((high(x), high(x - high(x))) for x in (left, right))
    a, b, c, d = (x.astype(np.float64) for x in (a, b, c, d))
    assert error(a @ b + a @ d + c @ b, left, right) < LIMIT
    assert error(a @ b, left, right) > 64 * LIMIT


@pytest.mark.parametrize("shape", [(70, 784, 80), (5, 784, 80), (70, 63, 80), (70, 784, 63)])
def test_large_products_of_float32_are_split(key, shape, tensor_cores):
    left, right = factors(key, *shape)
    program = str(jax.make_jaxpr(_precision.matmul)(left, right))
    assert ("TF32_TF32_F32_X3" in program) == (min(right.shape) >= _precision.SPLIT_DIM)


def test_the_split_program_is_batched_and_differentiated(key, tensor_cores):
    left, right = factors(key)

    def rows(left, right):
        return jax.vmap(lambda row: _precision.matmul(row, right))(left)

    np.testing.assert_allclose(jax.jit(rows)(left, right), left @ right, rtol=2e-4)
    slopes = jax.grad(lambda *x: jnp.sum(jnp.sin(rows(*x) / 1e3)), (0, 1))(left, right)
    wanted = jax.grad(lambda x, y: jnp.sum(jnp.sin(x @ y / 1e3)), (0, 1))(left, right)
    for slope, one in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(slope, one, rtol=1e-4, atol=1e-6)


def test_other_numbers_are_not_split(key, tensor_cores):
    left, right = (x.astype(jnp.bfloat16) for x in factors(key))
    assert "TF32" not in str(jax.make_jaxpr(_precision.matmul)(left, right))
