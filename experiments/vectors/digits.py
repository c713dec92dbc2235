"""What is measured and drawn of generated 8x8 digits."""

import numpy as np

from experiments.harness.run import Run
from experiments.vectors.evaluation import DIGITS, as_images
from sinkflow import metrics, plotting


def report(
    run: Run, judge, samples: dict[str, np.ndarray], train_images: np.ndarray, certificates: dict
) -> dict:
    """Scores, floor and traps, pictures, result.json; returns its content."""
    with run.timed("evaluate"):
        rows = {nfe: judge(points) for nfe, points in samples.items()}
        floor, traps = judge.floor(), {name: judge(z) for name, z in judge.traps().items()}
    with run.timed("pictures"):
        draw_digits(run, samples, train_images, rows, judge)
    result = run.finish(
        metric="pixel W2 [length], squared Frechet distance of classifier features, "
        "total variation of predicted classes to uniform, distance to the nearest training image",
        **{name: {nfe: row[name] for nfe, row in rows.items()} for name in floor},
        floor=floor,
        traps=traps,
        class_shares={nfe: judge.shares(points).tolist() for nfe, points in samples.items()},
        classifier_accuracy=judge.accuracy,
        pool=certificates,
    )
    for label, row in {**rows, "real": floor, **traps}.items():
        print(f"{label:>8}  " + "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    print(f"seconds {result['times']}; pictures and result.json in {run.out}")
    return result


def draw_digits(run, samples, train_images, rows, judge):
    """samples.png, neighbours.png, classes.png and loss.png in the run's folder."""
    pictures = {
        f"NFE {nfe}, W2 {rows[nfe]['w2']:.2f}": as_images(points[:40])
        for nfe, points in samples.items()
    }
    plotting.save(plotting.image_grid(pictures, columns=20), run.out / "samples.png")
    last = list(samples)[-1]
    shown = samples[last][:40]
    nearest = train_images[metrics.nearest(shown, train_images)[1]]
    pairs = {f"samples, NFE {last}": as_images(shown), "nearest real": as_images(nearest)}
    plotting.save(plotting.image_grid(pairs, beside=2), run.out / "neighbours.png")
    shares = {f"NFE {last}": judge.shares(samples[last]), "test images": judge.shares(judge.test)}
    plotting.save(plotting.class_histogram(shares, DIGITS), run.out / "classes.png")
    steps, losses = run.logged("loss")
    curve = plotting.loss_curve(steps, losses, run.config["steps_per_call"])
    plotting.save(curve, run.out / "loss.png")
