"""`Sampler` on a GPU: graphs replay what eager steps draw, changes reach the device in order and without waiting."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsample import Sampler

from .target import COMPILING, ORACLE, REHEARSAL, Target, assert_same_tokens, needs_gpu

SLOTS, VOCAB = 8, 4096 if REHEARSAL else 128256
LONG_SLEEP = 200_000_000  # cycles, a tenth of a second
WITHOUT_BAD_WORDS = ("penalties", "logit_bias", "min_tokens", "bitmask")
REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_k": 50},
    {"top_p": 0.9, "repetition_penalty": 1.3, "prompt_tokens": list(range(0, VOCAB, 7))},
    {"presence_penalty": 0.7, "frequency_penalty": 0.2, "output_tokens": [5, 5, VOCAB - 1]},
    {"logit_bias": {3: 4.0, 99: -math.inf}, "min_tokens": 6, "stop_tokens": [1, 2]},
    {"allowed_tokens": list(range(40))},
    {"temperature": 0.0, "frequency_penalty": 3.0},
]


def logits_of(number: int, rows: int = SLOTS) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(number)) * 2


def bitmask_of(number: int, *slots: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(-(2**31), 2**31, (*slots, VOCAB // 32), generator=generator, dtype=torch.int32)


class Pair:
    """A sampler on the device of the test and one on the CPU, which are told the same."""

    def __init__(self, target: Target, features: tuple[str, ...] = WITHOUT_BAD_WORDS) -> None:
        self.there = Sampler(
            SLOTS, VOCAB, max_tokens=64, features=features, device=target.device, backend=target.backend
        )
        self.here = Sampler(SLOTS, VOCAB, max_tokens=64, features=features, backend=ORACLE)

    def add(self, **parameters: Any) -> int:
        self.there.add(**parameters)
        return self.here.add(**parameters)

    def update(self, slot: int, **parameters: Any) -> None:
        for sampler in (self.there, self.here):
            sampler.update(slot, **parameters)

    def remove(self, slot: int) -> None:
        for sampler in (self.there, self.here):
            sampler.remove(slot)

    def change(self, number: int) -> None:
        """One change of each kind, over the steps of a test."""
        if number == 1:
            self.update(0, bitmask=bitmask_of(number), temperature=0.3)
        elif number == 2:
            self.remove(1)
            self.update(3, logit_bias={7: 2.0})
        elif number == 3:
            self.add(seed=77, presence_penalty=1.0, output_tokens=[9, 8, 7])
            self.update(0, bitmask=None)
        elif number == 4:
            self.update(5, output_tokens=[1, 2], frequency_penalty=0.0)

    def check(self, tokens: Tensor, number: int, bitmask: Tensor | None = None) -> None:
        expected = self.here.step(logits_of(number), bitmask=bitmask)
        if not COMPILING:
            assert_same_tokens(tokens.cpu(), expected)
            assert torch.equal(self.there.lengths.cpu(), self.here.lengths)


@pytest.mark.parametrize("bad_words", [False, True])
def test_steps_are_those_of_the_cpu(target: Target, bad_words: bool) -> None:
    pair = Pair(target, (*WITHOUT_BAD_WORDS, "bad_words") if bad_words else WITHOUT_BAD_WORDS)
    for seed, request in enumerate(REQUESTS):
        pair.add(seed=seed, **request, **({"bad_words": [[5], [seed, 6]]} if bad_words else {}))
    for number in range(6):
        pair.change(number)
        mask = bitmask_of(number, SLOTS) if number % 2 else None
        there = None if mask is None else mask.to(target.device)
        tokens = pair.there.step(logits_of(number).to(target.device), bitmask=there)
        pair.check(target.maybe_spoilt(tokens), number, mask)


def test_rows_of_some(target: Target) -> None:
    pair = Pair(target)
    for seed, request in enumerate(REQUESTS):
        pair.add(seed=seed, **request)
    for number, rows in enumerate(([3, 2, 1, 0, -1, 4, 0, 0], [-1, 9, 2, 2, 2, 0, 1, 1])):
        found = pair.there.step(logits_of(number, 5).to(target.device), torch.tensor(rows, device=target.device))
        expected = pair.here.step(logits_of(number, 5), torch.tensor(rows))
        if not COMPILING:
            assert_same_tokens(target.maybe_spoilt(found).cpu(), expected)


@needs_gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("features", [(*WITHOUT_BAD_WORDS, "bad_words"), WITHOUT_BAD_WORDS], ids=str)
def test_replays_are_eager_steps(target: Target, features: tuple[str, ...], masked: bool) -> None:
    """Captured before the first request; then requests come, change and go between replays, and grammars of all
    slots are written into the tensor that the graph reads.
    """
    pair = Pair(target, features)
    logits = torch.zeros(SLOTS, VOCAB, device="cuda")
    masks = bitmask_of(0, SLOTS).cuda() if masked else None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        pair.there.step(logits, bitmask=masks)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = pair.there.step(logits, bitmask=masks)
    assert pair.there.lengths.tolist() == [0] * SLOTS
    places = [buffer.data_ptr() for buffer in pair.there.buffers]

    for seed, request in enumerate(REQUESTS):
        pair.add(seed=seed, **request)
    for number in range(6):
        pair.change(number)
        logits.copy_(logits_of(number))
        mask = bitmask_of(number, SLOTS) if masked else None
        if masks is not None and mask is not None:
            masks.copy_(mask)
        pair.there.flush()
        graph.replay()
        pair.check(tokens, number, mask)
    pair.check(pair.there.step(logits_of(6).to("cuda")), 6)  # an eager step goes on from the replays
    assert [buffer.data_ptr() for buffer in pair.there.buffers] == places


@needs_gpu
def test_flush_is_refused_under_capture(target: Target) -> None:
    sampler = Sampler(1, VOCAB, max_tokens=8, device="cuda", backend=target.backend)
    sampler.add(seed=1)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="flush: called during CUDA graph capture"), torch.cuda.graph(graph):
        sampler.flush()


@needs_gpu
def test_changes_wait_for_no_step_and_no_step_for_them(target: Target) -> None:
    """Behind a sleeping GPU: each step sees the mask that was set before it, though the host is ahead by all of them,
    and the host did not wait."""
    pair = Pair(target)
    for seed, request in enumerate(REQUESTS):
        pair.add(seed=seed, **request)
    inputs = [logits_of(number).to("cuda") for number in range(4)]

    def steps(numbers: range) -> list[Tensor]:
        found, mask = [], torch.empty(VOCAB // 32, dtype=torch.int32)
        for number in numbers:
            mask.copy_(bitmask_of(number))
            pair.update(0, bitmask=mask)
            pair.update(2, temperature=0.5 + number, output_tokens=[number])
            found.append(pair.there.step(inputs[number]))
            expected.append(pair.here.step(logits_of(number)))
        return found

    expected: list[Tensor] = []
    found = steps(range(2))  # what is loaded and allocated on the first call may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG_SLEEP)
        found += steps(range(2, 4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    for tokens, wanted in zip(found, expected, strict=True):
        assert_same_tokens(tokens.cpu(), wanted)
