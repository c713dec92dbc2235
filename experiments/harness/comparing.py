"""What differs between two records of the same run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.harness import tables

OF_A_START = {
    *("times", "seconds", "rows_per_second", "seconds_per_10k", "seconds_of_all_seeds"),
    *("train_s", "step_ms", "loss_ms", "memory_gb", "device_memory_gb"),
    *("resumed_from", "pool_restored", "out"),
}
"""What a record tells of the start that wrote it, not of the run: times, memory, folders."""
MADE_BY = {"commit", "versions", "device", "driver", "config"}
"""What a record tells of the program and of the machine, and what it was asked for."""
ABSENT = "(absent)"


class Difference(NamedTuple):
    """A value that two records do not share; ``relative`` is infinite for what is no number."""

    name: str
    first: Any
    second: Any
    relative: float


def told(value: Any) -> Any:
    """A record without what it tells of the start that wrote it."""
    if isinstance(value, dict):
        return {key: told(inner) for key, inner in value.items() if key not in OF_A_START}
    return [told(inner) for inner in value] if isinstance(value, list) else value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and words of a record by their path, such as ``w2.5`` or ``rows[0].fd``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in MADE_BY:
                yield from leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        yield f"len({name})", len(value)
        for at, inner in enumerate(value):
            yield from leaves(inner, f"{name}[{at}]")
    else:
        yield name, value


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[int, list[Difference]]:
    """The number of equal values of two records, and those that differ, however little.

    Times, memory, program and machine are left out.
    """
    a, b = (dict(leaves(told(record))) for record in (first, second))
    pairs = {name: (a.get(name, ABSENT), b.get(name, ABSENT)) for name in (*a, *(b.keys() - a))}
    found = [Difference(name, *pair, relative(*pair)) for name, pair in sorted(pairs.items())]
    differing = [one for one in found if one.relative > 0]
    return len(found) - len(differing), differing


def relative(a: Any, b: Any) -> float:
    """|a - b| over the larger of both; infinite unless both are finite numbers, or are the same."""
    if a is b or (type(a) is type(b) and a == b):
        return 0.0
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in (a, b))
    if not numbers:
        return math.inf
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def circumstances(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Commit, versions and device that differ."""
    known = [
        {name: record[name] for name in ("commit", "versions", "device") if name in record}
        for record in (first, second)
    ]
    a, b = ({key: value for part in one for key, value in _flat(part, one[part])} for one in known)
    names = (*a, *(b.keys() - a))
    found = [(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in names]
    return [Difference(*one, math.inf) for one in found if one[1] != one[2]]


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"{name}.{key}", inner) for key, inner in value.items()]
    return [(name, value)]


def table(title: str, found: Sequence[Difference]) -> str:
    """A row for each difference, in Markdown."""
    rows = [
        [name, str(first), str(second), f"{relative:.2g}" if math.isfinite(relative) else ""]
        for name, first, second, relative in found
    ]
    header = ["what", "record", "now", "relative difference"]
    return tables.markdown(tables.Table(title, header, rows))
