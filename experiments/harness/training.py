"""Training in a run's folder, with its log and a bar; the optimiser of all drivers."""

import math
from collections.abc import Callable
from typing import Any

import optax
from tqdm.auto import tqdm

import sinkflow
from experiments.harness import stopping
from experiments.harness.run import Run
from experiments.harness.settings import check_steps
from sinkflow import parallel, train


def adam(
    learning_rate: float, num_steps: int, *, warmup_steps: int | None = None, clip: float = 0.0
) -> optax.GradientTransformation:
    """Adam with linear warm-up, by default over 5% of the steps, then cosine decay to zero.

    Args:
      learning_rate: its peak.
      num_steps: optimiser steps of the training.
      warmup_steps: steps of the warm-up.
      clip: largest norm of a gradient; 0 for none.
    """
    warmup = num_steps // 20 if warmup_steps is None else warmup_steps
    rate = optax.warmup_cosine_decay_schedule(0, learning_rate, warmup, num_steps)
    optimizer = optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


def fit(
    run: Run,
    state: train.TrainState,
    step: Callable,
    data: Callable[[int], Any],
    *,
    num_steps: int,
    steps_per_call: int,
    checkpoint_every: int,
    refresh_every: int = 0,
    description: str = "training",
    watch: Callable[[int, Any], None] | None = None,
    **options: Any,
) -> train.TrainState:
    """:func:`sinkflow.fit` with the run's folder, log and settings, and a bar.

    Args:
      run: owns the folder and the log.
      state: fresh state; replaced by the checkpoint's if there is one.
      step: one step, see :func:`sinkflow.fit`.
      data: makes what a part of the training draws from, from the part's number.
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
    with stopping.deferred(), tqdm(total=num_steps, desc=description, disable=None) as bar:

        def start(calls: range) -> range:
            run.forget_after(calls.start)
            bar.initial = bar.n = calls.start
            return calls

        def tell_memory(program: Any) -> None:
            needed = memory_needed(program) or math.nan
            tqdm.write(f"{description}: {needed / 1e9:.2f} GB on each device")

        def log(done: int, info: Any) -> None:
            run.log(done, **info._asdict())
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
    if parallel.anywhere(stopping.REQUESTS.asked()):
        raise stopping.Stopped(
            f"step {int(state.step)} of {num_steps} ({description}) is saved in {run.out}"
        )
    run.resumed_from = report.resumed_from
    return state


def memory_needed(program: Any) -> int | None:
    """Bytes of each device that a compiled call needs: arguments, results and scratch."""
    sizes = program.memory_analysis()
    if sizes is None:  # not every backend tells
        return None
    own = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + own
