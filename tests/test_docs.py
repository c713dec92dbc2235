"""The documentation: its Python runs, every exported name is described and has its place."""

import ast
import doctest
import functools
import importlib
import inspect
import itertools
import pathlib
import pkgutil
import re

import jax
import pytest

import sinkflow

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
API = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.rst")))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if ">>>" in text])
def test_python_of_a_page_runs(name, unchecked_shapes):
    # Fences become blank lines, at which doctest ends what it expects.
    text = re.sub(r"^```.*$", "", PAGES[name], flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, name, str(DOCS / name), 0)
    with jax.numpy_rank_promotion("allow"):  # as users have it; ott-jax needs it
        found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert found.attempted and not found.failed


def test_all_python_of_the_pages_is_run():
    for name, text in PAGES.items():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            assert block.startswith(">>> "), f"{name} has Python that no test runs: {block[:60]}"


@functools.cache
def body(module):
    return ast.parse(inspect.getsource(importlib.import_module(module))).body


def home(module, name):
    """The module in which an exported name is defined."""
    for node in ast.walk(ast.Module(body(module), [])):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            of_sinkflow = node.module.startswith("sinkflow") and node.module != module
            return home(node.module, name) if of_sinkflow else node.module
    return module


def documented_constants(module):
    """Constants that a string follows, which is their docstring."""
    return {
        ast.unparse(target)
        for node, after in itertools.pairwise(body(module))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }


def exported():
    """Public modules with the names that they export, but for those of other libraries."""
    found = (each.name for each in pkgutil.walk_packages(sinkflow.__path__, "sinkflow."))
    for module in ["sinkflow", *(name for name in found if "._" not in name)]:
        for name in importlib.import_module(module).__all__:
            if home(module, name).startswith("sinkflow"):
                yield module, name


def is_described(module, name):
    if name in documented_constants(home(module, name)):
        return True
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):  # what named tuples and dataclasses are given is no description
        return (vars(value).get("__doc__") or "").partition("(")[0] not in ("", name)
    functions = inspect.ismodule(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__")
    return functions and bool(value.__doc__)


def test_every_exported_name_has_a_docstring():
    missing = [f"{module}.{name}" for module, name in exported() if not is_described(module, name)]
    assert not missing, "give it a docstring, a constant a string in the line after it"


def test_every_exported_name_is_in_the_api():
    options = dict(re.findall(r"automodule:: (\S+)\n((?: +:.*\n)*)", API))
    whole = {module for module, given in options.items() if ":no-members:" not in given}
    apart = {module: re.findall(r"\w+", options[module]) for module in whole}
    shown = {name for module, name in exported() if module in whole and name not in apart[module]}
    shown |= set(re.findall(r":: sinkflow\S*\.(\w+)", API))  # modules, and names listed singly
    assert not [f"{module}.{name}" for module, name in exported() if name not in shown]
