"""The README: its Python runs, its files exist, its numbers are those of the committed records."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments" / "results"
NFE = ["1", "2", "5", "10", "100"]


def row(name, values):
    return f"| {name} | " + " | ".join(values) + " |"


def test_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert bool(names["info"].converged.all())
    assert names["state"].x.shape == (1024, 2)


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("path", sorted(RESULTS.glob("plane-*.json")), ids=lambda path: path.stem)
def test_plane_row_is_the_records(path):
    record = json.loads(path.read_text())
    name = f"{record['config']['task']}, {record['config']['time']}"
    numbers = [record["floor"], record["stratified_floor"], *(record["w2"][nfe] for nfe in NFE)]
    assert row(f"[{name}]({path.relative_to(ROOT)})", [f"{x:.3f}" for x in numbers]) in README


def test_digits_rows_are_the_records():
    record = json.loads((RESULTS / "digits-geodesic.json").read_text())
    columns = list(record["floor"])
    rows = {f"NFE {nfe}": {name: record[name][nfe] for name in columns} for nfe in NFE}
    rows |= {"*real*": record["floor"]} | {f"*{k}*": v for k, v in record["traps"].items()}
    for name, values in rows.items():
        assert row(name, [f"{values[column]:.3f}" for column in columns]) in README, name


def test_speed_rows_are_the_records():
    record = json.loads((RESULTS / "bench-cpu.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{12}", record["commit"])
    found = {(row["problem"], row["peer"]): row for row in record["rows"] if row["track"] == "B"}
    for problem in {problem for problem, _ in found}:
        cells = problem.split("-")[1:]
        for peer in ("sinkflow", "ott", "geomloss"):
            measured = found[problem, peer]
            best = measured["tolerances"].get("0.001")
            text = f"{1e3 * best['seconds']:.3g} ms" if best else None
            cells.append(text or f"not reached, {measured['best_error']:.1e}")
        assert row(problem.split("-")[0], cells) in README, problem


def test_records_are_of_clean_checkouts_and_meet_what_the_readme_claims():
    for path in RESULTS.glob("[dp]*.json"):
        record = json.loads(path.read_text())
        assert re.fullmatch(r"[0-9a-f]{12}", record["commit"]), path.name
        assert record["pool"]["unconverged"] == 0
        # Times of a resumed run would be too short.
        assert record["resumed_from"] is None
        assert not record.get("pool_restored", False)
    default = json.loads((RESULTS / "plane-8gaussians-moons-geodesic.json").read_text())
    assert default["times"]["total"] < 120
    assert all(default["w2"][nfe] < 1.5 * default["floor"] for nfe in ("5", "10", "100"))
    assert default["w2"]["1"] < 1.9 * default["floor"]
    digits = json.loads((RESULTS / "digits-geodesic.json").read_text())
    assert digits["times"]["total"] < 240
    assert min(digits["class_shares"]["100"]) > 0.02
