"""Requests: adjustments, details, kept sets and speculative pieces on a GPU give what the CPU gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import BadWords, History, LogitBias, TokenLists
from fastsample.full_sampling import SampleOutput
from strategies import ulp_distance

from .target import COMPILING, ORACLE, REHEARSAL, Target, assert_same_tokens, needs_gpu

VOCABULARIES = (33, 1003) if REHEARSAL else (33, 4099, 128256, 2**20 + 3)
ROWS = 3


def adjustments(vocab: int, counts: bool) -> dict[str, Any]:
    """One of everything, with entries that are to be ignored; penalties by `counts` or by the list of the output."""
    generator = torch.Generator().manual_seed(vocab)

    def ids(*shape: int) -> Tensor:
        return torch.randint(-1, vocab + 1, shape, generator=generator)

    output = ids(ROWS, 12)
    by_token = {"output_counts": torch.randint(0, 3, (ROWS, vocab), generator=generator, dtype=torch.int32)}
    return {
        **(by_token if counts else {}),
        "repetition_penalty": torch.tensor([1.0, 1.3, 0.7]),
        "presence_penalty": 0.25,
        "frequency_penalty": torch.tensor([0.0, 0.5, -0.125]),
        "prompt_tokens": ids(ROWS, 40),
        "prompt_lengths": torch.tensor([40, 0, 17]),
        "output_tokens": output,
        "output_lengths": torch.tensor([12, 5, 99]),
        "logit_bias": LogitBias.of([{0: 5.0, vocab - 1: -5.0, vocab: 1.0}, None, {vocab // 2: float("-inf")}]),
        "bad_words": BadWords.of([[[int(output[0, 11]), 3]], [[1]], None]),
        "min_tokens": 8,
        "stop_tokens": TokenLists.of([[2], [2, 4], [5]]),
        "bitmask": torch.randint(-(2**31), 2**31, (ROWS, (vocab + 31) // 32), generator=generator).to(torch.int32),
    }


def moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)._make(moved(field, device) for field in value) if hasattr(value, "_make") else value


def check(target: Target, logits: Tensor, **keywords: Any) -> SampleOutput:
    """Sample with everything on the device and on the CPU; compare all that comes back."""
    there = {name: moved(value, target.device) for name, value in keywords.items()}
    asked: dict[str, Any] = {"raw_logprobs": True, "top_logprobs": 20, "distribution": True}
    found = fastsample.sample_full(logits.to(target.device), **there, **asked, kept_set=True, backend=target.backend)
    if COMPILING:
        return found
    expected = fastsample.sample_full(logits, **keywords, **asked, kept_set=True, backend=ORACLE)
    assert_same_tokens(target.maybe_spoilt(found.tokens).cpu(), expected.tokens)
    for name in ("ranks", "top_tokens", "numbers", "status"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    top = {"top_logprobs": 20, "top_logprobs_of": "processed"}
    found_top = fastsample.sample_full(logits.to(target.device), **there, **top, backend=target.backend)
    expected_top = fastsample.sample_full(logits, **keywords, **top, backend=ORACLE)
    assert torch.equal(found_top.top_tokens.cpu(), expected_top.top_tokens)
    assert (ulp_distance(found_top.top_logprobs.cpu(), expected_top.top_logprobs) <= 4).all()
    for one, other in zip(found.kept or (), expected.kept or (), strict=True):
        assert torch.equal(one.cpu(), other)
    for name in ("logprobs", "raw_logprobs", "top_logprobs"):
        assert (ulp_distance(getattr(found, name).cpu(), getattr(expected, name)) <= 4).all(), name
    return found


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("filters", [(0.8, 50, 0.9), (1.0, 0, 0.9), (1.0, 0, 1.0), (0.0, 0, 1.0)], ids=str)
def test_requests(target: Target, vocab: int, dtype: torch.dtype, filters: tuple[float, int, float]) -> None:
    logits = (torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    named = dict(zip(("temperature", "top_k", "top_p"), filters, strict=True))
    check(target, logits, seed=5, **named)
    for counts in (False, True):
        check(target, logits, seed=5, **named, **adjustments(vocab, counts))


def test_rows_are_mapped_and_bad_ones_leave_their_neighbours(target: Target) -> None:
    logits = torch.randn(4, 1003, generator=torch.Generator().manual_seed(2))
    logits[1, 7] = float("nan")
    given = adjustments(1003, counts=True)
    given["repetition_penalty"] = torch.tensor([1.2, float("nan"), 0.0])
    check(target, logits, seed=torch.arange(ROWS), indices=torch.tensor([3, 0, 9]), top_k=20, **given)
    check(target, logits[:ROWS], seed=5, top_k=20, **given)


@needs_gpu
def test_a_graph_records_what_it_draws(target: Target) -> None:
    """Offset, length and count are one tensor that advances by itself: each replay is the next step."""
    slots, vocab, steps = 5, 32000, 6
    logits = torch.randn(slots, vocab, generator=torch.Generator().manual_seed(3))
    there = logits.cuda()
    seeds = torch.arange(slots)
    on_device = seeds.cuda()
    history = History(
        torch.zeros(slots, steps + 2, dtype=torch.int64, device="cuda"),
        torch.zeros(slots, dtype=torch.int64, device="cuda"),
        torch.zeros(slots, vocab, dtype=torch.int32, device="cuda"),
    )
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.4}

    def step() -> Tensor:
        return fastsample.sample_full(
            there,
            top_k=40,
            seed=on_device,
            offset=history.lengths,
            output_counts=history.counts,
            history=history,
            backend=target.backend,
            **penalties,
        ).tokens

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = step()
    for buffer in history:
        buffer.zero_()
    drawn = torch.zeros(slots, 0, dtype=torch.int64)
    for number in range(steps):
        graph.replay()
        expected = fastsample.sample(
            logits, top_k=40, seed=seeds, offset=number, output_tokens=drawn, backend=ORACLE, **penalties
        )
        assert_same_tokens(tokens.cpu(), expected)
        drawn = torch.cat((drawn, expected[:, None]), dim=1)
    assert torch.equal(history.tokens[:, :steps].cpu(), drawn)
