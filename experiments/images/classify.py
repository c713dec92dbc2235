"""Training of the classifier that judges images."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.run import Run
from experiments.harness.settings import check_batch
from experiments.harness.training import adam, decaying, fit
from experiments.images import judge
from sinkflow import train
from sinkflow.data import images
from sinkflow.nets import classifier


def learn_classes(
    run: Run,
    rows: images.Images,
    *,
    key: jax.Array,
    network: str,
    shift: int,
    batch_size: int,
    train_steps: int,
    learning_rate: float,
    steps_per_call: int,
    checkpoint_every: int,
) -> Any:
    """The classifier's parameters; the training resumes where an earlier start stopped.

    Args:
      run: owns the folder, the log and the clock.
      rows: the images to learn from.
      key: PRNG key.
      network: one of :data:`experiments.images.judge.NETWORKS`.
      shift: images are moved by up to this along both axes [pixels].
      batch_size: images of each optimiser step, over all devices.
      train_steps: optimiser steps.
      learning_rate: its peak.
      steps_per_call: optimiser steps of one dispatched call.
      checkpoint_every: optimiser steps between checkpoints.
    """
    key_init, key_train = jax.random.split(key)
    model = judge.NETWORKS[network]
    with run.timed("train"):
        rate = decaying(learning_rate, train_steps)
        optimizer = adam(rate)
        params = model.init(key_init, jnp.zeros((1, *classifier.SHAPE)))
        # No moving average: the rate decays to zero.
        step = train.make_step(model.apply, optimizer, ema_decay=0.0, loss_fn=cross_entropy)
        check_batch(batch_size)
        draw = functools.partial(sample, batch_size=batch_size, shift=shift)
        state = fit(
            run,
            train.create(params, optimizer),
            train.drawing_step(step, draw),
            lambda part: rows,
            key=key_train,
            rate=rate,
            batch_size=batch_size,
            num_steps=train_steps,
            steps_per_call=steps_per_call,
            checkpoint_every=checkpoint_every,
        )
    return state.params


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


def accuracy(params, test: images.Images, network: str) -> float:
    """Share of images whose class the classifier names."""
    return float(np.mean(judge.look(params, test.pixels, network)[1] == test.labels))
