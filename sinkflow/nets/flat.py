"""Networks whose parameters are one vector, and networks of images that take and give vectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sinkflow.types import Array

__all__ = ["Network", "flattened", "on_vectors"]


class Network(NamedTuple):
    """``init(key)`` gives parameters [p]; ``apply_fn(params, ...)`` applies them."""

    init: Callable[[Array], Array]
    apply_fn: Callable[..., Array]


def flattened(init_tree: Callable[[Array], Any], apply_tree: Callable[..., Array]) -> Network:
    """The same network with its parameters as one vector.

    Clipping, Adam and the moving average then take a few kernels instead of a few for each
    of hundreds of arrays.

    Args:
      init_tree: ``key -> params``, a tree of arrays.
      apply_tree: ``(params, ...) -> result``.
    """
    kept: list[Callable[[Array], Any]] = []
    # Traced: a network as large as a file says costs no memory before its parameters are there.
    jax.eval_shape(lambda key: kept.append(ravel_pytree(init_tree(key))[1]), jax.random.key(0))
    unravel = kept[0]

    def apply_fn(params: Array, *inputs: Any, **options: Any) -> Array:
        return apply_tree(unravel(params), *inputs, **options)

    return Network(lambda key: ravel_pytree(init_tree(key))[0], apply_fn)


def on_vectors(model: nn.Module, shape: tuple[int, int, int], *inputs: Any) -> Network:
    """A network of images [n, h, w, c] for images, and parameters, as vectors.

    Args:
      model: Linen module that takes images first.
      shape: height, width and channels of an image.
      inputs: what the model takes besides one image, to initialise it with.

    Returns:
      The network: ``apply_fn(params [p], x [n, d], ...)`` gives vectors [n, d], or what the model
      gives if that has one axis.
    """

    def init_tree(key: Array) -> Any:
        return model.init(key, jnp.zeros((1, *shape)), *inputs)

    def apply_tree(params: Any, x: Array, *rest: Any, **options: Any) -> Array:
        out: Any = model.apply(params, x.reshape(-1, *shape), *rest, **options)
        return out.reshape(x.shape) if out.ndim > 1 else out

    return flattened(init_tree, apply_tree)
