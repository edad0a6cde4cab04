"""How long a call takes on a GPU: CUDA graphs of many calls on different inputs, contestants by turns, medians.

One call between two events would say little below 100 us: the events and the gap before a launch are as long. So a
graph holds one call for each input that is rotated, and a replay of it is one sample of the time of a call. A peer
that takes many kernels a call gets fewer inputs than it takes to leave the second-level cache, and a sweep over other
memory between its replays, which is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastsample.benchmarks.peers.base import Session

ROUNDS = 5  # turns of each contestant, so that a drift of the clocks meets all of them alike
_MOST_REPLAYS_A_TURN = 64
_LEAST_CALLS = 8  # in a graph, for the small error of the events around it

Key = TypeVar("Key")


class GpuTimes(NamedTuple):
    """The time of a call of one contestant in one setting, in microseconds.

    Attributes:
        median, p20, p80: over the replays.
        replays, calls: how many replays, and calls in each.
        how: "graph" (replayed), "eager" (launched one by one, because it was asked for or could not be captured: its
            launches are in the time) or "host" (a rehearsal on the CPU).
    """

    median: float
    p20: float
    p80: float
    replays: int
    calls: int
    how: str


class Turn(Protocol):
    """A contestant made ready: `calls` calls in each replay."""

    calls: int
    how: str

    def replay(self, times: int) -> list[float]:
        """Replay so often. Returns microseconds a call, one for each replay."""


class Timer(Protocol):
    """Makes contestants ready on some device."""

    def prepare(self, session: Session, inputs: Sequence[Tensor], most_inputs: int, capture: bool = True) -> Turn:
        """A contestant that draws from `inputs` in turn, of which it takes at most `most_inputs`.

        With `capture` its calls are replayed as a graph, if they can be; else they are launched one by one.
        """


class CudaTimer:
    """Captures graphs on the current device.

    Args:
        sweep_bytes: memory that is read between replays where the inputs of a graph are fewer than those given.
        device: where that memory is.
    """

    def __init__(self, sweep_bytes: int, device: str = "cuda") -> None:
        self.stream = torch.cuda.Stream()
        self.elsewhere = torch.ones(sweep_bytes // 4, device=device)

    def prepare(self, session: Session, inputs: Sequence[Tensor], most_inputs: int, capture: bool = True) -> Turn:
        sweep = len(inputs) > most_inputs
        inputs = inputs[:most_inputs]
        rounds = max(1, _LEAST_CALLS // len(inputs)) if most_inputs >= _LEAST_CALLS else 1
        todo = [logits for _ in range(rounds) for logits in inputs]
        graph = torch.cuda.CUDAGraph() if capture else None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for logits in todo[:2]:  # whatever is compiled, loaded or tuned on the first call
                session.load(logits)
                session.draw()
            self.stream.synchronize()
            try:
                if graph is not None:
                    _capture(graph, session, todo)
            except Exception:  # a contestant may do in a call what it likes; what it cannot do in a graph shows here
                graph = None
                torch.cuda.synchronize()
        return _CudaTurn(self, session, todo, graph, sweep)


def _capture(graph: torch.cuda.CUDAGraph, session: Session, todo: Sequence[Tensor]) -> None:
    # Not `torch.cuda.graph`, which empties the allocator's cache on entry: with hundreds of graphs that takes seconds.
    graph.capture_begin()
    try:
        for logits in todo:
            session.load(logits)
            session.draw()
    except BaseException:
        with suppress(RuntimeError):  # the capture is broken already, and this is what ends it
            graph.capture_end()
        raise
    graph.capture_end()


class _CudaTurn:
    def __init__(
        self,
        timer: CudaTimer,
        session: Session,
        todo: Sequence[Tensor],
        graph: torch.cuda.CUDAGraph | None,
        sweep: bool,
    ) -> None:
        self.timer, self.session, self.todo, self.graph, self.sweep = timer, session, todo, graph, sweep
        self.calls = len(todo)
        self.how = "eager" if graph is None else "graph"

    def replay(self, times: int) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
        with torch.cuda.stream(self.timer.stream):
            for start, end in events:
                if self.sweep:
                    torch.sum(self.timer.elsewhere)
                start.record()
                if self.graph is not None:
                    self.graph.replay()
                else:
                    for logits in self.todo:
                        self.session.load(logits)
                        self.session.draw()
                end.record()
            self.timer.stream.synchronize()
        return [start.elapsed_time(end) * 1e3 / self.calls for start, end in events]


class HostTimer:
    """Times calls by the host's clock: for rehearsals without a GPU."""

    def prepare(self, session: Session, inputs: Sequence[Tensor], most_inputs: int, capture: bool = True) -> Turn:
        return _HostTurn(session, inputs[:most_inputs])


class _HostTurn:
    how = "host"

    def __init__(self, session: Session, inputs: Sequence[Tensor]) -> None:
        self.session, self.inputs = session, inputs
        self.calls = len(inputs)

    def replay(self, times: int) -> list[float]:
        found = []
        for _ in range(times):
            start = time.perf_counter_ns()
            for logits in self.inputs:
                self.session.load(logits)
                self.session.draw()
            found.append((time.perf_counter_ns() - start) / 1e3 / self.calls)
        return found


def measure(
    turns: Mapping[Key, Turn], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[Key, GpuTimes]:
    """Time contestants that are ready, each for about `seconds`, in `ROUNDS` rounds."""
    replays: dict[Key, int] = {}
    found: dict[Key, list[float]] = {key: [] for key in turns}
    for key, turn in turns.items():
        turn.replay(1)  # the clocks rise, and what a graph uploads on its first launch is uploaded
        start = clock()
        turn.replay(1)
        once = max(clock() - start, 1e-6)
        replays[key] = min(max(1, round(seconds / ROUNDS / once)), _MOST_REPLAYS_A_TURN)
    for _ in range(ROUNDS):
        for key, turn in turns.items():
            found[key] += turn.replay(replays[key])
    return {key: summary(times, turns[key]) for key, times in found.items()}


def summary(microseconds: Sequence[float], turn: Turn) -> GpuTimes:
    p20, median, p80 = (round(float(value), 3) for value in np.percentile(microseconds, [20, 50, 80]))
    return GpuTimes(median, p20, p80, len(microseconds), turn.calls, turn.how)
