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
# # 2. Optimal and entropic transport
#
# A plan π says how much mass goes from each source to each target. Its row sums are the sources' weights p, its column sums the
# targets' weights q. The picture has the plan as a matrix. Bars are its sums, and the lines across them are p and q.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from IPython.display import display

import sinkflow
from sinkflow import metrics, plotting
from sinkflow.ot.costs import squared_euclidean
from sinkflow.ot.exact import solve_transport, transport_plan
from sinkflow.ot.scaling import entropic_objective, entropy, kl_divergence, matrix_scaling

try:
    from ipywidgets import interact
except ImportError:  # then the still picture below stays

    def interact(draw, **ranges):
        display(draw())


# %matplotlib inline

rng = np.random.default_rng(0)
x = jnp.asarray(np.sort(rng.normal(size=(40, 1)), axis=0), jnp.float32)
y = jnp.asarray(
    np.sort(0.4 * rng.normal(size=(30, 1)) + rng.choice([-2, 1.5], (30, 1)), axis=0), jnp.float32
)
p = jnp.asarray(rng.dirichlet(5 * np.ones(40)), jnp.float32)
q = jnp.asarray(rng.dirichlet(5 * np.ones(30)), jnp.float32)
exact_plan, exact = transport_plan(x, y, p, q)
display(plotting.plan(exact_plan, p, q, f"exact plan, cost {exact:.3f}"))

# %% [markdown]
# ## Exact plans
#
# Of all plans with these sums the exact one minimises ⟨C, π⟩ = Σ C_ij π_ij. That is a linear programme, and at most n + m − 1 of
# the entries of a solution carry mass. The least cost is called d_c(p, q). If c is the distance, d_c is W₁; if c is its square, the
# root of d_c is W₂.

# %%
print(
    f"{np.count_nonzero(exact_plan)} entries of {exact_plan.size} carry mass; n + m - 1 = {40 + 30 - 1}"
)
distances = scipy.spatial.distance.cdist(x, y)
print(
    f"W1 between the unweighted sets: {metrics.wasserstein1(x, y):.4f}, as a plan's cost {solve_transport(distances)[1]:.4f}"
)
print(
    f"W2 between them: {metrics.wasserstein2(x, y):.4f}, from our half squares {np.sqrt(2 * transport_plan(x, y)[1]):.4f}"
)

# %% [markdown]
# ## Entropic plans
#
# The entropy H(π) = −Σ π log π is large when mass is spread. Minimising ⟨C, π⟩ − ε H(π) gives a plan that is smooth, unique and
# differentiable, at the price of blur. Many texts write λ for ε. `sinkflow.sinkhorn` returns two potentials f and g, and the plan is
# π_ij = p_i q_j exp((f_i + g_j − C_ij) / ε).

# %%
cost = squared_euclidean(x, y)
limits = sinkflow.Limits(1e-5, 20_000)


def draw(log10_epsilon=-1.0):
    epsilon = 10.0**log10_epsilon
    out = sinkflow.sinkhorn(x, y, epsilon, a=p, b=q, limits=limits)
    plan = p[:, None] * q * jnp.exp((out.f[:, None] + out.g - cost) / epsilon)
    title = f"ε = {epsilon:.3g}: cost {jnp.sum(plan * cost):.3f}, converged {out.converged}"
    return plotting.plan(np.asarray(plan), p, q, title)


display(draw())
_ = interact(draw, log10_epsilon=(-2.5, 1.5, 0.1))

# %% [markdown]
# ## From blur to exact
#
# As ε falls, the cost of the entropic plan falls to d_c. It is above it by at most ε H(p ⊗ q), for no plan has more entropy than the
# product p ⊗ q and the exact one has at least 0.

# %%
most = entropy(p) + entropy(q)
for epsilon in (3.0, 0.3, 0.03, 0.01):
    out = sinkflow.sinkhorn(x, y, epsilon, a=p, b=q, limits=limits)
    plan = p[:, None] * q * jnp.exp((out.f[:, None] + out.g - cost) / epsilon)
    above = jnp.sum(plan * cost) - exact
    print(
        f"ε {epsilon:4}: above d_c by {above:.4f} <= {epsilon * most:.4f}; entropy {entropy(plan):.2f}, "
        f"neighbours {out.neighbours:5.2f}, converged {out.converged}"
    )

# %% [markdown]
# ## The same problem, said with KL
#
# Let K = exp(−C/ε), and z = ΣK. Then ⟨C, π⟩ − ε H(π) = ε KL(π ‖ K/z) − ε log z for every π of mass 1. The last term does not depend on π:
# the entropic plan is the one nearest to K/z. In numbers, for the entropic plan and for the product plan:

# %%
with jax.enable_x64(True):
    C, a, b = (jnp.asarray(leaf, float) for leaf in (cost, p, q))
    a, b = a / a.sum(), b / b.sum()
    kernel = jnp.exp(-C / 0.3)
    z = kernel.sum()
    for name, plan in (
        ("entropic", matrix_scaling(C, 0.3, a, b, num_iterations=500).plan),
        ("product", a[:, None] * b),
    ):
        left = entropic_objective(C, plan, 0.3)
        right = 0.3 * kl_divergence(plan, kernel / z) - 0.3 * jnp.log(z)
        print(f"{name:8}: {left:.10f} = {right:.10f}")

# %% [markdown]
# ## A map for new points
#
# The plan sends x_i to the mean of its targets, T(x_i) = Σ_j π_ij y_j / Σ_j π_ij. The formula needs only g: so it takes points that were
# not in the set.

# %%
out = sinkflow.sinkhorn(x, y, 0.1, a=p, b=q, limits=limits)
new = jnp.array([[-1.0], [0.0], [1.0]])
images, neighbours = sinkflow.barycentric_map(new, y, out.g, 0.1, b=q)
for point, image, count in zip(new[:, 0], images[:, 0], neighbours, strict=True):
    print(f"{point:5.2f} goes to {image:5.2f}, a mean of about {count:.1f} targets")

# %% [markdown]
# ## Check yourself
#
# 1. What does π1 = p mean? (a) Every target receives p. (b) All that leaves x_i sums to its weight p_i. (c) The plan is a probability.
#    Compare the row sums, that is what leaves each source.

# %%
print("largest difference of row sums from p:   ", np.abs(exact_plan.sum(axis=1) - p).max())
print("largest difference of column sums from q:", np.abs(exact_plan.sum(axis=0) - q).max())

# %% [markdown]
# 2. Where does the plan go as ε grows beyond all costs?

# %%
out = sinkflow.sinkhorn(x, y, 1e3, a=p, b=q)
plan = p[:, None] * q * jnp.exp((out.f[:, None] + out.g - cost) / 1e3)
print(
    "largest difference from the product plan p ⊗ q:", float(jnp.abs(plan - p[:, None] * q).max())
)

# %% [markdown]
# 3. Does an entropic plan have entries that are 0?

# %%
out = sinkflow.sinkhorn(x, y, 0.3, a=p, b=q)
print("least log of an entry:", float(jnp.min((out.f[:, None] + out.g - cost) / 0.3)))
