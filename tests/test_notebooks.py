"""Every notebook runs from its first cell to its last, and is paired with its script."""

import pathlib

import jupytext
import nbclient
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = jupytext.read(path)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    kinds = {
        kind
        for cell in notebook.cells
        for out in cell.get("outputs", ())
        for kind in out.get("data", ())
    }
    assert "image/png" in kinds


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_and_script_agree(path):
    sources = [
        [cell.source for cell in jupytext.read(file).cells]
        for file in (path, path.with_suffix(".py"))
    ]
    assert sources[0] == sources[1]
