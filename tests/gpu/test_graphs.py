"""CUDA graphs: every call can be captured, and a replay draws what an eager call would draw at that moment."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastsample

from .target import ORACLE, Target, assert_same_tokens, needs_gpu

pytestmark = needs_gpu


def captured(call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The call in a graph, and where its result is after each replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # whatever the first call loads
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@pytest.mark.parametrize(("batch", "vocab"), [(1, 128256), (7, 999), (64, 128256), (2, 2**20)])
@pytest.mark.parametrize("filters", [(0.8, 50, 0.9), (1.0, 0, 0.9), (1.0, 0, 1.0), (0.0, 0, 1.0)], ids=str)
def test_replays_follow_the_offset(target: Target, batch: int, vocab: int, filters: tuple[float, int, float]) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    logits = torch.randn(batch, vocab, generator=generator, device="cuda")
    seed, offset = torch.arange(batch, device="cuda"), torch.zeros(batch, dtype=torch.int64, device="cuda")

    def step() -> Tensor:
        tokens = fastsample.sample(logits, *filters, seed=seed, offset=offset, backend=target.backend)
        offset.add_(1)
        return tokens

    graph, tokens = captured(step)
    offset.zero_()
    for number in range(5):
        graph.replay()
        expected = fastsample.sample(logits.cpu(), *filters, seed=seed.cpu(), offset=number, backend=ORACLE)
        assert_same_tokens(tokens.cpu(), expected)


def test_replays_follow_the_logits_and_the_parameters(target: Target) -> None:
    logits = torch.zeros(16, 32000, device="cuda")
    temperature, top_k = torch.ones(16, device="cuda"), torch.zeros(16, dtype=torch.int64, device="cuda")
    graph, tokens = captured(lambda: fastsample.sample(logits, temperature, top_k, seed=3, backend=target.backend))
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        new = (
            torch.randn(16, 32000, generator=generator),
            torch.rand(16, generator=generator),
            torch.arange(16) * number,
        )
        for buffer, value in zip((logits, temperature, top_k), new, strict=True):
            buffer.copy_(value)
        graph.replay()
        assert_same_tokens(tokens.cpu(), fastsample.sample(*new, seed=3, backend=ORACLE))


def test_replays_draw_anew_from_the_default_generator(target: Target) -> None:
    """Each replay draws other tokens, and the same ones as eager calls from the same state."""
    logits = torch.zeros(300, 5000, device="cuda")
    graph, tokens = captured(lambda: fastsample.sample(logits, backend=target.backend))
    torch.cuda.manual_seed(9)
    replayed = []
    for _ in range(3):
        graph.replay()
        replayed.append(tokens.cpu())
    torch.cuda.manual_seed(9)
    for one in replayed:
        assert_same_tokens(one, fastsample.sample(logits, backend=target.backend).cpu())
    assert not torch.equal(replayed[0], replayed[1])
    assert not torch.equal(replayed[1], replayed[2])


def test_several_draws_transforms_and_indices_are_captured(target: Target) -> None:
    logits = torch.randn(6, 40_000, generator=torch.Generator("cuda").manual_seed(2), device="cuda")
    indices = torch.tensor([3, 0, 5, 9], device="cuda")

    def everything() -> Tensor:
        keywords = {"backend": target.backend}
        draws = fastsample.sample(logits, 0.8, 50, seed=1, num_samples=4, replacement=False, **keywords)
        mapped = fastsample.sample(logits, 0.8, 50, seed=1, indices=indices, **keywords)
        probabilities = fastsample.filtered_probs(logits, 0.8, 50, **keywords)
        log_probs = fastsample.log_probs(logits, draws, 0.8, 50, **keywords)
        return torch.cat((draws.flatten(), mapped, probabilities.view(torch.int32).sum(1), log_probs.isinf().sum(1)))

    graph, found = captured(everything)
    expected = everything().cpu()
    found.zero_()
    graph.replay()
    assert torch.equal(found.cpu(), expected)
    assert_same_tokens(
        found.cpu()[:24].view(6, 4),
        fastsample.sample(logits.cpu(), 0.8, 50, seed=1, num_samples=4, replacement=False, backend=ORACLE),
    )


def test_an_invalid_row_in_a_replay(target: Target) -> None:
    logits = torch.randn(4, 9000, generator=torch.Generator("cuda").manual_seed(2), device="cuda")
    graph, tokens = captured(lambda: fastsample.sample(logits, top_p=0.9, seed=3, backend=target.backend))
    logits[2, 5] = torch.nan
    graph.replay()
    assert_same_tokens(tokens.cpu(), fastsample.sample(logits.cpu(), top_p=0.9, seed=3, backend=ORACLE))
    assert tokens[2] == -1


def test_errors_raise_is_refused_under_capture(target: Target) -> None:
    logits = torch.zeros(2, 10, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capture"), torch.cuda.graph(graph):
        fastsample.sample(logits, errors="raise", backend=target.backend)
