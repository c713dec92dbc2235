"""How fast Sinkhorn solves are: sinkflow against OTT, GeomLoss, FlashSinkhorn and POT.

Command:  python -m experiments.bench_sinkhorn                  (on the CPU)
          python -m experiments.bench_sinkhorn --device gpu     (peers: pip install -e '.[bench]')
Runtime:  about six minutes on two CPU cores, ten on an H200 with --time-limit 4. --time-limit
          bounds the repeated calls of a row, --budget the whole.
Expected: bench.json with a row for each peer and problem, its tables in bench.md, and the times
          of track B in bench.png; a peer that is missing or fails has its reason for a row.
Source:   arXiv:2401.14069 for the flows of track C; the peers are cited in experiments/peers.py.

Track A: microseconds per pass (one n x m softmin) at a fixed epsilon and number of passes.
Track B: time to a velocity within a tolerance of a float64 reference, each peer at its best knob.
Track C: a whole trajectory pool; peers are timed at states of the flow and multiplied up.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from experiments import bench_worker, common, processes, tables
from experiments.bench_worker import REFERENCE
from sinkflow import plotting

PEERS = ("sinkflow", "ott", "geomloss", "flash", "flash-tuned", "pot")
DEFAULT_PEERS = {"gpu": PEERS[:-1], "cpu": ("sinkflow", "ott", "geomloss", "pot")}
ALL = "all"  # the problem of a peer that could not start
LEAST_PASSES = 12  # GeomLoss makes eight beside those it is asked for
SETS = 3  # input sets of each problem
# (clouds, n, d) of track A; the sizes and the dimensions of track B. From small to large, because
# JAX's peak of memory is that of its process.
FIXED = {
    "gpu": [
        (1, 1024, 784),
        (256, 256, 784),
        (1, 8192, 2),
        (1, 8192, 64),
        (1, 8192, 784),
        (1, 32768, 784),
    ],
    "cpu": [(1, 1024, 2), (1, 1024, 784), (16, 256, 784)],
}
GRID = {"gpu": ((256, 1024, 8192), (2, 64, 784)), "cpu": ((256, 1024), (2, 784))}
# d, steps, step size, blur, GeomLoss's scaling: images and the plane as the first author ran them
POOLS = [(784, 5, 0.2, 1.0, 0.85), (2, 100, 0.02, 0.05, 0.95)]
POOL_CLOUDS = {"gpu": 256, "cpu": 4}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and for how long."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where the workers run; it also decides the sizes."""
    track: tuple[Literal["A", "B", "C"], ...] = ("A", "B", "C")
    """Tracks to measure; rows of others that the output folder has are kept."""
    peers: tuple[str, ...] = ()
    """Of sinkflow, ott, geomloss, flash (FlashSinkhorn with its default tiles), flash-tuned (with
    its search for tiles) and pot, in the order to run them, sinkflow first; by default all that run
    on the device, POT on a CPU only."""
    time_limit: float = 10.0
    """Seconds of repeated calls for each row; compilation comes on top."""
    budget: float = 0.0
    """Seconds after which no row is begun; 0: no end."""
    shapes: tuple[tuple[int, int, int], ...] = ()
    """Clouds, n and d of track A's problems; by default those of the device."""
    sizes: tuple[int, ...] = ()
    """Points of each cloud in track B, likewise."""
    dims: tuple[int, ...] = ()
    """Dimensions of track B, likewise; in track C they choose among 784 and 2."""
    passes: int = 100
    """Passes of track A."""
    ratio: float = 0.005
    """Epsilon of track B over the mean cost."""
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """Relative errors of the velocity in track B."""
    pool_clouds: int = 0
    """Clouds of track C; 0: 256 on a GPU, 4 on a CPU."""
    pool_particles: int = 256
    """Particles of each of them."""
    pool_steps: int = 0
    """Steps of its flows; 0: as the first author ran them."""
    seed: int = 0
    """Everything random follows from it."""
    out: str = "runs/bench-sinkhorn"
    """Output folder."""
    smoke: bool = False
    """Shrink the run to seconds; its numbers then mean nothing."""

    SMOKE: ClassVar[dict] = {
        "peers": ("sinkflow", "ott"),
        "time_limit": 0.2,
        "shapes": ((1, 64, 2),),
        "sizes": (64,),
        "dims": (2,),
        "passes": 40,
        "tolerances": (1e-2, 1e-3),
        "pool_clouds": 2,
        "pool_particles": 64,
        "pool_steps": 3,
        "out": "runs/bench-sinkhorn-smoke",
    }


def main(config: Config) -> dict:
    """Measures what is selected; from the record alone makes the tables and the picture."""
    unknown = set(config.peers) - set(PEERS)
    if unknown:
        raise ValueError(f"peers has {sorted(unknown)}; choose among {', '.join(PEERS)}")
    common.check_positive_counts(pool_particles=config.pool_particles)
    if config.passes < LEAST_PASSES or config.passes % 2:
        raise ValueError(f"passes is {config.passes}; it must be even, {LEAST_PASSES} or more")
    # This process draws inputs on the CPU; the device is its workers'.
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, pathlib.Path(folder))
        bench.run()
    record = json.loads(bench.path.read_text())
    text = report(record["rows"])
    common.write_text(bench.out / "bench.md", text)
    if any(row.get("tolerances") for row in record["rows"]):
        plotting.save(picture(record["rows"]), bench.out / "bench.png")
    print(f"{text}\n{bench.path}")
    return record


class Bench:
    """Rows as they come, each written down at once beside those that the folder had before."""

    def __init__(self, config: Config, folder: pathlib.Path):
        self.config, self.folder = config, folder
        self.out = pathlib.Path(config.out)
        self.cache = self.out / "references"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.path, self.commit = self.out / "bench.json", common.commit()
        self.rows = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        self.deadline = time.time() + config.budget if config.budget else None

    def run(self) -> None:
        """One worker after another: references, peers, and what judges the pools."""
        make = {"A": self.fixed_problems, "B": self.velocity_problems, "C": self.pool_problems}
        problems = [problem for track in self.config.track for problem in make[track]()]
        judged = [problem for problem in problems if problem["track"] == "B"]
        for row in self.run_worker(REFERENCE, judged, self.deadline):
            if "not_run" in row:
                for problem in judged:
                    if row["problem"] in (problem["key"], ALL):
                        problem["not_run"] = f"no reference: {row['not_run']}"
        # Ours comes first: its flow gives the states at which the others are timed.
        chosen = self.config.peers or DEFAULT_PEERS[self.config.device]
        for peer in sorted(chosen, key=lambda peer: peer != "sinkflow"):
            self.run_worker(peer, problems, self.deadline)
        for problem in problems:
            if problem["track"] == "C":
                self.judge_pool(problem)

    def add(self, row: dict) -> dict:
        """Prints the row, and writes the record with it in place of an older one."""
        row = {**row, "commit": self.commit}
        self.rows = [old for old in self.rows if identity(old) != identity(row)] + [row]
        print(f"{' '.join(filter(None, identity(row)))}: {summary(row)}", flush=True)
        self.write()
        return row

    def write(self) -> None:
        record = {
            "rows": self.rows,
            "config": common.recorded(dataclasses.asdict(self.config)),
            "commit": self.commit,
            "versions": common.versions(),
            "host_cores": os.cpu_count(),
        }
        common.write_json(self.path, record)

    def run_worker(self, peer: str, problems: list[dict], deadline=None) -> list[dict]:
        """Rows of one peer; a worker that dies or hangs loses its row, and is replaced."""
        rows: list[dict] = []
        if not problems:
            return rows
        plan = self.folder / f"plan-{peer}.json"
        settings: dict[str, Any] = {"limit": self.config.time_limit, "device": self.config.device}
        settings |= {"folder": str(self.folder), "deadline": deadline}
        common.write_json(plan, {**settings, "problems": problems})
        begun = 0
        while True:
            worker = worker_of(peer, plan, begun, self.config.device)
            interrupted, missing = None, None
            for line in worker:
                missing = line.get("unavailable")
                if "begin" in line:
                    interrupted, begun = line["begin"], begun + 1
                elif "row" in line:
                    interrupted = None
                    rows.append(self.add(line["row"]))
            if interrupted is not None:
                rows.append(self.add({**interrupted, "not_run": worker.reason}))
            elif worker.code != bench_worker.FAILED_ROW:
                missing = missing or worker.reason
                for track in sorted({problem["track"] for problem in problems}) if missing else ():
                    key = {"track": track, "problem": ALL, "peer": peer, "label": ""}
                    rows.append(self.add({**key, "not_run": missing}))
                return rows

    def judge_pool(self, problem: dict) -> None:
        """Adds every peer's velocity error at the sampled states of the first cloud."""
        states = self.folder / f"{problem['key']}-x.npy"
        if not states.exists():
            return
        all_x = np.load(states, mmap_mode="r")[:, 0]
        y = np.load(self.folder / f"{problem['key']}-y.npy", mmap_mode="r")[0]
        names = [f"C-{problem['key']}-{k}" for k in range(len(all_x))]
        files = [self.save_pair(name, (x, y)) for name, x in zip(names, all_x, strict=True)]
        references = [str(self.folder / f"{name}-reference.npy") for name in names]
        judged = {**problem, "files": files, "references": references}
        (done,) = self.run_worker(REFERENCE, [judged])
        for row in self.rows if "not_run" not in done else ():
            found = self.folder / bench_worker.velocity_file(row)
            if (row["track"], row["problem"]) == ("C", problem["key"]) and found.exists():
                pairs = zip(np.load(found), map(np.load, references), strict=True)
                row["errors"] = [bench_worker.relative_error(*pair) for pair in pairs]
        self.write()

    def save_pair(self, name: str, pair) -> list[str]:
        """Files of two clouds."""
        paths = [str(self.folder / f"{name}-{side}.npy") for side in "xy"]
        for path, cloud in zip(paths, pair, strict=True):
            np.save(path, np.asarray(cloud, np.float32))
        return paths

    def fixed_problems(self) -> Iterator[dict]:
        """Track A: standard normal clouds, the second shifted by one; epsilon is 0.1 d."""
        for clouds, n, d in self.config.shapes or FIXED[self.config.device]:
            key = f"{clouds}x{n}-{d}" if clouds > 1 else f"{n}-{d}"
            files = []
            for number in range(SETS):
                rng = np.random.default_rng([self.config.seed, clouds, n, d, number])
                shape = (clouds, n, d) if clouds > 1 else (n, d)
                pair = [rng.standard_normal(shape, np.float32) + np.float32(k) for k in (0, 1)]
                files.append(self.save_pair(f"A-{key}-{number}", pair))
            given = {"passes": self.config.passes, "epsilon": 0.1 * d}
            yield problem_of("A", key, (clouds, n, d), files=files, **given)

    def velocity_problems(self) -> Iterator[dict]:
        """Track B: clouds as in track C, epsilon a fraction of the mean cost."""
        sizes, dims = GRID[self.config.device]
        for n, d in itertools.product(self.config.sizes or sizes, self.config.dims or dims):
            files, costs = [], []
            for number in range(SETS):
                key = jax.random.fold_in(jax.random.key(self.config.seed), number)
                draws = zip(bench_worker.samplers(d), jax.random.split(key), strict=True)
                pair = [np.asarray(draw(key, n), np.float32) for draw, key in draws]
                files.append(self.save_pair(f"B-{n}-{d}-{number}", pair))
                costs.append(mean_cost(*pair))
            cost = float(np.mean(costs))
            epsilon = self.config.ratio * cost
            given = {
                "epsilon": epsilon,
                "mean_cost": cost,
                "tolerances": self.config.tolerances,
                "references": [str(self.reference_file(pair, epsilon)) for pair in files],
            }
            yield problem_of("B", f"{n}-{d}", (1, n, d), files=files, **given)

    def reference_file(self, pair, epsilon: float) -> pathlib.Path:
        """Where the reference of these clouds is kept, for this run and later ones."""
        digest = hashlib.sha256(repr(epsilon).encode())
        for path in pair:
            digest.update(pathlib.Path(path).read_bytes())
        return self.cache.absolute() / f"{digest.hexdigest()[:20]}.npy"

    def pool_problems(self) -> Iterator[dict]:
        """Track C: the first author's two settings."""
        clouds = self.config.pool_clouds or POOL_CLOUDS[self.config.device]
        n = self.config.pool_particles
        for d, steps, step_size, blur, scaling in POOLS:
            if self.config.dims and d not in self.config.dims:
                continue
            count = self.config.pool_steps or steps
            given = {
                "steps": count,
                "step_size": step_size,
                "epsilon": blur**2,
                "scaling": scaling,
                "seed": self.config.seed,
                # On a CPU one cloud fills the machine.
                "clouds_per_call": clouds if self.config.device == "gpu" else 1,
            }
            yield problem_of("C", f"{clouds}x{n}-{d}-{count}steps", (clouds, n, d), **given)


def problem_of(track: str, key: str, shape: tuple[int, int, int], **given) -> dict:
    clouds, n, d = shape
    return {"track": track, "key": key, "clouds": clouds, "n": n, "d": d, **given}


def mean_cost(x, y) -> float:
    """Mean of ½‖x − y‖² over all pairs."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    squares = [np.mean(np.sum(cloud**2, axis=1)) for cloud in (x, y)]
    return float(0.5 * sum(squares) - x.mean(axis=0) @ y.mean(axis=0))


def identity(row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("track", "problem", "peer", "label"))


def worker_of(peer: str, plan: pathlib.Path, skip: int, device: str) -> processes.Worker:
    """The process that measures a peer's rows of the plan but the first ``skip``."""
    environment = {**processes.environment(device), "TRITON_CACHE_AUTOTUNING": "1"}
    arguments = ["-m", "experiments.bench_worker", peer, str(plan), str(skip)]
    return processes.Worker(arguments, environment)


def summary(row) -> str:
    """What a row says in one line."""
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    if row["peer"] == REFERENCE:
        found = [f"{one['seconds']:.1f} s" if "seconds" in one else "kept" for one in row["sets"]]
        return ", ".join(found)
    if row["track"] == "A":
        return f"{microseconds(row)} µs per pass"
    if row["track"] == "B":
        reached = [f"{t}: {1e3 * best['seconds']:.3g} ms" for t, best in row["tolerances"].items()]
        return ", ".join([*reached, f"best error {row['best_error']:.1e}"])
    return f"{row['seconds']:.3g} s{', extrapolated' if row['extrapolated'] else ''}"


def report(rows) -> str:
    """Markdown, from the record's rows alone."""
    parts = []
    for track, (title, header, cells) in TABLES.items():
        group = [row for row in rows if row["track"] == track and row["peer"] != REFERENCE]
        if not group:
            continue
        keys = list(dict.fromkeys(row["problem"] for row in group))
        group.sort(key=lambda row: (keys.index(row["problem"]), PEERS.index(row["peer"])))
        body = []
        for row in group:
            empty = [f"not run: {row.get('not_run')}", *[""] * (len(header) - 4)]
            measured = empty if "not_run" in row else cells(row, group)
            body.append([row["problem"], row["peer"], row["label"], *measured])
        parts.append(tables.markdown(tables.Table(title, header, body)))
    load = max((row["load_before"] for row in rows if "load_before" in row), default=0.0)
    busy = f"Largest load of the host before a row: {load:.1f} (1 for each busy core).\n"
    return "\n".join([*parts, tables.origin(rows) + busy])


def microseconds(row) -> str:
    return f"{1e6 * row['seconds_per_pass']:.3g}"


def memory(row) -> str:
    if row["peak_bytes"] is None:
        return "n/a"
    return f"{'≤ ' if row['peak_is_bound'] else ''}{row['peak_bytes'] / 2**20:.0f}"


def fixed_cells(row, group) -> list[str]:
    values = [row["picoseconds_per_pair"], row["passes"], row["repetitions"]]
    values.append(row["first_call_seconds"])
    return [microseconds(row), *(f"{value:.3g}" for value in values), memory(row)]


def velocity_cells(row, group) -> list[str]:
    made = []
    for tolerance in sorted({t for other in group for t in other.get("tolerances", ())}, key=float):
        best = row["tolerances"].get(tolerance)
        text = f"> best error {row['best_error']:.1e}"
        if best:
            text = (
                f"{1e3 * best['seconds']:.3g} ms ({best['label']}, {best['knob']:g}; "
                f"{best['passes']:.0f} passes, {best['picoseconds_per_pair']:.3g} ps per pair)"
            )
        made.append(f"{tolerance}: {text}")
    return ["<br>".join(reversed(made)), memory(row)]


def pool_cells(row, group) -> list[str]:
    ours = [
        other["seconds"]
        for other in group
        if other["peer"] == "sinkflow" and other["problem"] == row["problem"] and "seconds" in other
    ]
    how, certificate = "measured", "n/a"
    if row["extrapolated"]:
        how = f"extrapolated from {row['sampled_states']} states to {row['whole_calls']} calls"
    if "unconverged" in row:
        worst = row["worst_marginal_error"]
        certificate = f"{row['unconverged']} of {row['solves']}, {worst:.1e}"
    ratio = f"{row['seconds'] / ours[0]:.3g}" if ours else "n/a"
    errors = ", ".join(f"{error:.1e}" for error in row.get("errors", ())) or "n/a"
    return [f"{row['seconds']:.3g}", how, ratio, errors, certificate, memory(row)]


NAMES = ["problem", "library", "setting"]
ERRORS, CERTIFICATES = "velocity error, first, middle, last step", "unconverged, worst marginal"
TABLES: dict[str, tuple] = {
    "A": (
        "Track A: one pass at fixed epsilon, setup included",
        [*NAMES, "µs per pass", "ps per pair", "passes", "calls", "first call [s]", "peak [MiB]"],
        fixed_cells,
    ),
    "B": (
        "Track B: time to a velocity within a relative error of the float64 reference",
        [*NAMES, "time (setting, knob; passes)", "peak [MiB]"],
        velocity_cells,
    ),
    "C": (
        "Track C: a whole trajectory pool",
        [*NAMES, "time [s]", "how", "over sinkflow's", ERRORS, CERTIFICATES, "peak [MiB]"],
        pool_cells,
    ),
}


def picture(rows):
    """Time against n on logarithmic axes: a column for each dimension, a row for each tolerance."""
    points: dict[tuple[str, int, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row["track"] == "B" and "tolerances" in row:
            n, d = map(int, row["problem"].split("-"))
            for tolerance, best in row["tolerances"].items():
                points.setdefault((tolerance, d, row["peer"]), []).append((n, best["seconds"]))
    dims = sorted({d for _, d, _ in points})
    levels = sorted({tolerance for tolerance, _, _ in points}, key=float, reverse=True)
    sizes = sorted({n for curve in points.values() for n, _ in curve})
    fig, axes = plotting.figure(len(dims), len(levels))
    for (i, tolerance), (j, d) in itertools.product(enumerate(levels), enumerate(dims)):
        axis, title = axes[i, j], f"d = {d}, relative error {tolerance}"
        for index, peer in enumerate(PEERS):
            curve = sorted(points.get((tolerance, d, peer), []))
            if curve:
                axis.plot(*zip(*curve, strict=True), color=f"C{index}", marker=".", label=peer)
        axis.set(xscale="log", yscale="log", xlabel="n", ylabel="seconds")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.xaxis.minorticks_off()
        if axis.lines:
            axis.legend(fontsize=6)
    return fig


if __name__ == "__main__":
    common.run_driver(main, Config, __doc__)
