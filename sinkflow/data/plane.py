"""Samplers of measures in the plane, and the small real data set that ships with scikit-learn."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.types import Array, Float, Int, PRNGKey

__all__ = [
    "SAMPLERS",
    "STRATIFIED",
    "TASKS",
    "Task",
    "checkerboard",
    "digits",
    "eight_gaussians",
    "gaussian",
    "moons",
    "scurve",
    "task",
]


class Task(NamedTuple):
    """A source and a target, by their names in :data:`SAMPLERS` and :data:`STRATIFIED`."""

    source: str
    target: str


@functools.partial(jax.jit, static_argnames=("n", "stratified"))
def gaussian(key: PRNGKey, n: int, stratified: bool = False) -> Float[Array, "n 2"]:
    """Standard normal in the plane; stratified: a randomly shifted R2 lattice, mapped to it.

    Source: Roberts 2018, "The unreasonable effectiveness of quasirandom sequences" (R2).
    """
    if not stratified:
        return jax.random.normal(key, (n, 2))
    plastic = 1.324717957244746  # real root of p^3 = p + 1
    # Fixed point, so that the overflow of uint32 is the modulus and no digits are lost at large n.
    steps = [round(2**32 / plastic), round(2**32 / plastic**2)]
    lattice = jnp.arange(n, dtype=jnp.uint32)[:, None] * jnp.array([steps], jnp.uint32)
    shifted = lattice + jax.random.bits(key, (1, 2), jnp.uint32)
    # Odd multiples of 2^-24: float32 holds each exactly, none is 0 or 1 and all lie symmetrically.
    odd = (shifted >> 9 << 1) + 1
    return jax.scipy.special.ndtri(odd.astype(float) * 2.0**-24)


@functools.partial(jax.jit, static_argnames=("n", "stratified"))
def eight_gaussians(key: PRNGKey, n: int, stratified: bool = False) -> Float[Array, "n 2"]:
    """Eight Gaussians of covariance sqrt(0.1) I on a circle of radius 5; equal mode counts.

    Source: the constants of torchcfm's ``eight_normal_sample``.
    """
    key_mode, key_noise = jax.random.split(key)
    angle = _modes(key_mode, n, 8, stratified).astype(float) * (jnp.pi / 4)
    centres = 5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return centres + 0.1**0.25 * jax.random.normal(key_noise, (n, 2))


@functools.partial(jax.jit, static_argnames=("n", "stratified"))
def moons(key: PRNGKey, n: int, stratified: bool = False) -> Float[Array, "n 2"]:
    """Two interleaved half circles with noise 0.2, times 3 minus 1.

    Source: the constants of torchcfm's ``sample_moons``.
    """
    key_mode, key_angle, key_noise = jax.random.split(key, 3)
    angle = jnp.pi * _uniform(key_angle, n, stratified)
    upper = _modes(key_mode, n, 2, stratified)[:, None] == 0
    first = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    second = jnp.stack([1 - jnp.cos(angle), 0.5 - jnp.sin(angle)], axis=1)
    points = jnp.where(upper, first, second) + 0.2 * jax.random.normal(key_noise, (n, 2))
    return 3 * points - 1


@functools.partial(jax.jit, static_argnames=("n", "stratified"))
def scurve(key: PRNGKey, n: int, stratified: bool = False) -> Float[Array, "n 2"]:
    """The S-curve seen from the side, noise 0.05, times 1.5.

    Source: columns 0 and 2 of scikit-learn's ``make_s_curve``.
    """
    key_angle, key_noise = jax.random.split(key)
    angle = 3 * jnp.pi * (_uniform(key_angle, n, stratified) - 0.5)
    points = jnp.stack([jnp.sin(angle), jnp.sign(angle) * (jnp.cos(angle) - 1)], axis=1)
    return 1.5 * (points + 0.05 * jax.random.normal(key_noise, (n, 2)))


@functools.partial(jax.jit, static_argnames=("n", "stratified"))
def checkerboard(key: PRNGKey, n: int, stratified: bool = False) -> Float[Array, "n 2"]:
    """Uniform on eight of the sixteen squares of side 2 in [-4, 4]^2.

    Source: the constants of FFJORD's toy data.
    """
    key_mode, key_cell = jax.random.split(key)
    cell = _modes(key_mode, n, 8, stratified)
    column, lower = cell % 4, cell // 4
    corner = jnp.stack([column - 2, column % 2 - 2 * lower], axis=1)
    return 2 * (corner.astype(float) + jax.random.uniform(key_cell, (n, 2)))


def _modes(key: PRNGKey, n: int, count: int, stratified: bool) -> Int[Array, "n"]:
    """Mode index of every point: drawn, or dealt out in turn and shuffled."""
    if stratified:
        return jax.random.permutation(key, jnp.arange(n) % count)
    return jax.random.randint(key, (n,), 0, count)


def _uniform(key: PRNGKey, n: int, stratified: bool) -> Float[Array, "n"]:
    """Uniform numbers in [0, 1]: independent, or one in each of n equal cells."""
    uniform = jax.random.uniform(key, (n,))
    return (jnp.arange(n, dtype=uniform.dtype) + uniform) / n if stratified else uniform


SAMPLERS: dict[str, Callable[..., Array]] = {
    "gaussian": gaussian,
    "8gaussians": eight_gaussians,
    "moons": moons,
    "scurve": scurve,
    "checkerboard": checkerboard,
}
"""Samplers ``(key, n) -> [n, 2]`` by name."""
STRATIFIED: dict[str, Callable[..., Array]] = {
    name: functools.partial(sampler, stratified=True) for name, sampler in SAMPLERS.items()
}
"""The same with points spread evenly. Modes are dealt out in turn, angles are one to a cell."""
TASKS = {
    "8gaussians": Task("gaussian", "8gaussians"),
    "8gaussians-moons": Task("8gaussians", "moons"),
    "moons": Task("gaussian", "moons"),
    "scurve": Task("gaussian", "scurve"),
    "checkerboard": Task("gaussian", "checkerboard"),
}
"""Sources and targets of the paper's five problems in the plane, by name."""


def task(name: str) -> Task:
    """The task of that name, or a ValueError that lists the names."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten 8x8 digits that scikit-learn ships.

    Returns:
      Images [1797, 64] float32 scaled to [-1, 1] and labels [1797] int.

    Source: the test part of UCI "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images / 8 - 1).astype(np.float32), labels.astype(np.int32)
