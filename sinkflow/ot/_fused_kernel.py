r"""Whole solves of small clouds, each by one thread block of a Hopper GPU, all in one launch.

With scalings u and v of the density K of the potentials, and the weights a and b, the kernel
iterates

.. math:: v_j \leftarrow v_j\,(v_j\,{\textstyle\sum_i} a_i u_i K_{ij})^{-\omega}, \qquad
          u_i \leftarrow u_i\,(u_i\,{\textstyle\sum_j} K_{ij} b_j v_j)^{-\omega},

just as :mod:`sinkflow.ot._iterations` does with the storage "half". Two things differ. Scalings
are absorbed, :math:`f \leftarrow f + \varepsilon\log u`, only once they have moved far: writing the
density anew costs as much as several products. And on the way down in epsilon f comes from the
largest density of its row, not from the sum: the update of u that follows makes up for it.

:mod:`sinkflow.ot._warpgroup` has how K is laid out, and who waits for whom.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from sinkflow.ot import _iterations
from sinkflow.ot._warpgroup import (
    LOG2E,
    MIN_SUM,
    OUTSIDE,
    TILE,
    Room,
    Warpgroup,
    blended,
    indicator,
    memory,
    rescaled,
    room_for,
    to_absorb,
)
from sinkflow.types import Array

UNKNOWN = 3e38  # the error before the first round
MEMORY = 6  # pieces of shared memory


class _State(NamedTuple):
    """What a round hands to the next; u and v are logarithms of the scalings not yet absorbed."""

    f: Array
    g: Array
    u: Array
    v: Array
    column_sums: Array  # of K with u
    epsilon: Array  # the annealed one
    relaxation: Array
    error: Array
    num_iterations: Array
    trusted: Array
    write: Array  # the density is to be written
    fresh: Array  # and f to be found from g first


class _SelfState(NamedTuple):
    """The same for a cloud and itself."""

    f: Array
    u: Array
    sums: Array
    error: Array
    num_iterations: Array
    trusted: Array
    write: Array


def _solve(blocks: int, room: Room, warm: bool, *refs: Any) -> None:
    """The kernel of :func:`sinkflow.ot._iterations.sinkhorn`: one cloud to another.

    ``refs``: costs, weights divided by their largest, the potential to start from if ``warm``,
    numbers (final epsilon, first epsilon, error to stop at, the largest weights), the cap; the
    outputs f, g, error and number of iterations; then the shared memory.
    """
    outer, shared = refs[:-MEMORY], refs[-MEMORY:]
    cost, a_ref, b_ref, *init, number_ref, cap_ref, f_ref, g_ref, error_ref, count_ref = outer
    cloud = lax.axis_index("cloud")
    group = Warpgroup(blocks, cost.at[cloud], shared)
    final, first, goal, largest_a, largest_b = (number_ref[cloud, j] for j in range(5))
    cap = cap_ref[cloud]
    a, b = (group.load(ref.at[cloud]) for ref in (a_ref, b_ref))
    has_a, has_b = indicator(a), indicator(b)
    zero, one, nothing = group.constant(0.0), group.constant(1.0), blended(has_b, 0.0, OUTSIDE)
    no, yes = jnp.bool_(False), jnp.bool_(True)

    def iterated(state: _State, count: int | Array) -> tuple[_State, Array]:
        """After ``count`` updates of both scalings, and the row sums before the last one."""

        def iteration(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            u, v, _, sums = carry
            v = rescaled(v, sums, state.relaxation)
            # Everyone has multiplied by the last v: they have met for u since.
            group.split(b * jnp.exp2(v), group.right)
            group.meet()
            row_sums = group.product(group.right, False) * largest_b
            u = rescaled(u, row_sums, state.relaxation)
            # And by the last u: they have met for v.
            group.split(a * jnp.exp2(u), group.left)
            group.meet()
            return u, v, row_sums, group.product(group.left, True) * largest_a

        start = state.u, state.v, one, state.column_sums
        u, v, row_sums, sums = lax.fori_loop(0, count, iteration, start)
        return state._replace(u=u, v=v, column_sums=sums), row_sums

    def measured(state: _State, row_sums: Array) -> tuple[Array, Array, Array, Array]:
        """The larger marginal error; how far scalings have moved: down, up, and a single one."""
        excess_a = a * jnp.abs(jnp.exp2(state.u) * row_sums - 1)
        excess_b = b * jnp.abs(jnp.exp2(state.v) * state.column_sums - 1)
        u, v = has_a * state.u, has_b * state.v
        totals, extremes = group.measure([excess_a, excess_b], [u, v, -u, -v])
        most_u, most_v, least_u, least_v = extremes
        error = jnp.maximum(totals[0] * largest_a, totals[1] * largest_b)
        single = jnp.maximum(jnp.maximum(most_u, most_v), jnp.maximum(least_u, least_v))
        return error, least_u + least_v, most_u + most_v, single

    def one_round(state: _State) -> _State:
        epsilon = state.epsilon
        write_density = lambda f: group.write_density(f, state.g, epsilon, state.fresh)
        state = state._replace(f=lax.cond(state.write, write_density, lambda f: f, state.f))
        annealing = epsilon > final
        count = jnp.where(annealing, _iterations.ANNEALING_ROUND, _iterations.ROUND)
        state, row_sums = iterated(state, count)
        error, down, up, single = measured(state, row_sums)
        write = annealing | to_absorb(room, down, up, single)
        # A round of annealing ends on one more update of g, and the next one finds f from that g.
        lower, absorbed = jnp.where(annealing, 1.0, 0.0), jnp.where(write, 1.0, 0.0)
        v = blended(lower, rescaled(state.v, state.column_sums, 1.0), state.v)
        sums = blended(lower, one, state.column_sums * jnp.exp2(absorbed * v))
        relaxation = _next_relaxation(state.relaxation, error, state.error)
        lower_epsilon = jnp.maximum(_iterations.ANNEALING * epsilon, final)
        return _State(
            f=state.f + absorbed * (epsilon / LOG2E) * state.u,
            g=state.g + absorbed * (epsilon / LOG2E) * v,
            u=(1 - absorbed) * state.u,
            v=(1 - absorbed) * v,
            column_sums=sums,
            epsilon=jnp.where(annealing, lower_epsilon, epsilon),
            relaxation=jnp.where(annealing, 1.0, relaxation),
            error=jnp.where(annealing, UNKNOWN, error),
            num_iterations=state.num_iterations + count,
            trusted=(down <= room[0]) & (up <= room[1]),
            write=write,
            fresh=annealing,
        )

    def unfinished(state: _State) -> Array:
        unknown = state.error == UNKNOWN
        going_on = _unmet(state, goal) & (unknown | (state.num_iterations < cap))
        return (state.epsilon > final) | going_on

    start = jnp.float32(1), jnp.float32(UNKNOWN), jnp.int32(0), yes, yes, yes
    state = _State(zero, nothing, zero, zero, one, first, *start)
    if warm:
        given = blended(has_b, group.load(init[0].at[cloud]), OUTSIDE)
        f = group.write_density(zero, given, final, yes)
        trial, row_sums = iterated(state._replace(f=f, g=given, epsilon=final), 1)
        error, *_ = measured(trial, row_sums)
        f = f + trial.u * (final / LOG2E)
        trial = trial._replace(f=f, u=zero, v=zero, error=error, fresh=no)
        state = lax.cond(error < _iterations.WARM, lambda: trial, lambda: state)
    state = lax.while_loop(unfinished, one_round, state)
    f_ref[cloud, group.own] = state.f + state.u * (final / LOG2E)
    g_ref[cloud, group.own] = state.g + state.v * (final / LOG2E)
    _write_numbers(group, cloud, state, error_ref, count_ref)


def _solve_self(blocks: int, room: Room, warm: bool, *refs: Any) -> None:
    """The kernel of :func:`sinkflow.ot._iterations.sinkhorn_self`: a cloud to itself.

    ``refs``: costs, weights divided by their largest, the potential to start from, if ``warm``
    another one, numbers (epsilon, error to stop at, the largest weight), the cap; the outputs
    f, error and number of iterations; then the shared memory.
    """
    outer, shared = refs[:-MEMORY], refs[-MEMORY:]
    cost, a_ref, *starts, number_ref, cap_ref, f_ref, error_ref, count_ref = outer
    cloud = lax.axis_index("cloud")
    group = Warpgroup(blocks, cost.at[cloud], shared)
    epsilon, goal, largest = (number_ref[cloud, j] for j in range(3))
    cap = cap_ref[cloud]
    a = group.load(a_ref.at[cloud])
    has, zero = indicator(a), group.constant(0.0)
    no, yes = jnp.bool_(False), jnp.bool_(True)

    def product(u: Array, operand: Any) -> Array:
        # Everyone has multiplied by this operand before: the two take turns, and they have met
        # for the other one since. Between rounds they have met for the error.
        group.split(a * jnp.exp2(u), operand)
        group.meet()
        return group.product(operand, False) * largest

    def measured(u: Array, sums: Array) -> tuple[Array, Array, Array]:
        """The marginal error, and how far the scaling has moved: down and up."""
        excess, u = a * jnp.abs(jnp.exp2(u) * sums - 1), has * u
        (total,), (most, least) = group.measure([excess], [u, -u])
        return total * largest, least, most

    def started(potential: Any) -> _SelfState:
        """At a given potential; points without mass have none."""
        f = blended(has, group.load(potential.at[cloud]), OUTSIDE)
        group.write_density(f, f, epsilon, no)
        sums = product(zero, group.left)
        error, *_ = measured(zero, sums)
        return _SelfState(f, zero, sums, error, jnp.int32(0), yes, no)

    def one_round(state: _SelfState) -> _SelfState:
        f, u, sums = state.f, state.u, state.sums
        f = lax.cond(state.write, lambda f: group.write_density(f, f, epsilon, no), lambda f: f, f)
        for k in range(_iterations.ROUND):
            u = rescaled(u, sums, _iterations.SELF_RELAXATION)
            sums = product(u, (group.left, group.right)[k % 2])
        error, down, up = measured(u, sums)
        # f is both potentials, whose sum moves twice as far.
        write = to_absorb(room, 2 * down, 2 * up, jnp.maximum(down, up))
        absorbed = jnp.where(write, 1.0, 0.0)
        return _SelfState(
            f=f + absorbed * (epsilon / LOG2E) * u,
            u=(1 - absorbed) * u,
            sums=sums * jnp.exp2(absorbed * u),
            error=error,
            num_iterations=state.num_iterations + _iterations.ROUND,
            trusted=(2 * down <= room[0]) & (2 * up <= room[1]),
            write=write,
        )

    state = started(starts[0])
    if warm:
        # The density is now that of the other start: if the first is better, it is written again.
        other, first = started(starts[1]), state._replace(write=yes)
        state = lax.cond(other.error < first.error, lambda: other, lambda: first)
    unfinished = lambda state: _unmet(state, goal) & (state.num_iterations < cap)
    state = lax.while_loop(unfinished, one_round, state)
    f_ref[cloud, group.own] = state.f + state.u * (epsilon / LOG2E)
    _write_numbers(group, cloud, state, error_ref, count_ref)


def _unmet(state: _State | _SelfState, goal: Array) -> Array:
    """The error is not met, or not trusted; an error of NaN is final."""
    return (state.error > goal) | (jnp.logical_not(state.trusted) & (state.error == state.error))


def _next_relaxation(relaxation: Array, error: Array, previous: Array) -> Array:
    """That of :func:`sinkflow.ot._iterations._relaxation`, in operations that Mosaic has."""
    ratio = jnp.maximum(error / previous, MIN_SUM)
    least = jnp.maximum(relaxation - 1, 1e-3)
    rate = jnp.clip(jnp.exp2(jnp.log2(ratio) / _iterations.ROUND), least, 1.0)
    slower = rate + relaxation - 1
    rest = jnp.maximum(1 - slower * slower / (rate * relaxation * relaxation), 1e-12)
    best = jnp.minimum(2 / (1 + rest * lax.rsqrt(rest)), _iterations.MAX_RELAXATION)
    best = jnp.where(error < previous, best, relaxation)
    return jnp.where((previous < UNKNOWN) & (error < _iterations.STALE), best, 1.0)


def _write_numbers(
    group: Warpgroup, cloud: Array, state: _State | _SelfState, error_ref: Any, count_ref: Any
) -> None:
    @pl.when(group.index == 0)
    def _() -> None:
        error_ref[cloud] = state.error
        count_ref[cloud] = state.num_iterations


def solver(batch: int, n: int, m: int, warm: bool) -> Callable:
    """Solves a batch of problems of n and m points, each of up to four tiles.

    What it takes is filled up to :func:`padded` points, of cost 0 and weight 0: costs [batch,
    size, size], a, b and, if ``warm``, the potential to start from [batch, size], numbers
    [batch, 5] and caps [batch], see :func:`_solve`.
    """
    size = padded(n, m)
    body = functools.partial(_solve, size // TILE, room_for(n, m), warm)
    return _launch(body, batch, size, 2)


def self_solver(batch: int, n: int, warm: bool) -> Callable:
    """The same for clouds and themselves: costs, a, one or two potentials to start from, numbers
    [batch, 3] and caps, see :func:`_solve_self`."""
    size = padded(n, n)
    body = functools.partial(_solve_self, size // TILE, room_for(n, n), warm)
    return _launch(body, batch, size, 1)


def padded(n: int, m: int) -> int:
    """Rows and columns of the tiles for n x m costs."""
    return TILE * -(-max(n, m) // TILE)


def _launch(body: Callable, batch: int, size: int, potentials: int) -> Callable:
    vector = jax.ShapeDtypeStruct((batch, size), jnp.float32)
    numbers = [jax.ShapeDtypeStruct((batch,), kind) for kind in (jnp.float32, jnp.int32)]
    return plgpu.kernel(
        body,
        out_type=[*[vector] * potentials, *numbers],
        scratch_types=memory(size // TILE),
        grid=(batch,),
        grid_names=("cloud",),
        num_threads=size // TILE,
        thread_name="warpgroup",
        # Warpgroups wait where they have to; Mosaic would let them wait at each store.
        compiler_params=plgpu.CompilerParams(approx_math=True, unsafe_no_auto_barriers=True),
    )
