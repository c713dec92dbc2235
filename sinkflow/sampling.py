"""Sampling from trained velocity fields, with exact counts of network evaluations."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sinkflow import ode
from sinkflow.types import ApplyFn, Array, Float, ScalarLike, check_shape

__all__ = ["nsgf", "phase_steps", "two_phase"]


def nsgf(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[Array, "n d"],
    *,
    nfe: int | Array,
    horizon: float = 1.0,
    method: str = "euler",
    power: ScalarLike = 1.0,
    reverse: bool = False,
) -> Float[Array, "n d"]:
    """Samples of a neural Sinkhorn gradient flow: x0 carried along the field to its end.

    Args:
      apply_fn: the field ``(params, x, t) -> velocity``.
      params: its parameters, normally the moving average ``state.ema_params``.
      x: source samples [length] (target samples with ``reverse``).
      nfe: network evaluations for each sample, see :func:`sinkflow.ode.integrate`.
      horizon: end of the flow [the pool's time], see :func:`sinkflow.pool.horizon`.
      method: stepper of :mod:`sinkflow.ode`.
      power: spacing of its steps, see :func:`sinkflow.ode.integrate`.
      reverse: go from the target back to the source.

    Raises:
      ValueError: nfe < 1 or not a multiple of the method's stages.

    Source:
      arXiv:2401.14069, algorithm 2.
    """
    t0, t1 = (horizon, 0.0) if reverse else (0.0, horizon)
    return ode.integrate(apply_fn, params, x, t0=t0, t1=t1, nfe=nfe, method=method, power=power)


def phase_steps(nfe: int, share: float = 0.5, most: int | None = None) -> tuple[int, int]:
    """Steps of the two phases of NSGF++ that spend exactly ``nfe`` evaluations.

    One goes to the time predictor, ``share`` of the others to the first phase, ``most`` at most;
    each phase has at least one. In geodesic time a share of the horizon makes all steps alike.

    Raises:
      ValueError: nfe < 3, too few for two phases and the predictor; most < 1; a share that
        is not in [0, 1].
    """
    if nfe < 3:
        raise ValueError(f"nfe is {nfe}; two phases and the time predictor need at least 3")
    if most is not None and most < 1:
        raise ValueError(f"the first phase has {most} steps; it needs at least 1")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it lies between 0 and 1")
    first = min(max(1, round(share * (nfe - 1))), nfe - 2, most or nfe)
    return first, nfe - 1 - first


def two_phase(
    nsgf_fn: ApplyFn,
    straight_fn: ApplyFn,
    predictor_fn: Callable[..., Array],
    params: Sequence[Any],
    x: Float[Array, "n d"],
    *,
    nsgf_steps: int | Array,
    straight_steps: int | Array,
    horizon: float = 1.0,
    method: str = "euler",
    power: ScalarLike = 1.0,
) -> Float[Array, "n d"]:
    """Samples of NSGF++: the Sinkhorn flow, a predicted time, then a straight flow from there.

    Spends ``nsgf_steps + 1 + straight_steps`` network evaluations. The predicted time tau_i
    differs from sample to sample; each takes the same number of steps.

    Args:
      nsgf_fn: field of the first phase ``(params, x, t)``.
      straight_fn: field of the second, trained on straight paths in time 0 to 1.
      predictor_fn: ``(params, x) -> tau [n]`` in [0, 1].
      params: their three parameter trees, in that order.
      x: source samples [length].
      nsgf_steps: evaluations of the first phase.
      straight_steps: evaluations of the second.
      horizon: end of the first phase [the pool's time].
      method: stepper of both, see :mod:`sinkflow.ode`. "ab2" remembers the first phase in the
        second, so both have to be in the same units of time: a pool in geodesic time.
      power: spacing of the steps of both, see :func:`sinkflow.ode.integrate`.

    Raises:
      ValueError: a phase without steps, or a predictor that gives another shape than [n].

    Source:
      arXiv:2401.14069, NSGF++.
    """
    params_nsgf, params_straight, params_predictor = params
    follow = functools.partial(ode.advance, method=method, power=power)
    x, last = follow(nsgf_fn, params_nsgf, x, None, t1=horizon, nfe=nsgf_steps)
    tau = jax.jit(predictor_fn)(params_predictor, x)
    check_shape("the predictor", tau, x.shape[:1], "one time for each of x")
    return follow(straight_fn, params_straight, x, last, t0=tau, nfe=straight_steps)[0]
