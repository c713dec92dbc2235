"""How training and pool building speed up with the number of devices.

Command:  python -m experiments.bench_devices --device gpu --counts 1 2
          python -m experiments.bench_devices --smoke         (tiny work on two virtual CPU devices)
Runtime:  about five minutes on two GPUs (an estimate), most of it compilation; --budget bounds
          it. The smoke run takes two minutes on two CPU cores.
Expected: devices.json with a row for each kind of work, scaling and number of devices, and their
          table in devices.md; what is missing or fails says so in its row. Rows that the folder has
          are not measured again.
Source:   the CIFAR-10 network of arXiv:2401.14069; ideal is as many times the rate of one device
          as there are devices.

Weak scaling gives every device the work of one: 512 images a step. Strong scaling shares that work
among them. Each number of devices is a process of its own. It compiles the programs of its rows
side by side, and then times one after the other, each several times.

unet: the image drivers' training step, gradients averaged over devices. generator: a step of
several clouds, which the devices share. pool: flows of several clouds, which the devices share.
The module experiments/bench/devices_tasks.py says how.
"""

import dataclasses
import pathlib
import time
from typing import ClassVar, Literal

import jax

from experiments.bench import devices_config as parts
from experiments.bench import devices_session as session
from experiments.bench.record import Record
from experiments.harness import cli, folders
from experiments.harness.files import write_text
from experiments.harness.run import recorded
from experiments.harness.settings import check_positive_counts, flat
from sinkflow.files import read_object

PRECISION = (
    "Images' networks multiply in bfloat16, with float32 parameters and sums. Solves are in "
    "float32; a GPU's matrix products of float32 are jax's default there, TF32.\n"
)


@dataclasses.dataclass(frozen=True)
class Config(parts.Plan):
    """What to measure, and for how long."""

    tasks: tuple[Literal["unet", "generator", "pool"], ...] = ("unet", "generator", "pool")
    """Kinds of work."""
    counts: tuple[int, ...] = (1, 2)
    """Numbers of devices; with 1 among them there is something to compare with."""
    out: str = "runs/bench-devices"
    """Output folder."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {
        "batch": 8,
        "clouds": 2,
        "cloud_size": 16,
        "generator_channels": 8,
        "pool_clouds": 2,
        "num_particles": 64,
        "flow_steps": 2,
        "repeats": 3,
        "steps_per_call": 2,
        "channels": 32,
        "multipliers": (1,),
        "num_blocks": 1,
        "attention": 8,
        "head_dim": 16,
        "image_size": 8,
        "out": "runs/bench-devices-smoke",
    }


def main(config: Config) -> dict:
    """Measures what is missing; makes the table from the record alone."""
    work = config.work
    check_positive_counts(
        **{f"counts {count}": count for count in config.counts},
        repeats=config.limits.repeats,
        steps_per_call=config.training.steps_per_call,
    )
    for count in config.counts:
        for name in ("batch", "clouds", "pool_clouds"):
            if getattr(work, name) % count:
                raise ValueError(
                    f"{name} is {getattr(work, name)}; {count} devices cannot share it evenly"
                )
    # This process only counts; the devices are its workers'.
    jax.config.update("jax_platforms", "cpu")
    out = pathlib.Path(config.out)
    folders.opened(out)
    deadline = time.time() + config.limits.budget
    settings = recorded(flat(config))
    session.check_same(out / "devices.json", settings)
    facts = {"config": settings, "precision": PRECISION}
    record = Record(out / "devices.json", session.IDENTITY, session.summary, facts)
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(parts.Plan)}
    todo = session.missing(record, session.rows(config.tasks, config.counts))
    for count in sorted({row["devices"] for row in todo}):
        session.measure(record, parts.Plan(**own), count, todo, deadline)
    record.write()
    written = read_object(record.path)
    text = session.report(written)
    write_text(out / "devices.md", text)
    print(f"\n{text}\n{record.path}")
    return written


if __name__ == "__main__":
    cli.run_driver(main, Config, __doc__)
