"""Blocks of a page that are written from records, and the records."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from sinkflow.files import read_object

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
BLOCK = re.compile(r"<!-- begin (\S+) -->\n(.*?)<!-- end \1 -->\n", re.DOTALL)


def record(name: str) -> dict[str, Any]:
    """A record of the results' folder, named without its ending."""
    return read_object(RESULTS / f"{name}.json")


def link(name: str, text: str = "") -> str:
    """A link to a record, from a page of the results' folder."""
    return f"[{text or name}]({name}.json)"


def filled(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The page with its blocks written anew.

    Raises:
      ValueError: a block that nobody writes, or that does not end.
    """
    opened = re.findall(r"<!-- begin (.*?) -->", text)
    if opened != [name for name, _ in BLOCK.findall(text)]:
        raise ValueError(f"a block of {opened} has no line <!-- end NAME -->, or holds another")
    if unknown := sorted(set(opened) - blocks.keys()):
        raise ValueError(f"blocks {unknown} are written by nothing; there are {sorted(blocks)}")
    return BLOCK.sub(
        lambda found: (
            f"<!-- begin {found[1]} -->\n{blocks[found[1]]().rstrip()}\n<!-- end {found[1]} -->\n"
        ),
        text,
    )
