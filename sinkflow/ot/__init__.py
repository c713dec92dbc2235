"""Entropic optimal transport: solver, divergence, velocity, and what is made of their plans."""

from sinkflow.ot.barycentric import barycentric_map, draw_partners
from sinkflow.ot.costs import squared_euclidean
from sinkflow.ot.divergence import VelocityInfo, sinkhorn_divergence, sinkhorn_velocity
from sinkflow.ot.limits import Limits, Sharded
from sinkflow.ot.matrix import sinkhorn_matrix
from sinkflow.ot.offdiagonal import sinkhorn_offdiagonal
from sinkflow.ot.output import SinkhornOutput
from sinkflow.ot.regularisation import epsilon_for_entropy, epsilon_for_neighbours, mean_cost
from sinkflow.ot.scaling import matrix_scaling
from sinkflow.ot.solver import sinkhorn, sinkhorn_self

__all__ = [
    "Limits",
    "Sharded",
    "SinkhornOutput",
    "VelocityInfo",
    "barycentric_map",
    "draw_partners",
    "epsilon_for_entropy",
    "epsilon_for_neighbours",
    "matrix_scaling",
    "mean_cost",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_matrix",
    "sinkhorn_offdiagonal",
    "sinkhorn_self",
    "sinkhorn_velocity",
    "squared_euclidean",
]
