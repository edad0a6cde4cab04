"""How long a call takes: contestants by turns, inputs rotated past the cache, medians with their spread."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

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
    """A session, the batches that it goes through, one after the other, for ever, and what judges its first draw.

    `accepts` is given what the session drew and the logits; where it returns False the session is not measured.
    """

    session: Session
    batches: Sequence[Tensor]
    accepts: Callable[[Any, Tensor], bool] | None = None


def rotation(batch_bytes: int, rotated_bytes: int) -> int:
    """How many batches to go round, so that together they take `rotated_bytes`: at least 2, but 1 for 0 bytes."""
    return max(2, -(-rotated_bytes // batch_bytes)) if rotated_bytes else 1


def measure(contestants: Mapping[Key, Contestant], seconds: float) -> dict[Key, Times]:
    """Time every contestant in about `seconds` in all, shared equally.

    The first call of each warms up. One that takes longer than the contestant's whole share is all that is made: it
    counts, and `Times.calls` is 1. The others get up to `ROUNDS` turns, each of at least one call. Contestants whose
    first draw is not accepted are not in the result.
    """
    share = seconds / len(contestants) * 1e6
    walks: dict[Key, Iterator[Tensor]] = {key: itertools.cycle(one.batches) for key, one in contestants.items()}
    calls: dict[Key, list[float]] = {}
    in_turns = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for key, (session, _, accepts) in contestants.items():
            logits = next(walks[key])
            first, drawn = _timed_call(session, logits)
            if accepts is None or accepts(drawn, logits):
                calls[key] = [first] if first > share else []
                if first <= share:
                    in_turns.append(key)
        for _, key in itertools.product(range(ROUNDS), in_turns):
            session, walk, times = contestants[key].session, walks[key], calls[key]
            end = time.perf_counter() + share / ROUNDS / 1e6
            if times and sum(times) >= share:
                continue
            while True:
                times.append(_timed_call(session, next(walk))[0])
                if time.perf_counter() >= end:
                    break
    finally:
        if collecting:
            gc.enable()
    return {key: summary(times) for key, times in calls.items()}


def _timed_call(session: Session, logits: Tensor) -> tuple[float, Any]:
    session.load(logits)
    start = time.perf_counter_ns()
    drawn = session.draw()
    return (time.perf_counter_ns() - start) / 1e3, drawn


def summary(microseconds: Sequence[float]) -> Times:
    p10, median, p90 = np.percentile(microseconds, [10, 50, 90])
    return Times(round(float(median), 3), round(float(p10), 3), round(float(p90), 3), len(microseconds))
