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
# # 5. The gradient flow
#
# Particles move so that the Sinkhorn divergence to their targets falls as fast as it can. Each goes along
# v(x) = T_xy(x) − T_xx(x): to the mean of the targets that the plan gives it, minus what the same blur does to the particles
# themselves. The picture has their paths, from orange to blue.

# %%
import jax
import numpy as np
from IPython.display import Image, display

import sinkflow
from sinkflow import plotting

# %matplotlib inline

key_x, key_y = jax.random.split(jax.random.key(0))
x = sinkflow.data.eight_gaussians(key_x, 512)
y = sinkflow.data.moons(key_y, 512)
steps = sinkflow.flow.step_sizes(0.5, 8, full_last=True)
state, trajectory, info = sinkflow.flow.run(x, y, 0.02, steps)
print("all solves converged:", bool(info.converged.all()))
states = np.concatenate([trajectory.x, state.x[None]])
display(plotting.trajectories(states, np.asarray(y), "8 steps, seven of ½ and a full one"))

# %% [markdown]
# ## Velocities
#
# An arrow ends where its particle would be after one unit of flow time. `info.neighbours` is the number of targets among which a
# particle is averaged, about.

# %%
few = slice(None, None, 4)
for epsilon in (0.02, 3.0):
    velocity, at_start = sinkflow.sinkhorn_velocity(x, y, epsilon)
    title = f"ε = {epsilon}: {at_start.neighbours:.1f} neighbours"
    display(
        plotting.velocities(np.asarray(x)[few], np.asarray(velocity)[few], np.asarray(y), title)
    )

# %% [markdown]
# ## Potentials are where the velocity comes from
#
# ∇f(x_i) = x_i − T(x_i) for the cost ½‖x − y‖², for each of the two plans. So v = ∇f_xx − ∇f_xy. It is minus the gradient of the
# divergence, times n, which automatic differentiation confirms:

# %%
divergence = lambda x: sinkflow.sinkhorn_divergence(x, y, 0.3, limits=sinkflow.Limits(1e-5))[0]
velocity, _ = sinkflow.sinkhorn_velocity(x, y, 0.3, limits=sinkflow.Limits(1e-5))
gradient = -len(x) * jax.grad(divergence)(x)
print(
    f"largest speed {np.linalg.norm(velocity, axis=1).max():.3f}, largest difference {np.abs(velocity - gradient).max():.1e}"
)

# %% [markdown]
# ## How near do they come?
#
# The exact distance W2 to the targets, and the certificate, after each step:

# %%
for k, points in enumerate(states):
    text = (
        f"marginal error {info.marginal_error[k]:.0e}, neighbours {info.neighbours[k]:.2f}"
        if k < len(steps)
        else ""
    )
    print(f"step {k}: W2 {sinkflow.metrics.wasserstein2(points, y):.3f}  {text}")

# %% [markdown]
# ## Geodesic time
#
# In flow time a particle leaves e⁻ᵗ of its way after time t, so that most of it happens at once, and the rest takes forever. A step η leaves
# the share 1 − η of the way: geodesic time s counts the way instead, 1 − s ← (1 − s)(1 − η). Then the speed is nearly constant and the end is
# at s = 1. `sinkflow.pool.build` writes these labels.

# %%
pool, _ = sinkflow.pool.build(
    jax.random.key(1),
    sinkflow.data.eight_gaussians,
    sinkflow.data.moons,
    num_clouds=1,
    num_particles=512,
    epsilon=0.02,
    step_sizes=steps,
)
fast = np.linalg.norm(trajectory.velocity, axis=2).mean(axis=1)
even = np.linalg.norm(pool.velocity, axis=2).mean(axis=0)
for k in range(len(steps)):
    print(
        f"step {k}: flow time {trajectory.t[k]:.2f}, mean speed {fast[k]:5.2f}; "
        f"geodesic time {pool.t[0, k]:.4f}, mean speed {even[k]:5.2f}"
    )

# %% [markdown]
# ## Moving

# %%
plotting.flow_gif(states, np.asarray(y), "flow.gif", np.arange(len(states)))
display(Image("flow.gif"))

# %% [markdown]
# ## Check yourself
#
# 1. The particles already are the targets. What is their velocity, at any ε?

# %%
for epsilon in (0.02, 3.0):
    velocity, _ = sinkflow.sinkhorn_velocity(y, y, epsilon, limits=sinkflow.Limits(1e-5))
    print(f"ε {epsilon}: largest speed {np.linalg.norm(velocity, axis=1).max():.1e}")

# %% [markdown]
# 2. And without the self term, T_xy(x) − x?

# %%
for epsilon in (0.02, 3.0):
    out = sinkflow.sinkhorn(y, y, epsilon)
    images, _ = sinkflow.barycentric_map(y, y, out.g, epsilon)
    print(f"ε {epsilon}: largest speed {np.linalg.norm(images - y, axis=1).max():.2f}")

# %% [markdown]
# 3. A full step of 1 from the start, at small ε: where does it end?

# %%
one, _, _ = sinkflow.flow.run(x, y, 0.02, np.ones(1, np.float32))
print(
    f"W2 after one full step {sinkflow.metrics.wasserstein2(one.x, y):.3f}, after the eight {sinkflow.metrics.wasserstein2(state.x, y):.3f}"
)
