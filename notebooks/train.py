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
# # A field trained in a notebook
#
# Particle flows between two measures fill a pool. A network learns their velocity. Samples then follow the network.

# %%
import functools
import shutil

import jax
import numpy as np
import optax

import sinkflow
from sinkflow import data, pool, train

# %matplotlib inline

key_pool, key_init, key_fit, key_x0, key_real = jax.random.split(jax.random.key(0), 5)

# %% [markdown]
# ## The pool
#
# Four flows of 512 particles, each with its own solves. `build` refuses a pool in which a solve did not converge.

# %%
steps = sinkflow.flow.step_sizes(0.5, 8, full_last=True)
rows, info = pool.build(
    key_pool,
    data.eight_gaussians,
    data.moons,
    num_clouds=4,
    num_particles=512,
    epsilon=0.02,
    step_sizes=steps,
)
print(f"{rows.x.shape[0]} paths of {rows.x.shape[1]} steps, all converged: {info.converged.all()}")

# %% [markdown]
# ## The training
#
# A step draws rows from the pool and improves the network. `fit` compiles a hundred of them into one program, shares the rows
# among the devices, and writes checkpoints into the folder. `config` is kept there; its `source` tells `experiments.sample`
# where samples begin.

# %%
model, optimizer = sinkflow.nets.VelocityMLP((128, 128, 128)), optax.adam(2e-3)
step = train.drawing_step(
    train.make_step(model.apply, optimizer, ema_decay=0.99),
    functools.partial(pool.sample, batch_size=256, power=2.0),
)
losses = {}
fit = functools.partial(
    sinkflow.fit,
    step=step,
    rows=rows,
    key=key_fit,
    steps_per_call=100,
    folder="runs/notebook",
    config={"source": "8gaussians", "seed": 0},
    checkpoint_every=500,
    network=model,
    log=lambda done, info: losses.update({done: float(info.loss)}),
)
shutil.rmtree("runs/notebook", ignore_errors=True)  # else the training of last time goes on
state, report = fit(train.init(key_init, model, optimizer, dim=2), num_steps=500)
print(report)

# %% [markdown]
# ## Where it stopped it goes on
#
# The same call with more steps begins at the newest checkpoint, as it does after a crash. Parameters end bit for bit as if
# nothing had stopped them.

# %%
state, report = fit(train.init(key_init, model, optimizer, dim=2), num_steps=1_500)
print(report)
sinkflow.plotting.loss_curve(list(losses), list(losses.values()))

# %% [markdown]
# ## Samples
#
# `load_field` needs nothing but the folder. So does the command line:
# `python -m experiments.sample --run runs/notebook --nfe 5`.

# %%
field = sinkflow.load_field("runs/notebook")
x0, real = data.eight_gaussians(key_x0, 1024), data.moons(key_real, 1024)
samples = {}
for nfe in (1, 5, 20):
    points = sinkflow.sampling.nsgf(
        field.apply_fn, field.params, x0, nfe=nfe, horizon=field.horizon
    )
    w2 = sinkflow.metrics.wasserstein2(points, real)
    samples[f"NFE {nfe}, W2 {w2:.3f}"] = np.asarray(points)
sinkflow.plotting.samples_against_target(samples, np.asarray(real))
