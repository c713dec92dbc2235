"""The dependency order of sinkflow, as a table and a test."""

import ast
import pathlib
import subprocess
import sys

import pytest

import experiments
import sinkflow

ROOT = pathlib.Path(sinkflow.__file__).parent
DRIVERS = pathlib.Path(experiments.__file__).parent
LEVELS = [
    {"types"},
    {"inputs"},
    {"limits"},
    {
        "costs",
        "data",
        "images",
        "interpolants",
        "models",
        "layers",
        "ode",
        "parallel",
        "checkpoint",
        "loops",
    },
    {"kernel", "assignment", "metrics", "scaling", "train", "unet", "classifier"},
    {"certificate", "gradients", "generators", "fit"},
    {"sinkhorn"},
    {"divergence", "epsilon", "general", "offdiagonal"},
    {"flow", "generator"},
    {"pool", "sampling", "opponents"},
    {"plotting"},
]
# Of the drivers; all others are programs.
SHARED = {
    *("common", "tables", "methods", "peers", "processes", "bench_worker", "bench_unet_worker"),
    *("image_config", "imaging", "judge", "stages", "vectors"),
    *("generating", "generator_config", "generator_grid", "generator_reports"),
}
OPTIMAL_TRANSPORT = {
    "inputs",
    "limits",
    "costs",
    "kernel",
    "loops",
    "certificate",
    "gradients",
    "scaling",
    "sinkhorn",
    "epsilon",
    "divergence",
    "offdiagonal",
    "flow",
    "generator",
    "opponents",
}
OPTIMISERS = {"flax", "optax"}
# What a module must not import although its level would allow it.
FORBIDDEN = {
    **dict.fromkeys(sorted(OPTIMAL_TRANSPORT), OPTIMISERS),
    "assignment": OPTIMISERS,
    "data": OPTIMISERS,
    "images": OPTIMISERS,
    "interpolants": OPTIMISERS,
    "pool": OPTIMISERS,
    "ode": {"flax", "optax", "models"},
    "models": {"optax", *OPTIMAL_TRANSPORT},
    "layers": {"optax", *OPTIMAL_TRANSPORT},
    "unet": {"optax", *OPTIMAL_TRANSPORT},
    "classifier": {"optax", *OPTIMAL_TRANSPORT},
    "generators": {"optax", *OPTIMAL_TRANSPORT},
    "metrics": {"assignment", *OPTIMAL_TRANSPORT},  # a judge shares no code with the judged
    "fit": {"models", "flax", "optax", *OPTIMAL_TRANSPORT},
    "train": {"models", "parallel", *OPTIMAL_TRANSPORT},
    "sampling": {"train", *OPTIMAL_TRANSPORT},
    "parallel": set().union(*LEVELS),
    "checkpoint": set().union(*LEVELS),
}


def modules(folder):
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


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
    """Modules of sinkflow that the file imports."""
    names = (name.split(".") for name in imports(path))
    return {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == "sinkflow"}


def names(path):
    """Every identifier in the code, so that a mention in a docstring does not count."""
    tree = ast.parse(path.read_text())
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found | {part for name in imports(path) for part in name.split(".")}


def test_every_module_is_in_the_table_once():
    listed = [name for level in LEVELS for name in level]
    assert sorted(listed) == sorted(modules(ROOT).keys() - {"__init__"})


def test_modules_import_only_lower_levels():
    depth = {name: number for number, level in enumerate(LEVELS) for name in level}
    for name in depth:
        for other in siblings(ROOT / f"{name}.py"):
            assert depth[other] < depth[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_modules_do_not_import_what_the_table_forbids(name):
    path = ROOT / f"{name}.py"
    assert not FORBIDDEN[name] & (packages(path) | siblings(path))


def test_only_parallel_names_pmap():
    files = {**modules(ROOT), **{f"experiments.{k}": v for k, v in modules(DRIVERS).items()}}
    assert {name for name, path in files.items() if "pmap" in names(path)} == {"parallel"}


def test_only_plotting_imports_matplotlib():
    assert {k for k, path in modules(ROOT).items() if "matplotlib" in packages(path)} == {
        "plotting"
    }


def test_the_library_imports_neither_drivers_nor_tests():
    for name, path in modules(ROOT).items():
        assert not {"experiments", "tests", "pytest", "chex"} & packages(path), name


def test_drivers_import_only_what_is_meant_to_be_shared():
    for name, path in modules(DRIVERS).items():
        own = {part.split(".")[1] for part in imports(path) if part.startswith("experiments.")}
        assert own <= SHARED, f"{name} imports {own}"


def test_the_face_lists_what_it_exports():
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    imported = [a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names]
    exported = {name for name in imported if name not in ("ModuleType", "TYPE_CHECKING")}
    assert set(sinkflow.__all__) == exported | set(sinkflow.LAZY)
    assert all(hasattr(sinkflow, name) for name in sinkflow.__all__)
    assert sinkflow.metrics.wasserstein2  # loaded by being asked for
    with pytest.raises(AttributeError, match="module 'sinkflow' has no attribute 'sinkhorm'"):
        sinkflow.sinkhorm  # noqa: B018
    # These two are functions although modules of the same name exist beside them.
    assert callable(sinkflow.sinkhorn) and callable(sinkflow.sinkhorn_velocity)


def test_importing_the_library_loads_nothing_that_takes_seconds():
    heavy = {"matplotlib", "sklearn", "ot", "orbax", "scipy.stats", "ott", "pooch"}
    code = f"import sys, sinkflow; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
