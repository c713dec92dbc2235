"""What is wrong with the settings of an image model."""

from experiments.harness.settings import (
    check_batch,
    check_positive_counts,
    check_ranges,
    check_steps,
    check_widths,
)
from experiments.images import judge
from experiments.images.config import (
    OF_FLOWS,
    Flow,
    ImageConfig,
    Network,
    Sampling,
    Training,
    pairing,
    stage_steps,
)


def check(config: ImageConfig) -> None:
    """Raises ValueError that names the first setting that cannot be."""
    check_parts(config.flow, config.network, config.training, config.sampling)
    check_counts(config.method, config.flow, config.training, config.sampling)
    check_method(config.method, config.stages, config.flow, config.training, config.sampling)


def check_counts(method: str, flow: Flow, training: Training, sampling: Sampling) -> None:
    """Raises ValueError that names the first count that is too small or no multiple."""
    check_batch(training.batch_size)
    check_positive_counts(
        num_clouds=flow.num_clouds,
        num_particles=flow.num_particles,
        clouds_per_call=flow.clouds_per_call,
        pair_size=flow.pair_size,
        num_samples=sampling.num_samples,
        sample_batch=sampling.sample_batch,
        num_kept=sampling.num_kept,
        **{f"nfe {nfe}": nfe for nfe in sampling.nfe},
    )
    check_steps(
        training.steps_per_call,
        checkpoint_every=training.checkpoint_every,
        refresh_every=flow.refresh_every,
        **{f"{name}_steps": count for name, count in stage_steps(method, training).items()},
    )
    if flow.num_clouds % flow.clouds_per_call:
        raise ValueError(
            f"clouds_per_call is {flow.clouds_per_call}; it must divide {flow.num_clouds}"
        )
    particles = flow.num_clouds * flow.num_particles
    if particles % flow.pair_size:
        raise ValueError(
            f"num_clouds {flow.num_clouds} times num_particles {flow.num_particles} is "
            f"{particles}; it must be a multiple of pair_size, {flow.pair_size}"
        )


def check_parts(flow: Flow, network: Network, training: Training, sampling: Sampling) -> None:
    """Raises ValueError that names the first setting outside of its range."""
    check_ranges(
        flow,
        neighbours=(1 < flow.neighbours < flow.num_particles, "(1, num_particles)"),
        step_size=(0 < flow.step_size <= 1, "(0, 1]"),
        flow_steps=(flow.flow_steps >= 1, "[1, inf)"),
    )
    check_ranges(
        training,
        ema_decay=(0 <= training.ema_decay < 1, "[0, 1)"),
        row_power=(training.row_power > 0, "(0, inf)"),
        learning_rate=(training.learning_rate > 0, "(0, inf)"),
        split=(0 <= training.split < 1, "[0, 1)"),
        clip=(training.clip > 0, "(0, inf)"),
    )
    least = judge.LEAST_IMAGES
    check_ranges(sampling, num_samples=(sampling.num_samples >= least, f"[{least}, inf)"))
    check_network(network)
    if not sampling.nfe:
        raise ValueError("nfe is empty; give at least one number of network evaluations")


def check_network(network: Network) -> None:
    """Raises ValueError that names the first setting that no network can have."""
    check_ranges(network, dropout=(0 <= network.dropout < 1, "[0, 1)"))
    check_positive_counts(channels=network.channels, num_blocks=network.num_blocks)
    check_widths("multipliers", network.multipliers)
    if not network.multipliers:
        raise ValueError("multipliers is empty; give the width of at least one level")


def check_method(
    method: str, stages: tuple[str, ...], flow: Flow, training: Training, sampling: Sampling
) -> None:
    """Raises ValueError that names the first setting that the method does not have."""
    if flow.pairs != "independent" and pairing(method, flow.pairs) != flow.pairs:
        raise ValueError(f"pairs is {flow.pairs!r}; {method} has its own, leave the setting away")
    two_phases, end = method == "nsgf++", sampling.phase_end
    if training.split and method in OF_FLOWS:
        raise ValueError(f"split is {training.split}; it is for fm and ot-cfm, leave it away")
    if two_phases and not 0 < end <= 1:
        raise ValueError(f"phase_end is {end}; geodesic time lies in (0, 1]")
    if two_phases and not 0 <= training.straight_start < end:
        raise ValueError(
            f"straight_start is {training.straight_start}; it lies in [0, phase_end), below {end}"
        )
    known = stage_steps(method, training)
    for name in stages:
        if name not in known:
            raise ValueError(f"{method} has no stage {name!r}; it has {', '.join(known)}")


def check_data(method: str, flow: Flow, count: int) -> None:
    """Raises ValueError that names the cloud that ``count`` training images cannot fill."""
    sizes = {}
    if method in OF_FLOWS:
        sizes["num_particles"] = flow.num_particles
    if pairing(method, flow.pairs) != "independent":
        sizes["pair_size"] = flow.pair_size
    for name, size in sizes.items():
        if size > count:
            raise ValueError(f"{name} is {size}; there are {count} training images")
