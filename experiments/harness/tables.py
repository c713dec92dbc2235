"""Tables of the drivers, in Markdown and LaTeX."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from experiments.harness import files


class Table(NamedTuple):
    """Numbers as text, ready to print."""

    title: str
    header: list[str]
    rows: list[list[str]]


def markdown(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return f"**{table.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def origin(rows: Sequence[dict]) -> str:
    """A line with the devices and commits of a benchmark's rows."""
    devices = {row["device"] for row in rows if "device" in row}
    commits = {row["commit"] for row in rows}
    return f"Device: {', '.join(sorted(devices))}. Commit: {', '.join(sorted(commits))}.\n"


LATEX = {"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "_": r"\_", "%": r"\%"}


def latex(table: Table) -> str:
    lines = [" & ".join(map(_latex_cell, cells)) + r" \\" for cells in (table.header, *table.rows)]
    columns = "l" + "r" * (len(table.header) - 1)
    body = "\n".join([lines[0], r"\hline", *lines[1:]])
    return f"% {table.title}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"


def _latex_cell(text: str) -> str:
    for sign, command in LATEX.items():
        text = text.replace(sign, command)
    return rf"\emph{{{text.strip('*')}}}" if text.startswith("*") else text


def write(folder: pathlib.Path, tables: Sequence[Table]) -> None:
    """table.md and table.tex in the folder, and the former on the terminal."""
    files.write_text(folder / "table.md", "\n".join(map(markdown, tables)))
    files.write_text(folder / "table.tex", "\n".join(map(latex, tables)))
    print("\n".join(map(markdown, tables)))
