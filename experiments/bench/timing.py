"""A clock around one call."""

import time
from collections.abc import Callable
from typing import Any


def timed(
    call: Callable[[], Any], wait: Callable[[Any], Any] = lambda result: None
) -> tuple[Any, float]:
    """What a call returns, and its seconds until ``wait(result)`` is over."""
    begin = time.perf_counter()
    result = call()
    wait(result)
    return result, time.perf_counter() - begin
