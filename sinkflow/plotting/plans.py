"""Transport plans: as lines between two clouds, and as a matrix."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sinkflow.plotting._plane import box_around, checked, frame
from sinkflow.plotting._shared import SAMPLE, SOURCE, finite
from sinkflow.plotting.figures import figure

__all__ = ["plan", "transport"]


def transport(x: np.ndarray, y: np.ndarray, plan: np.ndarray, title: str = "") -> Figure:
    """Points x [n, 2] (red) and y [m, 2] (blue squares), as large as their mass in the plan [n, m].

    Lines are as thick as the mass that they carry.

    Raises:
      ValueError: clouds that are empty, not in the plane or not finite, or a plan of another shape.
    """
    x, y, plan = checked("x", x), checked("y", y), finite("plan", np.asarray(plan))
    if plan.shape != (len(x), len(y)):
        raise ValueError(
            f"plan has shape {plan.shape}; between these clouds it is {len(x), len(y)}"
        )
    box = box_around(np.concatenate([x, y]))
    fig, axes = figure(size=4.0, ratio=box.panel(4.0))
    axis = axes[0, 0]
    a, b = plan.sum(axis=1), plan.sum(axis=0)
    heaviest = max(min(a.max(), b.max()), np.finfo(float).tiny)
    for i, j in zip(*np.nonzero(plan > 1e-3 * heaviest), strict=True):
        share = plan[i, j] / heaviest
        axis.plot(*np.stack([x[i], y[j]]).T, color="0.4", lw=3 * share, zorder=1)
    for points, weights, color, marker in ((x, a, SOURCE, "o"), (y, b, SAMPLE, "s")):
        sizes = 60 * weights / weights.mean() if weights.any() else 60
        axis.scatter(*points.T, s=sizes, color=color, marker=marker, edgecolor="white", zorder=2)
    frame(axis, box, title)
    return fig


def plan(
    plan: np.ndarray, a: np.ndarray | None = None, b: np.ndarray | None = None, title: str = ""
) -> Figure:
    """A plan [n, m] as a matrix, darker for more mass, with its sums beside it.

    Bars are the sums over rows and columns; lines across them are the weights ``a`` [n] and
    ``b`` [m] that they have to be, uniform unless given.

    Raises:
      ValueError: a plan that is no matrix, is empty or not finite, or weights of another length.
    """
    plan = finite("plan", np.asarray(plan))
    if plan.ndim != 2 or not plan.size:
        raise ValueError(f"plan has shape {plan.shape}; it is [n, m], not empty")
    n, m = plan.shape
    a, b = (np.full(k, 1 / k) if w is None else np.asarray(w) for w, k in ((a, n), (b, m)))
    if a.shape != (n,) or b.shape != (m,):
        raise ValueError(f"weights have shapes {a.shape} and {b.shape}; the plan is {n, m}")
    fig = Figure(figsize=(4.2, 4.2), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(2, 2, width_ratios=(4, 1), height_ratios=(4, 1), squeeze=False)
    axes[0, 0].imshow(
        plan, cmap="gray_r", vmin=0, aspect="auto", extent=(-0.5, m - 0.5, n - 0.5, -0.5)
    )
    axes[0, 1].barh(range(n), plan.sum(axis=1), height=0.9, color=SOURCE)
    axes[0, 1].stairs(a, np.arange(n + 1) - 0.5, orientation="horizontal", color="black")
    axes[1, 0].bar(range(m), plan.sum(axis=0), width=0.9, color=SAMPLE)
    axes[1, 0].stairs(b, np.arange(m + 1) - 0.5, color="black")
    axes[0, 1].set(ylim=(n - 0.5, -0.5), yticks=[], xticks=[], title="row sums")
    axes[1, 0].set(xlim=(-0.5, m - 0.5), xticks=[], yticks=[], xlabel="column sums")
    axes[0, 0].set(xticks=[], yticks=[], title=title)
    axes[1, 1].set_axis_off()
    return fig
