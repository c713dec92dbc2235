"""UNet and ConvTimePredictor: shapes, precision, what the output depends on, errors, learning."""

import functools
import types

import flax.errors
import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinkflow.nets import _layers, unet
from sinkflow.nets.unet import CIFAR_UNET, ConvTimePredictor, UNet

TINY = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention": (4,),
    "head_dim": 8,
    "num_classes": 3,
}
SIZE = (3, 8, 8, 2)  # n, h, w, c


def inputs(key, size=SIZE):
    key_x, key_t = jax.random.split(key)
    x, t = jax.random.normal(key_x, size), jax.random.uniform(key_t, size[:1])
    return x, t, jnp.arange(size[0]) % TINY["num_classes"]


@functools.cache
def parameters():
    """Of the tiny network at initialisation; dropout and dtype do not change them."""
    # By "rbg", because one program of many threefry draws takes the CPU's compiler 20 seconds.
    init = jax.jit(UNet(**TINY).init)
    return init(jax.random.key(0, impl="rbg"), *inputs(jax.random.key(1)))


@functools.cache
def applied(dtype=jnp.float32, dropout=0.0):
    model = UNet(**TINY, dtype=dtype, dropout=dropout)
    return jax.jit(model.apply, static_argnames="train")


def perturbed(params):
    """Parameters that no longer hide a branch behind a zero."""
    random = np.random.default_rng(2)
    noisy = lambda x: x + 0.1 * random.standard_normal(x.shape, np.float32)
    return jax.tree.map(noisy, params)


def num_parameters(model, *arguments):
    """Counted from shapes alone: nothing is allocated."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def gap(a, b):
    return float(jnp.max(jnp.abs(a - b)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.slow
def test_velocity_is_float32_shaped_like_the_image_and_zero_at_first(key, dtype):
    velocity = applied(dtype)(parameters(), *inputs(key))
    assert velocity.shape == SIZE and velocity.dtype == jnp.float32
    assert not np.any(velocity)


@pytest.mark.parametrize("model", [UNet(**TINY), ConvTimePredictor()])
def test_parameters_are_float32_although_products_are_not(key, model):
    arguments = inputs(key) if isinstance(model, UNet) else inputs(key)[:1]
    shapes = jax.eval_shape(model.init, key, *arguments)
    assert model.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("channels", [12, 9, 2])  # no multiples of 8, of 4, fewer than 4
def test_any_width_and_any_divisible_size_of_images(channels):
    model = UNet(channels, (1, 2, 1))
    x, t = jnp.ones((1, 8, 12, 1)), jnp.ones(1)
    shape, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, t)
    assert shape.shape == x.shape


@pytest.mark.slow
def test_half_precision_stays_near_single(key):
    params = perturbed(parameters())
    expected = applied(jnp.float32)(params, *inputs(key))
    actual = applied(jnp.bfloat16)(params, *inputs(key))
    assert 0 < np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.slow
def test_velocity_depends_on_image_time_and_label(key):
    apply, params = applied(), perturbed(parameters())
    x, t, labels = inputs(key)
    base = apply(params, x, t, labels)
    assert gap(base, apply(params, x + 0.1, t, labels)) > 1e-2
    assert gap(base, apply(params, x, t + 0.1, labels)) > 1e-2
    assert gap(base, apply(params, x, t, (labels + 1) % 3)) > 1e-2


def test_images_do_not_interact(key):
    apply, params = applied(), perturbed(parameters())
    x, t, labels = inputs(key)
    together = apply(params, x, t, labels)
    for i in range(SIZE[0]):
        others = x.at[jnp.arange(SIZE[0]) != i].set(7.0)
        np.testing.assert_allclose(apply(params, others, t, labels)[i], together[i], atol=1e-5)


def test_time_embedding_tells_the_steps_of_a_sampler_apart(key):
    model, t = unet.Condition(channels=8, num_classes=0), jnp.linspace(0, 1, 101)
    told = np.asarray(model.init_with_output(key, t, None)[0])
    gaps = np.linalg.norm(told[:, None] - told[None], axis=2) + np.eye(101)
    assert told.dtype == np.float32 and gaps.min() > 1e-2


@pytest.mark.slow
def test_gradient_reaches_every_parameter_once_training_has_begun(key):
    apply, params = applied(), parameters()
    arguments, target = inputs(key), jax.random.normal(key, SIZE)
    optimizer = optax.adam(1e-2)
    loss = lambda params: jnp.mean((apply(params, *arguments) - target) ** 2)

    @jax.jit
    def step(params, opt_state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, value, gradient

    opt_state, losses = optimizer.init(params), []
    for _ in range(5):  # the last layer moves first, then the branches, then what feeds them
        params, opt_state, value, gradient = step(params, opt_state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)), path
        assert np.max(np.abs(leaf)) > 1e-6, path


def test_attention_by_hand(key):
    model = unet.SelfAttention(head_dim=4, dtype=jnp.float32)
    x = jax.random.normal(key, (2, 2, 3, 8))
    params = perturbed(model.init(key, x))
    (norm, qkv_layer, out_layer) = (
        {k: np.asarray(v, np.float64) for k, v in params["params"][name].items()}
        for name in ("GroupNorm_0", "Dense_0", "Dense_1")
    )
    h = np.asarray(x, np.float64).reshape(2, 6, 2, 4)  # image, pixel, group, channel
    h = (h - h.mean((1, 3), keepdims=True)) / h.std((1, 3), keepdims=True)
    h = h.reshape(2, 6, 8) * norm["scale"][None, None] + norm["bias"][None, None]
    q, k, v = np.split(h @ qkv_layer["kernel"] + qkv_layer["bias"], 3, axis=2)
    read = np.zeros((2, 6, 8))
    for head in (slice(0, 4), slice(4, 8)):
        weight = np.exp(q[..., head] @ k[..., head].transpose(0, 2, 1) / 2.0)  # root of 4
        read[..., head] = weight / weight.sum(2, keepdims=True) @ v[..., head]
    expected = x + (read @ out_layer["kernel"] + out_layer["bias"]).reshape(x.shape)
    np.testing.assert_allclose(model.apply(params, x), expected, atol=1e-4)


@pytest.mark.parametrize("silu", [False, True])
def test_normalisation_and_its_gradients_are_flax_and_jax(key, silu):
    keys = jax.random.split(key, 5)
    x, weight = (2 * jax.random.normal(key, (3, 4, 6, 12)) + 1 for key in keys[:2])
    sizes = ((3, 12), (12,), (12,))
    given = [jax.random.normal(key, size) for key, size in zip(keys[2:], sizes, strict=True)]

    def ours(x, shift, scale, bias):
        params = {"params": {"scale": scale, "bias": bias}}
        return jnp.sum(weight * _layers.GroupNorm(silu).apply(params, x, shift))

    def reference(x, shift, scale, bias):
        params = {"params": {"scale": scale, "bias": bias}}
        h = nn.GroupNorm(3).apply(params, x + shift[:, None, None, :])
        return jnp.sum(weight * (nn.silu(h) if silu else h))

    np.testing.assert_allclose(ours(x, *given), reference(x, *given), rtol=1e-5)
    gradients = (jax.grad(function, (0, 1, 2, 3))(x, *given) for function in (ours, reference))
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_fused_attention_is_for_cuda_and_what_fits_it(monkeypatch):
    qkv = lambda tokens=256, dim=64, dtype=jnp.bfloat16: jnp.zeros((1, tokens, 3, 2, dim), dtype)
    assert not unet._fused(qkv())
    cuda = types.SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: cuda)
    assert unet._fused(qkv())
    assert not unet._fused(qkv(tokens=16)) and not unet._fused(qkv(dim=4))
    assert not unet._fused(qkv(dtype=jnp.float32))


@pytest.mark.slow
def test_dropout_acts_in_training_only(key):
    apply, params, arguments = applied(dropout=0.5), perturbed(parameters()), inputs(key)
    train = lambda seed: apply(
        params, *arguments, train=True, rngs={"dropout": jax.random.key(seed)}
    )
    still = applied()(params, *arguments)
    np.testing.assert_allclose(apply(params, *arguments), still, atol=1e-6)
    assert gap(train(0), still) > 1e-2 and gap(train(0), train(1)) > 1e-2
    assert gap(train(0), train(0)) == 0
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        apply(params, *arguments, train=True)


@pytest.mark.parametrize(
    ("settings", "size", "labelled", "message"),
    [
        ({"multipliers": (1, 1, 1)}, (1, 28, 30, 1), True, "28x30 with 3 levels.*multiples of 4"),
        ({"attention": (16,)}, (1, 28, 28, 1), True, r"\(16,\).*\[28, 14\]"),
        ({"head_dim": 64}, (1, 8, 8, 1), True, "16 channels with head_dim 64.*choose"),
        ({}, (1, 8, 8, 1), False, "no labels given and num_classes is 3"),
        ({"num_classes": 0}, (1, 8, 8, 1), True, "^labels given and num_classes is 0"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_so(key, settings, size, labelled, message):
    x, t, labels = inputs(key, size)
    arguments = (x, t, labels) if labelled else (x, t)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UNet(**{**TINY, **settings}).init, key, *arguments)


def test_new_times_do_not_recompile(key):
    apply, params = applied(), parameters()
    x, t, labels = inputs(key)
    apply(params, x, t, labels)
    compiled = apply._cache_size()
    apply(params, x, t / 2, labels), apply(params, x + 1, jnp.zeros_like(t), labels)
    assert apply._cache_size() == compiled


def test_known_settings_have_the_known_number_of_parameters():
    image = lambda c: (jnp.zeros((1, 32, 32, c)), jnp.zeros(1))
    # The same layers as torchcfm's UNetModelWrapper with these settings, and as many parameters.
    assert num_parameters(CIFAR_UNET(), *image(3)) == 35_746_307
    labelled = num_parameters(CIFAR_UNET(num_classes=10), *image(3), jnp.zeros(1, jnp.int32))
    assert labelled == 35_746_307 + 10 * 4 * 128


@pytest.mark.slow
def test_predicted_time_is_a_float32_between_zero_and_one(key):
    model = ConvTimePredictor()
    for size in [(3, 8, 8, 2), (1, 7, 1, 1)]:  # the second is odd, and too small to halve thrice
        x = 10 * jax.random.normal(key, size)
        t, _ = model.init_with_output(key, x)
        assert t.shape == size[:1] and t.dtype == jnp.float32
        assert np.all((t > 0) & (t < 1))


@pytest.mark.slow
def test_predictor_learns_to_tell_noise_from_a_constant_image(key):
    model, optimizer = ConvTimePredictor((8, 16), jnp.float32), optax.adam(1e-2)
    true = jnp.repeat(jnp.array([0.0, 1.0]), 16)

    def images(key):
        key_noise, key_level = jax.random.split(key)
        level = jax.random.normal(key_level, (16, 1, 1, 1)) * jnp.ones((1, 8, 8, 1))
        return jnp.concatenate([jax.random.normal(key_noise, (16, 8, 8, 1)), level])

    @jax.jit
    def step(params, opt_state, key):
        loss = lambda params: jnp.mean((model.apply(params, images(key)) - true) ** 2)
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = model.init(key, images(key))
    opt_state = optimizer.init(params)
    for number in range(60):
        params, opt_state = step(params, opt_state, jax.random.fold_in(key, number))
    t = model.apply(params, images(jax.random.key(99)))  # images it has not seen
    assert np.mean(np.abs(t - true)) < 0.2


@pytest.mark.slow
def test_labels_beyond_the_classes_are_an_error_or_nan_never_another_class(key):
    x, t, _ = inputs(key)
    labels = jnp.array([-1, 3, 2])
    velocity = applied()(perturbed(parameters()), x, t, labels)
    expected = applied()(perturbed(parameters()), x, t, jnp.array([0, 1, 2]))
    assert np.all(np.isnan(velocity[:2]))
    np.testing.assert_allclose(velocity[2], expected[2], atol=1e-6)


def test_labels_beyond_the_classes_are_named(key):
    condition = unet.Condition(8, 3)
    params = condition.init(key, jnp.zeros(2), jnp.array([0, 2]))
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"labels contain {wrong}; they lie in 0 .. 2"):
            condition.apply(params, jnp.zeros(2), jnp.array([0, wrong]))


@pytest.mark.parametrize(
    ("t", "labels", "message"),
    [
        (1, 3, r"t has shape \(1,\); it must be \(3,\)"),
        (3, 1, r"labels has shape \(1,\); it must be \(3,\)"),
    ],
)
def test_one_time_or_label_does_not_serve_several_images(key, unchecked_shapes, t, labels, message):
    x = jnp.zeros(SIZE)
    arguments = (x, jnp.zeros(t), jnp.zeros(labels, jnp.int32))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UNet(**TINY).init, key, *arguments)


@pytest.mark.slow
def test_a_field_of_two_times_depends_on_each(key):
    model = UNet(8, (1,), 1, dtype=jnp.float32)
    x, s, _ = inputs(key)
    times = jnp.stack([s, s + 0.3], axis=1)
    params = perturbed(model.init(key, x, times))
    base = model.apply(params, x, times)
    assert base.shape == x.shape
    for column in range(2):
        moved = model.apply(params, x, times.at[:, column].add(0.2))
        assert np.max(np.abs(moved - base)) > 1e-3
    one = model.init(key, x, s)
    kernel = lambda params: params["params"]["Condition_0"]["Dense_1"]["kernel"]
    assert (kernel(params).shape, kernel(one).shape) == ((16, 32), (8, 32))
    with pytest.raises(ValueError, match="one time for each image of x, or two"):
        model.apply(params, x, times[..., None])
