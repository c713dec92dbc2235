"""flat: the same network, with vectors for its parameters and images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sinkflow.nets.flat import flattened, on_vectors
from sinkflow.nets.mlp import VelocityMLP


class Brightness(nn.Module):
    """Images brightened by what t says, and one number each on demand."""

    @nn.compact
    def __call__(self, x, t, *, mean=False):
        h = nn.Conv(1, (3, 3))(x) + t[:, None, None, None]
        return h.mean(axis=(1, 2, 3)) if mean else h


def test_flattened_parameters_are_the_tree_end_to_end(key):
    model, x, t = VelocityMLP((4,)), jnp.ones((3, 2)), jnp.full(3, 0.5)
    network = flattened(lambda key: model.init(key, x, t), model.apply)
    params = network.init(key)
    tree = model.init(key, x, t)
    np.testing.assert_array_equal(params, ravel_pytree(tree)[0])
    np.testing.assert_array_equal(network.apply_fn(params, x, t), model.apply(tree, x, t))


def test_networks_of_images_take_and_give_vectors(key):
    model, x, t = Brightness(), jax.random.normal(key, (3, 16)), jnp.arange(3.0)
    network = on_vectors(model, (4, 4, 1), jnp.zeros(1))
    params = network.init(key)
    tree = model.init(key, jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))
    images = x.reshape(3, 4, 4, 1)
    expected = model.apply(tree, images, t)
    np.testing.assert_array_equal(network.apply_fn(params, x, t), expected.reshape(3, 16))
    means = network.apply_fn(params, x, t, mean=True)
    np.testing.assert_array_equal(means, model.apply(tree, images, t, mean=True))
