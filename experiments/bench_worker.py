"""One process of the benchmark: measures one peer's rows, one JSON line each.

Command:  started by experiments.bench_sinkhorn; python -m experiments.bench_worker PEER FILE SKIP
Runtime:  as long as its rows.
Expected: lines {"begin": ...} and {"row": ...} on standard output, everything else on the other.
Source:   none.
"""

import functools
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments import peers, processes

WARM, TIMED = (3, 10), (5, 20)  # least and most warm-ups and timed calls
STATES = 3  # of a flow at which peers are timed
SAMPLED_CLOUDS = 2
FAILED = 1e9  # the error of a velocity that is not finite; JSON has no infinity
FAILED_ROW = 3  # exit status after a row that failed
REFERENCE = "reference"  # the peer that judges
WHOLE = "all clouds"
LEAST = 10.0  # seconds for a row that begins just before the end
BLOCK = 50  # iterations of the reference between two errors
COMPILE = 60.0  # seconds that a row may compile on top of its limit
LARGEST_TUNED = 64  # dimension above which one search for tiles is tried, within the row's time


class NotRunError(Exception):
    """A row cannot be measured, for the reason given; the process is sound."""


def main(name: str, file: str, skip: int) -> None:
    """Measures all rows of the file but the first ``skip``."""
    say = processes.reporter()
    plan = json.loads(pathlib.Path(file).read_text())
    peer: peers.Peer
    try:
        peer = Reference() if name == REFERENCE else peers.PEERS[name]()
        about = {"device": peer.device(), "versions": peer.versions(), "precision": peer.PRECISION}
    except Exception as error:
        say(unavailable=processes.told(error))
        return
    if plan["device"] == "gpu" and "cpu" in peer.device():
        say(unavailable="it sees no GPU")
        return
    for label, problem, seconds, measure in itertools.islice(rows(name, peer, plan), skip, None):
        key = {"track": problem["track"], "peer": name, "label": label, "problem": problem["key"]}
        # Others on the machine show in the load, which is 1 for each busy core.
        key = {**key, **about, "load_before": os.getloadavg()[0]}
        left = float("inf") if plan["deadline"] is None else plan["deadline"] - time.time()
        if left < 0:
            say(row={**key, "not_run": processes.SPENT})
            continue
        say(begin=key, limit=min(seconds, max(left, LEAST)))
        try:
            peer.forget()
            before = peer.memory()
            measured = measure()
        except NotRunError as error:
            say(row={**key, "not_run": str(error)})
            continue
        except Exception as error:
            # A device may be left in a bad state: the rows that remain get a new process.
            say(row={**key, "not_run": processes.told(error)})
            sys.exit(FAILED_ROW)
        peak = peer.memory()
        # A peak that did not rise is an earlier row's, where the library cannot forget it.
        measured |= {"peak_bytes": peak, "peak_is_bound": peak is not None and peak == before}
        say(row={**key, **measured})


Row = tuple[str, dict, float, Callable[[], dict]]


def rows(name: str, peer, plan: dict) -> Iterator[Row]:
    """Label, problem, seconds until it is given up, and what measures it, in a fixed order."""
    limit, folder = plan["limit"], pathlib.Path(plan["folder"])
    tried = False
    for problem in plan["problems"]:
        given = 4 * limit + COMPILE
        hard_to_tune = isinstance(peer, peers.TunedFlash) and problem["d"] > LARGEST_TUNED
        if hard_to_tune:
            if tried:
                continue
            given, tried = limit, True
        if isinstance(peer, Reference):
            yield "", problem, 60 * limit, functools.partial(peer.solve, problem)
        elif problem["track"] == "A":
            for label, solve in peer.fixed(
                problem["passes"], problem["clouds"], problem["n"]
            ).items():
                task = functools.partial(fixed, peer, solve, problem, limit)
                yield label, problem, given, task
        elif problem["track"] == "B":
            yield "", problem, given, functools.partial(sweep, peer, problem, limit)
        elif isinstance(peer, peers.Sinkflow):
            for way, storage in peer.storages().items():
                task = functools.partial(whole_pool, problem, folder, limit, WHOLE + way, storage)
                yield WHOLE + way, problem, 20 * limit + COMPILE, task
        else:
            ways = peer.procedure(problem["epsilon"], problem["scaling"])
            for label, (batched, run) in ways.items():
                found = {"peer": name, "label": label, "problem": problem["key"]}
                file = folder / velocity_file(found)
                task = functools.partial(sampled_pool, peer, run, batched, problem, file, limit)
                yield label, problem, given, task


def load(peer, problem) -> list[tuple[Any, Any]]:
    """The input sets, on the device."""
    return [tuple(peer.put(np.load(path)) for path in pair) for pair in problem["files"]]


def timed(peer, call) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call()
    peer.wait(result)
    return result, time.perf_counter() - begin


def repeat(peer, call: Callable[[int], Any], sets: int, seconds: float, limit: float) -> dict:
    """Median time of a call that is compiled already, over rotated input sets.

    As many calls as fit in ``seconds``, at least the fewest, if those take at most twice ``limit``.
    """
    _, once = timed(peer, lambda: call(0))
    least = sum(bounds[0] for bounds in (WARM, TIMED))
    if once * least > 2 * limit:
        raise NotRunError(f"one call takes {once:.3g} s, {least} calls too long")
    room = seconds / once
    warm, count = (
        int(min(max(share * room, low), high))
        for share, (low, high) in ((0.25, WARM), (0.75, TIMED))
    )
    for index in range(warm):
        peer.wait(call(index % sets))
    times = [timed(peer, lambda index=index: call(index % sets))[1] for index in range(count)]
    spread = [min(times), max(times)]
    return {
        "seconds": statistics.median(times),
        "fastest_slowest": spread,
        "warm_ups": warm + 1,
        "repetitions": count,
    }


def number(passes) -> float:
    """Passes as a number; clouds side by side count with their mean."""
    return float(np.mean(np.asarray(passes() if callable(passes) else passes)))


def picoseconds(seconds, passes, problem) -> float:
    return 1e12 * seconds / (passes * problem["clouds"] * problem["n"] ** 2)


def fixed(peer, solve, problem, limit) -> dict:
    """Track A: a fixed number of passes at a fixed epsilon, setup included."""
    sets, epsilon = load(peer, problem), problem["epsilon"]
    (_, passes), first = timed(peer, lambda: solve(*sets[0], epsilon))
    passes = number(passes)
    measured = repeat(peer, lambda i: solve(*sets[i], epsilon)[0], len(sets), 0.4 * limit, limit)
    return {
        **measured,
        "first_call_seconds": first,
        "passes": passes,
        "seconds_per_pass": measured["seconds"] / passes,
        "picoseconds_per_pair": picoseconds(measured["seconds"], passes, problem),
    }


def relative_error(velocity, reference) -> float:
    """Frobenius norm of the difference over that of the reference; FAILED if not finite."""
    difference = np.asarray(velocity, np.float64) - reference
    error = float(np.linalg.norm(difference) / np.linalg.norm(reference))
    return error if np.isfinite(error) else FAILED


def host(array) -> np.ndarray:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def sweep(peer, problem, limit) -> dict:
    """Track B: the fastest setting within each tolerance, on the worst input set; then its time."""
    if "not_run" in problem:
        raise NotRunError(problem["not_run"])
    sets, epsilon = load(peer, problem), problem["epsilon"]
    references = [np.load(path) for path in problem["references"]]
    most = affordable(peer, sets[0], epsilon, limit)
    ways = peer.velocities(problem["mean_cost"] / epsilon, most)
    trials, first_calls = [], {}
    chosen: dict[float, dict] = {}
    share = 0.6 * limit / len(ways)
    for label, (knobs, velocity) in ways.items():
        first_call = functools.partial(velocity, *sets[0], epsilon, knobs[0])
        _, first_calls[label] = timed(peer, first_call)
        spent = 0.0
        for knob in knobs:
            trial = attempt(peer, velocity, knob, sets, epsilon, references, 2 * share)
            if trial is None:
                break
            trial = {"label": label, "knob": knob, **trial}
            trials.append(trial)
            for tolerance in problem["tolerances"]:
                best = chosen.get(tolerance, {"seconds": float("inf")})
                if trial["error"] <= tolerance and trial["seconds"] < best["seconds"]:
                    chosen[tolerance] = trial
            spent += len(sets) * trial["seconds"]
            # Slower knobs gain nothing once the tightest tolerance is met, or once every
            # tolerance is met faster.
            tightest = trial["error"] <= min(problem["tolerances"])
            slowest = max((best["seconds"] for best in chosen.values()), default=float("inf"))
            beaten = len(chosen) == len(problem["tolerances"]) and trial["seconds"] > slowest
            if tightest or beaten or spent > share or trial["error"] == FAILED:
                break
    # One setting may be the fastest for several tolerances.
    measured = {}
    for trial in {id(trial): trial for trial in chosen.values()}.values():
        velocity, knob = ways[trial["label"]].velocity, trial["knob"]

        def solve(index, velocity=velocity, knob=knob):
            return velocity(*sets[index], epsilon, knob)[0]

        try:
            share = 0.4 * limit / len(chosen)
            again = repeat(peer, solve, len(sets), share, share)
        except NotRunError:
            # Too slow to repeat: what the sweep took, one call for each input set.
            again = {"seconds": trial["seconds"], "warm_ups": 0, "repetitions": len(sets)}
        pairs = picoseconds(again["seconds"], trial["passes"], problem)
        measured[id(trial)] = {**trial, **again, "picoseconds_per_pair": pairs}
    return {
        "tolerances": {str(t): measured[id(trial)] for t, trial in chosen.items()},
        "best_error": min((trial["error"] for trial in trials), default=FAILED),
        "first_call_seconds": first_calls,
        "max_iterations": most,
        "trials": trials,
    }


def attempt(peer, velocity, knob, sets, epsilon, references, room) -> dict | None:
    """Worst error over the input sets; median time and mean passes of one call each.

    None where the calls do not fit into ``room`` seconds.
    """
    errors: list[float] = []
    times: list[float] = []
    passes: list[float] = []
    for pair, truth in zip(sets, references, strict=True):
        if sum(times) > room:
            return None
        (found, count), seconds = timed(peer, lambda pair=pair: velocity(*pair, epsilon, knob))
        errors.append(relative_error(host(found), truth))
        times.append(seconds)
        passes.append(number(count))
    return {
        "error": max(errors),
        "seconds": statistics.median(times),
        "passes": statistics.mean(passes),
    }


def affordable(peer, pair, epsilon, limit) -> int:
    """Iterations that fit in a quarter of the row's time: the cap on each solve of a sweep."""
    solve = next(iter(peer.fixed(40, 1, len(pair[0])).values()))
    timed(peer, lambda: solve(*pair, epsilon))
    (_, passes), seconds = timed(peer, lambda: solve(*pair, epsilon))
    return int(min(max(limit / 4 * number(passes) / (2 * seconds), 100), 20_000))


def state_indices(steps: int) -> list[int]:
    """First, middle and last step."""
    return sorted({0, steps // 2, steps - 1})[:STATES]


def whole_pool(problem, folder, limit, label, storage) -> dict:
    """Track C, this library: the pool that a driver builds, in one call of all clouds."""
    import jax
    import jax.numpy as jnp

    from sinkflow import Limits, flow, pool, sinkhorn_velocity

    source, target = samplers(problem["d"])
    key, clouds, n = jax.random.key(problem["seed"]), problem["clouds"], problem["n"]
    settings = {
        "num_clouds": clouds,
        "num_particles": n,
        "epsilon": problem["epsilon"],
        "step_sizes": flow.step_sizes(problem["step_size"], problem["steps"]),
        "time": "flow",
        "clouds_per_call": problem["clouds_per_call"],
        "limits": Limits(storage=storage),
        "allow_unconverged": True,
    }

    def build():
        begin = time.perf_counter()
        rows, info = jax.block_until_ready(pool.build(key, source, target, **settings))
        return rows, info, time.perf_counter() - begin

    *_, first = build()
    rows, info, once = build()
    times: list[float] = [once]
    while len(times) < TIMED[0] and sum(times) + once < 2 * limit:
        times.append(build()[2])
    steps = state_indices(problem["steps"])
    files = [folder / f"{problem['key']}-{side}.npy" for side in "xy"]
    if files[0].exists():  # judged at the states that an earlier row left, like the peers
        states, targets = (np.load(file) for file in files)
        velocity = jnp.stack(
            [
                sinkhorn_velocity(
                    x[0], targets[0], problem["epsilon"], limits=Limits(storage=storage)
                )[0]
                for x in states
            ]
        )
    else:
        # What peers start from: the states of all clouds, and targets drawn as the pool does.
        states = np.asarray(rows.x[:, np.array(steps)]).reshape(clouds, n, len(steps), -1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(clouds))
        targets = jax.vmap(lambda key: target(jax.random.split(key)[1], n))(keys)
        np.save(files[0], states.transpose(2, 0, 1, 3))
        np.save(files[1], np.asarray(targets))
        velocity = rows.velocity[:n, np.array(steps)].transpose(1, 0, 2)
    found = {"peer": "sinkflow", "label": label, "problem": problem["key"]}
    np.save(folder / velocity_file(found), np.asarray(velocity))
    return {
        "seconds": statistics.median(times),
        "fastest_slowest": [min(times), max(times)],
        "repetitions": len(times),
        "first_call_seconds": first,
        "extrapolated": False,
        **pool.summary(info),
    }


def samplers(d: int) -> tuple[Callable, Callable]:
    """Source and target ``(key, n) -> [n, d]``: 8gaussians and moons, or normal and clusters."""
    import jax
    import jax.numpy as jnp

    from sinkflow import data

    if d == 2:
        return data.eight_gaussians, data.moons

    def clusters(key, n):
        """Ten clusters, the same for every key, pushed into the cube's corners."""
        key_cluster, key_noise = jax.random.split(key)
        centres = jax.random.normal(jax.random.key(0), (10, d))
        index = jax.random.randint(key_cluster, (n,), 0, 10)
        noise = jax.random.normal(key_noise, (n, d))
        return jnp.tanh(2 * (0.8 * centres[index] + 0.6 * noise))

    return lambda key, n: jax.random.normal(key, (n, d)), clusters


def velocity_file(row) -> str:
    """Where a row of track C leaves the first cloud's velocity at the sampled steps."""
    return "-".join([row["problem"], "velocity", row["peer"], row["label"]]) + ".npy"


def sampled_pool(peer, run, batched, problem, file, limit) -> dict:
    """Track C, a peer: its velocity at states of the flow, multiplied up to the whole pool."""
    states, targets = (file.parent / f"{problem['key']}-{side}.npy" for side in "xy")
    if not states.exists():
        raise NotRunError("sinkflow's flow gives the states, and was not run")
    all_x, all_y = np.load(states, mmap_mode="r"), np.load(targets, mmap_mode="r")
    clouds = [slice(None)] if batched else range(min(SAMPLED_CLOUDS, problem["clouds"]))
    per_state, first_cloud, counts = [], [], []
    pair = [peer.put(all_x[0][clouds[0]]), peer.put(all_y[clouds[0]])]
    _, first = timed(peer, lambda: run(*pair))
    for x_of_step in all_x:
        for cloud in clouds:
            x, y = peer.put(x_of_step[cloud]), peer.put(all_y[cloud])
            v, once = timed(peer, lambda x=x, y=y: run(x, y))
            if cloud == clouds[0]:
                first_cloud.append(host(v)[0] if batched else host(v))
            room = limit / (len(all_x) * len(clouds) * once)
            counts.append(int(min(max(room - 1, 1), TIMED[0])))
            spells = [timed(peer, lambda x=x, y=y: run(x, y))[1] for _ in range(counts[-1])]
            per_state.append(statistics.median(spells))
    np.save(file, np.stack(first_cloud))
    calls = problem["steps"] * (1 if batched else problem["clouds"])
    return {
        "seconds": statistics.mean(per_state) * calls,
        "seconds_per_call": statistics.mean(per_state),
        "repetitions": min(counts),
        "first_call_seconds": first,
        "extrapolated": True,
        "sampled_states": len(per_state),
        "whole_calls": calls,
    }


class Reference(peers.JaxPeer):
    """Velocities in float64 by plain log-domain updates, sharing no solver with any peer."""

    PACKAGES = ("jax", "jaxlib")
    PRECISION = "float64"

    def __init__(self):
        super().__init__()
        self.jax.config.update("jax_enable_x64", True)

    def solve(self, problem) -> dict:
        """Writes the reference velocity of every input set that has none yet."""
        found: list[dict] = []
        for (file_x, file_y), file_v in zip(problem["files"], problem["references"], strict=True):
            if pathlib.Path(file_v).exists():
                found.append({"cached": True})
                continue
            begin = time.perf_counter()
            x, y = np.load(file_x), np.load(file_y)
            velocity, certificate = reference_velocity(x, y, problem["epsilon"])
            if not certificate["converged"]:
                raise NotRunError(f"the reference did not converge: {certificate}")
            partial = pathlib.Path(file_v).with_suffix(".part.npy")
            np.save(partial, velocity)
            partial.rename(file_v)
            found.append({**certificate, "seconds": time.perf_counter() - begin})
        return {"sets": found}


def reference_velocity(x, y, epsilon: float, most: int = 100_000) -> tuple[np.ndarray, dict]:
    """T_xy(x) - T_xx(x) in the precision of JAX's default, meant for float64.

    Alternating log-sum-exp updates with epsilon halved down to its value, then over-relaxed from
    the decay of the error; x to x by averaged updates. Ends when both L1 marginal errors are below
    1e-10, or when they are below 1e-6 and the images' relative changes, as a geometric series, will
    add up to less than 1e-7. The velocity's relative error is then of the marginals' order.
    """
    import jax.numpy as jnp

    advance, advance_self, judge = reference_programs()
    window = 6  # errors between two relaxations
    x, y = jnp.asarray(x, float), jnp.asarray(y, float)

    def images(points, advance, annealed):
        norms = [0.5 * jnp.sum(cloud**2, axis=1) for cloud in (x, points)]
        cost = norms[0][:, None] + norms[1][None] - x @ points.T
        f, g = jnp.zeros(len(x)), jnp.zeros(len(points))
        current = float(jnp.max(cost)) if annealed else epsilon
        while current > epsilon:
            f, g = advance(cost, f, g, current, 1.0)
            current = max(current / 2, epsilon)
        relaxation, total = 1.0, 0
        past: list[float] = []
        error, image = judge(cost, f, g, epsilon, points)
        while True:
            f, g = advance(cost, f, g, epsilon, relaxation)
            total += BLOCK
            past.append(float(error))
            previous, (error, image) = image, judge(cost, f, g, epsilon, points)
            change = float(jnp.linalg.norm(image - previous) / jnp.linalg.norm(image))
            rate = float(error) / past[-1] if past[-1] else 0.0
            remaining = change * max(1.0, rate / (1 - rate)) if rate < 1 else np.inf
            converged = bool(error < 1e-10 or (error < 1e-6 and remaining < 1e-7))
            if converged or total >= most or not np.isfinite(error):
                break
            if annealed and len(past) == window:
                # A new relaxation changes the error's scale: not from its first two blocks.
                spectral = (float(error) / past[2]) ** (1 / ((window - 2) * BLOCK))
                relaxation = best_relaxation(spectral, relaxation)
                past = []
        return image, {"error": float(error), "iterations": total, "converged": converged}

    towards_target, xy = images(y, advance, True)
    towards_self, xx = images(x, advance_self, False)
    certificate = {"xy": xy, "xx": xx, "converged": xy["converged"] and xx["converged"]}
    return np.asarray(towards_target - towards_self), certificate


@functools.cache
def reference_programs() -> tuple[Callable, Callable, Callable]:
    """BLOCK updates of two clouds, of a cloud and itself, and (marginal error, images)."""
    import jax
    import jax.numpy as jnp

    def softmin(cost, g, epsilon, axis):
        z = (jnp.expand_dims(g, 1 - axis) - cost) / epsilon
        return -epsilon * (jax.nn.logsumexp(z, axis=axis) - jnp.log(cost.shape[axis]))

    @jax.jit
    def advance(cost, f, g, epsilon, relaxation):
        def both(_, potentials):
            f, g = potentials
            f = f + relaxation * (softmin(cost, g, epsilon, 1) - f)
            return f, g + relaxation * (softmin(cost, f, epsilon, 0) - g)

        return jax.lax.fori_loop(0, BLOCK, both, (f, g))

    @jax.jit
    def advance_self(cost, f, _, epsilon, relaxation):
        def average(_, f):
            return f + 0.5 * (softmin(cost, f, epsilon, 1) - f)

        f = jax.lax.fori_loop(0, BLOCK, average, f)
        return f, f

    @jax.jit
    def judge(cost, f, g, epsilon, points):
        errors = [
            jnp.mean(jnp.abs(jnp.expm1((own - softmin(cost, other, epsilon, axis)) / epsilon)))
            for own, other, axis in ((f, g, 1), (g, f, 0))
        ]
        plan = jax.nn.softmax((g[None] - cost) / epsilon, axis=1)
        return jnp.maximum(*errors), plan @ points

    return advance, advance_self, judge


def best_relaxation(rate: float, relaxation: float) -> float:
    """Young's: the plain rate behind an observed one, and what is best for it.

    A relaxation beyond the best one shows as a rate of relaxation - 1, and is reduced.
    """
    if rate >= 1 or rate <= 1.01 * (relaxation - 1):
        return 1 + 0.8 * (relaxation - 1)
    plain = (rate + relaxation - 1) ** 2 / (rate * relaxation**2)
    return float(min(2 / (1 + np.sqrt(max(1 - plain, 0.0))), 1.995))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
