"""Fixed-step integration of a velocity field, with exact counts of its evaluations (NFE)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.types import ApplyFn, Array, Float, Int, ScalarLike, check_shape, widened

__all__ = [
    "ab2",
    "advance",
    "euler",
    "heun",
    "integrate",
    "midpoint",
    "num_steps",
    "rk4",
    "trajectory",
]

Velocity = Callable[[Array, Array], Array]  # of x and t
Memory = tuple[Array, ...]  # of a multistep method: the last velocity and step; else empty
Carry = tuple[Array, Memory]


def euler(field: Velocity, x: Array, t: Array, dt: Array) -> Array:
    """First order: one evaluation."""
    return x + _scale(dt, field(x, t))


def midpoint(field: Velocity, x: Array, t: Array, dt: Array) -> Array:
    """Second order: two evaluations."""
    return x + _scale(dt, field(x + _scale(dt / 2, field(x, t)), t + dt / 2))


def heun(field: Velocity, x: Array, t: Array, dt: Array) -> Array:
    """Second order (explicit trapezoid): two evaluations."""
    first = field(x, t)
    return x + _scale(dt / 2, first + field(x + _scale(dt, first), t + dt))


def rk4(field: Velocity, x: Array, t: Array, dt: Array) -> Array:
    """Fourth order (classical Runge-Kutta): four evaluations."""
    k1 = field(x, t)
    k2 = field(x + _scale(dt / 2, k1), t + dt / 2)
    k3 = field(x + _scale(dt / 2, k2), t + dt / 2)
    k4 = field(x + _scale(dt, k3), t + dt)
    return x + _scale(dt / 6, k1 + 2 * k2 + 2 * k3 + k4)


def ab2(field: Velocity, x: Array, t: Array, dt: Array, last: Memory) -> tuple[Array, Memory]:
    """Second order (Adams-Bashforth): one evaluation, and the ``last`` one with its step.

    The first step, ``last`` with a step of 0, is Euler's. Steps may be unequal.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section III.5.
    """
    velocity = field(x, t)
    before, length = last
    half_ratio = jnp.where(length == 0, 0, dt / (2 * jnp.where(length == 0, 1, length)))
    return x + _scale(dt, velocity + _scale(half_ratio, velocity - before)), (velocity, dt)


ONE_STEP = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}
STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1}


def num_steps(nfe: int, method: str = "euler") -> int:
    """Steps of ``method`` that spend exactly ``nfe`` evaluations of the field.

    Raises:
      ValueError: unknown method, nfe < 1, or nfe not a multiple of the method's stages.
    """
    count = _stages(method)
    if nfe < 1 or nfe % count or nfe != int(nfe):
        raise ValueError(
            f"nfe is {nfe}; {method} spends {count} evaluations a step, "
            "so nfe must be a positive multiple of that"
        )
    return int(nfe) // count


def _stages(method: str) -> int:
    if method not in STAGES:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(STAGES)}")
    return STAGES[method]


def integrate(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[Array, "n d"],
    *,
    t0: ScalarLike = 0.0,
    t1: ScalarLike = 1.0,
    nfe: int | Array,
    method: str = "euler",
    power: ScalarLike = 1.0,
) -> Float[Array, "n d"]:
    """Particles at ``t1`` after following the field from ``t0``, in equal steps by default.

    Args:
      apply_fn: the field, called as ``apply_fn(params, x, t)`` with t [n]. Static: hand
        over one function, not a fresh lambda a call.
      params: its parameters.
      x: particles at ``t0`` [length].
      t0: start [flow time]; a number, or one for each particle.
      t1: end, likewise; smaller than ``t0`` to go backwards.
      nfe: evaluations of the field in all. An int is static. An integer array is not: one
        program serves all counts, but has no reverse-mode derivative, and nothing checks them.
      method: one of "euler", "midpoint", "heun", "rk4", "ab2"; the last one is of second order
        for one evaluation a step.
      power: step k of K starts at (k/K)^power of the way. Above 1 the first steps are the
        short ones, which pays where paths part early, between the modes of a target.

    Returns:
      Particles [n, d] in the dtype of ``x``. All in between is in float32 at least: the field is
      called with such x and t, and its velocity is taken in the same.

    Raises:
      ValueError: as :func:`num_steps`; a field of another shape than x, t0 or t1 that are neither
        one number nor one for each particle, nfe in an array of anything but one integer; outside
        a trace also power <= 0.
    """
    return advance(apply_fn, params, x, None, t0=t0, t1=t1, nfe=nfe, method=method, power=power)[0]


def advance(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[Array, "n d"],
    last: Memory | None,
    *,
    t0: ScalarLike = 0.0,
    t1: ScalarLike = 1.0,
    nfe: int | Array,
    method: str = "euler",
    power: ScalarLike = 1.0,
) -> tuple[Float[Array, "n d"], Memory]:
    """:func:`integrate` in parts: also takes and returns what a multistep method remembers.

    Args:
      last: None at the start, then what the part before returned. Its field may have been
        another one, if both are velocities in the same units of time.

    Returns:
      Particles at ``t1`` [n, d], and ``last`` for the next part.

    Raises:
      ValueError: as :func:`integrate`.
    """
    given = (apply_fn, params, x, last, t0, t1, power)
    _check_power(power)
    if isinstance(nfe, jax.Array):
        if nfe.shape or not jnp.issubdtype(nfe.dtype, jnp.integer):
            raise ValueError(f"nfe has shape {nfe.shape} and dtype {nfe.dtype}; it is one integer")
        return _count(*given, nfe // _stages(method), method)
    return _scan(*given, num_steps(nfe, method), method)[:2]


def trajectory(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[Array, "n d"],
    *,
    t0: ScalarLike = 0.0,
    t1: ScalarLike = 1.0,
    nfe: int,
    method: str = "euler",
    power: ScalarLike = 1.0,
) -> Float[Array, "steps n d"]:
    """All states of :func:`integrate`, the first one included."""
    steps = num_steps(nfe, method)
    _check_power(power)
    states = _scan(apply_fn, params, x, None, t0, t1, power, steps, method, keep=True)[2]
    return jnp.concatenate([x[None].astype(states.dtype), states])


@functools.partial(jax.jit, static_argnums=(0, 7, 8), static_argnames="keep")
def _scan(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[Array, "n d"],
    last: Memory | None,
    t0: Array,
    t1: Array,
    power: Array,
    steps: int,
    method: str,
    keep: bool = False,
) -> tuple[Float[Array, "n d"], Memory, Array | None]:
    given, x = _result_dtype(x), _wide(x)
    step, carry = _stepper(apply_fn, params, x, last, t0, t1, method)
    places = (jnp.arange(steps + 1, dtype=x.dtype) / steps) ** jnp.asarray(power, x.dtype)

    def body(carry: Carry, ends: tuple[Array, Array]) -> tuple[Carry, Array | None]:
        carry = step(carry, *ends)
        return carry, (carry[0].astype(given) if keep else None)

    (x, memory), states = jax.lax.scan(body, carry, (places[:-1], places[1:]))
    return x.astype(given), memory, states


@functools.partial(jax.jit, static_argnums=(0, 8))
def _count(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[Array, "n d"],
    last: Memory | None,
    t0: Array,
    t1: Array,
    power: Array,
    steps: Int[Array, ""],
    method: str,
) -> tuple[Float[Array, "n d"], Memory]:
    given, x = _result_dtype(x), _wide(x)
    step, carry = _stepper(apply_fn, params, x, last, t0, t1, method)
    count, power = (jnp.asarray(value).astype(x.dtype) for value in (steps, power))

    def body(k: Array, carry: Carry) -> Carry:
        here, there = ((jnp.asarray(place, x.dtype) / count) ** power for place in (k, k + 1))
        return step(carry, here, there)

    x, last = jax.lax.fori_loop(0, steps, body, carry)
    return x.astype(given), last


def _stepper(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[Array, "n d"],
    last: Memory | None,
    t0: Array,
    t1: Array,
    method: str,
) -> tuple[Callable[[Carry, Array, Array], Carry], Carry]:
    """A step ``(carry, here, there)`` between two shares of the way, and the first carry."""
    for name, t in (("t0", t0), ("t1", t1)):
        if jnp.ndim(t):
            check_shape(name, t, x.shape[:1], "one time for each of x, or one number for all")
    t0, t1 = (jnp.broadcast_to(jnp.asarray(t).astype(x.dtype), x.shape[:1]) for t in (t0, t1))
    if last is None:
        last = (jnp.zeros_like(x), jnp.zeros_like(t0)) if method == "ab2" else ()

    def field(x: Array, t: Array) -> Array:
        velocity = apply_fn(params, x, t)
        check_shape("the field", velocity, x.shape, "x has")
        return velocity.astype(x.dtype)

    def step(carry: Carry, here: Array, there: Array) -> Carry:
        start, end = (t0 + place * (t1 - t0) for place in (here, there))
        x, last = carry
        given = (field, x, start, end - start)
        return ab2(*given, last) if method == "ab2" else (ONE_STEP[method](*given), last)

    return step, (x, last)


def _wide(x: Array) -> Array:
    """Particles in the precision that they are moved in."""
    return x.astype(widened(x.dtype))


def _result_dtype(x: Array) -> np.dtype:
    """The dtype of the moved particles: that of ``x``, or of what integers become."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else widened(x.dtype)


def _check_power(power: ScalarLike) -> None:
    if not isinstance(power, jax.core.Tracer) and not power > 0:
        raise ValueError(f"power is {power}; it must be positive")


def _scale(dt: Array, velocity: Array) -> Array:
    return dt.reshape(-1, *[1] * (velocity.ndim - 1)) * velocity
