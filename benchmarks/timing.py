"""How long a call takes: contestants by turns, inputs rotated past the cache, medians with their spread."""

from __future__ import annotations

import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .peers.base import Session

# Turns per contestant: a drift of the machine's speed that lasts longer than a turn meets all of them alike.
ROUNDS = 5
NO_TIME = "the time of its setting was spent"
# As much as several L2 caches hold.
COOLING_MIB = 16

Key = TypeVar("Key")


class Times(NamedTuple):
    """The calls of one contestant in one setting, in microseconds."""

    median: float
    p10: float
    p90: float
    calls: int

    @classmethod
    def checked(cls, *fields: Any, **named: Any) -> Times:
        """From a file. Raises TypeError for a field that is missing, unknown or no number."""
        times = cls(*fields, **named)
        for name, value in times._asdict().items():
            if not isinstance(value, int | float):
                raise TypeError(f"the time {name} is {value!r}, and no number")
        return times


class Contestant(NamedTuple):
    """Who is timed, and on what.

    Attributes:
        session: the sampler.
        batches: what it goes through, one after the other, for ever.
        check: judges its first draw, with the logits it drew from, by raising.
        brief: whether one call is enough where it takes longer than the contestant's share of the time.
        left_out: told why it is not measured: its first call failed or was not right, or there was no time for it.
            None: it is always called, and what it raises goes to the caller.
    """

    session: Session
    batches: Sequence[Tensor]
    check: Callable[[Any, Tensor], None] | None = None
    brief: bool = False
    left_out: Callable[[str], None] | None = None


def rotation(batch_bytes: int, rotated_bytes: int) -> int:
    """How many batches to go round, so that together they take `rotated_bytes`: at least 2, but 1 for 0 bytes."""
    return max(2, -(-rotated_bytes // batch_bytes)) if rotated_bytes else 1


@functools.cache
def _elsewhere() -> Tensor:
    return torch.zeros(COOLING_MIB * 2**20 // 4)


def cool() -> None:
    """Read `COOLING_MIB` of other memory, as a model's forward pass leaves the caches."""
    torch.sum(_elsewhere())


def measure(
    contestants: Mapping[Key, Contestant], seconds: float, rounds: int = ROUNDS, cold: bool = False
) -> dict[Key, Times]:
    """Time every contestant, in about `seconds` in all, shared equally.

    The first call of each warms up; if it takes longer than the share of a `brief` one it counts, and is all that is
    made. The others share the time that is left, in up to `rounds` turns each of at least one call. Contestants that
    are left out are not in the result. `cold`: whether `cool` comes before every draw of each, outside of its time.
    """
    end = time.perf_counter() + seconds
    share = seconds / len(contestants)
    walks: dict[Key, Iterator[Tensor]] = {key: itertools.cycle(one.batches) for key, one in contestants.items()}
    calls: dict[Key, list[float]] = {}
    in_turns = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for key, one in contestants.items():
            if one.left_out is not None and time.perf_counter() >= end:
                one.left_out(NO_TIME)
                continue
            logits = next(walks[key])
            try:
                first, drawn = _timed_call(one.session, logits, cold)
                if one.check is not None:
                    one.check(drawn, logits)
            except Exception as error:  # what another's code does wrong costs that other alone
                if one.left_out is None:
                    raise
                one.left_out(str(error))
                continue
            if one.brief and first > share * 1e6:
                calls[key] = [first]
            else:
                calls[key] = []
                in_turns.append(key)
        # Slow contestants have spent more than their share; what they leave must be enough to measure the others.
        share = max((end - time.perf_counter()) / max(len(in_turns), 1), share / 4)
        for _, key in itertools.product(range(rounds), in_turns):
            session, walk, times = contestants[key].session, walks[key], calls[key]
            if times and sum(times) >= share * 1e6:
                continue
            turn_end = time.perf_counter() + share / rounds
            while True:
                times.append(_timed_call(session, next(walk), cold)[0])
                if time.perf_counter() >= turn_end:
                    break
    finally:
        if collecting:
            gc.enable()
    return {key: summary(times) for key, times in calls.items()}


def _timed_call(session: Session, logits: Tensor, cold: bool) -> tuple[float, Any]:
    session.load(logits)
    if cold:
        cool()
    start = time.perf_counter_ns()
    drawn = session.draw()
    return (time.perf_counter_ns() - start) / 1e3, drawn


def summary(microseconds: Sequence[float]) -> Times:
    p10, median, p90 = np.percentile(microseconds, [10, 50, 90])
    return Times(round(float(median), 3), round(float(p10), 3), round(float(p90), 3), len(microseconds))
