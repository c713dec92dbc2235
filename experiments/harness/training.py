"""Training in a run's folder, with its log and a bar; the optimiser of all drivers."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import optax
from tqdm.auto import tqdm

import sinkflow
from experiments.harness import board, stopping
from experiments.harness.run import Run
from experiments.harness.settings import check_steps
from sinkflow import train


def decaying(
    learning_rate: float, num_steps: int, *, warmup_steps: int | None = None
) -> optax.Schedule:
    """Learning rate with linear warm-up, by default over 5% of the steps, then cosine decay to 0.

    Args:
      learning_rate: its peak.
      num_steps: optimiser steps of the training.
      warmup_steps: steps of the warm-up.
    """
    warmup = num_steps // 20 if warmup_steps is None else warmup_steps
    return optax.warmup_cosine_decay_schedule(0, learning_rate, warmup, num_steps)


def adam(rate: optax.Schedule, *, clip: float = 0.0) -> optax.GradientTransformation:
    """Adam; ``clip`` is the largest norm of a gradient, 0 for none."""
    optimizer = optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


def fit(
    run: Run,
    state: train.TrainState,
    step: Callable,
    data: Callable[[int], Any],
    *,
    rate: optax.Schedule,
    batch_size: int,
    num_steps: int,
    steps_per_call: int,
    checkpoint_every: int,
    refresh_every: int = 0,
    description: str = "training",
    watch: Callable[[int, Any], None] | None = None,
    **options: Any,
) -> train.TrainState:
    """:func:`sinkflow.fit` with the run's folder, log and settings, and a bar.

    A call's log line has the metrics and the learning rate of its last step. How long it took is in
    a log of its own, for metrics are the same in every run of the same settings.

    Args:
      run: owns the folder and the log.
      state: fresh state; replaced by the checkpoint's if there is one.
      step: one step, see :func:`sinkflow.fit`.
      data: makes what a part of the training draws from, from the part's number.
      rate: the optimiser's learning rate, of the number of steps before.
      batch_size: rows of each optimiser step, over all devices.
      num_steps: optimiser steps in all.
      steps_per_call: optimiser steps of one dispatched call.
      checkpoint_every: optimiser steps between checkpoints.
      refresh_every: optimiser steps of a part; 0 for one part, the whole training.
      description: what the bar is named.
      watch: sees the number of steps done and each call's info once it is logged, and may raise.
      options: further ones of :func:`sinkflow.fit`.

    Raises:
      ValueError: step counts that are not multiples of one another.
      Stopped: SIGTERM or Ctrl-C came; the running call was finished and saved.
    """
    check_steps(
        steps_per_call,
        train_steps=num_steps,
        checkpoint_every=checkpoint_every,
        refresh_every=refresh_every or num_steps,
    )
    shown = board.Board(run.out / board.FOLDER if run.config.get(board.SETTING) else None)
    with (
        stopping.deferred(),
        tqdm(total=num_steps, desc=description, disable=None) as bar,
        contextlib.closing(shown),
    ):
        clock = [time.perf_counter()]

        def start(calls: range) -> range:
            run.forget_after(calls.start)
            shown.start(calls.start)
            bar.initial = bar.n = calls.start
            clock.append(time.perf_counter())
            return calls

        def tell_memory(program: Any) -> None:
            needed = memory_needed(program) or math.nan
            tqdm.write(f"{description}: {needed / 1e9:.2f} GB on each device")

        def log(done: int, info: Any) -> None:
            values = run.log(done, **info._asdict(), learning_rate=rate(done - 1))
            clock.append(time.perf_counter())
            rows = steps_per_call * batch_size
            times = run.log_time(done, clock[-1] - clock[-2], rows)
            shown.add(done, {**values, **times})
            if watch is not None:
                watch(done, info)
            bar.update(steps_per_call)
            bar.set_postfix(loss=f"{float(info.loss):.4g}")

        state, report = sinkflow.fit(
            state,
            step,
            data,
            num_steps=num_steps,
            steps_per_call=steps_per_call,
            refresh_every=refresh_every,
            folder=run.out,
            config=run.settings,
            checkpoint_every=checkpoint_every,
            log=log,
            progress=start,
            compiled=tell_memory,
            stop=stopping.REQUESTS.asked,
            **options,
        )
    if stopping.REQUESTS.asked():
        raise stopping.Stopped(
            f"step {int(state.step)} of {num_steps} ({description}) is saved in {run.out}"
        )
    run.resumed_from = report.resumed_from
    return state


def certified(name: str, seen: Mapping[str, Any]) -> str:
    """A line that counts the Sinkhorn solves of a pool, and those that did not converge."""
    error = seen.get("worst_marginal_error")
    worst = "" if error is None else f", worst marginal error {error:.2g}"
    return f"{name}: {seen['unconverged']} of {seen['solves']} solves unconverged{worst}"


def memory_needed(program: Any) -> int | None:
    """Bytes of each device that a compiled call needs: arguments, results and scratch."""
    sizes = program.memory_analysis()
    if sizes is None:  # not every backend tells
        return None
    own = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + own
