"""The pages written by hand: their Python runs, their links and commands exist."""

import ast
import importlib
import pathlib
import re
import shlex

import pytest

import sinkflow
from experiments.harness import hosts
from experiments.harness.settings import parts

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
    ROOT / name
    for name in ("README.md", "sinkflow/README.md", "experiments/README.md", "CHANGELOG.md")
]
PAGES += [
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "experiments/results").glob("*.md")),
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
README = TEXTS["README.md"]


def links(text):
    """Targets of links and pictures that are no addresses, without their sections."""
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [link for link in found if not re.match(r"https?:", link)]


def commands(text):
    """Words of every command of a module: of blocks, and of code between backticks."""
    shown = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    shown += "\n" + "\n".join(re.findall(r"`(python -m [^`]+)`", text))
    # What may be left out stands in brackets; that it can be typed is what counts.
    for line in re.findall(r"python -m (\S+\.\S+.*)", shown.replace("[", "").replace("]", "")):
        yield shlex.split(line, comments=True)


def flags(module):
    """Flags of a driver: every setting of its config, and of its parts."""
    config = getattr(module, "Config", None)
    if config is None:
        return set()
    names = {
        field for part in (config, *parts(config).values()) for field in part.__dataclass_fields__
    }
    return {f"--{name.replace('_', '-')}" for name in names - parts(config).keys()}


def heading(title):
    """A heading's address within its page, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 120


def test_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert bool(names["info"].converged.all())
    assert names["state"].x.shape == (1024, 2)


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_their_sections(name):
    for link in links(TEXTS[name]):
        path, _, section = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if section:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert section in map(heading, titles), link


def test_there_are_links_to_check():
    assert len(links(README)) > 15 and "notebooks/transport.png" in links(README)


@pytest.mark.parametrize("name", TEXTS)
def test_commands_exist_with_their_flags(name):
    for module, *words in commands(TEXTS[name]):
        assert importlib.util.find_spec(module.rstrip(".,:;)")), module
        if module.startswith("experiments."):
            known = flags(importlib.import_module(module))
            asked = {word for word in words if word.startswith("--")}
            assert asked <= known, f"{module} has no {sorted(asked - known)}"


def test_there_are_commands_to_check():
    found = [words for text in TEXTS.values() for words in commands(text)]
    drivers = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    assert {module.partition(".")[2] for module, *_ in found} >= drivers
    assert any("--grid" in words for words in found)


def test_flags_written_alone_are_those_of_a_driver():
    names = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    known = {"--help", hosts.FLAG}.union(
        *(flags(importlib.import_module(f"experiments.{n}")) for n in names)
    )
    shown = re.findall(r"`(--[a-z-]+)", TEXTS["experiments/README.md"])
    assert len(shown) > 20 and set(shown) <= known, sorted(set(shown) - known)


def test_the_citation_is_of_this_version():
    assert f"version = {{{sinkflow.__version__}}}" in README


def test_the_module_table_names_every_public_module():
    """A package's row stands for all in it."""
    table = TEXTS["sinkflow/README.md"].partition("## Modules")[2]
    named = {name.strip("/") for name in re.findall(r"`([\w/]+)`", table)}
    folder = ROOT / "sinkflow"
    modules = {path.stem for path in folder.glob("[a-z]*.py")}
    modules |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert modules <= named, sorted(modules - named)


def test_every_driver_has_a_header():
    for path in (ROOT / "experiments").glob("[a-z]*.py"):
        doc = ast.get_docstring(ast.parse(path.read_text()))
        parts_of = re.findall(r"^(Command|Runtime|Expected|Source):", doc, re.MULTILINE)
        assert parts_of == ["Command", "Runtime", "Expected", "Source"], path.name
