"""Samplers of the plane and 8x8 digits; image data sets are in :mod:`sinkflow.data.images`."""

from sinkflow.data.plane import (
    SAMPLERS,
    STRATIFIED,
    TASKS,
    Task,
    checkerboard,
    digits,
    eight_gaussians,
    gaussian,
    moons,
    scurve,
    task,
)

__all__ = [
    "SAMPLERS",
    "STRATIFIED",
    "TASKS",
    "Task",
    "checkerboard",
    "digits",
    "eight_gaussians",
    "gaussian",
    "moons",
    "scurve",
    "task",
]
