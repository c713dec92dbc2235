"""Pairs of a source and a target point: couplings that make them, interpolants between them.

Flow matching draws its pairs from a coupling of two clouds. Independent pairs are the clouds as
they were drawn; exact pairs are optimal in the sum of squared distances; entropic ones are drawn
from a Sinkhorn plan. Couplings take many clouds at once, [clouds, n, d].

Points of interpolants are vectors [n, d] or images [n, h, w, c], with one time for each. Both
results are computed and given in float32 at least: half precision would round the time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.ot.barycentric import draw_partners
from sinkflow.ot.limits import Limits, Storage
from sinkflow.ot.solver import sinkhorn
from sinkflow.types import Array, Bool, Float, Int, PRNGKey, ScalarLike, check_shape, widened

__all__ = ["entropic", "exact", "straight", "trigonometric"]

COSTS = 2**24  # alive at a time where plans are drawn from


def exact(
    x: Float[Array, "*clouds n d"], y: Float[Array, "*clouds n d"]
) -> Float[Array, "*clouds n d"]:
    """y reordered within each cloud, so that the pairs (x_i, y_i) are the optimal ones.

    On the host, one thread per core, see :func:`sinkflow.ot.exact.assignment`.

    Args:
      x: source clouds [length].
      y: target clouds, as many points each.

    Raises:
      ValueError: clouds of different shapes or with points that are not finite.
      RuntimeError: a network simplex did not finish.

    Source:
      Minibatch couplings: Tong et al. 2024, arXiv:2302.00482; Pooladian et al. 2023,
      arXiv:2304.14772.

    Example:
      >>> x = jnp.array([[[0.0], [1.0]]])
      >>> exact(x, jnp.array([[[1.5], [0.5]]])).ravel().tolist()
      [0.5, 1.5]
    """
    from sinkflow.ot.exact import assignment_many  # POT takes seconds to load

    check_shape("y", y, jnp.shape(x), "x")
    flat_x, flat_y = (np.asarray(cloud).reshape(-1, *cloud.shape[-2:]) for cloud in (x, y))
    order = assignment_many(list(zip(flat_x, flat_y, strict=True)))
    partners = [cloud[indices] for cloud, indices in zip(flat_y, order, strict=True)]
    return jnp.asarray(np.stack(partners)).reshape(y.shape)


def entropic(
    key: PRNGKey,
    x: Float[Array, "clouds n d"],
    y: Float[Array, "clouds m d"],
    epsilon: ScalarLike,
    *,
    limits: Limits = Limits(),
) -> tuple[Float[Array, "clouds n d"], Bool[Array, "clouds"]]:
    """For every x_i one target, drawn from its row of its cloud's Sinkhorn plan.

    Args:
      key: PRNG key.
      x: source clouds [length].
      y: target clouds [length].
      epsilon: entropic regularisation [length^2].
      limits: when each solve stops and what it stores, see :class:`sinkflow.Limits`.

    Returns:
      The partners, and which clouds' solves converged: look at it, nothing is raised on device.

    Raises:
      ValueError: as :func:`sinkflow.sinkhorn`.

    Source:
      Tong et al. 2024, arXiv:2302.00482, sec. 3.3.
    """
    index, converged = _draw(key, x, y, epsilon, limits[0], limits[1], limits[2])
    return jnp.take_along_axis(y, index[..., None], axis=1), converged


@functools.partial(jax.jit, static_argnames="storage")
def _draw(
    key: PRNGKey,
    x: Float[Array, "clouds n d"],
    y: Float[Array, "clouds m d"],
    epsilon: ScalarLike,
    threshold: ScalarLike,
    max_iterations: ScalarLike,
    storage: Storage,
) -> tuple[Int[Array, "clouds n"], Bool[Array, "clouds"]]:
    limits = Limits(threshold, max_iterations, storage)

    def one(cloud: tuple[PRNGKey, Array, Array]) -> tuple[Array, Array]:
        key, x, y = cloud
        out = sinkhorn(x, y, epsilon, limits=limits)
        return draw_partners(key, x, y, out.g, epsilon, storage=storage), out.converged

    together = max(1, COSTS // (x.shape[1] * y.shape[1]))
    return jax.lax.map(one, (jax.random.split(key, x.shape[0]), x, y), batch_size=together)


def straight(
    x0: Float[Array, "n *dims"], x1: Float[Array, "n *dims"], t: Float[Array, "n"]
) -> tuple[Float[Array, "n *dims"], Float[Array, "n *dims"]]:
    """x_t = (1 - t) x0 + t x1 and its velocity x1 - x0 [length per unit t].

    Raises:
      ValueError: at trace time, if ``x1`` has another shape than ``x0`` or ``t`` is not [n].

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """
    x0, x1, t = _wide(x0, x1, t)
    return (1 - t) * x0 + t * x1, x1 - x0


def trigonometric(
    x0: Float[Array, "n *dims"], x1: Float[Array, "n *dims"], t: Float[Array, "n"]
) -> tuple[Float[Array, "n *dims"], Float[Array, "n *dims"]]:
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) x1 and its velocity.

    Raises:
      ValueError: as :func:`straight`.

    Source: Albergo and Vanden-Eijnden 2023, arXiv:2209.15571, eq. for the trigonometric
    stochastic interpolant.
    """
    x0, x1, t = _wide(x0, x1, t)
    angle = 0.5 * jnp.pi * t
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x0 + sin * x1, 0.5 * jnp.pi * (cos * x1 - sin * x0)


def _wide(x0: Array, x1: Array, t: Array) -> tuple[Array, Array, Array]:
    """The pair in full precision and its times along the batch axis, shapes checked."""
    check_shape("x1", x1, jnp.shape(x0), "x0")
    check_shape("t", t, jnp.shape(x0)[:1], "one time for each pair of x0 and x1")
    dtype = widened(jnp.result_type(x0))
    x0, x1, t = (jnp.asarray(leaf).astype(dtype) for leaf in (x0, x1, t))
    return x0, x1, t.reshape(-1, *[1] * (x0.ndim - 1))
