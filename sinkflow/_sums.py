"""SHA-256 sums of files, as ``sha256sum -c`` reads them, and what they tell of damage."""

import hashlib
import os
import pathlib
import re
from collections.abc import Iterable

SUMS = "SHA256SUMS"
"""File of a checkpoint's folder that lists its other files."""
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write(path: pathlib.Path, names: Iterable[str]) -> None:
    """Lists files of the folder of ``path`` with their sums."""
    lines = [f"{_digest(path.parent / name)}  {name}\n" for name in names]
    path.write_text("".join(lines))


def files_in(folder: pathlib.Path) -> list[str]:
    """All files of a folder but its sums, by their paths from there.

    Hidden files are left out: file systems and desktops put their own into any folder.
    """
    paths = [pathlib.Path(where, name) for where, _, names in os.walk(folder) for name in names]
    found = sorted(path.relative_to(folder) for path in paths)
    return [
        path.as_posix()
        for path in found
        if path.as_posix() != SUMS and not any(part.startswith(".") for part in path.parts)
    ]


def fault(path: pathlib.Path, names: Iterable[str]) -> str | None:
    """What is wrong with the files that the sums of ``path`` are of, in words; None: nothing.

    ``names`` are those that must be listed. One changed bit is seen, in the files and in the sums.
    """
    try:
        text = path.read_bytes().decode("ascii")
        # Not splitlines: of a changed bit it would make a new line's end.
        *lines, rest = text.split("\n")
        listed = [LINE.fullmatch(line) for line in lines]
        if rest or not all(listed):
            return f"{path.name} is damaged"
        sums = {found[2]: found[1] for found in listed if found}
        if sums.keys() != set(names) or len(sums) != len(lines):
            return f"{path.name} lists other files: {_some(sums.keys() ^ set(names))}"
        wrong = [name for name, sum_ in sums.items() if _digest(path.parent / name) != sum_]
        return f"another SHA-256: {_some(wrong)}" if wrong else None
    except UnicodeDecodeError:
        return f"{path.name} is damaged"
    except OSError as error:
        return f"cannot be read: {error}"


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: Iterable[str]) -> str:
    """The first name, and how many there are."""
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
