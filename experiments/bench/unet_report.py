"""The table of the UNet's benchmark, from its record alone."""

from experiments.harness import tables

# Dense bfloat16 rates of the makers' datasheets [FLOP/s].
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
}


def rates(row: dict, flops: float) -> dict:
    """What follows from the time of a step: images a second, FLOP/s and its part of the peak."""
    images = row["batch"] / row["seconds"]
    peak = PEAKS.get(row["device"])
    achieved = 3 * flops * images
    return {
        "images_per_second": images,
        "flop_per_second": achieved,
        "fraction_of_peak": achieved / peak if peak else None,
    }


def summary(row) -> str:
    """What a row says in one line."""
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    parts = []
    if "sampled_per_second" in row:
        parts.append(f"sampling {row['sampled_per_second']:.4g} images/s")
    if "seconds" in row:
        parts.append(
            f"{1e3 * row['seconds']:.4g} ms a step, {row['images_per_second']:.5g} images/s"
        )
    elif "estimated_bytes" in row:
        parts.append(f"will need {gibibytes(row['estimated_bytes'])} GiB")
    elif "parameters" in row:
        parts.append(f"{row['parameters']} parameters")
    return ", ".join([*parts, *([row["stopped"]] if "stopped" in row else [])]) or "started"


def report(record) -> str:
    """Markdown, from the record alone."""
    header = ["batch", "library", "setting", "ms a step", "images/s", "of bf16 peak", "sinkflow is"]
    header += ["peak [GiB]", "compiling [s]", "sampled/s", "sinkflow is", "parameters"]
    rows = sorted(record["rows"], key=lambda row: (row["batch"], row["peer"], row["setting"]))
    body = []
    for row in rows:
        cells = [str(row["batch"]), row["peer"], row["setting"]]
        if "seconds" not in row:
            cells += [f"not run: {row.get('not_run', '?')}", *[""] * (len(header) - 4)]
        else:
            fraction = row["fraction_of_peak"]
            cells += [
                f"{1e3 * row['seconds']:.4g}",
                f"{row['images_per_second']:.5g}",
                "unknown" if fraction is None else f"{100 * fraction:.1f}%",
                ratio(row, rows, "images_per_second"),
                gibibytes(row["peak_bytes"]),
                f"{row['compile_seconds']:.0f}",
                f"{row['sampled_per_second']:.4g}" if "sampled_per_second" in row else "",
                ratio(row, rows, "sampled_per_second"),
                str(row["parameters"]),
            ]
        body.append(cells)
    forward = record["forward_flops"] / 1e9
    notes = [f"A forward pass of an image is {forward:.2f} GFLOP, a training step three."]
    notes += [note(row) for row in rows if "stopped" in row or "estimated_bytes" in row]
    made = tables.Table("Training and sampling of the UNet", header, body)
    return "\n".join([tables.markdown(made), tables.origin(rows) + "\n".join(notes) + "\n"])


def note(row) -> str:
    """What a row says beside its numbers."""
    name = f"Batch {row['batch']}, {row['peer']} ({row['setting']}):"
    if "stopped" in row:
        return f"{name} {row['stopped']}."
    return f"{name} XLA's estimate before the start was {gibibytes(row['estimated_bytes'])} GiB."


def gibibytes(count) -> str:
    return "n/a" if count is None else f"{count / 2**30:.2f}"


def ratio(row, rows, rate: str) -> str:
    """How many times as fast sinkflow's fastest row of this batch size is as a peer's row."""
    same = [other for other in rows if other["batch"] == row["batch"]]
    found = [other[rate] for other in same if other["peer"] == "sinkflow" and rate in other]
    if row["peer"] == "sinkflow" or rate not in row or not found:
        return ""
    return f"{max(found) / row[rate]:.2f} x"
