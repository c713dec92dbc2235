"""Leaves of a state: what may be saved, their sums, how they fit what is asked for."""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

Path = tuple[str, ...]
"""Where a leaf is, the same for a named tuple and the dict that Orbax makes of it."""


def check_arrays(state: Any) -> None:
    """Raises ValueError that names the leaves that are no arrays, such as Python numbers."""
    wrong = [
        f"{name(path)} is {type(leaf).__name__}"
        for path, leaf in jax.tree.leaves_with_path(state)
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
        or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    if wrong:
        raise ValueError(
            f"the state has leaves that are no arrays: {', '.join(wrong)}; save numpy.asarray of "
            "numbers and jax.random.key_data of keys"
        )
    empty = [name(path) for path, leaf in jax.tree.leaves_with_path(state) if 0 in leaf.shape]
    if empty:
        raise ValueError(f"the state has arrays without elements: {', '.join(empty)}; drop them")


def by_path(state: Any) -> dict[Path, Any]:
    """Leaves by where they are."""
    return {keys(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def sums(state: Any) -> list[dict[str, Any]]:
    """Path, dtype, shape and SHA-256 of the bytes of every leaf, for JSON."""
    return [
        {
            "path": list(path),
            "dtype": np.dtype(leaf.dtype).name,
            "shape": list(leaf.shape),
            "sha256": hashlib.sha256(
                np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
            ).hexdigest(),
        }
        for path, leaf in sorted(by_path(state).items(), key=lambda item: item[0])
    ]


def check_like(where: str | pathlib.Path, saved: Any, like: Any) -> None:
    """Raises ValueError that names leaves with other shapes or dtypes, and those that one lacks."""
    found, wanted = by_path(saved), by_path(like)
    lacking = [f"{'/'.join(path)} is only there" for path in found.keys() - wanted.keys()]
    lacking += [f"{'/'.join(path)} is only here" for path in wanted.keys() - found.keys()]
    if lacking:
        raise ValueError(f"{where} has another state: {_listed(lacking)}; use the same model")
    for kind, remedy in (("shape", "use the same sizes"), ("dtype", "restore in those there")):
        wrong = [
            f"{name(path)} is {_of(found[keys(path)], kind)} there, {_of(leaf, kind)} here"
            for path, leaf in jax.tree.leaves_with_path(like)
            if _of(found[keys(path)], kind) != _of(leaf, kind)
        ]
        if wrong:
            raise ValueError(f"{where} has other {kind}s: {_listed(wrong)}; {remedy}")


def arranged(found: Mapping[Path, Any], like: Any) -> Any:
    """Saved leaves in the structure of ``like``, on the first local device."""
    device = jax.local_devices()[0]
    return jax.tree.map_with_path(lambda path, _: jax.device_put(found[keys(path)], device), like)


def keys(path: Sequence[Any]) -> Path:
    """A leaf's path in words."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def name(path: Sequence[Any]) -> str:
    """A leaf's path as an error shows it."""
    return jax.tree_util.keystr(tuple(path)) or "it"


def _of(leaf: Any, kind: str) -> Any:
    return tuple(leaf.shape) if kind == "shape" else np.dtype(leaf.dtype)


def _listed(parts: list[str]) -> str:
    """The first few of many leaves."""
    shown, more = sorted(parts)[:5], len(parts) - 5
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
