"""Blocks of benchmarks.md: solves, pools, very many particles, the UNet."""

from typing import Any

from experiments.bench import sinkhorn_report, unet_report
from experiments.harness import tables
from experiments.pages.blocks import link, record

TOLERANCE = "0.001"
PASSES = {
    "sinkflow": ("sinkflow", "annealed"),
    "sinkflow, float16": ("sinkflow", "annealed, stored in float16"),
    "ott-jax": ("ott", "plain"),
    "geomloss": ("geomloss", "averaged"),
    "FlashSinkhorn, TF32": ("flash", "symmetric, TF32"),
}
POOLS = {
    "sinkflow": ("sinkflow", "all clouds"),
    "geomloss, a cloud at a time": ("geomloss", "one cloud at a time"),
    "geomloss, all clouds in a call": ("geomloss", "all clouds in one call"),
}
WHOLE = ("bench-cpu", "bench-h200", "bench-h200-passes", "bench-unet-h200")


def velocity() -> str:
    """Time to a velocity, on the GPU and on the CPU."""
    made = [_velocity("bench-h200", ("sinkflow", "ott", "geomloss"))]
    made.append(_velocity("bench-h200-passes", ("sinkflow", "ott", "flash")))
    return "\n".join([*made, _velocity("bench-cpu", ("sinkflow", "ott", "geomloss"))])


def _velocity(name: str, peers: tuple[str, ...]) -> str:
    found = _rows(name, "B")
    body = [
        [*problem.split("-"), *(_reached(found[problem, peer, ""]) for peer in peers)]
        for problem in dict.fromkeys(problem for problem, *_ in found)
        if (problem, "sinkflow", "") in found
    ]
    title = f"Time to a velocity within {float(TOLERANCE):g}, {_options(name)}"
    return tables.markdown(tables.Table(title, ["n", "d", *peers], body))


def _reached(row: dict[str, Any]) -> str:
    if "not_run" in row:
        return "not run"
    best = row["tolerances"].get(TOLERANCE)
    return f"{1e3 * best['seconds']:.3g} ms" if best else f"not reached, {row['best_error']:.1e}"


def passes() -> str:
    """Microseconds of one pass."""
    name = "bench-h200-passes"
    found = _rows(name, "A")
    body = []
    for problem in dict.fromkeys(problem for problem, *_ in found):
        n, d = problem.split("-")
        cells = [_pass(found[problem, *column]) for column in PASSES.values()]
        body.append([f"{n.replace('x', ' clouds of ')}, {d}", *cells])
    title = f"µs of one pass, {_options(name)}"
    return tables.markdown(tables.Table(title, ["n, d", *PASSES], body))


def _pass(row: dict[str, Any]) -> str:
    if "seconds_per_pass" in row:
        return f"{1e6 * row['seconds_per_pass']:.4g}"
    return "too slow to time" if "too long" in row["not_run"] else "not run"


def pools() -> str:
    """Seconds of a whole pool, with the errors of the velocity."""
    found = _rows("bench-h200", "C")
    body = []
    for problem in dict.fromkeys(problem for problem, *_ in found):
        cells = []
        for column in POOLS.values():
            row = found[problem, *column]
            errors = ", ".join(f"{error:.1e}" for error in row["errors"])
            more = ", multiplied up" if row["extrapolated"] else ""
            cells.append(f"{row['seconds']:.3g} s{more} ({errors})")
        body.append([problem, *cells])
    title = "A whole pool, in brackets the velocity's relative error at first, middle and last step"
    return tables.markdown(tables.Table(title, ["clouds x particles, d, steps", *POOLS], body))


def scale() -> str:
    """One velocity of very many particles."""
    body = []
    for name in ("scale-1000000-2", "scale-100000-784"):
        found = record(name)
        config = found["config"]
        solves = [found[which] for which in ("cloud to target", "cloud to itself")]
        cells = [f"{config['num_particles']:,}", str(config["dim"])]
        cells += [f"{config['ratio']} mean costs", f"{found['seconds']:.3g} s"]
        cells.append(" + ".join(str(solve["num_iterations"]) for solve in solves))
        cells.append(f"{max(solve['marginal_error'] for solve in solves):.1e}")
        body.append([link(name, cells[0]), *cells[1:], f"{found['peak_bytes'] / 1e9:.2g} GB"])
    title = f"One velocity of a large cloud, {record('scale-1000000-2')['device']['kind']}"
    header = ["particles", "d", "epsilon", "time", "iterations", "marginal error", "memory"]
    return tables.markdown(tables.Table(title, header, body))


def unet() -> str:
    """The network of CIFAR-10 beside torchcfm's."""
    found = record("bench-unet-h200")
    measured = [row for row in found["rows"] if "seconds" in row]
    body = []
    for row in sorted(measured, key=lambda row: (row["batch"], row["peer"])):
        low, high = (1e3 * seconds for seconds in row["fastest_slowest"])
        cells = [str(row["batch"]), row["peer"], f"{1e3 * row['seconds']:.2f}"]
        cells += [f"{low:.2f} to {high:.2f}", f"{row['images_per_second']:.0f}"]
        cells += [unet_report.ratio(row, measured, "images_per_second")]
        cells += [f"{100 * row['fraction_of_peak']:.1f}%", f"{row['peak_bytes'] / 2**30:.2f} GiB"]
        sampled = row.get("sampled_per_second")
        cells += [f"{sampled:.0f}" if sampled else "not run"]
        cells += [unet_report.ratio(row, measured, "sampled_per_second")]
        body.append([*cells, str(row["host_cores"]), row["commit"]])
    header = ["batch", "library", "ms a step", "of rounds", "images/s", "sinkflow is"]
    header += ["of bf16 peak", "peak memory", f"samples/s, NFE {found['config']['nfe']}"]
    title = f"{measured[0]['parameters'] / 1e6:.1f} million parameters, {measured[0]['device']}"
    made = tables.Table(title, [*header, "sinkflow is", "host's cores", "commit"], body)
    return tables.markdown(made)


def whole(name: str) -> str:
    """All tables of a benchmark's record, as its driver makes them."""
    found = record(name)
    if "forward_flops" in found:
        return unet_report.report(found)
    return sinkhorn_report.report(found["rows"])


def _rows(name: str, track: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = record(name)["rows"]
    return {(r["problem"], r["peer"], r["label"]): r for r in rows if r["track"] == track}


def commands() -> str:
    """The options that made the records of solves."""
    body = []
    for name in WHOLE[:3]:
        config = record(name)["config"]
        flags = []
        for key in ("device", "track", "peers", "sizes", "time_limit", "tolerances", "budget"):
            values = config[key] if isinstance(config[key], list) else [config[key]]
            if any(values):
                words = [value if isinstance(value, str) else f"{value:g}" for value in values]
                flags.append(f"--{key.replace('_', '-')} {' '.join(words)}")
        command = f"`python -m experiments.bench_sinkhorn {' '.join(flags)}`"
        body.append([link(name), f"[all tables]({name}.md)", command])
    header = ["record", "all of it", "command"]
    return tables.markdown(tables.Table("How solves were measured", header, body))


def _options(name: str) -> str:
    """Device, version and record of a benchmark."""
    found = record(name)
    kinds = sorted({row["device"] for row in found["rows"] if row["peer"] == "sinkflow"})
    return f"{', '.join(kinds)}, jax {found['versions']['jax']} ({link(name, 'record')})"


BLOCKS = {
    "speed-commands": commands,
    "speed-velocity": velocity,
    "speed-passes": passes,
    "speed-pools": pools,
    "speed-scale": scale,
    "speed-unet": unet,
}
