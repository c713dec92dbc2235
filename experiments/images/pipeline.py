"""Image models from data to scores: what the drivers of the data sets run."""

import jax
import jax.numpy as jnp

from experiments.harness.run import Run
from experiments.images import judge, pictures
from experiments.images.checks import check, check_data
from experiments.images.config import (
    OF_FLOWS,
    DataSet,
    Flow,
    ImageConfig,
    Sampling,
    keys_of,
    pairing,
    stage_steps,
)
from experiments.images.sampling import Scheme, drawing_of, phase_change, schemes, title
from experiments.images.scoring import Scorer, judged, keep, load_splits, row_line
from experiments.images.stages import make_stages, pool_records, train_stages, training_records
from sinkflow.data import images
from sinkflow.fit import Field

GIGABYTE = 1e9


def main(config: ImageConfig, material: tuple[images.Images, Scorer] | None = None) -> dict:
    """Trains what is missing, samples, scores, draws; returns result.json's content.

    ``material`` is what :func:`loaded` gives; runs of several seeds and methods may share it.
    """
    check(config)
    method, data_set, how = config.method, config.data_set(), config.sampling
    # First: what it lacks is said before training.
    train_set, score = material or loaded(data_set, how, config.data_dir, smoke=config.smoke)
    keys = keys_of(config.seed)
    check_data(method, config.flow, len(train_set.labels))
    # Chosen stages may be trained beside others.
    run = Run(config, shared=bool(config.stages))
    print(memory_ahead(method, config.flow, train_set.pixels))
    made = make_stages(
        run,
        jnp.asarray(train_set.pixels),
        keys,
        method=method,
        data_set=data_set,
        flow=config.flow,
        network=config.network,
        training=config.training,
    )
    fields = train_stages(
        run,
        made,
        keys,
        method=method,
        chosen=config.stages,
        refresh_every=config.flow.refresh_every,
        training=config.training,
    )
    if len(fields) < len(stage_steps(method, config.training)):
        return {}
    ways = schemes(config.label(), method, how, fields, config.training.split)
    return report(run, fields, ways, score, data_set, how, keys["noise"])


def loaded(
    data_set: DataSet, how: Sampling, data_dir: str, *, smoke: bool
) -> tuple[images.Images, Scorer]:
    """The training images, and what judges."""
    train_set, test_set = load_splits(data_set.name, data_dir, smoke=smoke, shape=data_set.shape)
    judging = data_set.name if data_set.classifier else None
    return train_set, Scorer(judging, train_set, test_set, how.num_samples, how.inception_weights)


def report(
    run: Run,
    fields: dict[str, Field],
    ways: list[Scheme],
    score: Scorer,
    data_set: DataSet,
    how: Sampling,
    key: jax.Array,
) -> dict:
    """Samples, scores and pictures of a trained method; returns result.json's content."""
    drawing = drawing_of(how, data_set, key)
    rows, drawn = [], {}
    for scheme in ways:
        row, pixels = judged(run, drawing, scheme, score)
        rows.append(row)
        if pixels is not None:
            drawn[title(scheme)] = pixels
            if scheme.nfe in how.keep:
                print(keep(run, scheme, pixels[: how.num_kept]))
        print(row_line(row))
    with run.timed("evaluate"):
        references = score.references
    for name, scores in references.items():
        print(row_line({"method": name, **scores}))
    noise = drawing.noise(0)
    change = phase_change(how, fields, noise) if "predictor" in fields else None
    result = run.finish(
        rows=rows,
        references=references,
        dropped=judge.indistinct(references),
        dataset=data_set.name,
        num_samples=score.count,
        classifier=score.judge.weights and score.judge.weights.record["sha256"],
        device_memory_gb=run.peak_memory(),
        training=training_records(run, fields),
        predicted_time=change and {"mean": float(change[1].mean()), "std": float(change[1].std())},
        pools=pool_records(run),
        pairs=pool_records(run, "pairs"),
    )
    pictures.draw_grids(run, data_set.name, drawn, score.judge.train)
    both = [title(way) for way in ways if way.nfe == max(how.nfe) >= 3]
    if change and both:
        pictures.draw_phases(run, noise, change, drawn, both[-1])
    pictures.draw_losses(run, list(fields))
    print(f"seconds {result['times']}; pictures and result.json in {run.out}")
    return result


def memory_ahead(method: str, flow: Flow, pixels) -> str:
    """What the run will keep on the device beside a training step, which says its own need."""
    floats = 4 * pixels[0].size
    parts = {"images": pixels.nbytes / GIGABYTE}
    particles = flow.num_clouds * flow.num_particles
    if method in OF_FLOWS:
        # Twice: its clouds are put together at the end.
        parts["pool"] = 2 * particles * flow.flow_steps * floats / GIGABYTE
        called = flow.clouds_per_call * flow.num_particles
        parts["trajectories"] = 2 * called * flow.flow_steps * floats / GIGABYTE
        parts["solver"] = flow.clouds_per_call * 16 * flow.num_particles**2 / GIGABYTE
    if pairing(method, flow.pairs) != "independent":
        parts["pairs"] = 6 * particles * floats / GIGABYTE
    shown = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
    total = sum(parts.values())
    return f"memory ahead [GB]: at most {total:.2f} and a training step's ({shown})"
