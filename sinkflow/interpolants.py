"""Interpolants between paired points, and the velocities flow matching regresses on."""

import jax.numpy as jnp

from sinkflow.types import Array, Float


def straight(
    x0: Float[Array, "n d"], x1: Float[Array, "n d"], t: Float[Array, "n"]
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """x_t = (1 - t) x0 + t x1 and its velocity x1 - x0 [length per unit t].

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """
    t = t[:, None]
    return (1 - t) * x0 + t * x1, x1 - x0


def trigonometric(
    x0: Float[Array, "n d"], x1: Float[Array, "n d"], t: Float[Array, "n"]
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) x1 and its velocity.

    Source: Albergo and Vanden-Eijnden 2023, arXiv:2209.15571, eq. for the trigonometric
    stochastic interpolant.
    """
    angle = 0.5 * jnp.pi * t[:, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x0 + sin * x1, 0.5 * jnp.pi * (cos * x1 - sin * x0)
