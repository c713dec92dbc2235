"""How calls are timed: a number of passes (track A), a sweep of knobs (track B)."""

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.peers.base import Peer
from experiments.bench.problems import FixedProblem, VelocityProblem
from experiments.bench.timing import timed

WARM, TIMED = (3, 10), (5, 20)  # least and most warm-ups and timed calls
FAILED = 1e9  # the error of a velocity that is not finite; JSON has no infinity


class NotRunError(Exception):
    """A row cannot be measured, for the reason given; the process is sound."""


class Repeated(NamedTuple):
    """Median and extremes of timed calls [s]."""

    seconds: float
    fastest_slowest: list[float]
    warm_ups: int
    repetitions: int


class Trial(NamedTuple):
    """A setting of a sweep: its worst error over the input sets, median time, mean passes."""

    label: str
    knob: float
    error: float
    seconds: float
    passes: float


def load(peer: Peer, problem: FixedProblem | VelocityProblem) -> list[tuple[Any, Any]]:
    """The input sets, on the device."""
    return [tuple(peer.put(np.load(path)) for path in pair) for pair in problem.files]


def repeat(
    peer: Peer, call: Callable[[int], Any], sets: int, seconds: float, limit: float
) -> Repeated:
    """Median time of a call that is compiled already, over rotated input sets.

    As many calls as fit in ``seconds``, at least the fewest, if those take at most twice ``limit``.
    """
    _, once = timed(lambda: call(0), peer.wait)
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
    calls = (functools.partial(call, index % sets) for index in range(count))
    times = [timed(one, peer.wait)[1] for one in calls]
    return Repeated(statistics.median(times), [min(times), max(times)], warm + 1, count)


def number(passes) -> float:
    """Passes as a number; clouds side by side count with their mean."""
    return float(np.mean(np.asarray(passes() if callable(passes) else passes)))


def picoseconds(seconds: float, passes: float, problem: FixedProblem | VelocityProblem) -> float:
    return 1e12 * seconds / (passes * problem.clouds * problem.n**2)


def fixed(peer: Peer, solve: Callable, problem: FixedProblem, limit: float) -> dict[str, Any]:
    """Track A: a fixed number of passes at a fixed epsilon, setup included; fields of a row."""
    sets, epsilon = load(peer, problem), problem.epsilon
    (_, passes), first = timed(lambda: solve(*sets[0], epsilon), peer.wait)
    passes = number(passes)
    measured = repeat(peer, lambda i: solve(*sets[i], epsilon)[0], len(sets), 0.4 * limit, limit)
    return {
        **measured._asdict(),
        "first_call_seconds": first,
        "passes": passes,
        "seconds_per_pass": measured.seconds / passes,
        "picoseconds_per_pair": picoseconds(measured.seconds, passes, problem),
    }


def relative_error(velocity, reference) -> float:
    """Frobenius norm of the difference over that of the reference; FAILED if not finite."""
    difference = np.asarray(velocity, np.float64) - reference
    error = float(np.linalg.norm(difference) / np.linalg.norm(reference))
    return error if np.isfinite(error) else FAILED


def host(array) -> np.ndarray:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def sweep(peer: Peer, problem: VelocityProblem, limit: float) -> dict[str, Any]:
    """Track B: the fastest setting within each tolerance, then its time; fields of a row."""
    if problem.not_run:
        raise NotRunError(problem.not_run)
    sets, epsilon = load(peer, problem), problem.epsilon
    references = [np.load(path) for path in problem.references]
    most = affordable(peer, sets[0], epsilon, limit)
    ways = peer.velocities(problem.mean_cost / epsilon, most)
    trials: list[Trial] = []
    first_calls: dict[str, float] = {}
    chosen: dict[float, Trial] = {}
    share = 0.6 * limit / len(ways)
    for label, (knobs, velocity) in ways.items():
        first_call = functools.partial(velocity, *sets[0], epsilon, knobs[0])
        _, first_calls[label] = timed(first_call, peer.wait)
        spent = 0.0
        for knob in knobs:

            def call(x, y, velocity=velocity, knob=knob):
                return velocity(x, y, epsilon, knob)

            trial = attempt(peer, call, label, knob, sets, references, 2 * share)
            if trial is None:
                break
            trials.append(trial)
            for tolerance in problem.tolerances:
                best = chosen.get(tolerance)
                faster = best is None or trial.seconds < best.seconds
                if trial.error <= tolerance and faster:
                    chosen[tolerance] = trial
            spent += len(sets) * trial.seconds
            # Slower knobs gain nothing once the tightest tolerance is met, or once every
            # tolerance is met faster.
            tightest = trial.error <= min(problem.tolerances)
            slowest = max((best.seconds for best in chosen.values()), default=float("inf"))
            beaten = len(chosen) == len(problem.tolerances) and trial.seconds > slowest
            if tightest or beaten or spent > share or trial.error == FAILED:
                break
    # One setting may be the fastest for several tolerances.
    room = 0.4 * limit / max(len(chosen), 1)
    measured = {
        trial: again(peer, trial, ways[trial.label].velocity, sets, problem, room)
        for trial in chosen.values()
    }
    return {
        "tolerances": {str(t): measured[trial] for t, trial in chosen.items()},
        "best_error": min((trial.error for trial in trials), default=FAILED),
        "first_call_seconds": first_calls,
        "max_iterations": most,
        "trials": [trial._asdict() for trial in trials],
    }


def again(
    peer: Peer, trial: Trial, velocity: Callable, sets, problem: VelocityProblem, room: float
) -> dict[str, Any]:
    """A chosen setting timed for ``room`` seconds; fields of a row's tolerance."""

    def solve(index):
        return velocity(*sets[index], problem.epsilon, trial.knob)[0]

    try:
        repeated = repeat(peer, solve, len(sets), room, room)._asdict()
    except NotRunError:
        # Too slow to repeat: what the sweep took, one call for each input set.
        repeated = {"seconds": trial.seconds, "warm_ups": 0, "repetitions": len(sets)}
    pairs = picoseconds(repeated["seconds"], trial.passes, problem)
    return {**trial._asdict(), **repeated, "picoseconds_per_pair": pairs}


def attempt(
    peer: Peer, call: Callable, label: str, knob: float, sets, references, room: float
) -> Trial | None:
    """``call(x, y)`` on every input set: the worst error; median time and mean passes.

    None where the calls do not fit into ``room`` seconds.
    """
    errors: list[float] = []
    times: list[float] = []
    passes: list[float] = []
    for pair, truth in zip(sets, references, strict=True):
        if sum(times) > room:
            return None
        (found, count), seconds = timed(functools.partial(call, *pair), peer.wait)
        errors.append(relative_error(host(found), truth))
        times.append(seconds)
        passes.append(number(count))
    return Trial(label, knob, max(errors), statistics.median(times), statistics.mean(passes))


def affordable(peer: Peer, pair, epsilon: float, limit: float) -> int:
    """Iterations that fit in a quarter of the row's time: the cap on each solve of a sweep."""
    solve = next(iter(peer.fixed(40, 1, len(pair[0])).values()))
    timed(lambda: solve(*pair, epsilon), peer.wait)
    (_, passes), seconds = timed(lambda: solve(*pair, epsilon), peer.wait)
    return int(min(max(limit / 4 * number(passes) / (2 * seconds), 100), 20_000))
