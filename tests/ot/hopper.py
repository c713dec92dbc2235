"""Compiles the fused kernels for an H100 where none is, and reports what they take.

``python -m tests.ot.hopper`` prints a line for each kernel. It needs jax[cuda13] and
nvidia-cuda-nvdisasm, and no GPU.
"""

import os
import pathlib
import re
import sys
import tempfile

H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def compiled(function, *shapes):
    """The program of ``function`` for one H100."""
    import jax
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        "hopper", platform="cuda", target_config=H100, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topology, (1,), ("one",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    given = [jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=where) for one in shapes]
    return jax.jit(function).lower(*given).compile()


def kernels():
    """Functions and the shapes they take, by name; batches of 3."""
    import jax
    import jax.numpy as jnp

    from sinkflow.ot import _fused_kernel

    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct((3, *sizes), dtype)
    cap = shape(dtype=jnp.int32)
    for size in (64, 256):
        cost, vector = shape(size, size), shape(size)
        for warm in (False, True):
            name = f"{size} {'warm' if warm else 'cold'}"
            inits = [vector] * warm
            solver = _fused_kernel.solver(3, size, size, warm)
            yield f"xy {name}", solver, (cost, vector, vector, *inits, shape(5), cap)
            solver = _fused_kernel.self_solver(3, size, warm)
            yield f"xx {name}", solver, (cost, vector, vector, *inits, shape(3), cap)


def taken(folder):
    """Registers a thread, bytes of stack a thread, of which spills are, and of shared memory.

    From the reports of one kernel, which differ between versions of jax.
    """
    assembler = next(folder.glob("*.ptxas")).read_bytes().decode(errors="replace")
    resources = next(folder.glob("*.resources.txt")).read_text()
    numbers = [
        max(map(int, re.findall(pattern, text, re.IGNORECASE)))
        for pattern, text in (
            (r"used (\d+) registers", assembler),
            (r"(\d+) (?:bytes )?stack", assembler),
            (r"smem_scratch_bytes=(\d+)", resources),
        )
    ]
    return tuple(numbers)


def main(wanted):
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    for name, solver, shapes in kernels():
        if wanted and not any(name.startswith(start) for start in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MOSAIC_GPU_DUMP_TO"] = folder
            compiled(solver, *shapes)
            registers, stack, shared = taken(pathlib.Path(folder))
        print(f"{name}: {registers} registers, {stack} bytes of stack, {shared} bytes shared")


if __name__ == "__main__":
    main(sys.argv[1:])
