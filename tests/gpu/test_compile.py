"""torch.compile(fullgraph=True) on the GPU: one graph, equal to eager by `==`, no two draws merged."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fastsample

from .target import Target, needs_gpu

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


Calls = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def seeded_calls_of(backend: str) -> Calls:
    """A draw between a compiler's own kernels, and the transforms."""

    def seeded_calls(logits: Tensor, temperature: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
        scaled = logits * 1.5
        return (
            fastsample.sample(scaled, temperature, 20, 0.9, seed=4, offset=offset, num_samples=3, backend=backend),
            fastsample.filtered_probs(scaled, temperature, 30, backend=backend) * 2,
            fastsample.log_probs(scaled, offset, temperature, backend=backend),
        )

    return seeded_calls


def calls_of(backend: str) -> Calls:
    """Beside those, draws that a compiler might take for one: equal arguments, the default generator."""
    seeded_calls = seeded_calls_of(backend)

    def calls(logits: Tensor, temperature: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
        return (
            fastsample.sample(logits, temperature, 20, backend=backend),
            fastsample.sample(logits, temperature, 20, backend=backend),
            fastsample.multinomial(logits.abs(), 2),
            *seeded_calls(logits, temperature, offset),
        )

    return calls


def arguments(step: int) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(9, 5003, generator=torch.Generator("cuda").manual_seed(step), device="cuda")
    return logits, torch.linspace(0, 2, 9, device="cuda"), torch.arange(9, device="cuda") + step


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_equal_to_eager(target: Target, compiler: str) -> None:
    calls = calls_of(target.backend)
    compiled = torch.compile(calls, fullgraph=True, backend=compiler)
    for step in range(2):
        results = []
        for function in (calls, compiled):
            torch.manual_seed(step)
            results.append(function(*arguments(step)))
        for eager, found in zip(*results, strict=True):
            assert torch.equal(found, eager)
        assert not torch.equal(results[0][0], results[0][1])


def test_in_the_compilers_own_graphs(target: Target) -> None:
    """mode="reduce-overhead" captures: equal to eager where a seed is given, and new draws where none is."""
    seeded_calls = seeded_calls_of(target.backend)
    compiled = torch.compile(calls_of(target.backend), fullgraph=True, mode="reduce-overhead")
    drawn = []
    for step in range(4):  # the first ones warm up and capture
        torch.compiler.cudagraph_mark_step_begin()
        found = [one.clone() for one in compiled(*arguments(step))]
        for eager, one in zip(seeded_calls(*arguments(step)), found[3:], strict=True):
            assert torch.equal(one, eager)
        drawn += [tuple(one.flatten().tolist()) for one in found[:2]]
    assert len(set(drawn)) == len(drawn)


def test_the_batch_changes(target: Target) -> None:
    def draw(logits: Tensor, seed: Tensor) -> Tensor:
        return fastsample.sample(logits, 0.8, 50, 0.9, seed=seed, backend=target.backend)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    logits = torch.randn(40, 9001, device="cuda")
    seed = torch.arange(40, device="cuda")
    for rows in (1, 3, 17, 40):
        assert torch.equal(compiled(logits[:rows], seed[:rows]), draw(logits[:rows], seed[:rows]))
