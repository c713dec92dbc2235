# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Assignment
#
# Match two sets of points one to one, at the least total cost. Matching x with y costs ½‖x − y‖², half the squared distance.

# %%
import numpy as np
import scipy
from IPython.display import display

from sinkflow import plotting
from sinkflow.ot.exact import assignment, solve_assignment, solve_transport, transport_plan

try:
    from ipywidgets import interact
except ImportError:  # then the still picture below stays

    def interact(draw, **ranges):
        display(draw())


# %matplotlib inline

rng = np.random.default_rng(0)
x, y = rng.normal(size=(12, 2)), rng.normal((1, 0), size=(12, 2))
order = assignment(x, y)  # x[i] is matched with y[order[i]]
cost = 0.5 * scipy.spatial.distance.cdist(x, y, "sqeuclidean")
best = cost[np.arange(12), order].sum()
display(plotting.transport(x, y, np.eye(12)[order], f"the best matching, cost {best:.2f}"))

# %% [markdown]
# ## The best of how many?
#
# Twelve points have 12! = 479,001,600 matchings. Trying them at random does not find the best one.

# %%
totals = [cost[np.arange(12), rng.permutation(12)].sum() for _ in range(10_000)]
print(
    f"best {best:.2f}; of 10,000 random ones: least {min(totals):.2f}, mean {np.mean(totals):.2f}"
)

# %% [markdown]
# ## Try it
#
# Move the sliders: number of points, how far the blue set is shifted, and new points. To drag single points, open
# [the live page](transport.html) in a browser. Here the picture stays still where ipywidgets is not installed.


# %%
def draw(n=20, shift=1.5, seed=0):
    points = np.random.default_rng(seed)
    x, y = points.normal(size=(n, 2)), points.normal((shift, 0), size=(n, 2))
    order = assignment(x, y)
    total = 0.5 * np.sum((x - y[order]) ** 2)
    return plotting.transport(x, y, np.eye(n)[order], f"{n} pairs, cost {total:.2f}")


_ = interact(draw, n=(1, 60), shift=(0.0, 6.0), seed=(0, 20))

# %% [markdown]
# ## Another cost, another matching
#
# `solve_assignment` takes any matrix of costs. With distances instead of half squares, long lines are punished less.

# %%
distance = scipy.spatial.distance.cdist(x, y)
other = solve_assignment(distance)
print(f"pairs that differ: {np.sum(order != other)} of 12")
for name, matrix in (("half squares", cost), ("distances", distance)):
    sums = [matrix[np.arange(12), match].sum() for match in (order, other)]
    print(f"in {name}: {sums[0]:.3f} for the first matching, {sums[1]:.3f} for the second")
display(plotting.transport(x, y, np.eye(12)[other], "the best matching by distance"))

# %% [markdown]
# ## Three limits
#
# **Sets of different size.** There is no matching one to one, and the error names the function that goes on.

# %%
try:
    assignment(x, y[:5])
except ValueError as error:
    print(error)

# %% [markdown]
# **Weights.** A heavy point has to share its mass among several others. A *plan* says how much goes from where to where. It
# takes sets of different size, too.

# %%
weights = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
plan, value = transport_plan(x, y[:5], b=weights)
display(plotting.transport(x, y[:5], plan, f"{np.count_nonzero(plan)} lines, cost {value:.2f}"))

# %% [markdown]
# **A new point.** The matching is a list for the points that were there. It says nothing about a thirteenth; everything has to be
# solved anew. The entropic plan of [the next notebook](02_transport.ipynb) gives a map for every point.
#
# **Time.** An exact solution takes roughly n³ operations: of twice as many points about eight times as many.

# %% [markdown]
# ## Check yourself
#
# 1. On a line, which target does the smallest source get? Guess, then run the cell.

# %%
on_x, on_y = rng.normal(size=(8, 1)), rng.normal(size=(8, 1))
ranks = np.argsort(np.argsort(on_y[:, 0]))[assignment(on_x, on_y)]
print("rank of each source:", np.argsort(np.argsort(on_x[:, 0])))
print("rank of its target: ", ranks)

# %% [markdown]
# 2. All targets move by the same vector. Does the best matching for half squares change?

# %%
print("unchanged:", np.array_equal(assignment(x, y), assignment(x, y + np.array([5.0, -2.0]))))

# %% [markdown]
# 3. Between two sets of twelve equal weights, is the best *plan* cheaper than the best matching (per point)?

# %%
print(f"plan {solve_transport(cost)[1]:.6f}, matching {best / 12:.6f}")
