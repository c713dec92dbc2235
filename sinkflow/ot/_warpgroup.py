r"""What the warpgroups of a thread block do together, in a solve that one block of a GPU makes.

The density :math:`K_{ij} = e^{(f_i + g_j - C_ij)/\varepsilon}` stays in the shared memory of the
block, in float16, as p x p tiles of 64 x 64. There are p warpgroups: number i has the rows 64 i,
... and the columns 64 i, ... A vector of its rows, or columns, is one of 64 numbers.

Products run on tensor cores, with K or its transpose as the left operand. The right one has 8
columns, which hold a vector in two parts: the even ones its rounding to float16, the odd ones 2048
times the rest. So products keep 22 bits of the vector. Logarithms are those of base 2.

Warpgroups meet at one barrier, each time after writing what others are to read. What has been read
is not written again before another meeting, by which everyone has read it: comments at the writes
say which. Whether a branch is taken depends on numbers that all warps of all warpgroups have alike.
"""

import functools
import math
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from sinkflow.ot import _kernel
from sinkflow.types import Array

TILE = 64
WIDTH = 8  # columns of the narrowest right operand of a product on tensor cores
SPLIT = 2048.0  # 2^11: the bits of float16, and what lifts the rest of a split into its range
LOG2E = math.log2(math.e)
MAX_EXPONENT = _kernel.MAX_HALF_EXPONENT * LOG2E
MAX_SCALING = 14.0  # log2 of it; with weights of at most 1 the scaled ones fit into float16
MIN_SUM = 1e-30
OUTSIDE = -1e38  # the potential of a column without mass: its density is 0
ABSORBED = 0.5  # scalings are absorbed beyond this share of the way that a density is good for

Room = tuple[float, ...]  # down and up, see :func:`sinkflow.ot._kernel.half_range`, to base 2

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


def memory(blocks: int) -> list[Any]:
    """Shared memory of a thread block: what :class:`Warpgroup` takes."""
    return [
        plgpu.SMEM((blocks, blocks, TILE, TILE), jnp.float16),  # K
        plgpu.SMEM((blocks, WIDTH, TILE), jnp.float16),  # two right operands
        plgpu.SMEM((blocks, WIDTH, TILE), jnp.float16),
        plgpu.SMEM((blocks * TILE,), jnp.float32),  # g, for the rows of everyone
        plgpu.SMEM((6, blocks * TILE), jnp.float32),  # vectors to be summed
        plgpu.Barrier(num_arrivals=blocks),
    ]


class Warpgroup:
    """A warpgroup's part in the solve of one cloud, whose costs are ``cost`` [size, size]."""

    def __init__(self, blocks: int, cost: Any, memory: tuple[Any, ...]) -> None:
        self.blocks, self.cost = blocks, cost
        self.density, self.left, self.right, self.potential, self.vectors, self.barrier = memory
        self.index = lax.axis_index("warpgroup")
        self.own = pl.ds(TILE * self.index, TILE)
        column = plgpu.broadcasted_iota(jnp.int32, (TILE, WIDTH), 1, layout=plgpu.Layout.WGMMA)
        self.even = lax.rem(column, jnp.int32(2)) == 0

    def constant(self, value: float) -> Array:
        """A vector of one value."""
        return plgpu.layout_cast(jnp.full((TILE,), value, jnp.float32), ROW)

    def load(self, ref: Any) -> Array:
        """The warpgroup's part of a vector of the whole cloud."""
        return plgpu.load(ref.at[self.own], layout=ROW, optimized=False)

    def meet(self) -> None:
        """Everyone sees what each has written before."""
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.barrier)
        plgpu.barrier_wait(self.barrier)

    def split(self, vector: Array, operand: Any) -> None:
        """Writes the warpgroup's part of a right operand."""
        high = vector.astype(jnp.float16)
        low = ((vector - high.astype(jnp.float32)) * SPLIT).astype(jnp.float16)
        wide = functools.partial(
            lax.broadcast_in_dim, shape=(TILE, WIDTH), broadcast_dimensions=(0,)
        )
        own = operand.at[self.index].transpose((1, 0))
        own[...] = jnp.where(self.even, wide(high), wide(low))

    def product(self, operand: Any, transposed: bool) -> Array:
        """The warpgroup's rows of K, or of its transpose, times a right operand."""

        def compute(accumulator: Any) -> Array:
            for c in range(self.blocks):
                if transposed:
                    tile = self.density.at[c, self.index].transpose((1, 0))
                else:
                    tile = self.density.at[self.index, c]
                plgpu.wgmma(accumulator, tile, operand.at[c].transpose((1, 0)))
            return accumulator[...]

        parts = pl.run_scoped(compute, plgpu.ACC((TILE, WIDTH), jnp.float32))
        return jnp.sum(parts * jnp.where(self.even, 2 / WIDTH, 2 / WIDTH / SPLIT), axis=1)

    def write_density(self, f: Array, g: Array, epsilon: Array, fresh: Array) -> Array:
        """Writes K and returns f, which is to be min_j C_ij - g_j where it is ``fresh``.

        Others see K once they have met for the operand of the next product.
        """
        scale = LOG2E / epsilon
        # Everyone is past the last sums, so past all products with the last density, and past its
        # exponents, which read g.
        self.potential[self.own] = g
        self.meet()

        def lowest(f: Array) -> Array:
            highest = self.constant(-jnp.inf)
            for c in range(self.blocks):
                exponents = self._exponents(c, self.constant(0.0), scale)
                highest = jnp.maximum(highest, jnp.max(exponents, axis=1))
            return -highest / scale

        f = lax.cond(fresh, lowest, lambda f: f, f)
        for c in range(self.blocks):
            exponents = jnp.minimum(self._exponents(c, f, scale), MAX_EXPONENT)
            self.density.at[self.index, c][...] = jnp.exp2(exponents).astype(jnp.float16)
        return f

    def _exponents(self, c: int, f: Array, scale: Array) -> Array:
        """Of the tile of the warpgroup's rows and the columns of number c."""
        at, tile = pl.ds(TILE * c, TILE), (TILE, TILE)
        costs = plgpu.load(self.cost.at[self.own, at], layout=plgpu.Layout.WGMMA, optimized=False)
        g = plgpu.load(self.potential.at[at], layout=COLUMN, optimized=False)
        potentials = lax.broadcast_in_dim(g, tile, [1]) + lax.broadcast_in_dim(f, tile, [0])
        return (potentials - costs) * scale

    def measure(self, sums: list[Array], extremes: list[Array]) -> tuple[list[Array], list[Array]]:
        """Sums and largest entries of vectors over the whole cloud, known to everyone."""
        # Everyone has read the vectors that were summed last: there was a product since.
        vectors = [*sums, *extremes]
        for j, vector in enumerate(vectors):
            self.vectors[j, self.own] = vector
        self.meet()
        whole = [
            plgpu.load(self.vectors.at[j], layout=EVERYWHERE, optimized=False)
            for j in range(len(vectors))
        ]
        return [jnp.sum(v) for v in whole[: len(sums)]], [jnp.max(v) for v in whole[len(sums) :]]


def rescaled(log_scaling: Array, products: Array, relaxation: float | Array) -> Array:
    """One relaxed update of a scaling, given by its logarithm."""
    log_sums = log_scaling + jnp.log2(jnp.maximum(products, MIN_SUM))
    return jnp.clip(log_scaling - relaxation * log_sums, -MAX_SCALING, MAX_SCALING)


def blended(choice: Array, one: float | Array, other: float | Array) -> Array:
    """``one`` where ``choice`` is 1, ``other`` where it is 0; Mosaic selects by no scalar."""
    return choice * one + (1 - choice) * other


def indicator(weights: Array) -> Array:
    """1 for points that have mass, and 0: what the others do does not count."""
    return jnp.where(weights > 0, jnp.float32(1), jnp.float32(0))


def room_for(n: int, m: int) -> Room:
    return tuple(LOG2E * room for room in _kernel.half_range(n, m))


def to_absorb(room: Room, down: Array, up: Array, single: Array) -> Array:
    """Whether a density is better written anew, for what the potentials have moved by."""
    far = (down > ABSORBED * room[0]) | (up > ABSORBED * room[1])
    return far | (single > ABSORBED * MAX_SCALING)
