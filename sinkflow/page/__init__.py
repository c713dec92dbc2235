"""The live page: transport and its gradient flow in a browser, as one file.

``python -m sinkflow.page FILE`` writes it. It needs no server and no network: the mathematics is
in ``mathematics.js``, what one sees and touches in ``interface.js``, and both are copied into
``page.html``.
"""

import importlib.resources
import os
import pathlib

from sinkflow.checkpoint import whole_file

__all__ = ["PARTS", "html", "mathematics", "write"]

PARTS = {"style": "style.css", "mathematics": "mathematics.js", "interface": "interface.js"}
"""Names and files of what is copied into the page."""


def html() -> str:
    """The page, with everything that it needs in it."""
    page = _text("page.html")
    for name, file in PARTS.items():
        page = page.replace(f"/*{{{name}}}*/", _text(file).rstrip("\n"))
    return page


def mathematics() -> str:
    """The page's mathematics alone, in JavaScript that knows of no browser."""
    return _text("mathematics.js")


def write(path: str | os.PathLike) -> pathlib.Path:
    """Writes the page to ``path``, as a whole or not at all; returns the path.

    Raises:
      OSError: the folder does not exist or cannot be written to.
    """
    path = pathlib.Path(path)
    with whole_file(path) as partial:
        partial.write_text(html(), encoding="utf-8")
    return path


def _text(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
