"""Ctrl-C: a call that it ends has drawn or has not, and nothing that follows draws a token twice or leaves one out."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

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
    "logit_bias": {3: 2.0, 4: -1.0},
    "bad_words": [[5, 6], [7]],
    "stop_tokens": [8],
    "min_tokens": 4,
}
SECOND: dict[str, Any] = {"seed": 2, "top_k": 20, "allowed_tokens": list(range(30)), "logit_bias": {9: 1.0}}
THIRD: dict[str, Any] = {"seed": 3, "frequency_penalty": 0.7, "stop_tokens": [10, 11], "min_tokens": 3}
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
    timer.start()
    try:
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
    """KeyboardInterrupt where the `line`-th line from here in `files` would run, as a signal would bring it."""
    paths = {str(PACKAGE / file) for file in files}
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in paths:
            return None
        if event == "line":
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
    """A Sampler, and what its requests have been handed."""

    def __init__(self, backend: str) -> None:
        self.sampler = Sampler(3, VOCAB, max_tokens=16, list_capacity=LIST_CAPACITY, backend=backend)
        self.slots: dict[str, int] = {}
        self.outputs: dict[str, list[int]] = {}

    def add(self, name: str, request: dict[str, Any]) -> None:
        self.slots[name] = self.sampler.add(**request)
        self.outputs[name] = []

    def step(self) -> None:
        logits = torch.empty_like(LOGITS)
        for name, slot in self.slots.items():
            logits[slot] = LOGITS[("first", "second", "third").index(name)]
        self.hand_out(self.sampler.step(logits))

    def hand_out(self, tokens: Tensor) -> None:
        for name, slot in self.slots.items():
            self.outputs[name].append(int(tokens[slot]))


def step(engine: Engine) -> None:
    engine.step()


def step_again(engine: Engine) -> None:
    for name, slot in engine.slots.items():
        engine.sampler.update(slot, output_tokens=engine.outputs[name])
    engine.step()


def update(engine: Engine) -> None:
    engine.sampler.update(engine.slots["first"], **CHANGED)


def add(engine: Engine) -> None:
    engine.add("third", THIRD)


def add_again(engine: Engine) -> None:
    for slot in engine.sampler._requests.keys() - engine.slots.values():  # added, but not handed out any more
        engine.sampler.remove(slot)
    add(engine)


def remove(engine: Engine) -> None:
    engine.sampler.remove(engine.slots["first"])
    del engine.slots["first"]


def remove_again(engine: Engine) -> None:
    if engine.slots["first"] in engine.sampler._requests:
        engine.sampler.remove(engine.slots["first"])
    del engine.slots["first"]


def story(
    backend: str,
    call: Callable[[Engine], None],
    again: Callable[[Engine], None],
    files: tuple[str, ...],
    line: int | None,
) -> Any:
    """What requests are handed by steps around a call; None where the call ends before it reaches the line.

    again: what is done after the call, once it was interrupted.
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
            again(engine)
    if call is not add:
        add(engine)
    engine.step()
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
def test_a_sampler_goes_on_after_an_interrupt_at_any_line(
    backend: str, call: Callable[[Engine], None], again: Callable[[Engine], None], files: tuple[str, ...]
) -> None:
    expected = story(backend, call, again, files, None)
    line = 1
    while (handed := story(backend, call, again, files, line)) is not None:
        assert handed == expected, f"interrupted at line {line} of the call"
        line += 1
    assert line > 10


@pytest.mark.parametrize(("backend", "rows"), [("auto", 512), ("reference", 2)])
def test_a_signal_ends_a_call_after_or_before_its_draws(backend: str, rows: int) -> None:
    """The call that Ctrl-C meets takes both of its words from the generator, or none; the next draws by the law."""
    assert run_python("-c", BIG_CALLS, backend, str(rows)) == "drawn\n"
