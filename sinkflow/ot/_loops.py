"""A while loop whose batches do not wait for their slowest member, and a conditional for them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sinkflow.types import Array

SHRINK = 4  # a batch is cut to this part of its size once no more are unfinished
SMALLEST = 4  # batch that is no longer worth cutting


def while_loop(unfinished: Callable, advance: Callable, problem: Any, state: Any) -> Any:
    """``state = advance(problem, state)`` as long as ``unfinished(problem, state)``.

    Plain, it is :func:`jax.lax.while_loop`, which under :func:`jax.vmap` advances every member of
    the batch until the last one has finished. Here a batch is advanced together until
    no more than a quarter of it is unfinished; that quarter goes on as a batch of its own, and so
    on. Members take the same steps either way.

    Args:
      unfinished: (problem, state) to a boolean. Like ``advance`` it must not close over
        values that are traced.
      problem: pytree that stays as it is; parts that the batch shares are not copied.
      state: pytree of arrays.

    Returns:
      The first state that is finished.
    """

    state = varying_with(state, problem, state)

    @jax.custom_batching.custom_vmap
    def loop(problem: Any, state: Any) -> Any:
        return jax.lax.while_loop(
            lambda state: unfinished(problem, state),
            lambda state: advance(problem, state),
            state,
        )

    @loop.def_vmap
    def batch_loop(size: int, batched: Sequence[Any], problem: Any, state: Any) -> tuple[Any, Any]:
        of_problem, of_state = batched
        state = jax.tree.map(
            lambda leaf, own: leaf if own else jnp.broadcast_to(leaf, (size, *jnp.shape(leaf))),
            state,
            of_state,
        )
        state = _shrinking(unfinished, advance, problem, of_problem, state, size)
        return state, jax.tree.map(lambda _: True, state)

    return loop(problem, state)


def only_if(needed: Array, compute: Callable[..., Array], default: Array, *inputs: Any) -> Array:
    """``compute(*inputs)`` where it is needed, else ``default``.

    A batch computes it if any member needs it. A plain conditional would be computed by every
    batch: :func:`jax.vmap` makes it a selection.
    """
    needed = jax.lax.stop_gradient(needed)
    default = varying_with(default, needed, inputs)

    def computed(*inputs: Any) -> Array:
        return jnp.where(needed, varying_with(compute(*inputs), needed, inputs), default)

    return jax.lax.cond(_any_member(needed), computed, lambda *_: default, *inputs)


@jax.custom_batching.custom_vmap
def _any_member(flag: Array) -> Array:
    """The flag; of a batch one for all of it, so that a conditional on it stays one."""
    return flag


@_any_member.def_vmap
def _any_of_batch(size: int, batched: Sequence[bool], flag: Array) -> tuple[Array, bool]:
    return _any_member(jnp.any(flag, axis=0)), False


def _shrinking(
    unfinished: Callable, advance: Callable, problem: Any, batched: Any, state: Any, size: int
) -> Any:
    """The loop over a batch of ``size``; ``batched`` marks the leaves of ``problem`` it has."""
    axes = jax.tree.map(lambda own: 0 if own else None, batched)
    test, move = (jax.vmap(function, (axes, 0)) for function in (unfinished, advance))

    def body(carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, active = carry
        moved = move(problem, state)
        state = jax.tree.map(
            lambda new, old: jnp.where(jnp.expand_dims(active, range(1, new.ndim)), new, old),
            moved,
            state,
        )
        return state, test(problem, state)

    few = size // SHRINK if size > SMALLEST else 0
    state, active = jax.lax.while_loop(
        lambda carry: jnp.sum(carry[1]) > few, body, (state, test(problem, state))
    )
    if not few:
        return state
    chosen = jnp.argsort(~active)[:few]  # the unfinished, and finished ones to fill up
    part = jax.tree.map(lambda leaf, own: leaf[chosen] if own else leaf, problem, batched)
    rest = jax.tree.map(lambda leaf: leaf[chosen], state)
    rest = _shrinking(unfinished, advance, part, batched, rest, few)
    return jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new), state, rest)


def varying_with(tree: Any, *inputs: Any) -> Any:
    """``tree``, each leaf varying over the mapped axes over which any leaf of ``inputs`` varies.

    Under :func:`jax.shard_map` the carry of a loop must vary as what comes back does; what starts
    as a constant does not. Anywhere else this changes nothing.
    """
    axes = frozenset().union(*map(_axes, jax.tree.leaves((tree, inputs))))

    def vary(leaf: ArrayLike) -> ArrayLike:
        missing = tuple(sorted(axes - _axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def _axes(leaf: ArrayLike) -> frozenset:
    """Mapped axes over which a value varies."""
    return jax.typeof(leaf).mat.varying
