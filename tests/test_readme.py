"""The README: its Python runs, its files exist, its numbers are those of the committed records."""

import json
import pathlib
import re
import statistics

import numpy as np
import pytest

from experiments import mnist, table_images, tables

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
    pictures = re.findall(r'<img src="([^"]+)"', README)
    assert links and pictures
    links += pictures
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


def test_rows_of_the_synthetic_table_are_the_records():
    record = json.loads((RESULTS / "table-plane.json").read_text())
    cells = {(cell["row"], cell["task"]): cell for cell in record["cells"]}
    tasks = record["config"]["tasks"]
    labels = list(dict.fromkeys(label for label, _ in cells))
    assert len(labels) == 11 and len(cells) == 11 * len(tasks)

    def means(label, name):
        w2 = cells[label, name]["w2"]
        assert all(len(values) == record["config"]["seeds"] for values in w2.values())
        return [statistics.mean(w2[nfe]) if nfe in w2 else None for nfe in ("1", "5", "100")]

    for label in labels:
        texts = [
            " / ".join("n/a" if value is None else f"{value:.3f}" for value in means(label, name))
            for name in tasks
        ]
        assert row(label, texts) in README, label
    for name, key in (("*floor*", "floor"), ("*stratified floor*", "stratified_floor")):
        values = [statistics.mean(cells[labels[0], task][key]) for task in tasks]
        assert row(name, [f"{value:.3f}" for value in values]) in README, name


def test_the_synthetic_table_holds_what_the_readme_claims():
    record = json.loads((RESULTS / "table-plane.json").read_text())
    cells = {(cell["row"], cell["task"]): cell for cell in record["cells"]}
    w2 = {
        key: {nfe: np.asarray(values) for nfe, values in cell["w2"].items()}
        for key, cell in cells.items()
    }
    gains = []
    for name in record["config"]["tasks"]:
        ours, rival = w2["NSGF", name], w2["OT-CFM n=256", name]
        gains.append(1 - ours["1"].mean() / rival["1"].mean())
        behind = ours["5"] - rival["100"]
        assert (behind.mean() > 0) == (name == "8gaussians"), name
        assert (behind.mean() < -behind.std()) == (name in ("checkerboard", "moons")), name
        if "moons" in name:
            floor = np.mean(cells["NSGF", name]["stratified_floor"])
            assert ours["1"].mean() < 1.05 * floor
        if name == "8gaussians":
            assert f"{behind.mean():.4f} ± {behind.std():.4f} higher" in README
    assert f"{100 * min(gains):.0f} to {100 * max(gains):.0f}% below" in README
    on_gpu = [cell for cell in cells.values() if cell["device"]["kind"] == "NVIDIA H200"]
    seconds = [sum(cell["seconds_of_all_seeds"].values()) for cell in on_gpu]
    text = re.sub(r"\s+", " ", README)
    assert f"{sum(seconds):.0f} s summed over {len(on_gpu)} of the {len(cells)} groups" in text
    assert f"none over {np.ceil(max(seconds)):.0f}." in text
    alone = json.loads((RESULTS / "table-plane-cpu.json").read_text())
    assert f"takes {alone['times']['total']:.0f} s from start" in text


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_classifiers_are_as_good_as_the_records_say(dataset):
    record = json.loads((ROOT / "experiments" / "classifiers" / f"{dataset}.json").read_text())
    assert f"{record['test_accuracy']:.4f}" in README
    assert record["num_test"] == 10_000
    assert re.fullmatch(r"[0-9a-f]{12}", record["commit"])


def bench(name):
    record = json.loads((RESULTS / name).read_text())
    assert re.fullmatch(r"[0-9a-f]{12}", record["commit"])
    return {
        (row["track"], row["problem"], row["peer"], row["label"]): row for row in record["rows"]
    }


@pytest.mark.parametrize("name", ["bench-cpu.json", "bench-h200.json"])
def test_velocity_times_are_the_records(name):
    rows = bench(name)
    problems = {problem for track, problem, *_ in rows if track == "B"}
    assert len(problems) >= 4
    for problem in problems:
        cells = problem.split("-")
        for peer in ("sinkflow", "ott", "geomloss"):
            measured = rows["B", problem, peer, ""]
            best = measured["tolerances"].get("0.001")
            text = f"{1e3 * best['seconds']:.3g} ms" if best else None
            cells.append(text or f"not reached, {measured['best_error']:.1e}")
        assert row(cells[0], cells[1:]) in README, problem


def test_pass_times_are_the_records():
    rows = bench("bench-h200-passes.json")
    columns = [("sinkflow", "annealed"), ("sinkflow", "annealed, stored in float16")]
    columns += [("ott", "plain"), ("geomloss", "averaged"), ("flash", "symmetric, TF32")]
    for problem in {problem for track, problem, *_ in rows if track == "A"}:
        cells = []
        for column in columns:
            measured = rows["A", problem, *column]
            slow = "too slow to time" if "too long" in measured.get("not_run", "") else "not run"
            time = measured.get("seconds_per_pass")
            cells.append(f"{1e6 * time:.4g}" if time else slow)
        n, d = problem.split("-")
        name = f"{n.replace('x', ' clouds of ')}, {d}"
        assert row(name, cells) in README, problem


def test_pool_times_are_the_records():
    rows = bench("bench-h200.json")
    columns = [("sinkflow", "all clouds"), ("geomloss", "one cloud at a time")]
    columns += [("geomloss", "all clouds in one call")]
    for problem in {problem for track, problem, *_ in rows if track == "C"}:
        cells = []
        for column in columns:
            measured = rows["C", problem, *column]
            errors = ", ".join(f"{error:.1e}" for error in measured["errors"])
            cells.append(f"{measured['seconds']:.3g} s ({errors})")
        assert " | ".join(cells) in README, problem


PEERS = ("sinkflow", "torchcfm")


def test_rates_of_the_unet_are_the_records():
    rows = json.loads((RESULTS / "bench-unet-h200.json").read_text())["rows"]
    measured = {(r["peer"], r["batch"]): r for r in rows if "images_per_second" in r}
    assert len(measured) == 4
    for (peer, batch), found in measured.items():
        sampled = found.get("sampled_per_second")
        cells = [peer, f"{1e3 * found['seconds']:.2f}", f"{found['images_per_second']:.0f}"]
        cells += [
            f"{100 * found['fraction_of_peak']:.1f}%",
            f"{found['peak_bytes'] / 2**30:.2f} GiB",
        ]
        assert row(batch, [*cells, f"{sampled:.0f}" if sampled else "not run"]) in README
    ours, theirs = ({batch: measured[peer, batch] for batch in (128, 512)} for peer in PEERS)
    rate = lambda batch, name: ours[batch][name] / theirs[batch][name]
    text = re.sub(r"\s+", " ", README)
    assert f"is {rate(512, 'images_per_second'):.1f} times torchcfm's rate of training" in text
    assert f"and {rate(512, 'sampled_per_second'):.1f} times that of sampling" in text
    assert f"on the host) it is {rate(128, 'images_per_second'):.1f} times" in text
    assert len({row["commit"] for row in (ours[128], theirs[128])}) == 1
    assert f"{theirs[128]['host_cores']} cores" in text
    assert f"less than the {theirs[128]['compile_seconds']:.0f} s that" in text
    low, high = (1e3 * seconds for seconds in theirs[128]["fastest_slowest"])
    assert f"from {low:.0f} to {high:.0f} ms" in text
    assert theirs[512]["seconds"] < 2 * theirs[128]["seconds"]
    quarter = theirs[512]["seconds"] / 4
    times = quarter / ours[128]["seconds"]
    assert f"would be {1e3 * quarter:.0f} ms, {times:.1f} times ours" in text


METHODS = {"NSGF++": "nsgfpp", "NSGF": "nsgfpp", "OT-CFM": "ot-cfm", "FM": "fm"}


def image_results(dataset):
    """Records of the three runs on a data set."""
    paths = [RESULTS / f"images-{dataset}-{method}.json" for method in ("nsgfpp", "ot-cfm", "fm")]
    return [table_images.read(path) for path in paths]


def distances(results):
    """FD by method and number of evaluations."""
    return {(row["method"], row["nfe"]): row["fd"] for result in results for row in result["rows"]}


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_image_tables_are_the_records(dataset):
    results = image_results(dataset)
    table_images.check_comparable(["nsgf++", "ot-cfm", "fm"], results)
    made = [table_images.make_table(results), table_images.training_table(results)]
    text = "\n".join(map(tables.markdown, made))
    assert (RESULTS / f"table-{dataset}.md").read_text() == text
    fd = distances(results)
    for label, name in METHODS.items():
        link = f"[{label}](experiments/results/images-{dataset}-{name}.json)"
        shown = "its Sinkhorn velocity alone (NSGF)" if label == "NSGF" else link
        cells = [
            f"{fd[label, nfe]:.3g}" if (label, nfe) in fd else "n/a"
            for nfe in (1, 2, 5, 10, 20, 60, 100)
        ]
        title = {"mnist": "MNIST", "fashion": "Fashion"}[dataset]
        assert row(f"{title}, {shown}", cells) in README, label
    assert f"{results[0]['references']['floor']['fd']:.2f} on" in README


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_image_records_hold_what_the_readme_claims(dataset):
    results = image_results(dataset)
    for result in results:
        assert re.fullmatch(r"[0-9a-f]{12}", result["commit"])
        assert result["num_samples"] == 10_000 and not result["config"]["smoke"]
        assert all(pool["unconverged"] == 0 for pool in result["pools"])
    fd = distances(results)
    rivals = ("OT-CFM", "FM")
    assert fd["NSGF++", 20] < min(fd[rival, 100] for rival in rivals)
    shown = " and ".join(f"{fd['NSGF++', nfe]:.1f}" for nfe in (10, 60))
    theirs = " and ".join(f"{fd['OT-CFM', nfe]:.1f}" for nfe in (10, 60))
    assert f"MNIST, NSGF++ {shown}, OT-CFM {theirs}" in mnist.__doc__
    for nfe in (5, 10):
        assert fd["NSGF++", nfe] < min(fd[rival, nfe] for rival in rivals)
    assert len(results[0]["pools"]) == 12
    training = results[0]["training"]
    assert all(record["resumed_from"] is None for record in training.values())
    spent = {stage: record["seconds"] for stage, record in training.items()}
    parts = [spent[stage][f"train {stage}"] for stage in spent] + [spent["velocity"]["pool"]]
    text = re.sub(r"\s+", " ", README)
    assert f"{sum(parts):.0f} s on {'MNIST' if dataset == 'mnist' else 'Fashion-MNIST'}" in text
    assert f"{max(record['device_memory_gb'] for record in training.values()):.1f} GB" in text
    velocity, straight, predictor, *pools = re.search(
        r"velocity (\d+), straight flow (\d+), predictor ([\d.]+), pools (\d+) and (\d+)\)", text
    ).groups()
    shown = {"velocity": velocity, "straight": straight, "predictor": predictor}
    for stage, figure in shown.items():
        digits = 1 if stage == "predictor" else 0
        assert figure == f"{spent[stage][f'train {stage}']:.{digits}f}", stage
    assert pools[dataset == "fashion"] == f"{spent['velocity']['pool']:.0f}"
    compilation = f"{sum(seconds['compile'] for seconds in spent.values()):.0f}"
    compiled = re.search(r"compilation (\d+) and (\d+) s more", text).groups()
    assert compilation == compiled[dataset == "fashion"]


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_other_scores_of_images_are_the_records(dataset):
    results = image_results(dataset)
    rows = {(row["method"], row["nfe"]): row for result in results for row in result["rows"]}
    title = {"mnist": "MNIST", "fashion": "Fashion"}[dataset]
    shown = {name: rows[name, 60] for name in ("NSGF++", "OT-CFM")}
    shown["*real*"] = results[0]["references"]["floor"]
    columns = ("precision", "recall", "coverage", "class_tv")
    for name, scores in shown.items():
        cells = [*(f"{scores[column]:.3f}" for column in columns), f"{scores['nearest']:.2f}"]
        assert row(f"{title}, {name}", cells) in README, name
    traps = [results[0]["references"][name]["fd"] for name in ("gaussian", "shuffled")]
    text = re.sub(r"\s+", " ", README)
    (found,) = re.findall(
        r"fitted to the images (\d+) and (\d+), shuffled pixels (\d+) and (\d+)", text
    )
    assert [f"{trap:.0f}" for trap in traps] == list(found[dataset == "fashion" :: 2])
    assert results[0]["dropped"] == ["precision"]


def test_stored_and_refreshed_pools_are_the_records():
    stored, refreshed = (
        table_images.read(RESULTS / f"images-cpu-{name}.json") for name in ("stored", "refreshed")
    )
    assert [len(record["pools"]) for record in (stored, refreshed)] == [1, 10]
    settings = [
        {name: value for name, value in record["config"].items() if name != "refresh_every"}
        for record in (stored, refreshed)
    ]
    assert settings[0] == settings[1]
    velocities, both = (
        [distances([record])[label, 10] for record in (stored, refreshed)]
        for label in ("NSGF", "NSGF++")
    )
    text = re.sub(r"\s+", " ", README)
    assert f"is {velocities[0]:.1f} with one pool and {velocities[1]:.1f} with ten" in text
    assert f"NSGF++'s {both[0]:.1f} and {both[1]:.1f};" in text
    spent = [record["training"]["velocity"]["seconds"] for record in (stored, refreshed)]
    pools, training = ([took[name] for took in spent] for name in ("pool", "train velocity"))
    assert f"took {pools[0]:.0f} and {pools[1]:.0f} s beside" in text
    assert f"beside {training[0]:,.0f} and {training[1]:,.0f} s of training" in text
    for name in ("stored", "refreshed"):
        path = RESULTS / f"images-cpu-{name}-velocity.jsonl"
        last = json.loads(path.read_text().splitlines()[-1])
        assert last["step"] == stored["config"]["velocity_steps"]
        assert f"[{last['loss']:.3f}]({path.relative_to(ROOT)})" in README
    config = stored["config"]
    rows = config["num_clouds"] * config["num_particles"] * config["flow_steps"]
    assert round(config["velocity_steps"] * config["batch_size"] / rows) == 5
    large = image_results("mnist")[0]
    took = large["training"]["velocity"]["seconds"]
    whole = took["pool"] + took["train velocity"]
    assert f"costs {took['pool']:.0f} of the velocity's {whole:.0f} s" in text


def test_samples_take_as_long_as_the_records_say():
    rows = {(r["method"], r["nfe"]): r for found in image_results("mnist") for r in found["rows"]}
    seconds = [rows[method, 10]["seconds_per_10k"] for method in ("NSGF++", "OT-CFM")]
    text = re.sub(r"\s+", " ", README)
    assert f"with 10 evaluations take {seconds[0]:.1f} s (the rivals' {seconds[1]:.2f})" in text


def test_the_memory_of_cifar10_is_the_record():
    record = json.loads((RESULTS / "cifar10-memory-h200.json").read_text())
    config, training = record["config"], record["training"]
    assert config["batch_size"] == 128 and config["channels"] == 128
    steps = [config[f"{stage}_steps"] for stage in training]
    peak = max(stage["device_memory_gb"] for stage in training.values())
    text = re.sub(r"\s+", " ", README)
    assert f"CIFAR-10 (batch 128) takes {peak:.1f} GB, measured over {sum(steps)} steps" in text
    announced = float(re.findall(r"[0-9.]+", record["memory_ahead"])[0])
    assert f"at most {announced:.1f} GB and a" in text and peak < announced


@pytest.mark.parametrize("name", ["1000000-2", "100000-784"])
def test_large_clouds_are_the_records(name):
    record = json.loads((RESULTS / f"scale-{name}.json").read_text())
    solves = [record["cloud to target"], record["cloud to itself"]]
    assert all(solve["converged"] and solve["marginal_error"] < 1e-3 for solve in solves)
    seconds = record["seconds"]
    text = re.sub(r"\s+", " ", README)
    assert f"{seconds:.0f} s (ε" in text or f"{seconds:.1f} s (0.005" in text
    iterations = " + ".join(str(solve["num_iterations"]) for solve in solves)
    assert f"{iterations} iterations, {record['peak_bytes'] / 1e9:.2g} GB" in text


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
