"""Generative modelling by the Wasserstein gradient flow of the Sinkhorn divergence, in JAX.

The modules of ``LAZY`` are imported on their first use, for what they need takes seconds to load:
POT, SciPy and scikit-learn (exact, metrics), matplotlib (plotting), Orbax (checkpoint).
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from sinkflow import (
    data,
    flow,
    flow_map,
    generator,
    nets,
    ode,
    opponents,
    pairs,
    parallel,
    pool,
    sampling,
    train,
)
from sinkflow.fit import fit, load_field
from sinkflow.nets import generators
from sinkflow.ot import costs, general, offdiagonal, regularisation, scaling
from sinkflow.ot.barycentric import barycentric_map
from sinkflow.ot.divergence import sinkhorn_divergence, sinkhorn_velocity
from sinkflow.ot.limits import Limits, Sharded
from sinkflow.ot.matrix import sinkhorn_matrix
from sinkflow.ot.output import SinkhornOutput
from sinkflow.ot.regularisation import epsilon_for_entropy, epsilon_for_neighbours
from sinkflow.ot.solver import sinkhorn, sinkhorn_self

if TYPE_CHECKING:
    from sinkflow import checkpoint, metrics, plotting
    from sinkflow.ot import exact

LAZY = {
    "checkpoint": "sinkflow.checkpoint",
    "exact": "sinkflow.ot.exact",
    "metrics": "sinkflow.metrics",
    "plotting": "sinkflow.plotting",
}

__version__ = "0.1.0"
__all__ = [
    "Limits",
    "Sharded",
    "SinkhornOutput",
    "barycentric_map",
    "checkpoint",
    "costs",
    "data",
    "epsilon_for_entropy",
    "epsilon_for_neighbours",
    "exact",
    "fit",
    "flow",
    "flow_map",
    "general",
    "generator",
    "generators",
    "load_field",
    "metrics",
    "nets",
    "ode",
    "offdiagonal",
    "opponents",
    "pairs",
    "parallel",
    "plotting",
    "pool",
    "regularisation",
    "sampling",
    "scaling",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_matrix",
    "sinkhorn_self",
    "sinkhorn_velocity",
    "train",
]


def __getattr__(name: str) -> ModuleType:
    if name in LAZY:
        return importlib.import_module(LAZY[name])
    raise AttributeError(f"module 'sinkflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
