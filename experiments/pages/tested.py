"""Blocks of tested.md: what the tests counted, a block for each of their records."""

from typing import Any

from experiments.harness import tables
from experiments.pages.blocks import link, record


def kills() -> str:
    """Processes killed, by driver."""
    return _counted("tested-kills", "killed and started again", "kills")


def flips() -> str:
    """Changed bits, by what is kept."""
    return _counted("tested-flips", "files of", "flips")


def devices() -> str:
    """Largest differences of parameters from those of one device, by case and number of devices."""
    rows: dict[str, dict[str, Any]] = record("tested-devices")["rows"]
    counts = ("on 1", "on 2", "on 4", "on 8")
    body = [
        [
            label,
            str(row["steps"]),
            *(f"{row[count]:.1e}" if count in row else "" for count in counts),
            row["versions"]["jax"],
            row["commit"],
        ]
        for label, row in rows.items()
    ]
    title = f"Differences from one device ({link('tested-devices', 'record')})"
    return tables.markdown(
        tables.Table(title, ["training", "steps", *counts, "jax", "commit"], body)
    )


def hosts() -> str:
    """What two processes of two devices differ by from one process of four."""
    rows: dict[str, dict[str, Any]] = record("tested-hosts")["rows"]
    body = [
        [
            label,
            str(row["kills"]),
            f"{row['noticed_seconds']:.1f}" if "noticed_seconds" in row else "",
            f"{row['difference']:.1e}",
            row["versions"]["jax"],
            row["commit"],
        ]
        for label, row in rows.items()
    ]
    title = f"Two processes of two devices ({link('tested-hosts', 'record')})"
    header = ["run", "kills", "noticed after [s]", "difference", "jax", "commit"]
    return tables.markdown(tables.Table(title, header, body))


def inputs() -> str:
    """Inputs that were wrong, by what they were given to, and how many were refused."""
    rows: dict[str, dict[str, Any]] = record("tested-inputs")["rows"]
    counts = ("inputs", "refused")
    body = [
        [label, *(str(row[count]) for count in counts), row["versions"]["jax"], row["commit"]]
        for label, row in rows.items()
    ]
    sums = (str(sum(row[count] for row in rows.values())) for count in counts)
    body.append(["**all**", *sums, "", ""])
    title = f"Inputs that are wrong ({link('tested-inputs', 'record')})"
    return tables.markdown(tables.Table(title, ["given", *counts, "jax", "commit"], body))


def _counted(name: str, what: str, count: str) -> str:
    """A row for each entry of a record, and their sum."""
    rows: dict[str, dict[str, Any]] = record(name)["rows"]
    body = [
        [label, str(row[count]), str(row["seed"]), row["versions"]["jax"], row["commit"]]
        for label, row in rows.items()
    ]
    body.append(["**all**", str(sum(row[count] for row in rows.values())), "", "", ""])
    title = f"{count.capitalize()} ({link(name, 'record')})"
    return tables.markdown(tables.Table(title, [what, count, "seed", "jax", "commit"], body))


BLOCKS = {
    "tested-kills": kills,
    "tested-flips": flips,
    "tested-devices": devices,
    "tested-hosts": hosts,
    "tested-inputs": inputs,
}
