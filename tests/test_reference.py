"""One seed, one result: a small run gives the same numbers on every supported version.

The gate runs this with the oldest and with the newest versions. Between the two these numbers
differed by 2.2e-7 at most, between instructions of SSE 4.2 and AVX-512 by 3e-7. The tests compile
without optimisation; the file was written with it, which differed by 6.1e-7.
"""

import pytest

from sinkflow.files import read_object
from tests import reference

TOLERANCE = 1e-5  # relative
FORM = {"numbers": {...: float}, "versions": {"jax": str, ...: str}, "device": dict}


def test_a_small_run_gives_the_numbers_that_are_written_down():
    wanted = read_object(reference.PATH, FORM)["numbers"]
    assert reference.numbers() == pytest.approx(wanted, rel=TOLERANCE, abs=0)


def test_another_seed_gives_other_numbers():
    """The tolerance tells results apart."""
    wanted = read_object(reference.PATH, FORM)["numbers"]
    other = reference.numbers(seed=1)
    assert all(abs(other[name] / value - 1) > 10 * TOLERANCE for name, value in wanted.items())
