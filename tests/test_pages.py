"""The pages of results are what the records say, and what their prose claims is so."""

import json
import re
import shutil

import numpy as np
import pytest

from experiments import mnist, results_pages
from experiments.pages import blocks, images, speed
from experiments.pages.blocks import RESULTS, ROOT, record

PAGES = results_pages.pages()
COMMIT = r"[0-9a-f]{7,12}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_what_the_records_say(path):
    """If not: python -m experiments.results_pages."""
    assert path.read_text() == PAGES[path]


def test_every_block_stands_on_a_page():
    written = {name for path in PAGES for name in re.findall("<!-- begin (.*) -->", PAGES[path])}
    assert written == results_pages.BLOCKS.keys()


def test_a_block_is_replaced_and_the_rest_stays():
    page = "a\n<!-- begin one -->\nold\n<!-- end one -->\nb\n"
    assert blocks.filled(page, {"one": lambda: "new\n"}) == page.replace("old", "new")


@pytest.mark.parametrize(
    "page",
    [
        "<!-- begin one -->\nnever ends\n",
        "<!-- begin one -->\n<!-- begin two -->\n<!-- end two -->\n<!-- end one -->\n",
        "<!-- begin other -->\n<!-- end other -->\n",
    ],
)
def test_a_block_that_nobody_can_write_is_an_error(page):
    with pytest.raises(ValueError, match="block"):
        blocks.filled(page, {"one": str, "two": str})


def test_a_changed_record_changes_the_page(monkeypatch):
    """The comparison can fail."""
    real = record("digits-geodesic")
    changed = json.loads(json.dumps(real).replace(str(real["w2"]["5"]), "9.875"))
    monkeypatch.setattr("experiments.pages.plane.record", lambda name: changed)
    text = results_pages.BLOCKS["digits"]()
    assert "9.875" in text and text not in PAGES[RESULTS / "plane.md"]


def test_every_record_is_of_a_commit():
    for path in RESULTS.glob("*.json"):
        text = path.read_text()
        commits = re.findall(r'"commit": \[?\s*"([^"]*)"', text)
        assert commits and all(re.fullmatch(COMMIT, commit) for commit in commits), path.name


@pytest.mark.parametrize("path", sorted(RESULTS.glob("[dp]*.json")), ids=lambda path: path.stem)
def test_single_runs_are_whole_and_their_pools_converged(path):
    found = record(path.stem)
    assert found["pool"]["unconverged"] == 0
    # Times of a resumed run would be too short.
    assert found["resumed_from"] is None
    assert not found.get("pool_restored", False)


def test_the_first_command_takes_less_than_two_minutes_and_comes_near_the_floor():
    default = record("plane-8gaussians-moons-geodesic")
    assert default["times"]["total"] < 120
    assert all(default["w2"][nfe] < 1.5 * default["floor"] for nfe in ("5", "10", "100"))
    assert default["w2"]["1"] < 1.9 * default["floor"]
    digits = record("digits-geodesic")
    assert digits["times"]["total"] < 240
    assert min(digits["class_shares"]["100"]) > 0.02
    trap = digits["traps"]["gaussian"]["frechet"]
    assert digits["frechet"]["2"] > trap > digits["frechet"]["5"]


def plane_cells():
    return {(cell["row"], cell["task"]): cell for cell in record("table-plane")["cells"]}


def test_the_grid_of_the_plane_is_whole():
    cells, config = plane_cells(), record("table-plane")["config"]
    assert {task for _, task in cells} == set(config["tasks"])
    assert len(cells) == len({row for row, _ in cells}) * len(config["tasks"])
    for cell in cells.values():
        assert all(len(values) == config["seeds"] for values in cell["w2"].values())


def test_the_plane_holds_what_its_page_claims():
    cells = plane_cells()
    for name in record("table-plane")["config"]["tasks"]:
        w2 = {
            row: {nfe: np.array(values) for nfe, values in cells[row, name]["w2"].items()}
            for row in ("NSGF", "OT-CFM n=256", "OT-CFM n=cloud", "NSGF flow time")
        }
        ours, rival, large = w2["NSGF"], w2["OT-CFM n=256"], w2["OT-CFM n=cloud"]
        assert ours["1"].mean() < rival["1"].mean()
        behind = ours["5"] - rival["100"]
        assert (behind.mean() > 0) == (name == "8gaussians"), name
        assert (behind.mean() < -behind.std()) == (name in ("checkerboard", "moons")), name
        assert behind.mean() < behind.std(), name
        assert abs(behind.mean()) < ours["5"].std() + rival["100"].std(), name
        # Nearly all of the gain at one evaluation is that of larger clouds.
        gain = rival["1"].mean() - ours["1"].mean()
        assert abs(large["1"].mean() - ours["1"].mean()) < 0.1 * gain, name
        for nfe in ours:
            ahead = ours[nfe].mean() - large[nfe].mean()
            within = abs(ahead) < large[nfe].std() + ours[nfe].std()
            assert within != ((name, nfe) == ("scurve", "2")), (name, nfe)
            assert within or ahead > 0, (name, nfe)
        if "moons" in name:
            assert ours["1"].mean() < 1.05 * np.mean(cells["NSGF", name]["stratified_floor"])
        flow = {nfe: values.mean() for nfe, values in w2["NSGF flow time"].items()}
        assert min(flow, key=flow.get) == "10"
        seconds = [
            cells[row, name]["seconds_of_all_seeds"]["pool"] for row in ("NSGF", "OT-CFM n=cloud")
        ]
        assert seconds[0] < seconds[1]


def test_position_tells_as_little_of_time_in_the_plane_as_its_page_claims():
    found = record("time-predictor")
    rows, constant = found["rows"], found["constant"]
    assert not found["config"]["smoke"] and found["times"]["total"] < 120
    eight, moons = rows["8gaussians"], rows["8gaussians-moons"]
    assert eight["least"] <= eight["missed"] < 1.05 * eight["least"]  # as good as any
    assert 0.4 * constant < eight["missed"] < 0.5 * constant < moons["missed"]
    assert 2 * rows["8x8 digits"]["missed"] < eight["missed"]
    on_mnist = record("images-mnist-nsgfpp")["predicted_time"]["std"]
    assert on_mnist < rows["8x8 digits"]["half_std"] < 0.5 * eight["half_std"]


@pytest.mark.parametrize("dataset", images.DATASETS)
def test_images_hold_what_their_page_claims(dataset):
    results = images.results(dataset)
    for result in results:
        assert result["num_samples"] == 10_000 and not result["config"]["smoke"]
        assert all(pool["unconverged"] == 0 for pool in result["pools"])
    rows = images.rows(dataset)
    fd = {key: row["fd"] for key, row in rows.items()}
    assert fd["NSGF++", 20] < min(fd[rival, 100] for rival in ("OT-CFM", "FM"))
    floor, ours, rival = images.references(dataset)["floor"], rows["NSGF++", 60], rows["OT-CFM", 60]
    for score in ("precision", "coverage"):
        assert ours[score] < rival[score] < floor[score]
    assert ours["recall"] > floor["recall"]
    assert results[0]["dropped"] == ["precision"]
    assert all(stage["resumed_from"] is None for stage in results[0]["training"].values())
    shown = " and ".join(f"{fd['NSGF++', nfe]:.1f}" for nfe in (10, 60))
    theirs = " and ".join(f"{fd['OT-CFM', nfe]:.1f}" for nfe in (10, 60))
    assert f"MNIST, NSGF++ {shown}, OT-CFM {theirs}" in mnist.__doc__


@pytest.fixture
def more_seeds(monkeypatch, tmp_path):
    """Beside the records of images: a second seed of FM, half as far, and FM of two networks."""
    for path in RESULTS.glob("*.json*"):
        shutil.copy(path, tmp_path)
    second, two = (record("images-mnist-fm") for _ in range(2))
    second["config"]["seed"], two["config"]["split"] = 1, 0.5
    for row in second["rows"]:
        row["fd"] /= 2
    for row in two["rows"]:
        row["method"] = "FM, two networks"
    for name, found in (("fm-1", second), ("fm-two-networks-0", two)):
        (tmp_path / f"images-mnist-{name}.json").write_text(json.dumps(found))
    monkeypatch.setattr(blocks, "RESULTS", tmp_path)
    monkeypatch.setattr(images, "RESULTS", tmp_path)


def test_new_seeds_and_methods_of_images_appear_on_the_pages(more_seeds):
    (fd,) = (row["fd"] for row in record("images-mnist-fm")["rows"] if row["nfe"] == 60)
    assert images.seeds("mnist", "fm") == ["images-mnist-fm", "images-mnist-fm-1"]
    text = images.distance()
    assert f"{0.75 * fd:.3g} ± {0.25 * fd:.2g}" in text
    assert "10,000 samples, mean ± standard deviation of 1, 2 seeds, NVIDIA H200" in text
    assert "[FM, two networks](images-mnist-fm-two-networks-0.json)" in text
    assert images.rows("mnist")["FM", 60]["fd"] == pytest.approx(0.75 * fd)
    settings = images.settings()
    assert "| mnist, FM, two networks | first 10,000, second 10,000 |" in settings
    assert settings.count("mnist, FM |") == 1
    assert "mnist, FM, two networks" in images.scores()
    table, training = images.whole("mnist")
    assert [row[2] for row in table.rows if row[:2] == ["FM", "60"]] == ["2"]
    names = [row[0] for row in training.rows]
    assert names[-3:] == ["FM, seed 0", "FM, seed 1", "FM, two networks, seed 0"]
    for name in ("generators-beside", "generators-speed"):
        assert "FM, two networks" in results_pages.BLOCKS[name]()


def test_stored_and_refreshed_pools_differ_in_nothing_else():
    stored, refreshed = (record(f"images-cpu-{name}") for name in ("stored", "refreshed"))
    assert len(stored["pools"]) == 1 < len(refreshed["pools"])
    first, second = ({**run["config"], "refresh_every": 0} for run in (stored, refreshed))
    assert first == second
    rows = first["num_clouds"] * first["num_particles"] * first["flow_steps"]
    assert round(first["velocity_steps"] * first["batch_size"] / rows) == 5
    for name in ("stored", "refreshed"):
        log = (RESULTS / f"images-cpu-{name}-velocity.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["step"] == first["velocity_steps"]


def test_memory_stays_below_what_was_announced():
    found = record("cifar10-memory-h200")
    announced = float(re.findall(r"[0-9.]+", found["memory_ahead"])[0])
    assert max(stage["device_memory_gb"] for stage in found["training"].values()) < announced


def test_generators_hold_what_their_page_claims():
    cells = [c for c in record("table-generators-mnist")["cells"] if c["group"] == "objective"]
    found = {cell["row"]: cell for cell in cells if "fd" in cell}
    second = {row: c for row, c in found.items() if ", second" in row}
    contracted = [c for row, c in found.items() if row.startswith(("entropic", "tutorial"))]
    contracted += [c for row, c in found.items() if row.startswith("divergence, same")]
    divergence = [c for row, c in second.items() if row.startswith("divergence")]
    assert max(c["variance_ratio"] for c in contracted) < 0.7
    assert min(c["variance_ratio"] for c in divergence) > 0.9
    assert max(c["fd"] for c in divergence) < 0.2 * min(c["fd"] for c in contracted)
    cheap = found["divergence, second, envelope"]
    assert cheap["loss_ms"] == min(c["loss_ms"] for c in divergence)
    assert cheap["fd"] <= 1.1 * min(c["fd"] for c in divergence)
    for search in record("generator-search-h100")["searches"][:2]:
        rows = {row["name"]: row["fd"] for row in search["rows"]}
        assert rows["second"] < min(fd for name, fd in rows.items() if name.startswith("queue"))


def test_one_evaluation_holds_what_its_page_claims():
    (best,) = record("generator-mnist-long")["rows"]
    fields = {name: row for name, row in images.rows("mnist").items() if name[1] == 60}
    assert best["nfe"] == 1 and len(fields) == 4
    assert best["fd"] < min(row["fd"] for row in fields.values())
    assert best["coverage"] > max(row["coverage"] for row in fields.values())
    assert best["recall"] < min(row["recall"] for row in fields.values())
    assert record("generator-mnist")["rows"][0]["fd"] == pytest.approx(3.78, abs=0.005)


def test_refinement_holds_what_its_page_claims():
    rows = {(row["method"], row["nfe"]): row["fd"] for row in record("refine-mnist")["rows"]}
    assert rows["from 0.5", 3] < rows["generator", 1] < rows["from 0.5", 2]
    assert rows["from 0.5", 3] < min(rows["from 0.5", 5], rows["from 0.5", 10])
    fields = {
        nfe: row["fd"] for (name, nfe), row in images.rows("mnist").items() if name == "NSGF++"
    }
    for count in (5, 10):
        assert min(fd for (_, nfe), fd in rows.items() if nfe == count) < fields[count]
    assert fields[60] < min(rows.values()) < fields[20]


def test_benchmarks_hold_what_their_page_claims():
    for name in ("bench-cpu", "bench-h200"):
        rows = {(r["problem"], r["peer"]): r for r in record(name)["rows"] if r["track"] == "B"}
        problems = {problem for problem, _ in rows}
        assert len(problems) >= 4
        for problem in problems:
            best = [rows[problem, peer]["tolerances"] for peer in ("sinkflow", "ott", "geomloss")]
            assert best[0]["0.001"]["seconds"] < best[1]["0.001"]["seconds"]
            assert "0.001" not in best[2]
            if name == "bench-h200" and problem.startswith("8192"):
                assert "float16" in best[0]["0.001"]["label"]
    for name in ("scale-1000000-2", "scale-100000-784"):
        solves = [record(name)[which] for which in ("cloud to target", "cloud to itself")]
        assert all(solve["converged"] and solve["marginal_error"] < 1e-3 for solve in solves)


def test_the_plan_of_ten_million_points_follows_from_its_record():
    """Passes as tests/ot/test_sharded.py counts them; the rate, and what it makes of more pairs."""
    found, text = record("scale-1000000-2"), (ROOT / "docs/guide/devices.md").read_text()
    between, itself = (
        found[f"cloud to {which}"]["num_iterations"] for which in ("target", "itself")
    )
    passes = [2 * between + 3, itself + 4]
    assert f"{between} and {itself} iterations: {passes[0]} + {passes[1]} = {sum(passes)}" in text
    rate = sum(passes) * found["config"]["num_particles"] ** 2 / found["seconds"]
    assert f"{found['seconds']:.1f} s" in text and f"{rate / 1e11:.1f}·10¹¹ exponentials" in text
    a_pass = 1e14 / 8 / rate
    assert f"takes {a_pass:.0f} s" in text and f"{sum(passes) * a_pass / 60:.0f} minutes" in text
    assert 2.4 < 8 * sum(passes) * a_pass / 3600 < 2.6


def test_the_unet_holds_what_its_page_claims():
    rows = record("bench-unet-h200")["rows"]
    steps = {(r["peer"], r["batch"]): r for r in rows if "seconds" in r}
    assert len(steps) == 4
    for batch in (128, 512):
        ours, theirs = (steps[peer, batch] for peer in ("sinkflow", "torchcfm"))
        assert ours["commit"] == theirs["commit"] and ours["seconds"] < theirs["seconds"]
    small, large = (steps["torchcfm", batch] for batch in (128, 512))
    assert large["seconds"] < 2 * small["seconds"]
    low, high = small["fastest_slowest"]
    assert high > 1.1 * low
    missing = {r["setting"] for r in rows if r["peer"] == "torchcfm" and "not_run" in r}
    assert missing == {"reduce-overhead", "max-autotune"}


def test_benchmark_pages_are_those_that_the_drivers_write():
    assert {f"{name}.md" for name in speed.WHOLE} <= {path.name for path in PAGES}
