"""Classifiers of grey 28x28 images, whose features stand in for Inception's in distances."""

import flax.linen as nn
import jax.numpy as jnp

from sinkflow.nets._layers import shifted_copies
from sinkflow.types import Array, Float

__all__ = ["SHAPE", "Classifier", "MixerClassifier"]

SHAPE = (28, 28, 1)
"""Height, width and channels of the images that they take."""
PATCH = 4  # height and width of a mixer's patches [pixels]


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
        _check_shape(x)
        first, second, third = self.convolutions
        h = nn.relu(first(_patches(x, 5, 2)))
        h = _halved(nn.relu(second(_patches(h, 3))))
        h = nn.relu(third(_patches(h, 3, 2)))
        return nn.relu(self.hidden(h.reshape(len(h), -1)))

    def logits(self, features: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """Scores of the classes, from :meth:`features`."""
        return self.head(features)


class MixerClassifier(nn.Module):
    """A mixer of patches: x [n, 28, 28, 1] in [-1, 1] to logits [n, num_classes].

    It has no convolution. Each layer mixes the 49 patches of 4x4 pixels, then the channels
    of each patch; the penultimate layer is a mean over patches. 48,300 parameters with ten classes.

    Attributes:
      num_classes: width of the answer.
      num_features: channels of a patch, and width of the penultimate layer.
      num_layers: how often patches and channels are mixed.

    Raises:
      ValueError: at trace time, if the images are not 28x28 and grey.

    Source: Tolstikhin et al. 2021, arXiv:2105.01601, section 2.
    """

    num_classes: int = 10
    num_features: int = 64
    num_layers: int = 2

    def setup(self) -> None:
        self.stem = nn.Dense(self.num_features)
        self.layers = [_Mixer(2 * self.num_features) for _ in range(self.num_layers)]
        self.norm = nn.LayerNorm()
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        return self.logits(self.features(x))

    def features(self, x: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        """Penultimate activations, of either sign."""
        _check_shape(x)
        n, rows, columns = len(x), SHAPE[0] // PATCH, SHAPE[1] // PATCH
        blocks = x.reshape(n, rows, PATCH, columns, PATCH).swapaxes(2, 3)
        h = self.stem(blocks.reshape(n, rows * columns, PATCH**2))
        for layer in self.layers:
            h = layer(h)
        return self.norm(h).mean(axis=1)

    def logits(self, features: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """Scores of the classes, from :meth:`features`."""
        return self.head(features)


class _Mixer(nn.Module):
    """Patches [n, patches, channels] mixed, then channels; each adds to what comes in.

    ``width`` is that of the hidden layer between channels; between patches it is half of it.
    """

    width: int

    @nn.compact
    def __call__(self, h: Float[Array, "n patches channels"]) -> Float[Array, "n patches channels"]:
        mixed = self.mlp("patches", self.width // 2, nn.LayerNorm()(h).swapaxes(1, 2))
        h = h + mixed.swapaxes(1, 2)
        return h + self.mlp("channels", self.width, nn.LayerNorm()(h))

    def mlp(self, name: str, width: int, h: Float[Array, "n i j"]) -> Float[Array, "n i j"]:
        """One hidden layer along the last axis."""
        hidden = nn.gelu(nn.Dense(width, name=f"{name}_hidden")(h))
        return nn.Dense(h.shape[-1], name=name)(hidden)


def _check_shape(x: Float[Array, "n h w c"]) -> None:
    if x.shape[1:] != SHAPE:
        raise ValueError(f"images of shape {x.shape[1:]}; the classifier is for {SHAPE}")


def _patches(x: Float[Array, "n h w c"], size: int, strides: int = 1) -> Float[Array, "n i j k"]:
    """Every ``size`` x ``size`` neighbourhood as a vector; zeros beyond the edges."""
    return jnp.concatenate(shifted_copies(x, size, strides), axis=-1)


def _halved(x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
    """Maxima of 2x2 blocks."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
