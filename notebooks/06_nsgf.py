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
# # 6. NSGF and NSGF++
#
# The flow of particles knows its own particles only. A network that has learnt its velocities carries new ones. That is NSGF: simulate
# flows into a pool, fit a network to the pool, and sample by following the network. The picture has
# the paths of a quarter of the pool's particles, from orange to blue.

# %%
import functools

import jax
import numpy as np
import optax
from IPython.display import display

import sinkflow
from sinkflow import data, nets, plotting, pool, sampling, train

# %matplotlib inline

key_pool, key_train, key_x0, key_real, key_floor = jax.random.split(jax.random.key(0), 5)
step_sizes = sinkflow.flow.step_sizes(0.5, 8, full_last=True)
rows, info = pool.build(
    key_pool,
    data.eight_gaussians,
    data.moons,
    num_clouds=8,
    num_particles=512,
    epsilon=0.02,
    step_sizes=step_sizes,
)
ends = rows.x[:, -1] + rows.velocity[:, -1] * rows.width[:, -1:]
states = np.concatenate([np.moveaxis(rows.x, 1, 0), ends[None]])[:, :1024]
x0, real = data.eight_gaussians(key_x0, 1024), data.moons(key_real, 1024)
display(plotting.trajectories(states, np.asarray(real), "paths of the pool's particles"))
print(
    f"{rows.x.shape[0]} paths of {rows.x.shape[1]} steps, all {info.converged.size} solves converged: {info.converged.all()}"
)

# %% [markdown]
# ## Train
#
# A step draws rows (x, t, velocity) from the pool and brings the network's answer at (x, t) nearer to the velocity.
# [train.ipynb](train.ipynb) does this with a log, checkpoints and resuming.


# %%
def trained(model, loss_fn, paths, *inputs):
    optimizer = optax.adam(2e-3)
    step = train.make_step(model.apply, optimizer, ema_decay=0.99, loss_fn=loss_fn)
    draw = train.drawing_step(step, functools.partial(pool.sample, batch_size=512))
    state = train.create(model.init(key_train, *inputs), optimizer)
    state, seen = jax.jit(train.make_steps(draw, 1_500))(state, paths, key_train)
    print(f"{type(model).__name__}: mean loss of 1,500 steps {seen.loss:.3f}")
    return state.ema_params


field, at_start = nets.VelocityMLP((128, 128)), (x0[:1], np.zeros(1, np.float32))
params = trained(field, train.velocity_matching_loss, rows, *at_start)

# %% [markdown]
# ## Sample with 1 to 100 evaluations
#
# NFE is the number of network evaluations that one sample takes. W2 is the exact distance to 1,024 real points. The floor is what
# another 1,024 real points score: nothing can be expected to be much below it.

# %%
floor = sinkflow.metrics.wasserstein2(data.moons(key_floor, 1024), real)
print(f"floor: W2 {floor:.3f}")
made = {}
for nfe in (1, 2, 5, 20, 100):
    points = sampling.nsgf(field.apply, params, x0, nfe=nfe)
    w2 = sinkflow.metrics.wasserstein2(points, real)
    print(f"NFE {nfe:3d}: W2 {w2:.3f}")
    made[f"NFE {nfe}"] = np.asarray(points)
display(
    plotting.samples_against_target(
        {name: made[name] for name in ("NFE 1", "NFE 5", "NFE 100")}, np.asarray(real)
    )
)

# %% [markdown]
# ## The phase switch of NSGF++
#
# NSGF++ follows the flow for a few steps only. A second network, trained on straight lines from source to target, takes it from there. A
# third one predicts, from a point alone, how far along its line it is: time 0 is the source, 1 the target. Each sample then has its
# own remaining time.

# %%
lines = pool.from_pairs(data.eight_gaussians(key_pool, 4096), data.moons(key_train, 4096))
predictor = nets.TimePredictorMLP((128, 128))
straight = trained(field, train.velocity_matching_loss, lines, *at_start)
clock = trained(predictor, train.time_prediction_loss, lines, x0[:1])

half = sampling.nsgf(field.apply, params, x0, nfe=2, horizon=0.75)
times = np.asarray(predictor.apply(clock, half))
print(f"after the first phase the predicted times are {times.mean():.2f} ± {times.std():.2f}")
points = sampling.two_phase(
    field.apply,
    field.apply,
    predictor.apply,
    (params, straight, clock),
    x0,
    nsgf_steps=2,
    straight_steps=7,
    horizon=0.75,
)
print(f"NSGF++ with 2 + 1 + 7 evaluations: W2 {sinkflow.metrics.wasserstein2(points, real):.3f}")
display(
    plotting.samples_against_target(
        {"switch": np.asarray(half), "NSGF++": np.asarray(points)}, np.asarray(real)
    )
)

# %% [markdown]
# In the plane a point hardly tells its time, so that the predicted times are alike, and NSGF alone is better. On images NSGF++
# is the better of the two: the README's tables have both.

# %% [markdown]
# ## Check yourself
#
# 1. How many evaluations does NSGF++ spend with 3 steps, the predictor, and 6 straight steps?

# %%
print(
    "phases of 10 evaluations in all, a third of them first:",
    sampling.phase_steps(10, share=1 / 3),
    "and one for the predictor",
)

# %% [markdown]
# 2. Does the network need the source points of the pool? Give it points between the eight blobs:

# %%
ring = 5 * np.stack(
    [np.cos(np.linspace(0, 6.28, 512)), np.sin(np.linspace(0, 6.28, 512))], axis=1
).astype(np.float32)
carried = np.asarray(sampling.nsgf(field.apply, params, ring, nfe=5))
distances, _ = sinkflow.metrics.nearest(carried, real)
print(
    f"mean distance to the nearest real point: {distances.mean():.3f}, of real points to others {sinkflow.metrics.nearest(data.moons(key_floor, 512), real)[0].mean():.3f}"
)
