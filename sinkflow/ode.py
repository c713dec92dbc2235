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
    count = _stages(method)
    if nfe < 1 or nfe % count:
        raise ValueError(
            f"nfe is {nfe}; {method} spends {count} evaluations a step, "
            "so nfe must be a positive multiple of that"
        )
    return nfe // count


def _stages(method):
    if method not in STAGES:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(STAGES)}")
    return STAGES[method]


def integrate(
    apply_fn: ApplyFn,
    params,
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

    Raises:
      ValueError: as :func:`num_steps`; outside a trace also power <= 0.
    """
    return advance(apply_fn, params, x, None, t0=t0, t1=t1, nfe=nfe, method=method, power=power)[0]


def advance(
    apply_fn: ApplyFn,
    params,
    x: Float[Array, "n d"],
    last,
    *,
    t0: ScalarLike = 0.0,
    t1: ScalarLike = 1.0,
    nfe: int | Array,
    method: str = "euler",
    power: ScalarLike = 1.0,
):
    """:func:`integrate` in parts: also takes and returns what a multistep method remembers.

    Args:
      last: None at the start, then what the part before returned. Its field may have been
        another one, if both are velocities in the same units of time.

    Returns:
      Particles at ``t1`` [n, d], and ``last`` for the next part.
    """
    given = (apply_fn, params, x, last, t0, t1, power)
    _check_power(power)
    if isinstance(nfe, jax.Array):
        return _count(*given, nfe // _stages(method), method)
    return _scan(*given, num_steps(nfe, method), method)[:2]


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
    steps = num_steps(nfe, method)
    _check_power(power)
    states = _scan(apply_fn, params, x, None, t0, t1, power, steps, method, keep=True)[2]
    return jnp.concatenate([x[None], states])


@functools.partial(jax.jit, static_argnums=(0, 7, 8), static_argnames="keep")
def _scan(apply_fn, params, x, last, t0, t1, power, steps, method, keep=False):
    step, carry = _stepper(apply_fn, params, x, last, t0, t1, method)
    places = (jnp.arange(steps + 1, dtype=x.dtype) / steps) ** power

    def body(carry, ends):
        carry = step(carry, *ends)
        return carry, (carry[0] if keep else None)

    (x, last), states = jax.lax.scan(body, carry, (places[:-1], places[1:]))
    return x, last, states


@functools.partial(jax.jit, static_argnums=(0, 8))
def _count(apply_fn, params, x, last, t0, t1, power, steps, method):
    step, carry = _stepper(apply_fn, params, x, last, t0, t1, method)

    def body(k, carry):
        here, there = ((jnp.asarray(place, x.dtype) / steps) ** power for place in (k, k + 1))
        return step(carry, here, there)

    return jax.lax.fori_loop(0, steps, body, carry)


def _stepper(apply_fn, params, x, last, t0, t1, method):
    """A step ``(carry, here, there)`` between two shares of the way, and the first carry."""
    t0, t1 = (jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1]) for t in (t0, t1))
    if last is None:
        last = (jnp.zeros_like(x), jnp.zeros_like(t0)) if method == "ab2" else ()

    def step(carry, here, there):
        start, end = (t0 + place * (t1 - t0) for place in (here, there))
        x, last = carry
        given = (functools.partial(apply_fn, params), x, start, end - start)
        return ab2(*given, last) if method == "ab2" else (ONE_STEP[method](*given), last)

    return step, (x, last)


def _check_power(power):
    if not isinstance(power, jax.core.Tracer) and not power > 0:
        raise ValueError(f"power is {power}; it must be positive")


def _scale(dt, velocity):
    return dt.reshape(-1, *[1] * (velocity.ndim - 1)) * velocity
