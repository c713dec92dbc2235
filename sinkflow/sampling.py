"""Sampling from trained velocity fields, with exact counts of network evaluations."""

from sinkflow import ode
from sinkflow.types import Array, Float


def nsgf(
    apply_fn: ode.ApplyFn,
    params,
    x: Float[Array, "n d"],
    *,
    nfe: int,
    horizon: float = 1.0,
    method: str = "euler",
    reverse: bool = False,
) -> Float[Array, "n d"]:
    """Samples of a neural Sinkhorn gradient flow: x0 carried along the field to its end.

    Args:
      apply_fn: the field ``(params, x, t) -> velocity``.
      params: its parameters, normally the moving average ``state.ema_params``.
      x: source samples [length] (target samples with ``reverse``).
      nfe: network evaluations for each sample.
      horizon: end of the flow [the pool's time], see :func:`sinkflow.pool.horizon`.
      method: stepper of :mod:`sinkflow.ode`.
      reverse: go from the target back to the source.

    Raises:
      ValueError: nfe < 1 or not a multiple of the method's stages.

    Source:
      arXiv:2401.14069, algorithm 2.
    """
    t0, t1 = (horizon, 0.0) if reverse else (0.0, horizon)
    return ode.integrate(apply_fn, params, x, t0=t0, t1=t1, nfe=nfe, method=method)
