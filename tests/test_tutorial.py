"""The tutorial's notebooks as they are kept: pictures first, questions last."""

import pathlib
import re

import jupytext
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("0*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_opens_with_a_picture_and_ends_with_questions(path):
    cells = jupytext.read(path).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "kept without its outputs"
    assert any("image/png" in output.get("data", ()) for output in code[0].outputs)
    (start,) = [k for k, cell in enumerate(cells) if "## Check yourself" in cell.source]
    text = "\n".join(cell.source for cell in cells[start:] if cell.cell_type == "markdown")
    assert re.findall(r"^(\d)\.", text, re.MULTILINE) in (["1", "2"], ["1", "2", "3"])
    answers = [cell for cell in cells[start:] if cell.cell_type == "code"]
    assert len(answers) in (2, 3) and all(cell.outputs for cell in answers)


def test_the_readme_names_every_notebook():
    readme = (FOLDER.parent / "README.md").read_text()
    for path in FOLDER.glob("*.ipynb"):
        assert f"notebooks/{path.name}" in readme, path.name
