"""What callers get wrong, in one table: every entry is refused in words that name it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinkflow import (
    Limits,
    barycentric_map,
    checkpoint,
    costs,
    data,
    epsilon_for_entropy,
    epsilon_for_neighbours,
    flow,
    flow_map,
    general,
    metrics,
    nets,
    ode,
    pairs,
    plotting,
    pool,
    sampling,
    scaling,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_self,
    sinkhorn_velocity,
    train,
)
from sinkflow.nets import classifier, unet
from sinkflow.ot import barycentric
from sinkflow.ot.exact import transport_plan
from tests.tested import write_record

KEY = jax.random.key(0)
X, T = jnp.ones((4, 2)), jnp.linspace(0.0, 1.0, 4)
COLUMN, IMAGES = T[:, None], jnp.ones((4, 8, 8, 1))
CLOUD = np.random.default_rng(0).normal(size=(8, 2))
NAN = np.full((3, 2), np.nan)
ROWS = types.SimpleNamespace(x=X, t=T, velocity=X)
PAIRS = pool.from_pairs(X, 2 * X)


def field(params, x, t):
    return x


def mean(params, x, s, t):
    return x


def short(params, x, t):
    return x[:, 0]


def build(source=data.gaussian, target=data.moons, **changes):
    settings = {"num_clouds": 1, "num_particles": 4, "epsilon": 1.0, "step_sizes": [1.0]}
    return lambda: pool.build(KEY, source, target, **{**settings, **changes})


def applied(model, *arguments):
    """Initialisation from shapes alone: the network is traced and nothing else."""
    return lambda: jax.eval_shape(model.init, KEY, *arguments)


def saved(step=1, state=None, folder="/nonexistent"):
    return lambda: checkpoint.save(folder, step, {"x": np.ones(1)} if state is None else state, {})


def condition(labels):
    model = unet.Condition(8, 3)
    return lambda: model.init(KEY, jnp.zeros(2), jnp.asarray(labels))


NET = unet.UNet(8, (1, 2), num_blocks=1)
LABELLED = unet.UNet(8, (1, 2), num_blocks=1, num_classes=3)
FLOW = [
    ("no steps", lambda: flow.check_step_sizes([]), r"step_sizes has shape \(0,\)"),
    ("a scalar step", lambda: flow.check_step_sizes(0.5), r"step_sizes has shape \(\)"),
    ("a table of steps", lambda: flow.check_step_sizes([[0.5]]), r"step_sizes has shape \(1, 1\)"),
    ("ragged steps", lambda: flow.check_step_sizes([[1], [1, 1]]), "step_sizes is .* one number"),
    ("words for steps", lambda: flow.check_step_sizes(["a"]), "step_sizes has dtype <U1"),
    ("steps of bool", lambda: flow.check_step_sizes([True]), "step_sizes has dtype bool"),
    ("a NaN step", lambda: flow.check_step_sizes([0.5, np.nan]), r"step_sizes is .*nan.*\(0, 1\]"),
    ("a step of 0", lambda: flow.check_step_sizes([0]), r"step_sizes is \[0.*\(0, 1\]"),
    ("a step above 1", lambda: flow.check_step_sizes([1.5]), r"step_sizes is \[1.5\]"),
    ("a traced scalar", lambda: jax.jit(flow.check_step_sizes)(0.5), r"step_sizes has shape \(\)"),
    ("equal steps of 2", lambda: flow.step_sizes(2.0, 3), r"step_size is 2.0"),
    ("half a number of steps", lambda: flow.step_sizes(0.5, 2.5), "num_steps is 2.5.*whole"),
    ("zero equal steps", lambda: flow.step_sizes(0.5, 0), "num_steps is 0.*at least 1"),
]
POOL = [
    ("pool of no steps", build(step_sizes=[]), r"step_sizes has shape \(0,\)"),
    ("pool of a scalar step", build(step_sizes=1.0), r"step_sizes has shape \(\)"),
    ("pool of NaN steps", build(step_sizes=[np.nan, 1.0]), "step_sizes is .*nan"),
    ("pool that does not end", build(step_sizes=[0.5]), "ends with 0.5.*full last step"),
    ("pool of bytes", build(dtype="int8"), "dtype is int8.*floating"),
    ("pool of bools", build(dtype=bool), "dtype is bool.*floating"),
    ("NaN source", build(lambda key, n: jnp.full((n, 2), jnp.nan)), "source gave .* not finite"),
    (
        "infinite target",
        build(target=lambda key, n: jnp.full((n, 2), jnp.inf)),
        "target gave .* not finite",
    ),
    ("flat source", build(lambda key, n: jnp.zeros(n)), r"source gave shape \(4,\)"),
    ("too many targets", build(target=lambda key, n: jnp.zeros((9, 2))), r"target gave .*\(9, 2\)"),
    ("horizon of no time", lambda: pool.horizon([1.0], "clock"), "unknown time 'clock'"),
    ("pairs of two sizes", lambda: pool.from_pairs(X, X[:1]), r"x1 has shape \(1, 2\).*\(4, 2\)"),
    ("empty batch", lambda: pool.sample(PAIRS, KEY, 0), "batch_size is 0"),
    ("power of 0", lambda: pool.sample(PAIRS, KEY, 2, 0.0), "power is 0.0.*positive"),
    ("times of other rows", lambda: pool.at(PAIRS, jnp.arange(3), T), r"t has shape \(4,\)"),
    ("no pairs of states", lambda: flow_map.sample(PAIRS, KEY, 0), "batch_size is 0"),
    ("no mean flow", lambda: flow_map.sample_mean_flow(PAIRS, KEY, 0), "batch_size is 0"),
    (
        "mean flow of no law",
        lambda: flow_map.sample_mean_flow(PAIRS, KEY, 2, law="beta"),
        "unknown law 'beta'; choose one of logit-normal, uniform",
    ),
    ("pairs of power 0", lambda: flow_map.sample(PAIRS, KEY, 2, 0.0), "power is 0.0.*positive"),
    ("map of no steps", lambda: flow_map.carry(mean, None, X, nfe=0), "nfe is 0"),
    ("map of power 0", lambda: flow_map.carry(mean, None, X, nfe=1, power=0), "power is 0"),
    ("map of a column", lambda: flow_map.carry(lambda p, x, s, t: s, 0, X, nfe=1), "the field has"),
    (
        "start at the end",
        lambda: pool.sample(PAIRS, KEY, 2, 1.0, 1.0),
        r"start is 1.0 and stop",
    ),
]
SHAPES = [
    (
        "predicted times [n, 1]",
        lambda: train.time_prediction_loss(lambda params, x: COLUMN, None, ROWS),
        r"predictor has shape \(4, 1\); it must be \(4,\), as rows.t",
    ),
    (
        "field [n]",
        lambda: train.velocity_matching_loss(short, None, ROWS),
        r"field has shape \(4,\); it must be \(4, 2\), as rows.velocity",
    ),
    ("straight, t [n, 1]", lambda: pairs.straight(X, X, COLUMN), r"t has shape \(4, 1\)"),
    ("straight, t [1]", lambda: pairs.straight(X, X, T[:1]), r"t has shape \(1,\)"),
    ("straight, x1 [1, d]", lambda: pairs.straight(X, X[:1], T), r"x1 has shape \(1, 2\)"),
    (
        "trigonometric, t [n, 1]",
        lambda: pairs.trigonometric(X, X, COLUMN),
        r"t has shape \(4, 1\); it must be \(4,\)",
    ),
    ("ode field [n]", lambda: ode.integrate(short, 0, X, nfe=1), r"field has shape \(4,\).*x has"),
    ("t0 [n, 1]", lambda: ode.integrate(field, 0, X, t0=COLUMN, nfe=1), r"t0 has shape \(4, 1\)"),
    ("t1 [1]", lambda: ode.integrate(field, 0, X, t1=T[:1], nfe=1), r"t1 has shape \(1,\)"),
    ("half an nfe", lambda: ode.integrate(field, 0, X, nfe=1.5), "nfe is 1.5.*multiple"),
    ("floating nfe", lambda: ode.integrate(field, 0, X, nfe=T[1]), "nfe .*float32.*one integer"),
    (
        "two-phase times [n, 1]",
        lambda: sampling.two_phase(
            *(field, field, lambda params, x: x[:, :1], (0, 0, 0), X),
            nsgf_steps=1,
            straight_steps=1,
        ),
        r"predictor has shape \(4, 1\); it must be \(4,\)",
    ),
    ("MLP, t [1]", applied(nets.VelocityMLP(), X, T[:1]), r"t has shape \(1,\).*\(4,\)"),
    ("map MLP, t [1]", applied(nets.FlowMapMLP(), X, T, T[:1]), r"t has shape \(1,\).*\(4,\)"),
    ("MLP of images", applied(nets.VelocityMLP(), IMAGES, T), r"x has shape .* take \[n, d\]"),
    ("MLP of width 0", applied(nets.VelocityMLP((0,)), X, T), r"hidden_dims is \(0,\)"),
    ("predictor of images", applied(nets.TimePredictorMLP(), IMAGES), "x has shape .* vectors"),
    ("predictor of width 0", applied(nets.TimePredictorMLP((8, 0)), X), "hidden_dims is"),
    ("UNet, t [1]", applied(NET, IMAGES, T[:1]), r"t has shape \(1,\); it must be \(4,\)"),
    ("UNet of vectors", applied(NET, X, T), r"x has shape \(4, 2\); images are"),
    (
        "UNet, labels [1]",
        applied(LABELLED, IMAGES, T, jnp.zeros(1, int)),
        r"labels has shape \(1,\); it must be \(4,\)",
    ),
    ("label -1", condition([-1, 0]), "labels contain -1; they lie in 0 .. 2"),
    ("label beyond the classes", condition([0, 3]), "labels contain 3; they lie in 0 .. 2"),
    ("labels in floats", condition([0.0, 1.0]), "labels have dtype float32.*integers"),
    ("image predictor of vectors", applied(unet.ConvTimePredictor(), X), "x has shape .* images"),
    ("classifier of vectors", applied(classifier.Classifier(), X), "the classifier is for"),
    ("mixer of vectors", applied(classifier.MixerClassifier(), X), "the classifier is for"),
]
TRAINING = [
    (
        "decay above 1",
        lambda: train.make_step(field, optax.sgd(0.1), ema_decay=1.5),
        r"ema_decay is 1.5.*\[0, 1\)",
    ),
    ("no steps a call", lambda: train.make_steps(field, 0), "num_steps is 0.*at least 1"),
    ("half a step", lambda: train.make_steps(field, 1.5), "num_steps is 1.5.*whole number"),
    ("no dimension", lambda: train.init(KEY, nets.VelocityMLP(), optax.sgd(1), 0), "dim is 0"),
]
METRICS = [
    ("one row", lambda: metrics.frechet_distance(CLOUD[:1], CLOUD), "x has 1 sample.*covariance"),
    (
        "counts",
        lambda: metrics.total_variation([50, 50], [0.5, 0.5]),
        "p has .* sum 100.*sums to 1",
    ),
    ("other classes", lambda: metrics.total_variation([1], [0.5, 0.5]), "shapes .*same"),
    ("negative share", lambda: metrics.total_variation([1, 0], [1.5, -0.5]), "q has .*-0.5"),
    ("no classes", lambda: metrics.total_variation([], []), r"p has shape \(0,\)"),
    ("no distances", lambda: metrics.memorised([], [1.0]), r"generated has shape \(0,\)"),
    ("no real distances", lambda: metrics.memorised([1.0], []), r"real has shape \(0,\)"),
    ("NaN distance", lambda: metrics.memorised([np.nan], [1.0]), "generated .* 1 entries"),
    ("quantile of 2", lambda: metrics.memorised([1.0], [1.0], 2.0), r"quantile is 2.0.*\[0, 1\]"),
    ("1e300 squared", lambda: metrics.frechet_distance(CLOUD, 1e300 * CLOUD), "beyond float64"),
]
FILES = [
    ("step 1.5", saved(step=1.5), "step is 1.5.*whole numbers"),
    ("step -1", saved(step=-1), "step is -1.*from 0 up"),
    ("step True", saved(step=True), "step is True.*whole numbers"),
    ("a number in a state", saved(state={"rate": 0.1}), r"\['rate'\] is float; save numpy.asarray"),
    ("a key in a state", saved(state={"key": KEY}), r"\['key'\] is .*key_data"),
]
PICTURES = [
    ("no panels", lambda: plotting.samples_against_target({}, CLOUD), "samples is empty"),
    ("NaN panel", lambda: plotting.samples_against_target({"a": NAN}, CLOUD), "a has 6 of 6"),
    (
        "paths in space",
        lambda: plotting.trajectories(np.ones((2, 3, 3)), CLOUD),
        "states has shape",
    ),
    ("empty target", lambda: plotting.trajectories(CLOUD[None], CLOUD[:0]), "target has shape"),
    ("no losses", lambda: plotting.loss_curve([], []), "0 steps and 0 losses"),
    ("no columns", lambda: plotting.image_grid({"a": np.ones((1, 2, 2))}, 0), "columns is 0"),
    ("no images", lambda: plotting.image_grid({"a": np.ones((0, 2, 2))}), "a has shape"),
    ("no blocks", lambda: plotting.image_grid({}), "rows is empty"),
    ("shares of others", lambda: plotting.class_histogram({"a": [1.0]}, ["b", "c"]), "a has shape"),
    ("a frame without time", lambda: plotting.flow_gif(CLOUD[None], CLOUD, "x", []), "0 times"),
]
WEIGHTS, POTENTIAL = jnp.full(4, 0.25), jnp.zeros(4)
SOLVER = [
    ("cloud of strings", lambda: sinkhorn("x", X, 1.0), "x is str, no array of numbers"),
    ("cloud of nothing", lambda: sinkhorn_velocity(None, X, 1.0), "x is NoneType"),
    ("complex cloud", lambda: sinkhorn(X * 1j, X, 1.0), "x has dtype complex64"),
    ("flat cloud", lambda: sinkhorn(T, X, 1.0), r"x has shape \(4,\); a cloud is"),
    ("empty cloud", lambda: sinkhorn_self(X[:0], 1.0), "the cloud is empty"),
    ("dimensions", lambda: sinkhorn_divergence(X, COLUMN, 1.0), "x and y differ in dimension"),
    ("self cloud", lambda: sinkhorn_velocity(X, X, 1.0, self_cloud=COLUMN), "x and self_cloud"),
    ("epsilon 0", lambda: sinkhorn(X, X, 0), "epsilon is 0; it must be positive and finite"),
    ("epsilon NaN", lambda: sinkhorn_self(X, float("nan")), "epsilon is nan"),
    ("epsilons", lambda: sinkhorn(X, X, T), r"epsilon has shape \(4,\); it is one number"),
    ("threshold", lambda: flow.run(X, X, 1.0, [1.0], limits=Limits(0)), "threshold is 0"),
    (
        "cap",
        lambda: sinkhorn(X, X, 1.0, limits=Limits(max_iterations=1.5)),
        "max_iterations is 1.5; it is one",
    ),
    ("negative weight", lambda: sinkhorn(X, X, 1.0, a=[-1, 1, 1, 0]), "a contains -1.0"),
    ("sum of weights", lambda: sinkhorn(X, X, 1.0, b=2 * WEIGHTS), "b sums to 2.0"),
    ("number of weights", lambda: sinkhorn(X, X, 1.0, a=WEIGHTS[:3]), "a has shape"),
    ("weights of a map", lambda: barycentric_map(X, X, POTENTIAL, 1.0, T), "b sums to 2.0"),
    ("potential", lambda: barycentric_map(X, X, T[:3], 1.0), r"g has shape \(3,\); y needs"),
    ("no potential", lambda: barycentric_map(X, X, None, 1.0), "g is None"),
    ("warm start", lambda: sinkhorn(X, X, 1.0, g_init=T[:2]), "g_init has shape"),
    ("partners", lambda: barycentric.draw_partners(KEY, X, X, POTENTIAL, -1), "epsilon is -1"),
    ("gradient", lambda: sinkhorn_divergence(X, X, 1.0, gradient="no"), "unknown gradient 'no'"),
    (
        "storage",
        lambda: sinkhorn_velocity(X, X, 1.0, limits=Limits(storage="tape")),
        "unknown storage 'tape'",
    ),
    ("costs", lambda: costs.squared_euclidean(X, COLUMN), "x and y differ in dimension"),
    ("coincident clouds", lambda: epsilon_for_entropy(X, X, 0.5), "all points coincide"),
    ("one target", lambda: epsilon_for_neighbours(X, X[:1], 1.0), "y has 1 point"),
    ("neighbours", lambda: epsilon_for_neighbours(CLOUD, CLOUD, 9), "must lie between 1 and 8"),
    ("scaling's weights", lambda: scaling.matrix_scaling(X, 1.0, T, num_iterations=1), "a sums"),
    ("scaling's count", lambda: scaling.matrix_scaling(X, 1.0, num_iterations=0), "at least 1"),
    ("penalty", lambda: general.sinkhorn(X, X, 1.0, marginal_penalty=-1), "marginal_penalty is"),
    (
        "soft weights' sign",
        lambda: general.sinkhorn(X, X, 1.0, a=[-1, 1, 1, 1], marginal_penalty=1.0),
        "a contains -1.0",
    ),
    (
        "soft weights' shape",
        lambda: general.sinkhorn(X, X, 1.0, a=T[:3], marginal_penalty=1.0),
        "a has shape",
    ),
    ("plan's weights", lambda: transport_plan(X, X, a=T), "a sums to 2.0"),
]

TABLE = [
    (name, call, ValueError, words)
    for group in (SOLVER, FLOW, POOL, SHAPES, TRAINING, METRICS, FILES, PICTURES)
    for name, call, words in group
]


@pytest.fixture(scope="module")
def refused():
    """Names of what has been refused."""
    found = []
    yield found
    write_record(
        "inputs", "calls with wrong arguments", {"inputs": len(TABLE), "refused": len(found)}
    )


@pytest.mark.parametrize(("name", "call", "error", "words"), TABLE, ids=[row[0] for row in TABLE])
def test_bad_input_is_refused_and_named(unchecked_shapes, refused, name, call, error, words):
    with pytest.raises(error, match=words):
        call()
    refused.append(name)
