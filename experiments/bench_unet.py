"""How fast the UNet trains and samples: sinkflow against torchcfm's UNet of the same size.

Command:  python -m experiments.bench_unet --device gpu       (peer: pip install -e '.[bench]')
          python -m experiments.bench_unet --smoke            (a tiny network on the CPU)
Runtime:  nine minutes on an H200, most of it compilation; --budget bounds the whole. The smoke
          run takes half a minute on two CPU cores.
Expected: unet.json with a row for each batch size, library and setting, and their table in unet.md;
          what is missing, fails or does not compile in time says so in its row.
Source:   the CIFAR-10 network of arXiv:2401.14069; the peer is the UNet of torchcfm,
          arXiv:2302.00482, under torch.compile.

A training step is the same work on both sides: a batch of straight paths between noise and images
drawn on the device, gradient, clipped norm, Adam, moving average of the parameters; bfloat16
products, float32 parameters. Each row is a process of its own, one after the other. Steps are timed
in rounds of --steps-per-call, with one synchronisation at the end of each.

Floating-point operations are counted from our network's forward pass, convolutions and matrix
products only, two for each multiplication and addition; training counts three forward passes, as is
usual. Both libraries are given the same count.
"""

import dataclasses
import pathlib
import time
from typing import ClassVar, Literal

import jax

from experiments.bench import unet_config as parts
from experiments.bench.flops import forward_flops
from experiments.bench.record import Record
from experiments.bench.unet_report import report, summary
from experiments.bench.unet_session import measure, rows
from experiments.harness import cli, folders
from experiments.harness.files import write_text
from experiments.harness.run import recorded
from experiments.harness.settings import check_positive_counts, flat
from sinkflow.files import read_object


@dataclasses.dataclass(frozen=True)
class Config(parts.Plan):
    """What to measure, and for how long."""

    batch_sizes: tuple[int, ...] = (128, 512)
    """Images of a training step."""
    peers: tuple[Literal["sinkflow", "torchcfm"], ...] = ("sinkflow", "torchcfm")
    """Libraries to measure; rows of others that the output folder has are kept."""
    compile_modes: tuple[str, ...] = ("default", "max-autotune")
    """Modes of torch.compile, a row each; "eager" does not compile."""
    out: str = "runs/bench-unet"
    """Output folder."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {
        "batch_sizes": (4,),
        "compile_modes": ("eager",),
        "time_limit": 0.2,
        "budget": 120.0,
        "steps_per_call": 4,
        "sample_batch": 4,
        "nfe": 2,
        "channels": 32,
        "multipliers": (1,),
        "num_blocks": 1,
        "attention": 8,
        "head_dim": 16,
        "image_size": 8,
        "xla_flags": "--xla_backend_optimization_level=0",  # compiles twice as fast
        "learning_rate": 2e-3,
        "out": "runs/bench-unet-smoke",
    }


def main(config: Config) -> dict:
    """Measures what is selected; makes the table from the record alone."""
    check_positive_counts(
        **{f"batch_sizes {size}": size for size in config.batch_sizes},
        nfe=config.sampling.nfe,
        steps_per_call=config.training.steps_per_call,
    )
    if not config.batch_sizes or not config.compile_modes:
        raise ValueError("batch_sizes or compile_modes is empty; give at least one")
    # This process only counts; the device is its workers'.
    jax.config.update("jax_platforms", "cpu")
    out, network = pathlib.Path(config.out), config.network
    folders.opened(out)
    deadline = time.time() + config.limits.budget
    flops = forward_flops(network.unet(flash=False), network.shape(1))
    print(f"forward: {flops / 1e9:.2f} GFLOP an image", flush=True)
    facts = {"forward_flops": flops, "config": recorded(flat(config))}
    record = Record(out / "unet.json", ("peer", "setting", "batch"), summary, facts)
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(parts.Plan)}
    sample = bool(config.sampling.sample_batch)
    for asked in rows(config.peers, config.batch_sizes, config.compile_modes, sample):
        measure(record, parts.Plan(**own), asked, flops, deadline)
    written = read_object(record.path)
    text = report(written)
    write_text(out / "unet.md", text)
    print(f"\n{text}\n{record.path}")
    return written


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
