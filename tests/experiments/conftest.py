"""Tests of drivers compile quickly: compiling is most of them, and their numbers mean nothing."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """XLA's cheap passes alone; other folders' tests have all of them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
