"""Batches of image models, and the loss of velocities with dropout."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sinkflow import flow_map, pool, train
from sinkflow.data import images
from sinkflow.pairs import straight


class Batch(NamedTuple):
    """Rows to match velocities on, and the key of the network's dropout."""

    rows: pool.Rows | flow_map.Rows
    key: jax.Array


def straight_rows(
    pixels, key, batch_size: int, start: float, mirror: bool, stop: float = 1.0
) -> Batch:
    """Points of straight paths from noise to images, uniform in time from ``start`` to ``stop``."""
    key_image, key_mirror, key_noise, key_t, key_dropout = jax.random.split(key, 5)
    index = jax.random.randint(key_image, (batch_size,), 0, pixels.shape[0])
    x1 = vectors(key_mirror, pixels[index], mirror)
    x0 = jax.random.normal(key_noise, x1.shape)
    t = jax.random.uniform(key_t, (batch_size,), minval=start, maxval=stop)
    x, velocity = straight(x0, x1, t)
    return Batch(pool.Rows(x, t, velocity), key_dropout)


def pool_rows(rows: pool.Pool, key, batch_size: int, power=1.0, start=0.0, stop=1.0) -> Batch:
    """Rows of a pool of flows or of pairs, see :func:`sinkflow.pool.sample`."""
    key_rows, key_dropout = jax.random.split(key)
    return Batch(pool.sample(rows, key_rows, batch_size, power, start, stop), key_dropout)


def map_rows(rows: pool.Pool, key, batch_size: int, power=1.0) -> Batch:
    """Pairs of states of a pool's flows, see :func:`sinkflow.flow_map.sample`."""
    key_rows, key_dropout = jax.random.split(key)
    return Batch(flow_map.sample(rows, key_rows, batch_size, power), key_dropout)


def vectors(key, pixels, mirror: bool):
    """Images of bytes as vectors [n, d] from -1 to 1, mirrored at random where that is asked."""
    x = images.scale(pixels)
    x = images.flip(key, x) if mirror else x
    return x.reshape(x.shape[0], -1)


def matching_loss(
    apply_fn,
    params,
    batch: Batch,
    impl: str = "rbg",
    loss_fn: Callable = train.velocity_matching_loss,
):
    """A matching loss a pixel, by default of velocities, with the network's dropout.

    ``impl`` is the generator of the masks: one of threefry costs a GPU more than they are worth.
    """
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).shape
    bits = jax.random.bits(batch.key, words, jnp.uint32)
    rngs = {"dropout": jax.random.wrap_key_data(bits, impl=impl)}
    noisy = functools.partial(apply_fn, train=True, rngs=rngs)
    return loss_fn(noisy, params, batch.rows) / batch.rows.x.shape[1]


def map_loss(apply_fn, params, batch: Batch):
    """:func:`sinkflow.flow_map.matching_loss` a pixel, with the network's dropout."""
    return matching_loss(apply_fn, params, batch, loss_fn=flow_map.matching_loss)


def prediction_loss(apply_fn, params, batch: Batch):
    """:func:`sinkflow.train.time_prediction_loss`, without dropout."""
    return train.time_prediction_loss(apply_fn, params, batch.rows)
