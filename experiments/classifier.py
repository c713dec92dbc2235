"""The classifier whose features judge generated images of a data set.

Command:  python -m experiments.classifier --dataset mnist
          python -m experiments.classifier --dataset fashion
Runtime:  less than ten minutes on two CPU cores; --smoke ends in half a minute.
Expected: test accuracy of 0.994 (mnist) or 0.92 (fashion); mnist.npz, the weights in float16, and
          mnist.json, their record, in the run's folder. --ship puts them where
          experiments/judge.py finds them: tables made before can then not be compared.
Source:   LeCun et al. 1998, "Gradient-based learning applied to document recognition", the kind
          of network.
"""

import dataclasses
import functools
import pathlib
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, judge
from sinkflow import classifier, images, train


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the training."""

    dataset: Literal["mnist", "fashion"] = "mnist"
    """Data set to classify."""
    data_dir: str = ""
    """Folder with its files; without it they are downloaded."""
    shift: int = 2
    """Training images are moved by up to this along both axes [pixels]."""
    batch_size: int = 128
    """Images of each optimiser step, over all devices."""
    train_steps: int = 6_000
    """Optimiser steps."""
    learning_rate: float = 2e-3
    """Peak of Adam's learning rate: linear warm-up over 5% of the steps, then cosine decay."""
    steps_per_call: int = 100
    """Optimiser steps of one dispatched call."""
    checkpoint_every: int = 1_000
    """Optimiser steps between checkpoints."""
    seed: int = 0
    """Everything random follows from it."""
    ship: bool = False
    """Put the weights and their record into experiments/classifiers too."""
    out: str = ""
    """Output folder; by default one under runs/, named after the data set."""
    smoke: bool = False
    """Shrink the run to seconds, on enlarged 8x8 digits unless there is data_dir."""

    SMOKE: ClassVar[dict] = {"train_steps": 200, "steps_per_call": 50, "checkpoint_every": 100}
    SELECTION: ClassVar[tuple[str, ...]] = ("data_dir", "ship")

    def folder(self) -> pathlib.Path:
        """``out``, or runs/classifier-DATASET."""
        name = f"runs/classifier-{self.dataset}{'-smoke' if self.smoke else ''}"
        return pathlib.Path(self.out or name)

    def command(self) -> str:
        """What a reader types for the same run; where data and results lie is the reader's."""
        usual = Config(**self.SMOKE) if self.smoke else Config()
        words = ["python -m experiments.classifier", f"--dataset {self.dataset}"]
        for name, value in dataclasses.asdict(self).items():
            said = name in ("dataset", "data_dir", "out") or value == getattr(usual, name)
            if not said:
                flag = f"--{name.replace('_', '-')}"
                words.append(flag if value is True else f"{flag} {value}")
        return " ".join(words)


def main(config: Config) -> dict:
    """Trains, measures the rounded weights, writes them; returns result.json's content."""
    if config.ship and config.smoke:
        raise ValueError("ship is set in a smoke run, whose weights mean nothing; leave one out")
    if config.shift < 0:
        raise ValueError(f"shift is {config.shift}; it must be at least 0")
    share = common.check_batch(config.batch_size)
    training, test = (
        judge.load(config.dataset, config.data_dir, split, smoke=config.smoke)
        for split in ("train", "test")
    )
    run = common.Run(config)
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    with run.timed("train"):
        warmup, steps = config.train_steps // 20, config.train_steps
        rate = optax.warmup_cosine_decay_schedule(0, config.learning_rate, warmup, steps)
        optimizer = optax.adam(rate)
        params = judge.MODEL.init(key_init, jnp.zeros((1, *classifier.SHAPE)))
        # No moving average: the rate decays to zero.
        step = train.make_step(judge.MODEL.apply, optimizer, ema_decay=0.0, loss_fn=cross_entropy)
        draw = functools.partial(sample, batch_size=share, shift=config.shift)
        state = common.fit(
            run,
            train.create(params, optimizer),
            train.drawing_step(step, draw),
            lambda part: training,
            key=key_train,
            num_steps=config.train_steps,
            steps_per_call=config.steps_per_call,
            checkpoint_every=config.checkpoint_every,
        )
    with run.timed("evaluate"):
        score = accuracy(judge.half(state.params), test)
    record = {
        "command": config.command(),
        "test_accuracy": score,
        "num_test": len(test.labels),
        "settings": run.settings,
        **run.circumstances(),
    }
    folders = [run.out, *([judge.CLASSIFIERS] if config.ship else [])]
    for folder in folders:
        judge.write_classifier(folder, config.dataset, state.params, record)
    result = run.finish(test_accuracy=score)
    print(f"test accuracy {score:.4f}; seconds {result['times']}")
    print(f"{config.dataset}.npz and its record in {' and '.join(map(str, folders))}")
    return result


def cross_entropy(apply_fn, params, rows: images.Images):
    """Mean over images of minus the log-probability of the label [nat]."""
    logits = apply_fn(params, images.scale(rows.pixels))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, rows.labels))


def sample(data: images.Images, key, batch_size: int, shift: int) -> images.Images:
    """A batch of shifted images, drawn with replacement."""
    key_rows, key_shift = jax.random.split(key)
    rows = jax.random.randint(key_rows, (batch_size,), 0, len(data.labels))
    return images.Images(shifted(key_shift, data.pixels[rows], shift), data.labels[rows])


def shifted(key, pixels, most: int):
    """Each image moved by up to ``most`` pixels along both axes; black comes in from the edge."""
    padded = jnp.pad(pixels, [(0, 0), (most, most), (most, most), (0, 0)])
    corners = jax.random.randint(key, (len(pixels), 2), 0, 2 * most + 1)
    cut = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), pixels.shape[1:])
    return jax.vmap(cut)(padded, corners)


def accuracy(params, test: images.Images) -> float:
    """Share of images whose class the classifier names."""
    return float(np.mean(judge.look(params, test.pixels)[1] == test.labels))


if __name__ == "__main__":
    common.run_driver(main, Config, __doc__)
