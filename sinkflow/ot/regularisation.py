"""How much to regularise: epsilon from the mean cost, or from what the plan is to be like."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sinkflow.ot import _centred, _inputs, _loops
from sinkflow.ot._inputs import check_limits, check_problem
from sinkflow.ot._shapes import CloudM, CloudN, VectorM, VectorN
from sinkflow.ot.limits import Limits, Storage
from sinkflow.ot.output import SinkhornOutput
from sinkflow.ot.solver import sinkhorn
from sinkflow.types import Array, Float, Int, Scalar, ScalarLike

__all__ = ["epsilon_for_entropy", "epsilon_for_neighbours", "mean_cost"]

RANGE = (1e-5, 1e2)  # of epsilon / mean cost
BISECTIONS = 20  # the ratio of the range's ends to the 2^-20th: epsilon to five digits


def mean_cost(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
) -> Scalar:
    r"""Mean ground cost :math:`\sum_{ij} a_i b_j \tfrac12\|x_i - y_j\|^2` [length^2].

    The usual unit of epsilon: 0.05 of it blurs, 0.001 of it is nearly a matching. Takes
    (n + m) d operations, no cost matrix. Arguments and errors are those of
    :func:`sinkflow.sinkhorn`.
    """
    x, y, _, a, b = check_problem(x, y, 1.0, a, b)
    return _mean_cost(x, y, a, b)


@jax.jit
def _mean_cost(x: CloudN, y: CloudM, a: VectorN | None, b: VectorM | None) -> Scalar:
    a, b = _inputs.distribution(a, x), _inputs.distribution(b, y)
    moved = _centred.centred(x, y, a, b)
    return _centred.mean_of_centred(moved.x, moved.y, a, b) + moved.constant


def epsilon_for_entropy(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    entropy: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    limits: Limits = Limits(1e-2),
) -> tuple[Scalar, SinkhornOutput]:
    """The epsilon at which the plan has the wanted entropy, by bisection.

    Args:
      x: source particles [length].
      y: target particles [length].
      entropy: wanted plan entropy in (0, 1), as in :class:`sinkflow.SinkhornOutput`: 0 a
        matching, 1 the product plan.
      a: source weights, sum 1; default uniform.
      b: target weights, likewise.
      limits: when each of the 21 solves stops and what it stores, see :class:`sinkflow.Limits`.

    Returns:
      Epsilon [length^2], between 1e-5 and 100 mean costs, and the solve at it: look at its
      ``converged`` and ``entropy``, which an end of that range, or duplicated points,
      may keep from the wanted one.

    Raises:
      ValueError: as :func:`sinkflow.sinkhorn`; outside a trace also an entropy outside (0, 1),
        and clouds whose points all coincide, of which every epsilon makes the same plan.

    Source:
      The entropy of a plan as its sharpness: Zhang et al. 2025, arXiv:2506.05526; it grows with
      epsilon. The bisection is ours.
    """
    return _epsilon_for("entropy", entropy, (0, 1), x, y, a, b, limits)


def epsilon_for_neighbours(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    neighbours: ScalarLike,
    *,
    a: Float[Array, "n"] | None = None,
    b: Float[Array, "m"] | None = None,
    limits: Limits = Limits(1e-2),
) -> tuple[Scalar, SinkhornOutput]:
    """The epsilon at which particles have the wanted effective number of neighbours.

    As :func:`epsilon_for_entropy`, for ``neighbours`` between 1 and the number of targets:
    on images 1 to 3, since a blurred plan's field learns averages.
    """
    most = jnp.shape(y)[0]
    return _epsilon_for("neighbours", neighbours, (1, most), x, y, a, b, limits)


def _epsilon_for(
    name: str,
    wanted: ScalarLike,
    bounds: tuple[int, int],
    x: CloudN,
    y: CloudM,
    a: VectorN | None,
    b: VectorM | None,
    limits: Limits,
) -> tuple[Scalar, SinkhornOutput]:
    x, y, _, a, b = check_problem(x, y, 1.0, a, b)
    limits = check_limits(limits, x.dtype)
    low, high = bounds
    if low == high:
        raise ValueError(
            f"y has {high} point: {name} is {high} at every epsilon, so none can be found by it"
        )
    if jnp.ndim(wanted):
        raise ValueError(f"{name} has shape {jnp.shape(wanted)}; it is one number")
    if not isinstance(wanted, jax.core.Tracer) and not low < float(wanted) < high:
        raise ValueError(f"{name} is {wanted}; it must lie between {low} and {high}")
    scale = _mean_cost(x, y, a, b)
    if not isinstance(scale, jax.core.Tracer) and not scale > 0:
        raise ValueError(
            f"the mean cost of x and y is {scale}: all points coincide or some are not finite; "
            "epsilon needs clouds of some extent"
        )
    wanted = _inputs.as_float(name, wanted).astype(x.dtype)
    return _bisect(name, x, y, a, b, scale, wanted, *limits)


@functools.partial(jax.jit, static_argnames=("name", "storage"))
def _bisect(
    name: str,
    x: CloudN,
    y: CloudM,
    a: VectorN | None,
    b: VectorM | None,
    scale: Scalar,
    wanted: Scalar,
    threshold: Scalar,
    max_iterations: Int[Array, ""],
    storage: Storage,
) -> tuple[Scalar, SinkhornOutput]:
    limits = Limits(threshold, max_iterations, storage)
    solve: Callable = functools.partial(sinkhorn, x, y, a=a, b=b, limits=limits)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = getattr(solve(jnp.exp(middle)), name) > wanted
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    ends = tuple(jnp.log(scale) + jnp.asarray(np.log(end), x.dtype) for end in RANGE)
    ends = _loops.varying_with(ends, (x, y, a, b, wanted, threshold, max_iterations))
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, ends)
    epsilon = jnp.exp(0.5 * (low + high))
    return epsilon, solve(epsilon)
