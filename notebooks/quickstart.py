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
# # sinkflow in five minutes
#
# One entropic transport problem, its certificate, the velocity it gives, and the particle flow along it.

# %%
import jax
import numpy as np
from IPython.display import Image, display

import sinkflow

# %matplotlib inline

key_x, key_y = jax.random.split(jax.random.key(0))
x = sinkflow.data.eight_gaussians(key_x, 512)
y = sinkflow.data.moons(key_y, 512)

# %% [markdown]
# ## A solve, and whether to believe it
#
# `epsilon` is in cost units; the cost is ½‖x − y‖². The L1 error of the plan's marginals is measured on the
# returned potentials; a solve that ran out of iterations says so.

# %%
out = sinkflow.sinkhorn(x, y, epsilon=0.02)
print(
    f"W_epsilon {out.value:.3f} after {out.num_iterations} iterations: converged {out.converged}, "
    f"marginal error {out.marginal_error:.1e}"
)
hurried = sinkflow.sinkhorn(x, y, epsilon=0.02, limits=sinkflow.Limits(max_iterations=20))
print(f"20 iterations: converged {hurried.converged}, marginal error {hurried.marginal_error:.1e}")

# %% [markdown]
# ## Epsilon decides how sharp the map is
#
# The effective number of neighbours says among how many targets a particle is averaged.

# %%
for epsilon in (0.005, 0.02, 0.1, 1.0, 10.0):
    velocity, info = sinkflow.sinkhorn_velocity(x, y, epsilon)
    print(
        f"epsilon {epsilon:6.3f}: {info.neighbours:6.1f} neighbours, "
        f"mean speed {np.linalg.norm(velocity, axis=1).mean():.2f}, converged {info.converged}"
    )

# %% [markdown]
# ## The particle flow
#
# Seven Euler steps of ½ and a full one, one compiled program.

# %%
steps = sinkflow.flow.step_sizes(0.5, 8, full_last=True)
state, trajectory, info = sinkflow.flow.run(x, y, 0.02, steps)
print("all solves converged:", bool(info.converged.all()))
states = np.concatenate([trajectory.x, state.x[None]])
sinkflow.plotting.trajectories(states, np.asarray(y), "particles, 8 Euler steps")

# %% [markdown]
# How near do they come? Exact W2 to their own target cloud, after each step:

# %%
for k, points in enumerate(states):
    print(f"step {k}: W2 {sinkflow.metrics.wasserstein2(points, y):.3f}")

# %% [markdown]
# ## The same, moving
#
# `python -m experiments.plane` trains a network on such flows; its `flow.gif` looks like this one.

# %%
sinkflow.plotting.flow_gif(states, np.asarray(y), "quickstart.gif", np.arange(len(states)))
display(Image("quickstart.gif"))
