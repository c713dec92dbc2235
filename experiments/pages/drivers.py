"""Blocks of the pages of experiments: what each driver takes and gives, and all records."""

import ast
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.harness import tables
from experiments.pages import images
from experiments.pages.blocks import RESULTS, ROOT, record
from sinkflow.files import read_object

FOLDER = ROOT / "experiments"


class Driver(NamedTuple):
    """A command, the files that it made, and what to expect of it.

    ``time`` is empty where no record tells: then the driver's own header does.
    """

    name: str
    options: str = ""
    records: tuple[str, ...] = ()
    time: str = ""
    expected: str = ""


def drivers() -> str:
    """A row for each command.

    Raises:
      ValueError: a driver without a row.
    """
    body, every = [], _all()
    for name, options, made, time, expected in every:
        command = f"`{' '.join(['python -m', f'experiments.{name}', options]).strip()}`"
        links = ", ".join(f"[{path.rpartition('/')[2]}]({path})" for path in made)
        body.append([f"[{name}]({name}.py)", command, time or said(name), expected, links])
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    if missing := sorted(files - {driver.name for driver in every}):
        raise ValueError(f"the table of drivers has no {missing}; add them to pages/drivers.py")
    header = ["driver", "command", "time", "expected", "record"]
    return tables.markdown(tables.Table("Drivers", header, body))


def said(name: str) -> str:
    """The first clause of the runtime in a driver's header."""
    doc = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    found = re.search(r"Runtime: (.*?)(?:; |\. |\.? [A-Z]\w+: |\.?$)", " ".join(doc.split()))
    if found is None:
        raise ValueError(f"experiments/{name}.py has no Runtime in its header")
    return found[1]


def _all() -> list[Driver]:
    plane, digits = record("plane-8gaussians-moons-geodesic"), record("digits-geodesic")
    w2, frechet = plane["w2"]["5"], digits["frechet"]["10"]
    near = f"W2 {w2:.3f} at NFE 5, floor {plane['floor']:.3f}"
    like = f"Fréchet {frechet:.2f} at NFE 10, floor {digits['floor']['frechet']:.2f}"
    run = "--run runs/plane-8gaussians-moons-geodesic --nfe 5"
    again = "runs/plane-8gaussians-moons-geodesic/result.json"
    return [
        Driver("plane", "", _file("plane-8gaussians-moons-geodesic"), _took(plane), near),
        Driver("digits", "", _file("digits-geodesic"), _took(digits), like),
        *_small_generators(),
        Driver("sample", run, expected="one array"),
        Driver("rerun", again, expected="what differs, and an exit status"),
        *_grids(),
        *_predictor(),
        *_images(),
        *_generators(),
        *_classifiers(),
        *_speed(),
        Driver("results_pages", expected="the pages, unchanged"),
    ]


def _file(*names: str, kind: str = "json") -> tuple[str, ...]:
    return tuple(f"results/{name}.{kind}" for name in names)


def _took(found: dict[str, Any]) -> str:
    """Seconds of a run, and of which device."""
    stages = [found, *(one for one in found.get("training", {}).values() if isinstance(one, dict))]
    resumed = any(stage["resumed_from"] is not None for stage in stages)
    after = " after it was resumed" if resumed else ""
    return f"{found['times']['total']:.0f} s{after}, {found['device']['kind']}"


def _small_generators() -> Iterator[Driver]:
    flat, digits = record("generator-8gaussians-moons"), record("generator-digits")
    near = f"W2 {flat['w2']['1']:.3f} at NFE 1, floor {flat['floor']:.3f}"
    yield Driver("generator", "", _file("generator-8gaussians-moons"), _took(flat), near)
    floor = digits["floor"]["frechet"]
    like = f"Fréchet {digits['frechet']['1']:.2f} at NFE 1, floor {floor:.2f}"
    options = "--dataset digits --labels"
    yield Driver("generator", options, _file("generator-digits"), _took(digits), like)


def _grids() -> Iterator[Driver]:
    first = {"table-plane": "NSGF", "table-plane-ablations": "epsilon: 0.005"}
    for name, row in first.items():
        cells = [cell for cell in record(name)["cells"] if cell["device"]["kind"] != "cpu"]
        spent = sum(sum(cell["seconds_of_all_seeds"].values()) for cell in cells)
        values = next(c["w2"]["5"] for c in cells if (c["row"], c["task"]) == (row, "8gaussians"))
        expected = f"8gaussians, {row}: W2 {sum(values) / len(values):.3f} at NFE 5"
        options = "--grid ablations" if name.endswith("ablations") else ""
        made = (*_file(name), *_file(name, kind="md"))
        yield Driver("table_plane", options, made, f"{spent:.0f} s, {_kinds(cells)}", expected)


def _predictor() -> Iterator[Driver]:
    found = record("time-predictor")
    told = ", ".join(f"{name} {row['missed']:.2f}" for name, row in found["rows"].items())
    made = _file("time-predictor")
    yield Driver("predictor", "", made, _took(found), f"time missed by: {told}")


def _images() -> Iterator[Driver]:
    methods = {"nsgfpp": "", "ot-cfm": "--method ot-cfm", "fm": "--method fm"}
    for dataset, method in itertools.product(("mnist", "fashion"), methods):
        names = images.seeds(dataset, method)
        found = record(names[0])
        fd = {row["nfe"]: row["fd"] for row in found["rows"] if row["method"] != "NSGF"}
        options = f"{'--dataset fashion ' if dataset == 'fashion' else ''}{methods[method]}"
        expected = f"FD {fd[10]:.1f} at NFE 10, {fd[60]:.1f} at 60"
        made = _file(*names)
        yield Driver("mnist", options.strip(), made, _took(found), expected)
    stages = record("cifar10-memory-h200")["training"].values()
    peak = max(stage["device_memory_gb"] for stage in stages)
    expected = f"{peak:.1f} GB of device memory"
    made = _file("cifar10-memory-h200")
    yield Driver("cifar10", "--inception-weights FILE", made, expected=expected)
    told = "the path of CIFAR-10 on patches of photographs"
    time = "two minutes on two CPU cores"
    yield Driver("cifar10", "--dataset photographs --smoke", time=time, expected=told)
    for dataset in ("mnist", "fashion"):
        runs = " ".join(f"runs/{dataset}-{method}" for method in methods)
        made = _file(f"table-{dataset}", kind="md")
        yield Driver("table_images", f"--runs {runs}", made, expected="all scores in one table")
    options = "--dataset mnist --seeds 0 1 2"
    yield Driver("grid_images", options, expected="runs of every method and seed, and their table")


def _generators() -> Iterator[Driver]:
    for path in sorted(RESULTS.glob("table-generators-*.json"), reverse=True):
        cells = [cell for cell in record(path.stem)["cells"] if "fd" in cell]
        best = min(cells, key=lambda cell: cell["fd"])
        options = f"--dataset {best['config']['dataset']}"
        time = f"{sum(cell['train_s'] for cell in cells):.0f} s of training, {_kinds(cells)}"
        expected = f"FD {best['fd']:.2f} at NFE 1 (least; {best['group']}: {best['row']})"
        yield Driver("table_generators", options, _file(path.stem), time, expected)
    options = "--generator runs/generator-mnist-regression-second --flow runs/mnist-fm"
    yield Driver("refine", options, expected="scores at 1 evaluation and at 1 + N")


def _classifiers() -> Iterator[Driver]:
    for dataset, kind in itertools.product(("mnist", "fashion"), ("", "-mixer")):
        path = f"classifiers/{dataset}{kind}.json"
        found = read_object(FOLDER / path)
        options = found["command"].partition("experiments.classifier ")[2].removesuffix(" --ship")
        expected = f"test accuracy {found['test_accuracy']:.4f}"
        yield Driver("classifier", options, (path,), expected=expected)
    expected = "scores by both classifiers, and where their rankings disagree"
    yield Driver("rejudge", "--dataset mnist --samples A.npz B.npz", expected=expected)


def _speed() -> Iterator[Driver]:
    scales = {"scale-1000000-2": "", "scale-100000-784": "--num-particles 100000 --dim 784"}
    for name, options in scales.items():
        found = record(name)
        expected = f"a velocity in {found['seconds']:.3g} s"
        yield Driver("scale", options, _file(name), _took(found), expected)
    for name, options in (("bench-cpu", ""), ("bench-h200", "--device gpu")):
        rows = [r for r in record(name)["rows"] if (r["track"], r["peer"]) == ("B", "sinkflow")]
        best = rows[-1]["tolerances"]["0.001"]["seconds"]
        expected = f"{rows[-1]['problem']}: {1e3 * best:.3g} ms to a velocity within 0.001"
        made = (*_file(name), *_file(name, kind="md"))
        yield Driver("bench_sinkhorn", options, made, expected=expected)
    rows = [r for r in record("bench-unet-h200")["rows"] if "seconds" in r]
    ours = max((r for r in rows if r["peer"] == "sinkflow"), key=lambda row: row["batch"])
    expected = f"batch {ours['batch']}: {ours['images_per_second']:.0f} images/s"
    made = (*_file("bench-unet-h200"), *_file("bench-unet-h200", kind="md"))
    yield Driver("bench_unet", "--device gpu", made, expected=expected)
    expected = "rates on one and more devices, and their efficiency"
    yield Driver("bench_devices", "--device gpu --counts 1 2", expected=expected)


def _kinds(found: Any) -> str:
    return ", ".join(sorted(set(_devices(found))))


def records() -> str:
    """Every record with the commits, devices and versions that made it."""
    body = []
    for path in sorted(RESULTS.glob("*.json")):
        found = read_object(path)
        facts = [sorted(set(made(found))) for made in (_commits, _devices, _versions)]
        body.append([f"[{path.stem}]({path.name})", *(", ".join(fact) for fact in facts)])
    header = ["record", "commits", "devices", "jax of the last start"]
    return tables.markdown(tables.Table("Records", header, body))


def _found(value: Any, key: str) -> Iterator[Any]:
    """All values of a key, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "config":  # what was asked for
                continue
            if name == key:
                yield inner
            yield from _found(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _found(inner, key)


def _commits(found: Any) -> Iterator[str]:
    for commit in _found(found, "commit"):
        yield from commit if isinstance(commit, list) else [commit]


def _devices(found: Any) -> Iterator[str]:
    for device in _found(found, "device"):
        yield device["kind"] if isinstance(device, dict) else device


def _versions(found: Any) -> Iterator[str]:
    for versions in _found(found, "versions"):
        if "jax" in versions:
            yield versions["jax"]
    yield from _found(found, "jax")


BLOCKS = {"drivers": drivers, "records": records}
