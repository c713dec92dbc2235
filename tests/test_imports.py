"""The dependency order of sinkflow's packages, as rules and tests."""

import ast
import pathlib
import subprocess
import sys

import pytest

import experiments
import sinkflow

ROOT = pathlib.Path(sinkflow.__file__).parent
DRIVERS = pathlib.Path(experiments.__file__).parent
# Packages and modules of sinkflow. Each imports only what stands in a line above its own.
LEVELS = [
    {"types", "_leaves", "_sums"},
    {
        "ot",
        "nets",
        "data",
        "ode",
        "parallel",
        "checkpoint",
        "train",
        "files",
        "_generated",
        "_clouds",
    },
    {"flow", "pairs", "sampling", "generator", "metrics", "plotting", "page", "_described"},
    {"_flows", "opponents", "fit"},
    {"pool"},
    {"flow_map"},
]
# What else a package or module must not import: of sinkflow, and of others.
APART = {
    "fit": {"nets", "data", "ode", "ot"},
    "sampling": {"train", "ot"},
    "pairs": {"train"},
    "metrics": {"ot", "train", "ode"},  # a judge shares no code with the judged
    "plotting": {"ot", "nets", "data", "train"},
    "page": {"ot", "nets", "data", "train"},  # its mathematics are its own, in JavaScript
    "parallel": {"types"},
    "checkpoint": {"types"},
}
WITHOUT_FLAX = {"ot", "data", "ode", "flow", "_flows", "pairs", "pool", "flow_map"}
WITHOUT_FLAX |= {"generator", "opponents", "sampling"}
WITHOUT_OPTAX = {*WITHOUT_FLAX, "nets", "fit", "metrics"}
# Folders of experiments beside its drivers, and what each may import of experiments.
SHARED = {
    "harness": {"harness"},
    "vectors": {"harness", "vectors"},
    "images": {"harness", "images"},
    "generators": {"harness", "vectors", "images", "generators"},
    # It trains the UNet and generators as their drivers do.
    "bench": {"harness", "images", "generators", "bench"},
    "pages": {"harness", "vectors", "images", "generators", "bench", "pages"},
}
LONGEST_DRIVER = 120  # lines
# What may take a whole config: main and what checks it, what a folder or a record is made of, and
# methods of a config.
OPENING = {"main", "check", "group", "flat", "replaced", "__init__"}


def modules(folder):
    """Every file of a package by its dotted name: "flow", "ot.solver", "ot" for its __init__."""
    paths = {path.relative_to(folder).with_suffix(""): path for path in folder.rglob("*.py")}
    parts = {
        tuple(part for part in name.parts if part != "__init__"): p for name, p in paths.items()
    }
    return {".".join(own): path for own, path in sorted(parts.items()) if own}


def imports(path):
    """Every imported name with its package: "jax.numpy", "sinkflow.flow", "sinkflow.types.Int"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import, which this test cannot see"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def packages(path):
    return {name.partition(".")[0] for name in imports(path)}


def siblings(path):
    """Packages and top-level modules of sinkflow that the file imports."""
    names = (name.split(".") for name in imports(path))
    return {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == "sinkflow"}


def names(path):
    """Every identifier in the code, so that a mention in a docstring does not count."""
    tree = ast.parse(path.read_text())
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found | {part for name in imports(path) for part in name.split(".")}


def unit(name):
    """The package or top-level module that a dotted name is of."""
    return name.partition(".")[0]


def test_every_package_has_its_level_once():
    listed = [name for level in LEVELS for name in level]
    assert sorted(listed) == sorted({unit(name) for name in modules(ROOT)})


@pytest.mark.parametrize("name", modules(ROOT))
def test_modules_import_only_lower_levels(name):
    depth = {unit: number for number, level in enumerate(LEVELS) for unit in level}
    for other in siblings(modules(ROOT)[name]) - {unit(name)}:
        assert depth[other] < depth[unit(name)], f"{name} imports {other}"


@pytest.mark.parametrize("name", modules(ROOT))
def test_modules_do_not_import_what_is_forbidden(name):
    path = modules(ROOT)[name]
    assert not APART.get(unit(name), set()) & siblings(path)
    assert unit(name) not in WITHOUT_FLAX or "flax" not in packages(path)
    assert unit(name) not in WITHOUT_OPTAX or "optax" not in packages(path)


def test_packages_import_one_another_without_cycles():
    """Inside of a package too, and through no face, so that any module can be imported first."""
    names = modules(ROOT)
    left = {
        name: {
            ".".join(parts)
            for other in imports(path)
            for parts in [other.split(".")[1:-1], other.split(".")[1:]]
            if other.startswith("sinkflow.") and ".".join(parts) in names
        }
        - {name}
        for name, path in names.items()
    }
    # `from sinkflow.ot import _loops` means the module: the package itself is no edge of its own.
    left = {name: own - {unit(name)} for name, own in left.items()}
    while ready := {name for name, own in left.items() if not own & left.keys()}:
        left = {name: own for name, own in left.items() if name not in ready}
    assert not left


def test_what_is_public_says_so():
    for name, path in modules(ROOT).items():
        body = ast.parse(path.read_text()).body
        public = [
            ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        if name.rpartition(".")[2].startswith("_"):
            assert not public, name
            continue
        defined = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert len(public) == 1 and list(public[0]) == sorted(public[0], key=sorting), name
        assert {own for own in defined if not own.startswith("_")} <= set(public[0]), name


def sorting(name):
    """Constants, then classes, then functions, as ruff sorts them."""
    return (not name.isupper(), not name[0].isupper(), name)


def test_drivers_use_no_internals():
    for name, path in modules(DRIVERS).items():
        inner = [part for part in imports(path) if part.startswith("sinkflow.")]
        assert not [part for part in inner if "._" in part], name


def test_modules_are_short():
    for name, path in modules(ROOT).items():
        assert path.read_text().count("\n") <= 320, name


def experiment_files():
    """Every file of experiments by its name from there: "plane", "harness/cli"."""
    paths = sorted(DRIVERS.rglob("*.py"))
    return {path.relative_to(DRIVERS).with_suffix("").as_posix(): path for path in paths}


def drivers():
    """The files of experiments beside its folders."""
    return {name: path for name, path in experiment_files().items() if "/" not in name}


def test_only_parallel_names_pmap():
    files = {**modules(ROOT), **{f"experiments/{k}": v for k, v in experiment_files().items()}}
    assert {name for name, path in files.items() if "pmap" in names(path)} == {"parallel"}


def test_only_plotting_imports_matplotlib():
    found = {k for k, path in modules(ROOT).items() if "matplotlib" in packages(path)}
    assert {name.partition(".")[0] for name in found} == {"plotting"}


def test_the_library_imports_neither_drivers_nor_tests():
    for name, path in modules(ROOT).items():
        assert not {"experiments", "tests", "pytest", "chex"} & packages(path), name


def of_experiments(path):
    """Folders and modules of experiments that the file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("experiments.")}


def test_shared_folders_of_experiments_are_those_of_the_table():
    folders = {path.parent.name for path in DRIVERS.glob("*/__init__.py")}
    assert folders == SHARED.keys()


@pytest.mark.parametrize("folder", SHARED)
def test_shared_code_of_experiments_imports_in_one_direction(folder):
    for path in (DRIVERS / folder).rglob("*.py"):
        assert of_experiments(path) <= SHARED[folder], path


def test_no_driver_imports_a_driver():
    for name, path in drivers().items():
        assert of_experiments(path) <= SHARED.keys(), name


def test_drivers_are_small():
    for name, path in drivers().items():
        assert len(path.read_text().splitlines()) <= LONGEST_DRIVER, name


def test_the_config_is_opened_in_main():
    """Below main functions take what they need of a config."""
    for name, path in experiment_files().items():
        if name.startswith("generator"):  # its settings are still one piece
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name not in OPENING:
                taken = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
                assert "config" not in taken, f"{name}.{node.name} takes a config"


def test_the_face_lists_what_it_exports():
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    imported = [a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names]
    exported = {name for name in imported if name not in ("ModuleType", "TYPE_CHECKING")}
    assert set(sinkflow.__all__) == exported | set(sinkflow.LAZY)
    assert all(hasattr(sinkflow, name) for name in sinkflow.__all__)
    assert sinkflow.metrics.wasserstein2  # loaded by being asked for
    with pytest.raises(AttributeError, match="module 'sinkflow' has no attribute 'sinkhorm'"):
        sinkflow.sinkhorm  # noqa: B018
    assert callable(sinkflow.sinkhorn) and callable(sinkflow.fit)  # no module takes their names


def test_importing_the_library_loads_nothing_that_takes_seconds():
    heavy = {"matplotlib", "sklearn", "ot", "orbax", "scipy.stats", "ott", "pooch"}
    code = f"import sys, sinkflow; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
