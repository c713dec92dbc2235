"""Classifier of grey 28x28 images, whose features stand in for Inception's in distances."""

import flax.linen as nn
import jax.numpy as jnp

from sinkflow.nets._layers import shifted_copies
from sinkflow.types import Array, Float

__all__ = ["SHAPE", "Classifier"]

SHAPE = (28, 28, 1)
"""Height, width and channels of the images that it takes."""


class Classifier(nn.Module):
    """Small convolutional network: x [n, 28, 28, 1] in [-1, 1] to logits [n, num_classes].

    188,746 parameters with ten classes. A convolution is a product with the shifted copies
    of its input side by side: inside a scan, XLA's own convolution is twenty times slower on a CPU.

    Attributes:
      num_classes: width of the answer.
      num_features: width of the penultimate layer.

    Raises:
      ValueError: at trace time, if the images are not 28x28 and grey.
    """

    num_classes: int = 10
    num_features: int = 128

    def setup(self) -> None:
        self.convolutions = [nn.Dense(width) for width in (32, 64, 64)]
        self.hidden = nn.Dense(self.num_features)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        return self.logits(self.features(x))

    def features(self, x: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        """Penultimate activations, none below zero."""
        if x.shape[1:] != SHAPE:
            raise ValueError(f"images of shape {x.shape[1:]}; the classifier is for {SHAPE}")
        first, second, third = self.convolutions
        h = nn.relu(first(_patches(x, 5, 2)))
        h = _halved(nn.relu(second(_patches(h, 3))))
        h = nn.relu(third(_patches(h, 3, 2)))
        return nn.relu(self.hidden(h.reshape(len(h), -1)))

    def logits(self, features: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """Scores of the classes, from :meth:`features`."""
        return self.head(features)


def _patches(x: Float[Array, "n h w c"], size: int, strides: int = 1) -> Float[Array, "n i j k"]:
    """Every ``size`` x ``size`` neighbourhood as a vector; zeros beyond the edges."""
    return jnp.concatenate(shifted_copies(x, size, strides), axis=-1)


def _halved(x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
    """Maxima of 2x2 blocks."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
