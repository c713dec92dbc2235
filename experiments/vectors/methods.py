"""Training methods of the tables in the plane: one network, budget and evaluation for all.

Each seed of every method sees ``num_clouds * num_particles`` source and as many target samples,
held as a pool of rows on the device; seeds are trained side by side under vmap. A method is a
function ``(setting, keys, timed) -> Learned`` that spends its time in ``timed("pool")`` and
``timed("train")``; :data:`METHODS` names them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.vectors import ratios
from experiments.vectors.pairs import (
    draw_pairs,
    flow_pool,
    optimal_partners,
    pair_pool,
    sinkhorn_partners,
)
from experiments.vectors.seeds import (
    FLOW_MAP,
    MEAN_FLOW,
    PREDICTOR,
    Keys,
    Setting,
    drawer,
    fit_seeds,
    map_drawer,
    mean_flow_rows,
    pool_rows,
    trigonometric_rows,
)
from sinkflow import flow_map, sampling


class Learned(NamedTuple):
    """A method after training, all seeds of it.

    ``draw(x0 [seeds, n, 2], nfe)`` gives samples [seeds, n, 2], or None where the method has no
    scheme of exactly that many network evaluations. ``paths(x0 [1, n, 2])`` gives the states
    [steps, n, 2] of the first seed's (first) field, evenly spaced in its time. ``paths_of`` says
    what they are of, if not of all that a sample goes through.
    """

    draw: Callable[[jax.Array, int], jax.Array | None]
    paths: Callable[[jax.Array], jax.Array]
    certificates: dict[str, Any]
    paths_of: str = ""


def points(setting: Setting, keys: jax.Array, size: int | None = None):
    """Source and target clouds of ``size`` particles, by default those of the flows."""
    return draw_pairs(setting.flow, setting.task, keys, size or setting.flow.num_particles)


def flow_matching(setting: Setting, keys: Keys, timed, *, partners=None, size=None, rows=pool_rows):
    """Straight (or trigonometric) paths between pairs.

    ``partners(flow, x, y, keys)`` couples them, and tells of its solves.
    """
    certificates: dict[str, Any] = {}
    with timed("pool"):
        x, y = draw_pairs(
            setting.flow, setting.task, keys.root(0), size or setting.flow.num_particles
        )
        if partners:
            y, certificates = partners(setting.flow, x, y, keys.root(1))
        pairs = pair_pool(x, y)
        jax.block_until_ready(pairs)
    field = fit_seeds(setting, keys, pairs, timed, rows)
    return Learned(*drawer(setting.sampling, *field), certificates)


def rectified_flow(setting: Setting, keys: Keys, timed, *, rectifications: int):
    """Flow matching on the pairs (x0, where the last flow takes it), again and again."""
    with timed("pool"):
        x, y = points(setting, keys.root(0))
    draw, paths = drawer(setting.sampling, *fit_seeds(setting, keys, pair_pool(x, y), timed))
    for number in range(1, rectifications):
        with timed("pool"):
            x = draw_pairs(
                setting.flow, setting.task, keys.root(number), setting.flow.num_particles
            )[0]
            pairs = pair_pool(x, draw(x.reshape(x.shape[0], -1, 2), 100).reshape(x.shape))
            jax.block_until_ready(pairs)
        draw, paths = drawer(setting.sampling, *fit_seeds(setting, keys, pairs, timed))
    return Learned(draw, paths, {})


def nsgf(setting: Setting, keys: Keys, timed, *, independent_self=False):
    """Neural Sinkhorn gradient flow, arXiv:2401.14069; its pool may be refreshed on the way."""
    certificates = {}

    def pools(number):
        with timed("pool"):
            rows, seen = flow_pool(setting.flow, setting.task, keys.root(number), independent_self)
            certificates.update(seen)
            return jax.block_until_ready(rows)

    field = fit_seeds(setting, keys, pools, timed)
    return Learned(*drawer(setting.sampling, *field, setting.flow.horizon()), certificates)


def nsgf_own_grid(setting: Setting, keys: Keys, timed):
    """NSGF followed on the very grid of its pool, as the paper has it: by its steps alone."""
    learned = nsgf(setting, keys, timed)

    def draw(x0, nfe):
        return learned.draw(x0, nfe) if nfe == setting.flow.flow_steps else None

    return learned._replace(draw=draw)


def nsgf_plus_plus(setting: Setting, keys: Keys, timed):
    """Two phases and a time predictor; all their steps count as NFE."""
    with timed("pool"):
        rows, certificates = flow_pool(setting.flow, setting.task, keys.root(0), False)
        pairs = pair_pool(*points(setting, keys.root(1)))
        jax.block_until_ready((rows, pairs))
    first, params_first = fit_seeds(setting, keys, rows, timed)
    second, params_second = fit_seeds(setting, keys, pairs, timed)
    predict, params_predict = fit_seeds(setting, keys, pairs, timed, fitting=PREDICTOR)
    params = params_first, params_second, params_predict

    def draw(x0, nfe):
        if nfe < 3:
            return None
        early, late = sampling.phase_steps(nfe, most=setting.flow.flow_steps)

        def two(params, x):
            return sampling.two_phase(
                first,
                second,
                predict,
                params,
                x,
                nsgf_steps=early,
                straight_steps=late,
                horizon=setting.flow.horizon(),
                method=setting.sampling.stepper,
                power=setting.sampling.time_power,
            )

        return jax.vmap(two)(params, x0)

    _, paths = drawer(setting.sampling, first, params_first, setting.flow.horizon())
    return Learned(draw, paths, certificates, paths_of="first phase")


def nsgf_flow_map(setting: Setting, keys: Keys, timed):
    """Mean velocities between pairs of states of NSGF's pool: any number of evaluations."""
    with timed("pool"):
        rows, certificates = flow_pool(setting.flow, setting.task, keys.root(0), False)
        jax.block_until_ready(rows)
    field = fit_seeds(setting, keys, rows, timed, flow_map.sample, FLOW_MAP)
    return Learned(*map_drawer(setting.sampling, *field), certificates)


def mean_flow(setting: Setting, keys: Keys, timed):
    """MeanFlow on independent pairs, arXiv:2505.13447: one step, or several."""
    with timed("pool"):
        pairs = pair_pool(*points(setting, keys.root(0)))
        jax.block_until_ready(pairs)
    field = fit_seeds(setting, keys, pairs, timed, mean_flow_rows, MEAN_FLOW)
    return Learned(*map_drawer(setting.sampling, *field), {})


def maps_in_turn(setting: Setting, keys: Keys, timed, *, rival):
    """Maps learnt one after the other, from particles that those before have moved.

    A sample goes through all of them, so that there is one number of evaluations. Of a map that
    is a step along a gradient, that gradient counts as the evaluation.
    """
    learn, move = rival(setting.flow, setting.network, setting.training)
    with timed("pool"):
        x, y = (
            cloud.reshape(cloud.shape[0], -1, cloud.shape[-1])
            for cloud in points(setting, keys.root(0))
        )
        jax.block_until_ready((x, y))
    with timed("train"):
        params = jax.block_until_ready(learn(keys.fit, x, y))
    states = jax.jit(functools.partial(ratios.carry, move))

    def draw(x0, nfe):
        return jax.vmap(states)(params, x0)[:, -1] if nfe == setting.flow.flow_steps else None

    def paths(x0):
        return states(jax.tree.map(lambda leaf: leaf[0], params), x0[0])

    return Learned(draw, paths, {})


def exact(flow, x, y, keys):
    return optimal_partners(x, y), {}


def entropic(flow, x, y, keys):
    return sinkhorn_partners(flow.epsilon, x, y, keys)


# Settings that a method adds to the table's own. A field of flow time is known at the times of the
# particles' own Euler steps alone: it is followed by such steps.
FLOW_TIME = {"time": "flow", "stepper": "euler", "time_power": 1.0}
PAPER = {**FLOW_TIME, "step_size": 0.5, "flow_steps": 10}
# The grids that are also sampled on. Their steps are of a small search on 8gaussians and
# 8gaussians-moons, one seed: 0.3, 0.4, 0.5 for 10 steps, and 0.05, 0.07, 0.1 for 100.
TEN = {**FLOW_TIME, "step_size": 0.4, "flow_steps": 10}
HUNDRED = {**FLOW_TIME, "step_size": 0.05, "flow_steps": 100}
EARLY = {**FLOW_TIME, "step_size": 0.2, "flow_steps": 5}

# Of a small search on 8gaussians, tried on scurve and checkerboard; steps are in length^2.
EPT = {"step_size": 1.0, "flow_steps": 100}
JKO = {"step_size": 1.0, "flow_steps": 10}

Method = tuple[Callable, dict[str, Any]]  # and the settings that it adds

METHODS: dict[str, Method] = {
    "NSGF": (nsgf, {}),
    "OT-CFM n=256": (functools.partial(flow_matching, partners=exact, size=256), {}),
    "OT-CFM n=cloud": (functools.partial(flow_matching, partners=exact), {}),
    "FM": (flow_matching, {}),
    "NSGF flow time": (nsgf, PAPER),
    "NSGF++": (nsgf_plus_plus, EARLY),
    "SI": (functools.partial(flow_matching, rows=trigonometric_rows), {}),
    "RF-2": (functools.partial(rectified_flow, rectifications=2), {}),
    "RF-3": (functools.partial(rectified_flow, rectifications=3), {}),
    "OT-CFM Sinkhorn n=256": (functools.partial(flow_matching, partners=entropic, size=256), {}),
    "NSGF independent self": (functools.partial(nsgf, independent_self=True), {}),
    "NSGF flow map": (nsgf_flow_map, {}),
    "MeanFlow": (mean_flow, {}),
    "NSGF flow time, own 10 steps": (nsgf_own_grid, TEN),
    "NSGF flow time, own 100 steps": (nsgf_own_grid, HUNDRED),
    "EPT": (functools.partial(maps_in_turn, rival=ratios.ept), EPT),
    "JKO-Flow": (functools.partial(maps_in_turn, rival=ratios.jko), JKO),
}
