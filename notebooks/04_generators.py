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
# # 4. Generators: the Sinkhorn loss, its bias, and one evaluation
#
# A generated set is fitted to data by descending a loss that compares the two sets. The plain loss is the entropic transport cost
# W_ε(x, y). It has a bias: its minimiser is a shrunken copy of the data. The debiased loss S_ε subtracts half of W_ε(x, x) and half of
# W_ε(y, y). In the picture no network stands between: the points themselves move, and both losses start from the same points.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from IPython.display import display

import sinkflow
from sinkflow import generator, plotting, train
from sinkflow.nets.generators import GeneratorMLP
from sinkflow.ot.costs import squared_euclidean
from sinkflow.ot.scaling import matrix_scaling

# %matplotlib inline

key_x, key_y = jax.random.split(jax.random.key(0))
start, data = jax.random.normal(key_x, (128, 2)), sinkflow.data.moons(key_y, 128)


@jax.jit
def descend(x, epsilon, debias):
    def loss(x):
        itself = debias * sinkflow.sinkhorn_self(x, epsilon).value
        return sinkflow.sinkhorn(x, data, epsilon).value - 0.5 * itself

    step = lambda x, _: (x - 0.5 * len(x) * jax.grad(loss)(x), None)
    return jax.lax.scan(step, x, length=100)[0]


fitted = {
    name: {
        f"{name}, ε = {eps}": np.asarray(descend(start, eps, debias)) for eps in (0.1, 1.0, 10.0)
    }
    for debias, name in ((0.0, "biased"), (1.0, "debiased"))
}
for panels in fitted.values():
    display(plotting.samples_against_target(panels, np.asarray(data)))

# %% [markdown]
# ## The shrinkage in numbers
#
# Spread is the mean standard deviation of the coordinates. At large ε the plan sends each point to the mean of all data, and the
# plain loss ends there. The self term lets points repel one another, as much as the blur draws them together.

# %%
print(f"spread of the data {data.std(axis=0).mean():.2f}")
for name, points in {**fitted["biased"], **fitted["debiased"]}.items():
    print(f"{name:20} spread {points.std(axis=0).mean():.2f}")

# %% [markdown]
# ## Differentiated through the iterations
#
# The loss as it was first proposed is Ê = ⟨C, π_L⟩, the cost of the plan after L iterations, differentiated through all of them. The library
# has three gradients of the converged value. The envelope needs no derivative of an iteration: at the solution the potentials'
# own change does not matter. At convergence all agree.

# %%
gradients = {}
for name in ("envelope", "implicit", "unrolled"):
    value = lambda x, name=name: (
        sinkflow.sinkhorn(x, data, 1.0, gradient=name, limits=sinkflow.Limits(1e-5, 200)).value
    )
    gradients[name] = jax.grad(value)(start)
for name in ("implicit", "unrolled"):
    difference = jnp.abs(gradients[name] - gradients["envelope"]).max()
    print(f"{name}: differs from the envelope by at most {difference:.1e}")
unrolled = lambda x: (
    matrix_scaling(squared_euclidean(x, data), 1.0, num_iterations=50).transport_cost
)
print(
    f"<C, π_L> {unrolled(start):.4f}, W_ε {sinkflow.sinkhorn(start, data, 1.0).value:.4f}: the second has ε KL(π ‖ p ⊗ q) added"
)

# %% [markdown]
# ## A generator in one evaluation
#
# A network G maps noise z to samples. `regression_loss` moves each sample along the flow's velocity: no derivative passes through a
# solve. Trained, one evaluation of the network gives a sample.

# %%
model, optimizer = GeneratorMLP(dim=2, hidden_dims=(64, 64)), optax.adam(3e-3)
key_init, key_train, key_test = jax.random.split(jax.random.key(1), 3)


def loss_fn(apply_fn, params, key):
    key_z, key_y, key_self = jax.random.split(key, 3)
    z, y = jax.random.normal(key_z, (256, 2)), sinkflow.data.moons(key_y, 256)
    return generator.regression_loss(apply_fn, params, z, y, key_self, epsilons=(0.05,))[0]


step = train.make_step(model.apply, optimizer, ema_decay=0.98, loss_fn=loss_fn)
draw = train.drawing_step(step, lambda _, key: key)
steps = jax.jit(train.make_steps(draw, 500))
state = train.create(model.init(key_init, jnp.zeros((1, 2))), optimizer)
state, seen = steps(state, None, key_train)
z = jax.random.normal(key_test, (1000, 2))
made = np.asarray(generator.samples(model.apply, state.ema_params, z))
real = sinkflow.data.moons(jax.random.key(2), 1000)
floor = sinkflow.metrics.wasserstein2(sinkflow.data.moons(jax.random.key(3), 1000), real)
w2 = sinkflow.metrics.wasserstein2(made, real)
print(f"W2 of 1000 samples {w2:.2f}, of 1000 other real points {floor:.2f}")
display(plotting.samples_against_target({"one evaluation": made}, np.asarray(real)))

# %% [markdown]
# ## Check yourself
#
# 1. The generated points are the data. Is the plain loss 0 there? Is the debiased one?

# %%
plain = sinkflow.sinkhorn(data, data, 1.0, limits=sinkflow.Limits(1e-5)).value
debiased, _ = sinkflow.sinkhorn_divergence(data, data, 1.0, limits=sinkflow.Limits(1e-5))
print(f"W_ε {plain:.4f}, S_ε {debiased:.1e}")

# %% [markdown]
# 2. By the plain loss at ε = 3, is a shrunken copy of the data better than the data?

# %%
for share in (1.0, 0.9, 0.8, 0.7, 0.6):
    points = data.mean(axis=0) + share * (data - data.mean(axis=0))
    plain = sinkflow.sinkhorn(points, data, 3.0).value
    debiased, _ = sinkflow.sinkhorn_divergence(points, data, 3.0)
    print(f"shrunk to {share}: W_ε {plain:.4f}, S_ε {debiased:.4f}")

# %% [markdown]
# 3. How many of the data's points would a generator's sample be an average of, at ε = 10?

# %%
print(f"{sinkflow.sinkhorn(start, data, 10.0).neighbours:.0f} of {len(data)}")
