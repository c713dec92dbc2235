"""The pages' tables, written from the records.

Command:  python -m experiments.results_pages
Runtime:  seconds.
Expected: the blocks of README.md, experiments/README.md and experiments/results/*.md, and the whole
          tables beside the records. What is not between <!-- begin NAME --> and <!-- end NAME -->
          is written by hand and left as it is. Files that do not change are not written.
Source:   experiments/results/*.json; experiments/pages/ has a module for each page.
"""

import pathlib

import tyro

from experiments.harness import cli, files, tables
from experiments.pages import drivers, generators, images, plane, speed, tested
from experiments.pages.blocks import RESULTS, ROOT, filled

BLOCKS = {
    **plane.BLOCKS,
    **images.BLOCKS,
    **generators.BLOCKS,
    **speed.BLOCKS,
    **drivers.BLOCKS,
    **tested.BLOCKS,
}
PAGES = ("README.md", "experiments/README.md")
GRIDS = ("table-plane", "table-plane-ablations")


def pages() -> dict[pathlib.Path, str]:
    """What each file is to contain, by its path."""
    found = [ROOT / name for name in PAGES]
    found += [path for path in sorted(RESULTS.glob("*.md")) if "<!-- begin" in path.read_text()]
    made = {path: filled(path.read_text(), BLOCKS) for path in found}
    grids = {name: plane.whole(name) for name in GRIDS}
    grids |= {f"table-{dataset}": images.whole(dataset) for dataset in images.DATASETS}
    for name, own in grids.items():
        made[RESULTS / f"{name}.md"] = "\n".join(map(tables.markdown, own))
        made[RESULTS / f"{name}.tex"] = "\n".join(map(tables.latex, own))
    return made | {RESULTS / f"{name}.md": speed.whole(name) for name in speed.WHOLE}


def main() -> None:
    """Writes what the records changed, and says which files."""
    changed = [
        (path, text)
        for path, text in pages().items()
        if not path.exists() or path.read_text() != text
    ]
    for path, text in changed:
        files.write_text(path, text)
        print(path.relative_to(ROOT))
    print(f"{len(changed)} files changed")


if __name__ == "__main__":
    with cli.clear_errors():
        tyro.cli(main, description=cli.header(__doc__), prog=cli.program())
