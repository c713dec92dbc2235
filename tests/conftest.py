"""Four CPU devices, shapes of every annotation checked, no silent broadcasting, one key."""

import os
import pathlib

# Most tests compile for longer than they run: here programs are slower, but sooner there.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # drivers that are called keep nothing
os.environ["NPROC"] = "32"  # four virtual devices on two cores otherwise starve one another

import jax
import jaxtyping
import pytest

MEMORY_MAPS = pathlib.Path("/proc/self/maps")
MANY = 20_000  # a third of what Linux allows a process; beyond its limit XLA crashes in compiling

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("sinkflow", "beartype.beartype")


@pytest.fixture
def key(request) -> jax.Array:
    return jax.random.key(getattr(request, "param", 0))


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets what was compiled, before the memory maps of thousands of programs run out."""
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_text().count("\n") > MANY:
        jax.clear_caches()


@pytest.fixture
def unchecked_shapes():
    """Calls as users make them, without the annotation hook in front of our own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
