"""Pictures of flows, samples and training; the only package that imports matplotlib."""

from sinkflow.plotting.charts import Curve, class_histogram, curves, loss_curve
from sinkflow.plotting.clouds import (
    flow_gif,
    samples_against_target,
    trajectories,
    velocities,
)
from sinkflow.plotting.figures import figure, save
from sinkflow.plotting.grids import image_grid
from sinkflow.plotting.plans import plan, transport

__all__ = [
    "Curve",
    "class_histogram",
    "curves",
    "figure",
    "flow_gif",
    "image_grid",
    "loss_curve",
    "plan",
    "samples_against_target",
    "save",
    "trajectories",
    "transport",
    "velocities",
]
