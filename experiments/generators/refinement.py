"""One-step samples that are taken back to an earlier time by noise, and follow a flow on."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from experiments.generators.reports import METHOD, asked_labels
from experiments.generators.training import Generator
from experiments.harness import tables
from experiments.images.sampling import Scheme
from sinkflow import ode
from sinkflow.fit import Field

SCORES = ("fd", "kd", "precision", "recall", "coverage", "class_tv", "memorised")


def schemes(
    made: Generator, field: Field, starts: Sequence[float], counts: Sequence[int], stepper: str
) -> list[Scheme]:
    """The generator alone, then each start with each number of evaluations of the flow.

    Source points are latent point and noise in one vector [n, k + d]: every scheme has the same.
    """
    dim = made.config.dim()

    def carry(x, start=1.0, count=0):
        z, noise = x[:, :dim], x[:, dim:]
        image = made.draw(z, asked_labels(len(z)))
        if not count:
            return image
        between = (1 - start) * noise + start * image
        follow = functools.partial(ode.integrate, field.apply_fn, field.params, between)
        return follow(t0=jnp.asarray(start), nfe=jnp.asarray(count), method=stepper)

    refined = [
        Scheme(f"from {start:g}", 1 + count, functools.partial(carry, start=start, count=count))
        for start in starts
        for count in counts
    ]
    return [Scheme(METHOD, 1, carry), *refined]


def table(dataset: str, rows: Sequence[dict[str, Any]]) -> tables.Table:
    """A row for each scheme; of one that failed, why."""
    body = [
        [row["method"], str(row["nfe"])]
        + ([row["failed"]] if "failed" in row else [f"{row[name]:.3g}" for name in SCORES])
        for row in rows
    ]
    title = f"{dataset}: one evaluation, and samples taken back to time t that follow the flow"
    return tables.Table(title, ["method", "NFE", *SCORES], body)
