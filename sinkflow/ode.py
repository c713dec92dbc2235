"""Fixed-step integration of a velocity field, with exact counts of its evaluations (NFE)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sinkflow.types import Array, Float, ScalarLike

ApplyFn = Callable[..., Array]  # (params, x [n, d], t [n]) -> velocity [n, d]


def euler(field, x, t, dt):
    """First order: one evaluation."""
    return x + _scale(dt, field(x, t))


def midpoint(field, x, t, dt):
    """Second order: two evaluations."""
    return x + _scale(dt, field(x + _scale(dt / 2, field(x, t)), t + dt / 2))


def heun(field, x, t, dt):
    """Second order (explicit trapezoid): two evaluations."""
    first = field(x, t)
    return x + _scale(dt / 2, first + field(x + _scale(dt, first), t + dt))


def rk4(field, x, t, dt):
    """Fourth order (classical Runge-Kutta): four evaluations."""
    k1 = field(x, t)
    k2 = field(x + _scale(dt / 2, k1), t + dt / 2)
    k3 = field(x + _scale(dt / 2, k2), t + dt / 2)
    k4 = field(x + _scale(dt, k3), t + dt)
    return x + _scale(dt / 6, k1 + 2 * k2 + 2 * k3 + k4)


def ab2(field, x, t, dt, last):
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
    if method not in STAGES:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(STAGES)}")
    if nfe < 1 or nfe % STAGES[method]:
        raise ValueError(
            f"nfe is {nfe}; {method} spends {STAGES[method]} evaluations a step, "
            "so nfe must be a positive multiple of that"
        )
    return nfe // STAGES[method]


def integrate(
    apply_fn: ApplyFn,
    params,
    x: Float[Array, "n d"],
    *,
    t0: ScalarLike = 0.0,
    t1: ScalarLike = 1.0,
    nfe: int,
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
      nfe: evaluations of the field in all. Static.
      method: one of "euler", "midpoint", "heun", "rk4", "ab2"; the last one is of second order
        for one evaluation a step.
      power: step k of K starts at (k/K)^power of the way. Above 1 the first steps are the
        short ones, which pays where paths part early, between the modes of a target.

    Raises:
      ValueError: as :func:`num_steps`; outside a trace also power <= 0.
    """
    return _path(apply_fn, params, x, t0, t1, nfe, method, power, keep=False)[0]


def trajectory(
    apply_fn: ApplyFn,
    params,
    x: Float[Array, "n d"],
    *,
    t0: ScalarLike = 0.0,
    t1: ScalarLike = 1.0,
    nfe: int,
    method: str = "euler",
    power: ScalarLike = 1.0,
) -> Float[Array, "steps n d"]:
    """All states of :func:`integrate`, the first one included."""
    states = _path(apply_fn, params, x, t0, t1, nfe, method, power, keep=True)[1]
    return jnp.concatenate([x[None], states])


def _path(apply_fn, params, x, t0, t1, nfe, method, power, keep):
    steps = num_steps(nfe, method)
    if not isinstance(power, jax.core.Tracer) and not power > 0:
        raise ValueError(f"power is {power}; it must be positive")
    return _integrate(apply_fn, params, x, t0, t1, power, steps, method, keep)


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8))
def _integrate(apply_fn, params, x, t0, t1, power, steps, method, keep):
    t0, t1 = (jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1]) for t in (t0, t1))
    places = (jnp.arange(steps + 1, dtype=x.dtype) / steps) ** power

    def step(carry, ends):
        here, there = (t0 + place * (t1 - t0) for place in ends)
        x, last = carry
        given = (functools.partial(apply_fn, params), x, here, there - here)
        carry = ab2(*given, last) if method == "ab2" else (ONE_STEP[method](*given), last)
        return carry, (carry[0] if keep else None)

    last = (jnp.zeros_like(x), jnp.zeros_like(t0)) if method == "ab2" else ()
    (x, _), states = jax.lax.scan(step, (x, last), (places[:-1], places[1:]))
    return x, states


def _scale(dt, velocity):
    return dt.reshape(-1, *[1] * (velocity.ndim - 1)) * velocity
