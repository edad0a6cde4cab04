"""How long a call takes: contestants by turns, inputs rotated past the cache, medians with their spread."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from .peers.base import Session

# Turns per contestant: a drift of the machine's speed that lasts longer than a turn meets all of them alike.
ROUNDS = 5

Key = TypeVar("Key")


class Times(NamedTuple):
    """The calls of one contestant in one setting, in microseconds."""

    median: float
    p10: float
    p90: float
    calls: int


class Contestant(NamedTuple):
    """A session and the batches that it goes through, one after the other, for ever."""

    session: Session
    batches: Sequence[Tensor]


def rotation(batch_bytes: int, rotated_bytes: int) -> int:
    """How many batches to go round, so that together they take `rotated_bytes`: at least 2."""
    return max(2, -(-rotated_bytes // batch_bytes))


def measure(contestants: Mapping[Key, Contestant], seconds: float) -> dict[Key, Times]:
    """Time every contestant in about `seconds` in all, shared equally.

    The first call of each warms up. One that is slower than the contestant's whole share is all that is made: it
    counts, and `Times.calls` is 1. The others get `ROUNDS` turns, each of at least one call.
    """
    share = seconds / len(contestants) * 1e6
    walks: dict[Key, Iterator[Tensor]] = {key: itertools.cycle(one.batches) for key, one in contestants.items()}
    calls: dict[Key, list[float]] = {}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for key, contestant in contestants.items():
            first = _timed_call(contestant.session, next(walks[key]))
            calls[key] = [first] if first > share else []
        in_turns = [key for key, first_calls in calls.items() if not first_calls]
        for _, key in itertools.product(range(ROUNDS), in_turns):
            session, walk = contestants[key].session, walks[key]
            end = time.perf_counter() + share / ROUNDS / 1e6
            while True:
                calls[key].append(_timed_call(session, next(walk)))
                if time.perf_counter() >= end:
                    break
    finally:
        if collecting:
            gc.enable()
    return {key: summary(times) for key, times in calls.items()}


def _timed_call(session: Session, logits: Tensor) -> float:
    session.load(logits)
    start = time.perf_counter_ns()
    session.draw()
    return (time.perf_counter_ns() - start) / 1e3


def summary(microseconds: Sequence[float]) -> Times:
    p10, median, p90 = np.percentile(microseconds, [10, 50, 90])
    return Times(round(float(median), 3), round(float(p10), 3), round(float(p90), 3), len(microseconds))
