"""What is measured and drawn of a trained one-step generator, for each kind of data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generators import draws, training
from experiments.generators.config import GeneratorConfig
from experiments.harness.run import Run
from experiments.images import pictures, scoring
from experiments.images.config import Sampling
from experiments.images.sampling import Drawing, Scheme
from experiments.vectors import evaluation
from sinkflow import data, metrics, plotting
from sinkflow.data import images

COLUMNS = 10  # images of a row of a grid
METHOD = "generator"


def report_plane(config: GeneratorConfig) -> dict:
    """A generator of a task in the plane, measured by exact W2."""
    run = Run(config)
    made, scales = training.learn(run, config, None)
    key_x0, key_x1, key_ends = jax.random.split(config.key("evaluate"), 3)
    task = data.task(config.dataset)
    with run.timed("sample"):
        x0 = data.STRATIFIED[task.source](key_x0, config.num_samples)
        samples = {"1": np.asarray(made.draw(x0, jnp.zeros(len(x0), int)))}
    with run.timed("evaluate"):
        real, w2, floors = evaluation.distances(
            task, samples, key_x1, num_samples=config.num_samples, num_floors=config.num_floors
        )
    with run.timed("pictures"):
        titled = {f"NFE 1, W2 {w2['1']:.3f}": samples["1"]}
        plotting.save(plotting.samples_against_target(titled, real), run.out / "samples.png")
        start, end = (data.SAMPLERS[task.source](key, 24) for key in jax.random.split(key_ends))
        shares = np.linspace(0, 1, 64)
        states = np.stack([made.draw(z, jnp.zeros(24, int)) for z in jnp.linspace(start, end, 64)])
        title, label = "samples while z moves along a line", "share of the line between two z"
        paths = plotting.trajectories(states, real, title, label, shares)
        plotting.save(paths, run.out / "interpolation.png")
    floor, stratified_floor = float(np.mean(floors[:-1])), floors[-1]
    print(f"W2  NFE 1: {w2['1']:.3f}  (floor {floor:.3f}, stratified {stratified_floor:.3f})")
    return finish(
        run,
        metric="exact W2 [length], stratified source and target",
        floor=floor,
        floor_std=float(np.std(floors[:-1])),
        stratified_floor=stratified_floor,
        w2=w2,
        excess={"1": metrics.excess(w2["1"], floor)},
        **scales,
    )


def report_digits(config: GeneratorConfig) -> dict:
    """A generator of 8x8 digits, measured in pixels and by a small classifier."""
    pixels, labels = data.digits()
    order = np.asarray(jax.random.permutation(config.key("shuffle"), len(pixels)))
    test, real = order[: config.num_samples], order[config.num_samples :]
    run = Run(config)
    rows = draws.real_samples(config, pixels[real], labels[real])
    made, scales = training.learn(run, config, rows)
    with run.timed("sample"):
        z = draws.latent(config, config.key("noise"), config.num_samples)
        asked = asked_labels(config.num_samples)
        samples = np.asarray(made.draw(z, asked))
    with run.timed("evaluate"):
        judge = evaluation.Judge(pixels[real], labels[real], pixels[test], labels[test], config)
        scores, floor = judge(samples), judge.floor()
        traps = {name: judge(points) for name, points in judge.traps().items()}
    with run.timed("pictures"):
        draw_grids(run, made, samples, pixels[real])
        shares = {"samples": judge.shares(samples), "test images": judge.shares(judge.test)}
        plotting.save(plotting.class_histogram(shares, evaluation.DIGITS), run.out / "classes.png")
    for label, row in {"NFE 1": scores, "real": floor, **traps}.items():
        print(f"{label:>8}  " + "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    right = np.mean(judge.classifier.predict(samples) == np.asarray(asked))
    return finish(
        run,
        **{name: {"1": value} for name, value in scores.items()},
        floor=floor,
        traps=traps,
        class_shares={"1": judge.shares(samples).tolist()},
        asked_accuracy=float(right) if config.labels else None,
        classifier_accuracy=judge.accuracy,
        **scales,
    )


def report_images(config: Any) -> dict:
    """A generator of MNIST or Fashion-MNIST, measured by the judge of all image tables."""
    train_set, test_set = scoring.load_splits(
        config.dataset, config.data_dir, smoke=config.smoke, shape=config.SHAPE
    )
    run = Run(config)
    drawn_with = config.num_samples, config.inception_weights
    # first: what it lacks is said at once
    score = scoring.Scorer(config.dataset, train_set, test_set, *drawn_with)
    rows = draws.real_samples(config, train_set.pixels, train_set.labels)
    made, scales = training.learn(run, config, rows)
    scheme = Scheme(METHOD, 1, lambda z: made.draw(z, asked_labels(len(z))))
    names = ("num_samples", "sample_batch", "inception_weights")
    told = {name: getattr(config, name) for name in names}
    sizes = config.dim(), config.SHAPE, config.num_samples, config.sample_batch
    drawing = Drawing(config.key("noise"), *sizes, told)
    row, drawn = scoring.judged(run, drawing, scheme, score)
    print(scoring.row_line(row))
    with run.timed("evaluate"):
        references = score.references
    for name, scores in references.items():
        print(scoring.row_line({"method": name, **scores}))
    if drawn is not None:
        print(scoring.keep(run, scheme, drawn[: Sampling.num_kept]))
        with run.timed("pictures"):
            shown = pictures.scaled(drawn[:100])
            draw_grids(run, made, shown, pictures.scaled(train_set.pixels))
    return finish(
        run,
        rows=[row],
        references=references,
        dataset=config.dataset,
        num_samples=score.count,
        classifier=score.judge.weights and score.judge.weights.record["sha256"],
        device_memory_gb=run.peak_memory(),
        **scales,
    )


def finish(run: Run, **results) -> dict:
    """result.json, with the training's last log line and all its failed solves."""
    with run.timed("pictures"):
        steps, losses = run.logged("loss")
        curve = plotting.loss_curve(steps, losses, run.config["steps_per_call"])
        plotting.save(curve, run.out / "loss.png")
    lines = {name: run.logged(name)[1] for name in ("unconverged", "solves", "marginal_error")}
    trained = {
        "steps": run.config["train_steps"],
        "unconverged": int(sum(lines["unconverged"])),
        "solves": int(sum(lines["solves"])),
        "largest_marginal_error": max(lines["marginal_error"]),
    }
    result = run.finish(nfe=[1], training=trained, **results)
    print(f"seconds {result['times']}; pictures and result.json in {run.out}")
    return result


def draw_grids(run: Run, made: training.Generator, samples, real) -> None:
    """samples.png, neighbours.png and interpolation.png of images in [-1, 1]."""
    shape, name = made.config.SHAPE, made.config.dataset
    samples, real = samples.reshape(-1, *shape), real.reshape(-1, *shape)
    grid = {f"{name}, one evaluation": samples[: COLUMNS**2]}
    plotting.save(plotting.image_grid(grid, COLUMNS), run.out / "samples.png")
    some = samples[: 4 * COLUMNS]
    flat = [images.reshape(len(images), -1) for images in (some, real)]
    nearest = real[metrics.nearest(*flat)[1]]
    pairs = {"samples": some, "nearest training images": nearest}
    plotting.save(plotting.image_grid(pairs, COLUMNS, beside=2), run.out / "neighbours.png")
    ends = jax.random.split(made.config.key("evaluate"))
    start, end = (draws.latent(made.config, key, COLUMNS) for key in ends)
    # On an arc: a line between two normal points leaves the sphere that they lie near.
    angles = jnp.linspace(0.0, jnp.pi / 2, COLUMNS)[:, None, None]
    z = jnp.cos(angles) * start[None] + jnp.sin(angles) * end[None]
    labels = asked_labels(COLUMNS)
    steps = np.stack([made.draw(points, labels) for points in z], axis=1)
    rows = {"from one z to another, a row each": steps.reshape(-1, *shape)}
    plotting.save(plotting.image_grid(rows, COLUMNS), run.out / "interpolation.png")


def asked_labels(count: int):
    """The classes that samples are asked of: one after the other, a column of a grid each."""
    return jnp.arange(count) % images.NUM_CLASSES
