"""Metrics of samples, exact and on the host; they share no code with the solver that they judge."""

from sinkflow.metrics.distances import (
    excess,
    frechet_distance,
    kernel_distance,
    total_variation,
    wasserstein1,
    wasserstein2,
    wasserstein2_many,
)
from sinkflow.metrics.neighbours import (
    PrecisionRecallCoverage,
    memorised,
    nearest,
    precision_recall_coverage,
)

__all__ = [
    "PrecisionRecallCoverage",
    "excess",
    "frechet_distance",
    "kernel_distance",
    "memorised",
    "nearest",
    "precision_recall_coverage",
    "total_variation",
    "wasserstein1",
    "wasserstein2",
    "wasserstein2_many",
]
