"""The UNet's benchmark in miniature: its counts, its checks, its table, and workers that fail."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench_unet
from experiments.bench import unet_worker
from experiments.bench.flops import count_flops, forward_flops
from experiments.bench.peers.sinkflow_unet import disagreement
from experiments.bench.unet_report import rates, report
from experiments.harness.settings import made, replaced
from sinkflow.nets import unet

SMOKE = made(bench_unet.Config, **bench_unet.Config.SMOKE, smoke=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench-unet")
    config = replaced(SMOKE, out=str(out))
    return config, out, bench_unet.main(config)


@pytest.mark.slow
def test_rows_say_what_was_measured(finished):
    config, _, record = finished
    (row,) = (row for row in record["rows"] if row["peer"] == "sinkflow")
    assert row["images_per_second"] == pytest.approx(config.batch_sizes[0] / row["seconds"])
    achieved = 3 * record["forward_flops"] * row["images_per_second"]
    assert row["flop_per_second"] == pytest.approx(achieved)
    assert row["fraction_of_peak"] is None and row["device"] == "cpu"
    assert row["rounds"] >= unet_worker.LEAST and row["fastest_slowest"][0] <= row["seconds"]
    assert row["losses"][-1] < row["losses"][0] and 0 < row["forward_error"] < 0.03
    assert row["compile_seconds"] > 0 and row["sampled_per_second"] > 0
    # Parameters, their average and Adam's two moments at least.
    assert row["estimated_bytes"] > 4 * 4 * row["parameters"]


@pytest.mark.slow
def test_the_peer_has_as_many_parameters_or_says_why_it_did_not_run(finished):
    rows = {row["peer"]: row for row in finished[2]["rows"]}
    if importlib.util.find_spec("torchcfm") is None:
        assert "torch" in rows["torchcfm"]["not_run"]
    else:
        assert rows["torchcfm"]["parameters"] == rows["sinkflow"]["parameters"]
        assert rows["torchcfm"]["sampled_per_second"] > 0


@pytest.mark.slow
def test_the_table_comes_from_the_record_alone(finished):
    _, out, record = finished
    assert json.loads((out / "unet.json").read_text()) == record
    assert (out / "unet.md").read_text() == report(record)


def test_operations_are_those_counted_by_hand():
    # 3 channels to 8 by a 3x3 kernel over 4x4 pixels, then 8 x 5 for each of them, in a scan of 2.
    def network(x, kernel, matrix):
        h = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC")
        )
        body = lambda carry, _: (carry + jnp.sum(jnp.tensordot(h, matrix, 1)), None)
        return jax.lax.scan(jax.jit(body), 0.0, length=2)

    shapes = jnp.zeros((2, 4, 4, 3)), jnp.zeros((8, 3, 3, 3)), jnp.zeros((8, 5))
    jaxpr = jax.make_jaxpr(network)(*shapes).jaxpr
    assert count_flops(jaxpr) == 2 * 2 * 16 * (27 * 8 + 2 * 8 * 5)


@pytest.mark.slow
def test_the_cifar_network_is_the_one_measured_and_has_the_known_operations():
    config = bench_unet.Config()
    assert config.network.unet(flash=True) == unet.CIFAR_UNET()
    one, two = (
        forward_flops(config.network.unet(flash=False), config.network.shape(n)) for n in (1, 2)
    )
    assert two == 2 * one and one == pytest.approx(12.44e9, rel=1e-3)


class Product:
    """A network whose products are in ``dtype``."""

    def __init__(self, dtype=jnp.float32):
        self.dtype = dtype

    def apply(self, params, x, t):
        return (x.astype(self.dtype) * params["w"].astype(self.dtype)[None, None, None]).astype(
            jnp.float32
        )


@pytest.mark.parametrize("gradient", [False, True])
def test_precisions_are_compared(gradient):
    params, shape = {"w": 2.0 * jnp.ones(3)}, (4, 1, 1, 3)
    same = lambda dtype: Product()
    assert 0 < disagreement(Product, params, shape, gradient) < 0.02
    assert disagreement(same, params, shape, gradient) == 0


def test_a_network_that_does_not_learn_is_not_timed():
    falling, flat = iter([3.0, 2.0, 1.0]), iter([1.0, 0.5, 1.0])
    assert unet_worker.first_rounds(lambda: next(falling))["losses"] == [3.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="must be finite and fall"):
        unet_worker.first_rounds(lambda: next(flat))
    with pytest.raises(ValueError, match="nan"):
        unet_worker.first_rounds(lambda: np.nan)


def test_the_table_compares_with_our_fastest_row_of_the_same_batch_size():
    common = {"batch": 8, "device": "NVIDIA H200", "commit": "c", "parameters": 1}
    measured = {**common, "peak_bytes": 2**30, "compile_seconds": 1.0}
    rows = [
        {**measured, "peer": "sinkflow", "setting": "fast", "seconds": 0.010},
        {**measured, "peer": "sinkflow", "setting": "slow", "seconds": 0.016},
        {**measured, "peer": "torchcfm", "setting": "default", "seconds": 0.013},
        {**common, "peer": "torchcfm", "setting": "max-autotune", "not_run": "too slow"},
    ]
    rows = [{**row, **rates(row, 1e9)} if "seconds" in row else row for row in rows]
    assert rows[0]["fraction_of_peak"] == pytest.approx(3 * 8 * 1e9 / 0.010 / 989e12)
    text = report({"rows": rows, "forward_flops": 1e9})
    (default,) = (line for line in text.splitlines() if "| default |" in line)
    assert "| 1.30 x |" in default and "| 13 |" in default
    assert "not run: too slow" in text


@pytest.mark.parametrize(
    ("given", "word"), [({"batch_sizes": (0,)}, "batch_sizes 0"), ({"compile_modes": ()}, "empty")]
)
def test_wrong_settings_are_named(tmp_path, given, word):
    with pytest.raises(ValueError, match=word):
        bench_unet.main(replaced(SMOKE, out=str(tmp_path), **given))
