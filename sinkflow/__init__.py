"""Generative modelling by the Wasserstein gradient flow of the Sinkhorn divergence, in JAX.

The modules of ``LAZY`` are imported on their first use, for what they need takes seconds to load:
POT, SciPy and scikit-learn (assignment, metrics), matplotlib (plotting), Orbax (checkpoint).
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from sinkflow import (
    costs,
    data,
    epsilon,
    flow,
    general,
    generator,
    generators,
    interpolants,
    models,
    ode,
    offdiagonal,
    opponents,
    parallel,
    pool,
    sampling,
    scaling,
    train,
)
from sinkflow.certificate import SinkhornOutput
from sinkflow.divergence import barycentric_map, sinkhorn_divergence, sinkhorn_velocity
from sinkflow.epsilon import epsilon_for_entropy, epsilon_for_neighbours
from sinkflow.fit import fit, load_field
from sinkflow.limits import Limits
from sinkflow.sinkhorn import sinkhorn, sinkhorn_self

if TYPE_CHECKING:
    from sinkflow import assignment, checkpoint, metrics, plotting

LAZY = ("assignment", "checkpoint", "metrics", "plotting")

__version__ = "0.1.0"
__all__ = [
    "Limits",
    "SinkhornOutput",
    "assignment",
    "barycentric_map",
    "checkpoint",
    "costs",
    "data",
    "epsilon",
    "epsilon_for_entropy",
    "epsilon_for_neighbours",
    "fit",
    "flow",
    "general",
    "generator",
    "generators",
    "interpolants",
    "load_field",
    "metrics",
    "models",
    "ode",
    "offdiagonal",
    "opponents",
    "parallel",
    "plotting",
    "pool",
    "sampling",
    "scaling",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_self",
    "sinkhorn_velocity",
    "train",
]


def __getattr__(name: str) -> ModuleType:
    if name in LAZY:
        return importlib.import_module(f"sinkflow.{name}")
    raise AttributeError(f"module 'sinkflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
