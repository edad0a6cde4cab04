"""Ctrl-C: a call that it ends has drawn or has not, and nothing that follows draws a token twice or leaves one out."""

import linecache
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import fastsample
from fastsample import Sampler
from subprocesses import run_python

PACKAGE = Path(fastsample.__file__).parent
HOST_STATE = ("sampler.py", "request_tensors.py", "slots.py")
RECORD = ("reference_full.py",)
VOCAB = 37
LOGITS = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
# Every feature, and lists that fill the Sampler's capacity to the last entry: one that is counted twice does not fit.
FIRST: dict[str, Any] = {
    "seed": 1,
    "prompt_tokens": [1, 2],
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "logit_bias": {3: 2.0},
    "bad_words": [[5, 6], [7]],
    "stop_tokens": [8],
    "min_tokens": 4,
}
SECOND: dict[str, Any] = {
    "seed": 2,
    "top_k": 20,
    "allowed_tokens": list(range(30)),
    "logit_bias": {9: 1.0},
    "stop_tokens": [20],
    "min_tokens": 9,
}
THIRD: dict[str, Any] = {"seed": 3, "frequency_penalty": 0.7, "stop_tokens": [10], "min_tokens": 3}
# More biases than before, so that those of the second request are elsewhere.
CHANGED: dict[str, Any] = {"temperature": 0.7, "logit_bias": {3: 1.0, 12: 2.0}, "bad_words": [[13], [14, 15]]}
LIST_CAPACITY = 3

BIG_CALLS = """
import os, signal, sys, threading, time
import torch, fastsample

backend, rows = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(2)
logits = torch.randn(1, 128256, generator=torch.Generator().manual_seed(1)).expand(rows, -1)
generator = torch.Generator().manual_seed(7)

def draw():
    return fastsample.sample(logits, 0.8, 50, 0.9, generator=generator, backend=backend)

def state_after(calls):
    counted = torch.Generator().manual_seed(7)
    for _ in range(calls):
        torch.empty(2, dtype=torch.int64).random_(generator=counted)
    return counted.get_state()

begin = time.perf_counter()
draw()
seconds = time.perf_counter() - begin
finished = 1
for delay in (0.2, 0.8):
    timer = threading.Timer(delay * seconds, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            draw()
            finished += 1
    except KeyboardInterrupt:
        timer.join()
    # The words of the call that was ended are taken, both, or neither.
    taken = [calls for calls in (finished, finished + 1) if torch.equal(generator.get_state(), state_after(calls))]
    assert len(taken) == 1, "the generator is at no call's beginning"
    finished = taken[0]
    alone = torch.Generator()
    alone.set_state(generator.get_state())
    expected = fastsample.sample(logits[:1], 0.8, 50, 0.9, generator=alone, backend="reference")
    assert torch.equal(draw()[:1], expected)
    finished += 1
print("drawn")
"""


@contextmanager
def interrupted_at(line: int, files: tuple[str, ...]) -> Iterator[None]:
    """KeyboardInterrupt where the `line`-th line from here in `files` would run, as a signal would bring it.

    Not where a `with` statement is left, which Python traces as a second visit of its line: a signal comes before that,
    inside, or once its lock has been released.
    """
    paths = {str(PACKAGE / file) for file in files}
    lines = 0
    entered = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in paths:
            return None
        if event == "line":
            if linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                place = frame, frame.f_lineno
                if place in entered:
                    return trace
                entered.add(place)
            lines += 1
            if lines == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class Engine:
    """A Sampler, and what its requests have been handed: tokens, each with its log-probability.

    A neighbour's bias or ban seldom changes a token, but always its log-probability.
    """

    def __init__(self, backend: str) -> None:
        self.sampler = Sampler(3, VOCAB, max_tokens=16, list_capacity=LIST_CAPACITY, backend=backend)
        self.slots: dict[str, int] = {}
        self.outputs: dict[str, list[tuple[int, float]]] = {}

    def add(self, name: str, request: dict[str, Any]) -> None:
        self.slots[name] = self.sampler.add(**request)
        self.outputs[name] = []

    def step(self, names: Iterable[str] = ("first", "second", "third")) -> None:
        """Draw for all requests, and hand it out to some."""
        logits = torch.zeros_like(LOGITS)
        for name, slot in self.slots.items():
            logits[slot] = LOGITS[("first", "second", "third").index(name)]
        out = self.sampler.step_full(logits)
        for name in self.slots.keys() & names:
            slot = self.slots[name]
            self.outputs[name].append((int(out.tokens[slot]), float(out.logprobs[slot])))

    def take_back(self) -> None:
        """Have every request draw next what comes after what it was handed."""
        for name, slot in self.slots.items():
            if slot in self.sampler.requests:
                self.sampler.update(slot, output_tokens=[token for token, _ in self.outputs[name]])

    def assert_not_locked(self) -> None:
        found = []

        def visit() -> None:
            if self.sampler._lock.acquire(timeout=1):
                found.append(True)
                self.sampler._lock.release()

        thread = threading.Thread(target=visit)
        thread.start()
        thread.join()
        assert found, "the interrupted call has kept the lock"


def step(engine: Engine) -> None:
    engine.step()


def step_again(engine: Engine) -> None:
    engine.take_back()
    engine.step()


def update(engine: Engine) -> None:
    engine.sampler.update(engine.slots["first"], **CHANGED)


def add(engine: Engine) -> None:
    engine.add("third", THIRD)


def add_again(engine: Engine) -> None:
    for slot in engine.sampler.requests - set(engine.slots.values()):  # added, but not handed out any more
        engine.sampler.remove(slot)
    add(engine)


def remove(engine: Engine) -> None:
    engine.sampler.remove(engine.slots["first"])
    del engine.slots["first"]


def remove_again(engine: Engine) -> None:
    if engine.slots["first"] in engine.sampler.requests:
        engine.sampler.remove(engine.slots["first"])
    del engine.slots["first"]


def story(
    backend: str,
    call: Callable[[Engine], None],
    again: Callable[[Engine], None],
    files: tuple[str, ...],
    line: int | None,
    others: tuple[str, ...],
) -> Any:
    """What requests are handed by steps around a call; None where the call ends before it reaches the line.

    again: what is done after the call, once it was interrupted. others: who is handed what a step draws before that.
    """
    engine = Engine(backend)
    engine.add("first", FIRST)
    engine.add("second", SECOND)
    engine.step()
    if call is not update:
        update(engine)  # which the next step, too, has to copy
    if line is None:
        call(engine)
    else:
        try:
            with interrupted_at(line, files):
                call(engine)
            return None
        except KeyboardInterrupt:
            engine.assert_not_locked()
            if others:
                engine.step(others)
                engine.take_back()
            again(engine)
    if call is not add:
        add(engine)
    engine.step()
    if line is None:
        engine.step(others)
    return engine.outputs


@pytest.mark.parametrize(
    ("backend", "call", "again", "files"),
    [
        ("auto", step, step_again, HOST_STATE),
        ("reference", step, step_again, RECORD),
        ("auto", update, update, HOST_STATE),
        ("auto", add, add_again, HOST_STATE),
        ("auto", remove, remove_again, HOST_STATE),
    ],
)
@pytest.mark.parametrize("others", [(), ("second",)], ids=["repeated", "after-a-step"])
def test_a_sampler_goes_on_after_an_interrupt_at_any_line(
    backend: str,
    call: Callable[[Engine], None],
    again: Callable[[Engine], None],
    files: tuple[str, ...],
    others: tuple[str, ...],
) -> None:
    """The call is repeated at once, or after a step that draws for the other requests what it always would."""
    expected = story(backend, call, again, files, None, others)
    line = 1
    while (handed := story(backend, call, again, files, line, others)) is not None:
        assert handed == expected, f"interrupted at line {line} of the call"
        line += 1
    assert line > 10


def test_a_slot_whose_removal_was_interrupted_is_free_or_taken_but_not_both() -> None:
    """Another thread's `add` comes between the interrupt and what is done about it, and keeps its request."""
    line = 1
    while True:
        sampler = Sampler(1, VOCAB, max_tokens=16)
        slot = sampler.add(seed=1, presence_penalty=0.5, logit_bias={3: 40.0})
        try:
            with interrupted_at(line, HOST_STATE):
                sampler.remove(slot)
            break
        except KeyboardInterrupt:
            pass
        if slot in sampler.requests:
            with pytest.raises(RuntimeError, match="taken"):
                sampler.add(seed=2)
        else:
            assert sampler.step(LOGITS[:1]).tolist() == [-1]
            assert sampler.add(seed=2) == slot
            assert sampler.requests == {slot}
            assert sampler.step(LOGITS[:1]).tolist() == fastsample.sample(LOGITS[:1], seed=2, offset=0).tolist()
        line += 1
    assert line > 10


@pytest.mark.parametrize(("backend", "rows"), [("auto", 512), ("reference", 2)])
def test_a_signal_ends_a_call_after_or_before_its_draws(backend: str, rows: int) -> None:
    """The call that Ctrl-C meets takes both of its words from the generator, or none; the next draws by the law."""
    assert run_python("-c", BIG_CALLS, backend, str(rows)) == "drawn\n"
