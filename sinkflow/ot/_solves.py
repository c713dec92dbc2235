"""Solves of centred clouds, with their derivatives: what solver and divergence share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sinkflow.ot import _centred, _cost, _fused, _gradients, _iterations, _kernel
from sinkflow.ot._certificate import certify, doubted
from sinkflow.ot._shapes import VectorM, VectorN
from sinkflow.ot.limits import Limits, Storage
from sinkflow.ot.output import SinkhornOutput
from sinkflow.types import Array, Float

STATIC = ("storage", "gradient", "count")  # of the jitted cores


def as_given(
    out: SinkhornOutput, moved: _centred.Centred, problem: _gradients.Problem
) -> SinkhornOutput:
    """The output for the clouds as they were before they were centred.

    Their potentials carry the distance between the clouds. Far apart, float32 may not resolve the
    plan in these any more: then they are not converged, although the value still is right.
    """
    f, g, value = out.f + moved.of_x, out.g + moved.of_y, out.value + moved.constant
    out = out._replace(f=f, g=g, value=value)
    _, _, epsilon, a, b = problem
    seen, epsilon, a, b, constant = jax.lax.stop_gradient((out, epsilon, a, b, moved.constant))
    return out._replace(converged=doubted(seen, epsilon, a, b, constant).converged)


def solve(
    problem: _gradients.Problem,
    cost: _cost.Cost,
    g_init: Float[Array, "m"] | None,
    limits: Limits,
    gradient: str = "envelope",
) -> SinkhornOutput:
    """:func:`sinkhorn` of centred clouds, on costs that the caller has and goes on using."""
    fixed = jax.lax.stop_gradient((cost, problem.epsilon, problem.a, problem.b, g_init))
    out = _iterated(_fused.sinkhorn, _iterations.sinkhorn, fixed, limits)
    return _differentiable(out, out.f, out.g, problem, gradient, False, limits.storage)


def solve_self(
    problem: _gradients.Problem,
    cost: _cost.Cost,
    f_init: Float[Array, "n"] | None,
    limits: Limits,
    gradient: str = "envelope",
) -> SinkhornOutput:
    """The same for :func:`sinkhorn_self`."""
    fixed = jax.lax.stop_gradient((cost, problem.epsilon, problem.a, f_init))
    out = _iterated(_fused.sinkhorn_self, _iterations.sinkhorn_self, fixed, limits)
    return _differentiable(out, out.f, out.f, problem, gradient, True, limits.storage)


def _iterated(
    fused: Callable, plain: Callable, fixed: tuple[Any, ...], limits: Limits
) -> SinkhornOutput:
    threshold, max_iterations, storage = limits
    if storage == "fused":
        return fused(*fixed, threshold, max_iterations)
    return plain(*fixed, threshold, max_iterations, _kernel.kept(storage))


def unroll(
    problem: _gradients.Problem, limits: Limits, count: int, *, same: bool = False
) -> SinkhornOutput:
    """``count`` plain updates with their derivatives, and the certificate that they deserve."""
    threshold, _, storage = limits
    if same:
        f, g = _gradients.unrolled_self(problem, count, _iterations.SELF_RELAXATION, storage)
    else:
        cost = _kernel.make_cost(problem.x, problem.y, storage)
        f, g = _gradients.unrolled(cost, *problem[2:], count)
    x, y, epsilon, a, b = jax.lax.stop_gradient(problem)
    cost, fixed = _kernel.make_cost(x, y, storage), jax.lax.stop_gradient((f, g))
    out = certify(cost, *fixed, epsilon, a, b, threshold, jnp.asarray(count))
    return _differentiable(out, f, g, problem, "unrolled", same, storage)


def iterations_to_unroll(gradient: str, limits: Limits) -> int:
    """How many, or 0 if ``gradient`` is another one."""
    if gradient not in _gradients.GRADIENTS:
        choices = ", ".join(_gradients.GRADIENTS)
        raise ValueError(f"unknown gradient {gradient!r}; choose one of {choices}")
    if gradient != "unrolled":
        return 0
    max_iterations = limits.max_iterations
    if not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(
            f"max_iterations is {max_iterations}; to unroll it must be a Python int, at least 1"
        )
    return max_iterations


def _differentiable(
    out: SinkhornOutput,
    f: VectorN,
    g: VectorM,
    problem: _gradients.Problem,
    gradient: str,
    same: bool,
    storage: Storage,
) -> SinkhornOutput:
    """The output with derivatives in its potentials and its value."""
    if gradient != "unrolled":
        f, g = _gradients.moving(f, g, problem, same, storage)
    through = jax.lax.stop_gradient((f, g)) if gradient == "envelope" else (f, g)
    value = _gradients.dual_value(out.value, *through, problem, gradient, same, storage)
    return out._replace(f=f, g=g, value=value)
