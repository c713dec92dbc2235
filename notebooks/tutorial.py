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
# # From the assignment problem to the Sinkhorn loss
#
# Each step removes a limit of the one before: assignment, optimal transport, entropic transport, matrix scaling, and a
# generated set that is fitted by gradient descent through the scaling. The cost is ½‖x − y‖² throughout.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import display

import sinkflow
from sinkflow.assignment import assignment, transport_plan
from sinkflow.costs import squared_euclidean
from sinkflow.scaling import entropic_objective, entropy, matrix_scaling

# %matplotlib inline

rng = np.random.default_rng(0)

# %% [markdown]
# ## Assignment
#
# Two sets of equal size, matched one to one at the least total cost. Exact, but it takes O(n³) time, knows no weights and no
# sets of different size, and says nothing about points that were not in the set.

# %%
x, y = rng.normal(size=(12, 2)), rng.normal((3, 0), size=(12, 2))
order = assignment(x, y)
cost = np.asarray(squared_euclidean(jnp.asarray(x), jnp.asarray(y)))
shuffled = rng.permutation(12)

fig, axes = sinkflow.plotting.figure(2)
for axis, name, match in ((axes[0, 0], "any", shuffled), (axes[0, 1], "the best", order)):
    axis.plot([x[:, 0], y[match, 0]], [x[:, 1], y[match, 1]], color="0.6", lw=1)
    axis.plot(*x.T, "o", color="tab:orange")
    axis.plot(*y.T, "o", color="tab:blue")
    axis.set(title=f"{name}: cost {cost[np.arange(12), match].sum():.1f}", xticks=[], yticks=[])
display(fig)

# %% [markdown]
# ## Optimal transport
#
# Points have weights and may split theirs: a plan π ≥ 0 has the row sums a and the column sums b and minimises ⟨C, π⟩. It is a
# linear programme, whose solution has at most n + m − 1 entries. Between equal sets of equal weights it is the assignment.

# %%
z = rng.normal((3, 0), size=(5, 2))
a, b = np.full(12, 1 / 12), np.array([0.4, 0.3, 0.1, 0.1, 0.1])
plan, exact = transport_plan(x, z, a, b)

fig, axes = sinkflow.plotting.figure(size=3.5)
for i, j in zip(*np.nonzero(plan), strict=True):
    axes[0, 0].plot([x[i, 0], z[j, 0]], [x[i, 1], z[j, 1]], color="0.6", lw=40 * plan[i, j])
axes[0, 0].scatter(*x.T, s=600 * a, color="tab:orange", zorder=2)
axes[0, 0].scatter(*z.T, s=600 * b, color="tab:blue", zorder=2)
axes[0, 0].set(title=f"{np.count_nonzero(plan)} entries, cost {exact:.2f}", xticks=[], yticks=[])
display(fig)

# %% [markdown]
# ## Entropic transport
#
# Minimising ⟨C, π⟩ − ε H(π), with the entropy H(π) = −Σ π log π, makes the plan smooth, unique and differentiable, at the price of
# blur. As ε falls its cost falls to the exact one, at a distance of at most ε log n. Below, points on a line, sorted.

# %%
x = jnp.sort(jnp.asarray(rng.normal(size=(60, 1)), jnp.float32), axis=0)
y = jnp.sort(
    jnp.asarray(rng.normal(size=(60, 1)) * 0.4 + rng.choice([-2, 1.5], (60, 1)), jnp.float32),
    axis=0,
)
cost = squared_euclidean(x, y)
exact_plan, exact = transport_plan(x, y)

plans = {}
for epsilon in (3.0, 0.3, 0.03, 0.003):
    out = sinkflow.sinkhorn(x, y, epsilon, limits=sinkflow.Limits(1e-4))
    plan = jnp.exp((out.f[:, None] + out.g - cost) / epsilon) / cost.size
    print(
        f"epsilon {epsilon:5.3f}: cost {jnp.sum(plan * cost):.4f}, above the exact one by {jnp.sum(plan * cost) - exact:.4f} "
        f"<= {epsilon * np.log(60):.4f}; entropy {entropy(plan):.2f}, converged {out.converged}"
    )
    plans[f"ε = {epsilon}"] = plan

fig, axes = sinkflow.plotting.figure(5, size=2.4)
for axis, (name, plan) in zip(axes[0], {**plans, "exact": exact_plan}.items(), strict=True):
    axis.imshow(plan, cmap="magma_r", vmax=np.max(plan))
    axis.set(title=name, xticks=[], yticks=[])
display(fig)

# %% [markdown]
# ## Matrix scaling, and where it ends
#
# The entropic plan is diag(u) K diag(v) with K = exp(−C/ε), found by u ← a ⊘ (K v), v ← b ⊘ (Kᵀ u). Where K is representable
# it is the plan of the log-domain solver. In float32 exp(−C/ε) is zero from a cost of 87 ε on: `underflow` says when that matters.

# %%
for epsilon in (1.0, 0.3, 0.1, 0.03, 0.01):
    scaled = matrix_scaling(cost, epsilon, num_iterations=2_000)
    solved = sinkflow.sinkhorn(x, y, epsilon, limits=sinkflow.Limits(1e-4))
    value = entropic_objective(cost, scaled.plan, epsilon) + 2 * epsilon * np.log(
        60
    )  # + ε(H(a) + H(b))
    print(
        f"epsilon {epsilon:.2f}: matrix scaling {value:7.4f} (marginal error {scaled.marginal_error:.0e}, "
        f"underflow {scaled.underflow!s:5}), log domain {solved.value:.4f} (converged {solved.converged})"
    )

# %% [markdown]
# Correct marginals are not enough to believe it. Of these costs the cheapest assignment is 0 + 0 + 90, but float32 loses exp(−90),
# and the scaling settles on the diagonal.

# %%
trap = jnp.array([[35.0, 0.0, 99.0], [99.0, 35.0, 0.0], [90.0, 99.0, 35.0]])
scaled = matrix_scaling(trap, 1.0, num_iterations=10_000)
print(
    np.round(scaled.plan, 3),
    f"marginal error {scaled.marginal_error:.0e}, underflow {scaled.underflow}",
)

# %% [markdown]
# ## The Sinkhorn loss
#
# A generated set is fitted to data by descending Ê(x, y) = ⟨C, π_L⟩, the cost after L scalings, differentiated through all of them. No
# network here: the particles themselves move. The plan pulls each particle to an average of the data, the wider the larger ε, so the plain
# loss ends in fewer and fewer places, and at last in the mean. The debiased loss 2 Ê(x, y) − Ê(x, x) − Ê(y, y) lets the
# particles repel one another, and keeps the spread (Ê(y, y) does not depend on x and is left out).

# %%
key_x, key_y = jax.random.split(jax.random.key(0))
start, data = jax.random.normal(key_x, (128, 2)), sinkflow.data.moons(key_y, 128)
scaled = lambda x, y, epsilon: matrix_scaling(squared_euclidean(x, y), epsilon, num_iterations=50)


@jax.jit
def descend(x, epsilon, debias):
    def loss(x):
        to_data, to_itself = scaled(x, data, epsilon), scaled(x, x, epsilon)
        cost = (1 + debias) * to_data.transport_cost - debias * to_itself.transport_cost
        return cost, to_data.underflow | to_itself.underflow

    def step(x, _):
        gradient, underflow = jax.grad(loss, has_aux=True)(x)
        return x - 0.3 * len(x) * gradient, underflow

    return jax.lax.scan(step, x, length=100)


print(f"spread of the data {data.std(axis=0).mean():.2f}")
fig, axes = sinkflow.plotting.figure(4, 2)
for row, (debias, name) in enumerate(((0, "plain"), (1, "debiased"))):
    for column, epsilon in enumerate((0.3, 3.0, 10.0, 30.0)):
        fitted, underflow = descend(start, epsilon, debias)
        spread = fitted.std(axis=0).mean()
        print(f"{name:8}, ε = {epsilon:4}: spread {spread:.2f}, underflow {underflow.any()}")
        axis = axes[row, column]
        axis.plot(*data.T, ".", color="0.7")
        axis.plot(*fitted.T, ".", color="tab:blue")
        axis.set(title=f"{name}, ε = {epsilon:g}", aspect="equal", xticks=[], yticks=[])
display(fig)

# %% [markdown]
# The library goes on from here in two ways: `sinkflow.sinkhorn` stays in the log domain, with a certificate instead of a number of
# iterations, and `sinkflow.sinkhorn_velocity` is the gradient of the debiased loss without differentiating any
# iteration. [quickstart](quickstart.ipynb) shows both.
