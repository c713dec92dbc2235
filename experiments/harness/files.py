"""Files that are written whole or not at all."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from sinkflow import checkpoint


def slug(label: str) -> str:
    """The label as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("+", "p")).strip("-")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a whole file or nothing."""
    with checkpoint.whole_file(path) as partial:
        partial.write_text(text)


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")
