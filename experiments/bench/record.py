"""A benchmark's record: rows as they come, beside those that its folder had before."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.harness import provenance
from experiments.harness.files import write_json
from sinkflow.files import read_object

Row = dict[str, Any]  # as JSON has it


class Record:
    """Rows of a benchmark, each written down at once in place of an older one of its name.

    Args:
      path: of the JSON file.
      identity: names of the fields that name a row.
      summary: what a row says in one line.
      facts: what the record tells beside its rows.
    """

    def __init__(
        self,
        path: pathlib.Path,
        identity: tuple[str, ...],
        summary: Callable[[Row], str],
        facts: Mapping[str, Any],
    ):
        self.path, self.identity, self.summary = path, identity, summary
        self.commit = provenance.commit()
        self.facts = {**facts, "commit": self.commit}
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {"rows": [dict.fromkeys(identity, object)]}
        self.rows: list[Row] = read_object(path, form)["rows"] if path.exists() else []

    def name(self, row: Row) -> tuple[Any, ...]:
        """What tells a row from others."""
        return tuple(row[field] for field in self.identity)

    def add(self, row: Row) -> Row:
        """Prints the row, with the commit, and writes the record with it."""
        row = {**row, "commit": self.commit}
        self.rows = [old for old in self.rows if self.name(old) != self.name(row)] + [row]
        print(
            f"{' '.join(filter(None, map(str, self.name(row))))}: {self.summary(row)}", flush=True
        )
        self.write()
        return row

    def write(self) -> None:
        """The whole record, in the order in which rows came."""
        write_json(self.path, {"rows": self.rows, **self.facts})
