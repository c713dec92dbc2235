"""The tables and the picture of the solvers' benchmark, from its record alone."""

import itertools
import pathlib

from experiments.bench.reference import REFERENCE
from experiments.harness import tables
from experiments.harness.files import write_text
from sinkflow import plotting
from sinkflow.files import read_object

PEERS = ("sinkflow", "ott", "geomloss", "flash", "flash-tuned", "pot")


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
    """Time against n: a column of panels for each dimension, a row for each tolerance."""
    points: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    for row in rows:
        if row["track"] == "B" and "tolerances" in row:
            n, d = map(int, row["problem"].split("-"))
            for tolerance, best in row["tolerances"].items():
                own = points.setdefault((tolerance, d), {}).setdefault(row["peer"], {})
                own[n] = best["seconds"]
    dims = sorted({d for _, d in points})
    levels = sorted({tolerance for tolerance, _ in points}, key=float, reverse=True)
    panels = {
        f"d = {d}, relative error {tolerance}": {
            peer: plotting.Curve(*zip(*sorted(found[peer].items()), strict=True))
            for found in [points.get((tolerance, d), {})]
            for peer in PEERS
            if peer in found
        }
        for tolerance, d in itertools.product(levels, dims)
    }
    return plotting.curves(panels, "points in each cloud, n", "time [s]", columns=len(dims))


def publish(path: pathlib.Path) -> dict:
    """bench.md and bench.png beside a record, from it alone; returns its content."""
    record = read_object(path, {"rows": [dict]})
    text = report(record["rows"])
    write_text(path.with_suffix(".md"), text)
    if any(row.get("tolerances") for row in record["rows"]):
        plotting.save(picture(record["rows"]), path.with_suffix(".png"))
    print(f"{text}\n{path}")
    return record
