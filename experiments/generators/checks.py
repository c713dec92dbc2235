"""What is wrong with settings of the one-step generators."""

import math

import jax

from experiments.generators.config import GeneratorConfig
from experiments.harness.settings import (
    check_positive_counts,
    check_ranges,
    check_steps,
    check_widths,
)
from experiments.images import judge
from sinkflow import data


def check(config: GeneratorConfig) -> None:
    """Raises ValueError that names the first setting that cannot be, and what to do."""
    check_steps(
        config.steps_per_call,
        train_steps=config.train_steps,
        checkpoint_every=config.checkpoint_every,
    )
    counts = ["clouds", "latent", "channels", "num_blocks", "num_floors", "sample_batch"]
    counts += ["max_iterations", "num_iterations", "inner_steps"]
    check_positive_counts(**{name: getattr(config, name) for name in counts})
    check_widths("hidden_dims", config.hidden_dims)
    check_widths("multipliers", config.multipliers)
    if not config.multipliers or not config.epsilon:
        raise ValueError("multipliers or epsilon is empty; give at least one number")
    least = 2 * config.num_classes()  # two samples in each plan
    positive = {
        name: (0 < getattr(config, name) < math.inf, "(0, inf)")
        for name in ("epsilon_start", "temperature", "threshold", "learning_rate")
    }
    check_ranges(
        config,
        **positive,
        **{name: (getattr(config, name) >= least, f"[{least}, inf)") for name in "nmk"},
        epsilon=(all(0 < value < math.inf for value in config.epsilon), "(0, inf)"),
        max_unconverged=(0 <= config.max_unconverged <= 1, "[0, 1]"),
        warmup_steps=(
            0 <= config.warmup_steps < config.train_steps * config.inner_steps,
            "[0, train_steps * inner_steps)",
        ),
        b1=(0 <= config.b1 < 1, "[0, 1)"),
        b2=(0 <= config.b2 < 1, "[0, 1)"),
        clip=(0 < config.clip < math.inf, "(0, inf)"),
        ema_decay=(0 <= config.ema_decay < 1, "[0, 1)"),
        num_samples=(config.num_samples >= judge.LEAST_IMAGES, f"[{judge.LEAST_IMAGES}, inf)"),
    )
    check_together(config)


def check_devices(clouds: int) -> None:
    """Raises ValueError for clouds that the devices cannot share evenly."""
    count = jax.device_count()
    if clouds % count:
        raise ValueError(
            f"clouds is {clouds}; it must be a multiple of {count} devices: give --clouds {count}, "
            "or make one device visible (CUDA_VISIBLE_DEVICES=0)"
        )


def check_together(config: GeneratorConfig) -> None:
    """Raises ValueError that names the first two settings that do not go together."""
    if config.dataset in data.TASKS and (config.labels or config.net != "mlp"):
        raise ValueError(
            f"dataset is {config.dataset}: the plane has no labels and its net is mlp; leave "
            "--labels and --net away, or choose digits, mnist or fashion"
        )
    if len(config.epsilon) > 1 and config.objective != "regression":
        raise ValueError(
            f"epsilon is {config.epsilon} and objective {config.objective}; only regression adds "
            "several, give one"
        )
    if config.inner_steps > 1 and config.objective != "regression":
        raise ValueError(
            f"inner_steps is {config.inner_steps} and objective {config.objective}; only "
            "regression has a velocity to follow, leave --inner-steps away"
        )
    if config.self_cloud == "diagonal" and config.gradient == "implicit":
        raise ValueError(
            "self_cloud is diagonal and gradient implicit, which its plan has none of; choose "
            "envelope, the same at convergence, or unrolled"
        )
    if config.epsilon_unit == "neighbours" and min(config.epsilon) <= 1:
        raise ValueError(
            f"epsilon is {config.epsilon} neighbours; a sample has more than 1 at any epsilon"
        )
    if config.dataset == "digits":
        most = len(data.digits()[1]) // 2
        if config.num_samples > most:
            raise ValueError(
                f"num_samples is {config.num_samples}; of the digits as many are held out as "
                f"samples are measured, and at most half, {most}"
            )
