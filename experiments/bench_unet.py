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
import json
import math
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import common, processes, tables
from experiments.bench_unet_worker import Config

# Dense bfloat16 rates of the makers' datasheets [FLOP/s].
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
}


def main(config: Config) -> dict:
    """Measures what is selected; makes the table from the record alone."""
    common.check_positive_counts(
        **{f"batch_sizes {size}": size for size in config.batch_sizes},
        nfe=config.nfe,
        steps_per_call=config.steps_per_call,
    )
    if not config.batch_sizes or not config.compile_modes:
        raise ValueError("batch_sizes or compile_modes is empty; give at least one")
    # This process only counts; the device is its workers'.
    jax.config.update("jax_platforms", "cpu")
    bench = Bench(config)
    bench.run()
    record = json.loads(bench.path.read_text())
    text = report(record)
    common.write_text(bench.out / "unet.md", text)
    print(f"\n{text}\n{bench.path}")
    return record


class Bench:
    """Rows as they come, each written down at once beside those that the folder had before."""

    def __init__(self, config: Config):
        self.config, self.commit = config, common.commit()
        self.out = pathlib.Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "unet.json"
        self.rows = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        self.deadline = time.time() + config.budget
        self.flops = forward_flops(config.network(flash=False), config.shape(1))

    def run(self) -> None:
        """One process after another: first every library once, then the peer's other settings."""
        print(f"forward: {self.flops / 1e9:.2f} GFLOP an image", flush=True)
        first, *others = self.config.compile_modes
        for batch in self.config.batch_sizes:
            for peer in self.config.peers:
                self.measure(peer, batch, "" if peer == "sinkflow" else first)
        for mode in others if "torchcfm" in self.config.peers else ():
            for batch in self.config.batch_sizes:
                self.measure("torchcfm", batch, mode)

    def measure(self, peer: str, batch: int, mode: str) -> None:
        """One row; what its process reported is kept if it is stopped or dies."""
        settings = ours(self.config) if peer == "sinkflow" else mode
        row: dict[str, Any] = {"peer": peer, "setting": settings, "batch": batch}
        row |= {"commit": self.commit, "load_before": os.getloadavg()[0]}
        row |= {"host_cores": os.cpu_count()}
        if time.time() > self.deadline:
            self.add({**row, "not_run": processes.SPENT})
            return
        plan = {"config": dataclasses.asdict(self.config), "batch": batch, "mode": mode}
        doing, reason = "start", ""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "plan.json"
            common.write_json(file, plan)
            worker = worker_of(self.config, peer, file, self.deadline)
            for line in worker:
                doing, reason = line.pop("begin", doing), line.pop("failed", reason)
                line.pop("limit", None)
                if line:
                    row = self.add({**row, **line})
        if worker.reason:
            reason = f"{doing}: {worker.reason}"
        if reason:
            self.add({**row, "stopped" if "seconds" in row else "not_run": reason})

    def add(self, row: dict) -> dict:
        """Prints the row, and writes the record with it in place of an older one."""
        if "seconds" in row:
            row |= rates(row, self.flops)
        self.rows = [old for old in self.rows if identity(old) != identity(row)] + [row]
        print(f"{' '.join(filter(None, map(str, identity(row))))}: {summary(row)}", flush=True)
        record = {
            "rows": self.rows,
            "forward_flops": self.flops,
            "config": common.recorded(dataclasses.asdict(self.config)),
            "commit": self.commit,
        }
        common.write_json(self.path, record)
        return row


def identity(row) -> tuple:
    return row["peer"], row["setting"], row["batch"]


def ours(config: Config) -> str:
    """What tells one setting of sinkflow from another."""
    parts = [
        "one vector" if config.flat else "a tree",
        "cuDNN attention" if config.flash and config.device == "gpu" else "plain attention",
        config.dropout_key,
        config.xla_flags,
    ]
    return ", ".join(filter(None, parts))


def rates(row: dict, flops: float) -> dict:
    """What follows from the time of a step: images a second, FLOP/s and its part of the peak."""
    images = row["batch"] / row["seconds"]
    peak = PEAKS.get(row["device"])
    achieved = 3 * flops * images
    return {
        "images_per_second": images,
        "flop_per_second": achieved,
        "fraction_of_peak": achieved / peak if peak else None,
    }


def forward_flops(model, shape: tuple[int, ...]) -> float:
    """Of one application to images of that shape: convolutions and matrix products only."""
    x, t = (jax.ShapeDtypeStruct(size, jnp.float32) for size in (shape, shape[:1]))
    params = jax.eval_shape(model.init, jax.random.key(0), x, t)
    return count_flops(jax.make_jaxpr(model.apply)(params, x, t).jaxpr)


def count_flops(jaxpr) -> float:
    """Two for each multiplication of a convolution or matrix product in a program, and within."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * out.size * math.prod(kernel) / features
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval
            total += 2 * out.size * math.prod(left[axis] for axis in contracted)
        times = parameters["length"] if name == "scan" else 1
        for value in parameters.values():
            inner = getattr(value, "jaxpr", value)
            total += times * count_flops(inner) if hasattr(inner, "eqns") else 0.0
    return total


def worker_of(config: Config, peer: str, plan: pathlib.Path, deadline: float) -> processes.Worker:
    """The process that measures the plan's row."""
    environment = processes.environment(config.device)
    if peer == "sinkflow" and config.xla_flags:
        flags = f"{environment.get('XLA_FLAGS', '')} {config.xla_flags}"
        environment["XLA_FLAGS"] = flags.strip()
    arguments = ["-m", "experiments.bench_unet_worker", peer, str(plan)]
    return processes.Worker(arguments, environment, deadline=deadline)


def summary(row) -> str:
    """What a row says in one line."""
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    parts = []
    if "sampled_per_second" in row:
        parts.append(f"sampling {row['sampled_per_second']:.4g} images/s")
    if "seconds" in row:
        parts.append(
            f"{1e3 * row['seconds']:.4g} ms a step, {row['images_per_second']:.5g} images/s"
        )
    elif "estimated_bytes" in row:
        parts.append(f"will need {gibibytes(row['estimated_bytes'])} GiB")
    elif "parameters" in row:
        parts.append(f"{row['parameters']} parameters")
    return ", ".join([*parts, *([row["stopped"]] if "stopped" in row else [])]) or "started"


def report(record) -> str:
    """Markdown, from the record alone."""
    header = ["batch", "library", "setting", "ms a step", "images/s", "of bf16 peak", "sinkflow is"]
    header += ["peak [GiB]", "compiling [s]", "sampled/s", "sinkflow is", "parameters"]
    rows = sorted(record["rows"], key=lambda row: (row["batch"], row["peer"], row["setting"]))
    body = []
    for row in rows:
        cells = [str(row["batch"]), row["peer"], row["setting"]]
        if "seconds" not in row:
            cells += [f"not run: {row.get('not_run', '?')}", *[""] * (len(header) - 4)]
        else:
            fraction = row["fraction_of_peak"]
            cells += [
                f"{1e3 * row['seconds']:.4g}",
                f"{row['images_per_second']:.5g}",
                "unknown" if fraction is None else f"{100 * fraction:.1f}%",
                ratio(row, rows, "images_per_second"),
                gibibytes(row["peak_bytes"]),
                f"{row['compile_seconds']:.0f}",
                f"{row['sampled_per_second']:.4g}" if "sampled_per_second" in row else "",
                ratio(row, rows, "sampled_per_second"),
                str(row["parameters"]),
            ]
        body.append(cells)
    forward = record["forward_flops"] / 1e9
    notes = [f"A forward pass of an image is {forward:.2f} GFLOP, a training step three."]
    notes += [note(row) for row in rows if "stopped" in row or "estimated_bytes" in row]
    made = tables.Table("Training and sampling of the UNet", header, body)
    return "\n".join([tables.markdown(made), tables.origin(rows) + "\n".join(notes) + "\n"])


def note(row) -> str:
    """What a row says beside its numbers."""
    name = f"Batch {row['batch']}, {row['peer']} ({row['setting']}):"
    if "stopped" in row:
        return f"{name} {row['stopped']}."
    return f"{name} XLA's estimate before the start was {gibibytes(row['estimated_bytes'])} GiB."


def gibibytes(count) -> str:
    return "n/a" if count is None else f"{count / 2**30:.2f}"


def ratio(row, rows, rate: str) -> str:
    """How many times as fast sinkflow's fastest row of this batch size is as a peer's row."""
    same = [other for other in rows if other["batch"] == row["batch"]]
    found = [other[rate] for other in same if other["peer"] == "sinkflow" and rate in other]
    if row["peer"] == "sinkflow" or rate not in row or not found:
        return ""
    return f"{max(found) / row[rate]:.2f} x"


if __name__ == "__main__":
    common.run_driver(main, Config, __doc__)
