"""What a training logs: rates and times beside the metrics, and scalars for TensorBoard."""

import json
import struct
import sys
import time

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments import classifier, digits, generator, mnist, plane, table_plane
from experiments.generators.updates import learning_rate, logged_rate
from experiments.harness import training
from experiments.harness.run import Run, recorded
from experiments.harness.settings import flat, made, replaced
from sinkflow import checkpoint, pool, train

RATE = training.decaying(0.1, 40)


def fit(run, num_steps, **options):
    """A field a x towards velocity 2 x; calls of five steps, a checkpoint every ten."""
    optimizer = training.adam(RATE)
    step = train.make_step(lambda params, x, t: params["a"] * x, optimizer, ema_decay=0.9)

    def draw(rows, key):
        x = jax.random.normal(key, (4, 2))
        return pool.Rows(x, jnp.zeros(4), 2 * x)

    state = train.create({"a": jnp.array([[0.5]])}, optimizer)
    return training.fit(
        run,
        state,
        train.drawing_step(step, draw),
        lambda part: jnp.zeros(4),
        key=jax.random.key(0),
        rate=RATE,
        batch_size=16,
        num_steps=num_steps,
        steps_per_call=5,
        checkpoint_every=10,
        **options,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_rate_of_its_last_step_and_times_are_apart(tmp_path):
    run = Run(plane.Config(out=str(tmp_path)))
    begin = time.perf_counter()
    fit(run, 20)
    passed = time.perf_counter() - begin
    metrics, times = lines(tmp_path / "metrics.jsonl"), lines(tmp_path / "timings.jsonl")
    assert [set(line) for line in metrics] == [
        {"step", "loss", "gradient_norm", "learning_rate"}
    ] * 4
    assert [line["learning_rate"] for line in metrics] == [float(RATE(n)) for n in (4, 9, 14, 19)]
    assert metrics[0]["learning_rate"] > metrics[-1]["learning_rate"] > 0
    assert [line["step"] for line in times] == [5, 10, 15, 20]
    for line in times:
        assert line["rows_per_second"] == pytest.approx(5 * 16 / line["seconds"])
    assert 0 < sum(line["seconds"] for line in times) < passed


def test_a_resumed_run_has_every_line_once(tmp_path):
    runs = [Run(plane.Config(out=str(tmp_path / name))) for name in ("whole", "broken")]
    fit(runs[0], 40)

    def fail(step, info):
        if step == 15:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(runs[1], 40, watch=fail)
    with runs[1].time_file.open("a") as file:
        file.write('{"step": 20, "sec')
    fit(runs[1], 40)
    assert runs[1].resumed_from == 10
    whole, broken = ((run.out / "metrics.jsonl").read_bytes() for run in runs)
    assert whole == broken
    steps = [line["step"] for line in lines(runs[1].time_file)]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]


def events(folder):
    """Scalars (step, name, value) of each event file, oldest first, and where it purges from."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, at, scalars, purged = path.read_bytes(), 0, [], []
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)  # then its sum, the event and its sum
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                purged.append(event.step)
            scalars += [(event.step, one.tag, one.simple_value) for one in event.summary.value]
        found.append((scalars, purged))
    return found


def test_tensorboard_gets_the_scalars_and_hides_what_a_resumed_run_repeats(tmp_path):
    run = Run(plane.Config(out=str(tmp_path), tensorboard=True))

    def fail(step, info):
        if step == 15:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(run, 20, watch=fail)
    [(first, _)] = events(tmp_path / "tensorboard")
    assert {step for step, *_ in first} == {5, 10, 15}
    time.sleep(1.1)  # an event file is named by its second
    fit(run, 20)
    (again, _), (second, purged) = events(tmp_path / "tensorboard")
    assert again == first and purged == [11]
    kept = [one for one in first if one[0] < purged[0]] + second
    for name in ("loss", "gradient_norm", "learning_rate"):
        steps, values = run.logged(name)
        shown = [(step, value) for step, tag, value in kept if tag == name]
        assert [step for step, _ in shown] == steps == [5, 10, 15, 20]
        assert [value for _, value in shown] == pytest.approx(values)
    assert [step for step, tag, _ in kept if tag == "rows_per_second"] == [5, 10, 15, 20]


def test_without_the_flag_there_is_no_folder_for_tensorboard(tmp_path):
    fit(Run(plane.Config(out=str(tmp_path))), 10)
    assert not (tmp_path / "tensorboard").exists()


def test_the_flag_without_the_package_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'sinkflow\[tensorboard\]', or leave --tens"):
        Run(plane.Config(out=str(tmp_path / "run"), tensorboard=True))
    assert not (tmp_path / "run").exists()
    Run(plane.Config(out=str(tmp_path / "run")))


@pytest.mark.parametrize("module", [plane, digits, mnist, generator, classifier])
def test_the_flag_is_one_of_every_training_and_no_part_of_a_run(module, tmp_path):
    config = made(module.Config, out=str(tmp_path))
    assert flat(config)["tensorboard"] is False
    folder = Run(config).out
    checkpoint.save(folder / "checkpoints", 1, {"x": jnp.ones(1)}, {})
    shown = replaced(config, tensorboard=True)
    Run(shown)  # a run that has begun may be shown
    assert "tensorboard" not in recorded(flat(shown))
    assert "tensorboard" not in json.loads((folder / "config.json").read_text())


def test_the_rates_of_drivers_are_their_optimizers():
    rate = training.decaying(0.5, 100)
    assert float(rate(0)) == 0 and float(rate(5)) == 0.5 and float(rate(100)) == 0
    config = generator.Config()
    assert float(learning_rate(config)(config.warmup_steps)) == pytest.approx(config.learning_rate)
    config = replaced(config, train_steps=10, inner_steps=4, warmup_steps=8)
    assert float(logged_rate(config)(0)) == float(learning_rate(config)(3)) > 0
    assert float(logged_rate(config)(9)) == float(learning_rate(config)(39)) > 0
    state = training.adam(rate).init({"a": jnp.ones(1)})
    update, _ = training.adam(rate).update({"a": jnp.ones(1)}, state)
    assert float(optax.tree.norm(update)) == 0  # the first step has rate 0
    assert table_plane.Config().tensorboard is False
