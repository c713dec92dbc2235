"""Interpolants between paired points, and the velocities flow matching regresses on.

Points are vectors [n, d] or images [n, h, w, c], with one time for each. Both results are computed
and given in float32 at least: half precision would round the time.
"""

import jax.numpy as jnp

from sinkflow.types import Array, Float, check_shape, widened


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


def _wide(x0, x1, t):
    """The pair in full precision and its times along the batch axis, shapes checked."""
    check_shape("x1", x1, jnp.shape(x0), "x0")
    check_shape("t", t, jnp.shape(x0)[:1], "one time for each pair of x0 and x1")
    dtype = widened(jnp.result_type(x0))
    x0, x1, t = (jnp.asarray(leaf).astype(dtype) for leaf in (x0, x1, t))
    return x0, x1, t.reshape(-1, *[1] * (x0.ndim - 1))
