r"""Whole solves of small clouds, each by one thread block of a Hopper GPU, in one launch.

With the density :math:`K_{ij} = e^{(f_i + g_j - C_ij)/\varepsilon}` of the absorbed potentials,
scalings u and v of it, and the weights a and b, the kernel iterates

.. math:: v_j \leftarrow v_j\,(v_j\,{\textstyle\sum_i} a_i u_i K_{ij})^{-\omega}, \qquad
          u_i \leftarrow u_i\,(u_i\,{\textstyle\sum_j} K_{ij} b_j v_j)^{-\omega},

just as :mod:`sinkflow.ot._iterations` does with the storage "half". Two things differ. Scalings
are absorbed, :math:`f \leftarrow f + \varepsilon\log u`, only once they have moved far: writing the
density anew costs as much as several products. And on the way down in epsilon f comes from the
largest density of its row, not from the sum: the update of u that follows makes up for it.

How it is laid out. K stays in the shared memory of the block, in float16, as tiles of 64 x 64. Of
p x p tiles there are p warpgroups; number i has the rows 64 i, ... and the columns 64 i, ... Both
products run on tensor cores, with K or its transpose as the left operand. The right operand has 8
columns, which hold a vector in two parts: the even ones its rounding to float16, the odd ones 2048
times the rest. So products keep 22 bits of the vector. Logarithms are those of base 2.

Who waits for whom. Warpgroups meet at one barrier, after each writing into shared memory that
others read. Nothing is written again before the next such meeting, by which all reads are done;
the comments at each meeting say which. Whether a branch is taken depends on numbers that all
warps of all warpgroups compute alike.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from sinkflow.ot import _iterations as plain
from sinkflow.ot import _kernel
from sinkflow.types import Array

TILE = 64
LARGEST = 4 * TILE  # points of a cloud, for whose density one block has the memory
WIDTH = 8  # columns of the narrowest right operand of a product on tensor cores
SPLIT = 2048.0  # 2^11: the bits of float16, and what lifts the rest of a split into its range
LOG2E = math.log2(math.e)
MAX_EXPONENT = _kernel.MAX_HALF_EXPONENT * LOG2E
MAX_SCALING = 14.0  # log2 of it; with weights of at most 1 the scaled ones fit into float16
ABSORBED = 0.5  # scalings are absorbed beyond this share of the way that density is good for
MIN_SUM = 1e-30
UNKNOWN = 3e38  # the error before the first round
OUTSIDE = -1e38  # the potential of a column without mass: its density is 0

ROW = plgpu.Layout.WGMMA.reduce(1)
COLUMN = plgpu.Layout.WGMMA.reduce(0)
# Every warp holds the whole vector, so that its sum is made by shuffles. Sums across the warps of a
# warpgroup go through memory that Mosaic shares among all warpgroups: two at a time disagree.
EVERYWHERE = plgpu.Layout.TILED(
    plgpu.Tiling(((32,), (1,))),
    warp_dims=(plgpu.Replicated(4),),
    lane_dims=(-2,),
    vector_dim=-1,
)


Room = tuple[float, float]  # see :func:`sinkflow.ot._kernel.half_range`


class _Warpgroup:
    """A warpgroup's part in the solve of one cloud."""

    def __init__(self, blocks: int, cost: Any, memory: tuple[Any, ...]) -> None:
        self.blocks, self.cost = blocks, cost
        self.density, self.left, self.right, self.potential, self.numbers, self.meeting = memory
        self.index = lax.axis_index("warpgroup")
        self.own = pl.ds(TILE * self.index, TILE)
        column = plgpu.broadcasted_iota(
            jnp.int32, (TILE, WIDTH), 1, layout=plgpu.Layout.WGMMA
        )
        self.even = lax.rem(column, jnp.int32(2)) == 0

    def row(self, value: float) -> Array:
        """A vector over the warpgroup's rows, or its columns, of one value."""
        return plgpu.layout_cast(jnp.full((TILE,), value, jnp.float32), ROW)

    def load(self, ref: Any) -> Array:
        return plgpu.load(ref, layout=ROW, optimized=False)

    def meet(self) -> None:
        """All warpgroups see what each has written before."""
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.meeting)
        plgpu.barrier_wait(self.meeting)

    def split(self, vector: Array, ref: Any) -> None:
        """Writes the warpgroup's part of a right operand."""
        high = vector.astype(jnp.float16)
        low = ((vector - high.astype(jnp.float32)) * SPLIT).astype(jnp.float16)
        wide = functools.partial(lax.broadcast_in_dim, shape=(TILE, WIDTH), broadcast_dimensions=(0,))
        ref.at[self.index].transpose((1, 0))[...] = jnp.where(self.even, wide(high), wide(low))

    def product(self, right: Any, transposed: bool) -> Array:
        """The warpgroup's rows of K, or of its transpose, times a split vector."""

        def compute(accumulator: Any) -> Array:
            for c in range(self.blocks):
                if transposed:
                    tile = self.density.at[c, self.index].transpose((1, 0))
                else:
                    tile = self.density.at[self.index, c]
                plgpu.wgmma(accumulator, tile, right.at[c].transpose((1, 0)))
            return accumulator[...]

        parts = pl.run_scoped(compute, plgpu.ACC((TILE, WIDTH), jnp.float32))
        return jnp.sum(parts * jnp.where(self.even, 2 / WIDTH, 2 / WIDTH / SPLIT), axis=1)

    def exponents(self, c: int, f: Array, scale: Array) -> Array:
        """Of the tile (own, c) of the density, to base 2; g is in shared memory."""
        at = pl.ds(TILE * c, TILE)
        costs = plgpu.load(self.cost.at[self.own, at], layout=plgpu.Layout.WGMMA, optimized=False)
        g = plgpu.load(self.potential.at[at], layout=COLUMN, optimized=False)
        tile = (TILE, TILE)
        potentials = lax.broadcast_in_dim(g, tile, [1]) + lax.broadcast_in_dim(f, tile, [0])
        return (potentials - costs) * scale

    def write_density(self, f: Array, g: Array, epsilon: Array, fresh: bool | Array) -> Array:
        """Writes K and returns f, which is to be min_j C_ij - g_j where it is ``fresh``.

        Others see it once they have met for the operand of the next product.
        """
        scale = LOG2E / epsilon
        # Everyone is past the error, so past all products with the last density, and past its
        # exponents, which read g.
        self.potential[self.own] = g
        self.meet()

        def lowest(f: Array) -> Array:
            highest = self.row(-jnp.inf)
            for c in range(self.blocks):
                tile = self.exponents(c, self.row(0.0), scale)
                highest = jnp.maximum(highest, jnp.max(tile, axis=1))
            return -highest / scale

        f = lax.cond(fresh, lowest, lambda f: f, f)
        for c in range(self.blocks):
            exponents = jnp.minimum(self.exponents(c, f, scale), MAX_EXPONENT)
            self.density.at[self.index, c][...] = jnp.exp2(exponents).astype(jnp.float16)
        return f

    def measure(self, sums: list[Array], extremes: list[Array]) -> tuple[list[Array], list[Array]]:
        """Sums and largest entries of vectors over all warpgroups, known to everyone."""
        # Everyone has read the numbers of the last measurement: there was a product since.
        vectors = [*sums, *extremes]
        for j, vector in enumerate(vectors):
            self.numbers[j, self.own] = vector
        self.meet()
        whole = [
            plgpu.load(self.numbers.at[j], layout=EVERYWHERE, optimized=False)
            for j in range(len(vectors))
        ]
        return [jnp.sum(v) for v in whole[: len(sums)]], [jnp.max(v) for v in whole[len(sums) :]]


def rescaled(log_scaling: Array, products: Array, relaxation: float | Array) -> Array:
    """One relaxed update of a scaling, given by its logarithm."""
    log_sums = log_scaling + jnp.log2(jnp.maximum(products, MIN_SUM))
    return jnp.clip(log_scaling - relaxation * log_sums, -MAX_SCALING, MAX_SCALING)


def _next_relaxation(relaxation: Array, error: Array, previous: Array) -> Array:
    """That of :func:`sinkflow.ot._iterations._relaxation`, in operations that Mosaic has."""
    ratio = jnp.maximum(error / previous, MIN_SUM)
    least = jnp.maximum(relaxation - 1, 1e-3)
    rate = jnp.clip(jnp.exp2(jnp.log2(ratio) / plain.ROUND), least, 1.0)
    slower = rate + relaxation - 1
    rest = jnp.maximum(1 - slower * slower / (rate * relaxation * relaxation), 1e-12)
    best = jnp.minimum(2 / (1 + rest * lax.rsqrt(rest)), plain.MAX_RELAXATION)
    best = jnp.where(error < previous, best, relaxation)
    return jnp.where((previous < UNKNOWN) & (error < plain.STALE), best, 1.0)


def _solve(blocks: int, room: Room, warm: bool, *refs: Any) -> None:
    """The kernel of :func:`sinkflow.ot._iterations.sinkhorn`: one cloud to another.

    ``refs``: costs, weights divided by their largest, the potential to start from if ``warm``,
    numbers (final epsilon, first epsilon, error to stop at, the largest weights), the cap; the
    outputs f, g, error and number of iterations; then what :func:`_memory` has.
    """
    cost, a_ref, b_ref, *init, number_ref, cap_ref, f_ref, g_ref, error_ref, count_ref = refs[:-6]
    cloud = lax.axis_index("cloud")
    group = _Warpgroup(blocks, cost.at[cloud], refs[-6:])
    final, first, goal, largest_a, largest_b = (number_ref[cloud, j] for j in range(5))
    cap = cap_ref[cloud]
    a, b = (group.load(ref.at[cloud, group.own]) for ref in (a_ref, b_ref))
    has_a, has_b = jnp.where(a > 0, 1.0, 0.0), jnp.where(b > 0, 1.0, 0.0)
    zero, one = group.row(0.0), group.row(1.0)
    nothing = (1 - has_b) * OUTSIDE

    def iterations(count: int | Array, u: Array, v: Array, sums: Array, relaxation: Any) -> Any:
        """``count`` updates of both scalings, the row sums before the last one and the next sums."""

        def iteration(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            u, v, _, sums = carry
            v = rescaled(v, sums, relaxation)
            # Everyone has read the last v: it has since met, having multiplied by it.
            group.split(b * jnp.exp2(v), group.right)
            group.meet()
            rows = group.product(group.right, False) * largest_b
            u = rescaled(u, rows, relaxation)
            # Everyone has read the last u, likewise.
            group.split(a * jnp.exp2(u), group.left)
            group.meet()
            return u, v, rows, group.product(group.left, True) * largest_a

        return lax.fori_loop(0, count, iteration, (u, v, one, sums))

    def errors(u: Array, v: Array, rows: Array, sums: Array) -> tuple[Array, ...]:
        """The larger marginal error, and how far scalings are: down, up, and single ones."""
        excess_a = a * jnp.abs(jnp.exp2(u) * rows - 1)
        excess_b = b * jnp.abs(jnp.exp2(v) * sums - 1)
        u, v = has_a * u, has_b * v
        totals, extremes = group.measure([excess_a, excess_b], [u, v, -u, -v])
        error = jnp.maximum(totals[0] * largest_a, totals[1] * largest_b)
        most_u, most_v, least_u, least_v = extremes
        single = jnp.maximum(jnp.maximum(most_u, most_v), jnp.maximum(least_u, least_v))
        return error, least_u + least_v, most_u + most_v, single

    def one_round(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        f, g, u, v, sums, epsilon, relaxation, previous, count, _, write, fresh = carry
        f = lax.cond(write, lambda f: group.write_density(f, g, epsilon, fresh), lambda f: f, f)
        annealing = epsilon > final
        updates = jnp.where(annealing, plain.ANNEALING_ROUND, plain.ROUND)
        u, v, rows, sums = iterations(updates, u, v, sums, relaxation)
        error, down, up, single = errors(u, v, rows, sums)
        trusted = (down <= room[0] * LOG2E) & (up <= room[1] * LOG2E)
        relaxation = jnp.where(annealing, 1.0, _next_relaxation(relaxation, error, previous))
        write = annealing | _to_absorb(room, down, up, single)
        # Scalars choose by multiplication: of vectors Mosaic has no choice by a scalar.
        last, kept = jnp.where(annealing, 1.0, 0.0), jnp.where(write, 0.0, 1.0)
        taken = (1 - kept) * epsilon / LOG2E
        plainly = v + last * (rescaled(v, sums, 1.0) - v)  # g ends a round of annealing
        f, g = f + taken * u, g + taken * plainly
        sums = last + (1 - last) * sums * jnp.exp2((1 - kept) * v)
        return (
            f,
            g,
            kept * u,
            kept * v,
            sums,
            jnp.where(annealing, jnp.maximum(plain.ANNEALING * epsilon, final), epsilon),
            relaxation,
            jnp.where(annealing, UNKNOWN, error),
            count + updates,
            trusted,
            write,
            annealing,
        )

    def unfinished(carry: tuple[Array, ...]) -> Array:
        epsilon, error, count, trusted = carry[5], carry[7], carry[8], carry[9]
        unmet = (error > goal) | (jnp.logical_not(trusted) & (error == error))
        return (epsilon > final) | (unmet & ((error >= UNKNOWN) | (count < cap)))

    yes, start = jnp.bool_(True), (jnp.float32(1), jnp.float32(UNKNOWN), jnp.int32(0))
    state = (zero, nothing, zero, zero, one, first, *start, yes, yes, yes)
    if warm:
        given = group.load(init[0].at[cloud, group.own]) * has_b + nothing
        f = group.write_density(zero, given, final, yes)
        u, v, rows, sums = iterations(1, zero, zero, one, 1.0)
        error, *_ = errors(u, v, rows, sums)
        started = (f + u * (final / LOG2E), given, zero, zero, sums, final, jnp.float32(1), error)
        started = (*started, jnp.int32(0), yes, yes, jnp.bool_(False))
        state = lax.cond(error < plain.WARM, lambda: started, lambda: state)
    state = lax.while_loop(unfinished, one_round, state)
    f, g, u, v = state[:4]
    f_ref[cloud, group.own] = f + u * (final / LOG2E)
    g_ref[cloud, group.own] = g + v * (final / LOG2E)
    _write_numbers(group, cloud, state[7], state[8], error_ref, count_ref)


def _solve_self(blocks: int, room: Room, warm: bool, *refs: Any) -> None:
    """The kernel of :func:`sinkflow.ot._iterations.sinkhorn_self`: a cloud to itself.

    ``refs``: costs, weights divided by their largest, the potential to start from, if ``warm``
    another one, numbers (epsilon, error to stop at, the largest weight), the cap; the outputs
    f, error and number of iterations; then what :func:`_memory` has.
    """
    cost, a_ref, *starts, number_ref, cap_ref, f_ref, error_ref, count_ref = refs[:-6]
    cloud = lax.axis_index("cloud")
    group = _Warpgroup(blocks, cost.at[cloud], refs[-6:])
    epsilon, goal, largest = (number_ref[cloud, j] for j in range(3))
    cap = cap_ref[cloud]
    a = group.load(a_ref.at[cloud, group.own])
    has = jnp.where(a > 0, 1.0, 0.0)
    zero = group.row(0.0)
    no, yes = jnp.bool_(False), jnp.bool_(True)

    def product(u: Array, operand: Any) -> Array:
        # Everyone is past the last product but one, by the meeting for the last: operands take
        # turns. Between rounds everyone is past all of them, by the meeting for the error.
        group.split(a * jnp.exp2(u), operand)
        group.meet()
        return group.product(operand, False) * largest

    def moved(u: Array, sums: Array) -> tuple[Array, ...]:
        """The marginal error, and how far the scaling is: down and up."""
        excess, u = a * jnp.abs(jnp.exp2(u) * sums - 1), has * u
        (total,), (most, least) = group.measure([excess], [u, -u])
        return total * largest, least, most

    def measured(potential: Any) -> tuple[Array, Array, Array]:
        """A potential to start from, where columns without mass have none; sums and error."""
        f = group.load(potential.at[cloud, group.own]) * has + (1 - has) * OUTSIDE
        group.write_density(f, f, epsilon, no)
        sums = product(zero, group.left)
        return f, sums, moved(zero, sums)[0]

    def one_round(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        f, u, sums, _, count, _, write = carry
        f = lax.cond(write, lambda f: group.write_density(f, f, epsilon, no), lambda f: f, f)
        for k in range(plain.ROUND):
            u = rescaled(u, sums, plain.SELF_RELAXATION)
            sums = product(u, (group.left, group.right)[k % 2])
        error, down, up = moved(u, sums)
        # f is both potentials, whose sum moves twice as far.
        trusted = (2 * down <= room[0] * LOG2E) & (2 * up <= room[1] * LOG2E)
        write = _to_absorb(room, 2 * down, 2 * up, jnp.maximum(down, up))
        kept = jnp.where(write, 0.0, 1.0)
        f = f + (1 - kept) * (epsilon / LOG2E) * u
        sums = sums * jnp.exp2((1 - kept) * u)
        return f, kept * u, sums, error, count + plain.ROUND, trusted, write

    def unfinished(carry: tuple[Array, ...]) -> Array:
        _, _, _, error, count, trusted, _ = carry
        unmet = (error > goal) | (jnp.logical_not(trusted) & (error == error))
        return unmet & (count < cap)

    f, sums, error = measured(starts[0])
    write = no
    if warm:
        other, other_sums, other_error = measured(starts[1])
        write = jnp.logical_not(other_error < error)
        f, sums, error = lax.cond(
            write, lambda: (f, sums, error), lambda: (other, other_sums, other_error)
        )
    state = f, zero, sums, error, jnp.int32(0), yes, write
    f, u, _, error, count, _, _ = lax.while_loop(unfinished, one_round, state)
    f_ref[cloud, group.own] = f + u * (epsilon / LOG2E)
    _write_numbers(group, cloud, error, count, error_ref, count_ref)


def _to_absorb(room: Room, down: Array, up: Array, single: Array) -> Array:
    """Whether a density is better written anew: for how far the sum of potentials has moved down
    and up, and a single scaling."""
    far = (down > ABSORBED * room[0] * LOG2E) | (up > ABSORBED * room[1] * LOG2E)
    return far | (single > ABSORBED * MAX_SCALING)


def _write_numbers(
    group: _Warpgroup, cloud: Array, error: Array, count: Array, error_ref: Any, count_ref: Any
) -> None:
    @pl.when(group.index == 0)
    def _() -> None:
        error_ref[cloud] = error
        count_ref[cloud] = count


def _memory(blocks: int) -> list[Any]:
    """K, the two split vectors, g, what is measured, and where warpgroups meet."""
    return [
        plgpu.SMEM((blocks, blocks, TILE, TILE), jnp.float16),
        plgpu.SMEM((blocks, WIDTH, TILE), jnp.float16),
        plgpu.SMEM((blocks, WIDTH, TILE), jnp.float16),
        plgpu.SMEM((blocks * TILE,), jnp.float32),
        plgpu.SMEM((6, blocks * TILE), jnp.float32),
        plgpu.Barrier(num_arrivals=blocks),
    ]


def solver(batch: int, n: int, m: int, warm: bool, interpret: Any = None) -> Callable:
    """Solves a batch of problems of n and m points, each up to :data:`LARGEST`.

    What it takes is filled up to :func:`padded` points, of cost 0 and weight 0: costs [batch,
    size, size], a, b and, if ``warm``, the potential to start from [batch, size], numbers
    [batch, 5] and caps [batch], see :func:`_solve`.
    """
    size = padded(n, m)
    body = functools.partial(_solve, size // TILE, _kernel.half_range(n, m), warm)
    return _launch(body, batch, size, 2, interpret)


def self_solver(batch: int, n: int, warm: bool, interpret: Any = None) -> Callable:
    """The same for clouds and themselves: costs, a, one or two potentials to start from, numbers
    [batch, 3] and caps, see :func:`_solve_self`."""
    size = padded(n, n)
    body = functools.partial(_solve_self, size // TILE, _kernel.half_range(n, n), warm)
    return _launch(body, batch, size, 1, interpret)


def padded(n: int, m: int) -> int:
    """Rows and columns of the tiles for n x m costs."""
    return TILE * -(-max(n, m) // TILE)


def _launch(body: Callable, batch: int, size: int, potentials: int, interpret: Any) -> Callable:
    vector = jax.ShapeDtypeStruct((batch, size), jnp.float32)
    numbers = [jax.ShapeDtypeStruct((batch,), kind) for kind in (jnp.float32, jnp.int32)]
    return plgpu.kernel(
        body,
        out_type=[*[vector] * potentials, *numbers],
        scratch_types=_memory(size // TILE),
        grid=(batch,),
        grid_names=("cloud",),
        num_threads=size // TILE,
        thread_name="warpgroup",
        interpret=interpret,
        # Where warpgroups wait is written above; Mosaic would let them wait at each store.
        compiler_params=plgpu.CompilerParams(approx_math=True, unsafe_no_auto_barriers=True),
    )
