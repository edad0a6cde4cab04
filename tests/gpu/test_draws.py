"""Several draws, with and without replacement; invalid rows beside good ones; from a generator; from probabilities."""

import math

import pytest
import torch
from torch import Tensor

import fastsample

from .target import ORACLE, Target, assert_same_tokens, needs_gpu


def logits_of(target: Target, rows: int, vocab: int) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)).mul_(2).to(target.device)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize(("rows", "vocab", "draws"), [(1, 300, 400), (3, 300, 400), (2, 40_000, 300), (70, 999, 33)])
def test_many_draws(target: Target, rows: int, vocab: int, draws: int, replacement: bool) -> None:
    """More draws than there are tokens to take, of rows in one block and in several."""
    logits = logits_of(target, rows, vocab)
    for filters in ((1.0, 0, 1.0), (0.8, 50, 0.9), (1.0, 0, 0.9), (0.0, 0, 1.0)):
        target.check_sample(logits, *filters, seed=6, num_samples=draws, replacement=replacement)


def test_invalid_rows_leave_their_neighbours_alone(target: Target) -> None:
    for vocab in (100, 3001, 150_000):
        logits = logits_of(target, 8, vocab)
        before = target.sample(logits, 0.8, 50, 0.9, seed=1).cpu()
        logits[1, vocab // 3] = math.nan
        logits[4] = -math.inf
        logits[6, -1] = math.inf
        after = target.check_sample(logits, 0.8, 50, 0.9, seed=1)
        assert after.tolist()[1] == after.tolist()[4] == -1
        assert after[6] == vocab - 1
        for row in (0, 2, 3, 5, 7):
            assert after[row] == before[row]
        parameters = torch.tensor([0.5, 1.0, math.nan, -1.0, 1.0, 2.0, 1.0, 0.0])
        target.check_sample(logits, parameters, top_p=parameters, min_p=parameters / 2, seed=1)
        target.check_transforms(logits, parameters, 50)


def test_errors_raise_names_the_row(target: Target) -> None:
    logits = logits_of(target, 4, 100)
    logits[2, 3] = math.nan
    with pytest.raises(ValueError, match="row 2"):
        fastsample.sample(logits, backend=target.backend, errors="raise")


def test_the_batch_does_not_matter(target: Target) -> None:
    logits = logits_of(target, 64, 10_007)
    seed, temperature = torch.arange(64), torch.linspace(0, 2, 64)
    together = target.check_sample(logits, temperature, 50, 0.9, seed=seed)
    for rows in (torch.tensor([5]), torch.arange(63, -1, -1), torch.arange(1, 64, 9)):
        alone = target.sample(logits[rows.to(target.device)], temperature[rows], 50, 0.9, seed=seed[rows]).cpu()
        assert_same_tokens(alone, together[rows])


@needs_gpu
def test_the_reference_draws_the_same_on_the_gpu(target: Target) -> None:
    logits = logits_of(target, 7, 3001)
    for filters in ((0.8, 50, 0.9), (1.0, 0, 0.9), (0.0, 0, 1.0)):
        arguments = {"seed": 4, "num_samples": 5}
        assert torch.equal(
            fastsample.sample(logits, *filters, backend="reference", **arguments),
            fastsample.sample(logits, *filters, backend=target.backend, **arguments),
        )


def test_tokens_from_a_generator(target: Target) -> None:
    """The seed and the offset of the law are two words of the device's generator."""
    logits = logits_of(target, 20, 5003)
    for number in range(3):
        generator = torch.Generator(target.device).manual_seed(number)
        words = torch.empty(2, dtype=torch.int64, device=target.device).random_(generator=generator)
        seed, offset = words.tolist()
        expected = fastsample.sample(logits.cpu(), 0.9, 100, seed=seed, offset=offset, backend=ORACLE)
        generator.manual_seed(number)
        assert_same_tokens(target.sample(logits, 0.9, 100, generator=generator).cpu(), expected)


def test_the_default_generator(target: Target) -> None:
    logits = torch.zeros(500, 1000, device=target.device)
    torch.manual_seed(3)
    first, second = (fastsample.sample(logits, backend=target.backend).cpu() for _ in range(2))
    torch.manual_seed(3)
    assert_same_tokens(target.sample(logits).cpu(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("replacement", [True, False])
def test_multinomial(cuda_target: Target, replacement: bool, dtype: torch.dtype) -> None:
    for rows, vocab, count in ((1, 10, 4), (40, 5003, 6), (3, 150_000, 9)):
        probabilities = logits_of(cuda_target, rows, vocab).softmax(-1).to(dtype)
        generator = torch.Generator(cuda_target.device).manual_seed(2)
        found = fastsample.multinomial(probabilities, count, replacement, generator=generator)
        seed, offset = torch.empty(2, dtype=torch.int64, device=cuda_target.device).random_(
            generator=generator.manual_seed(2)
        )
        # The operator on the CPU, from the same words: multinomial itself takes no seed.
        rows_on_cpu = probabilities.cpu()
        if dtype is torch.float64:
            exponent = torch.frexp(rows_on_cpu.amax(dim=1, keepdim=True)).exponent
            rows_on_cpu = torch.ldexp(rows_on_cpu, -exponent).float()
        expected = torch.empty(rows, count, dtype=torch.int64)
        fastsample.ops.compiled.sample(
            expected, rows_on_cpu, None, *(1.0, None, 0, None, 1.0, None, 0.0, None, 0),
            *(int(seed), None, int(offset), None, 0, None, True), replacement, True,
        )  # fmt: skip
        assert_same_tokens(cuda_target.maybe_spoilt(found).cpu(), expected)


def test_multinomial_of_more_than_2_to_the_22_categories(cuda_target: Target) -> None:
    probabilities = torch.zeros(2, 2**22 + 5, device=cuda_target.device)
    probabilities[0, 2**22 + 3] = 1
    probabilities[1, 7] = 1
    assert fastsample.multinomial(probabilities, 1).tolist() == [[2**22 + 3], [7]]


def test_patch_torch(cuda_target: Target) -> None:
    probabilities = logits_of(cuda_target, 30, 999).softmax(-1)
    torch.manual_seed(1)
    expected = fastsample.multinomial(probabilities, 3)
    torch.manual_seed(1)
    with fastsample.patch_torch():
        assert_same_tokens(cuda_target.maybe_spoilt(torch.multinomial(probabilities, 3)), expected)


def test_out(target: Target) -> None:
    logits = logits_of(target, 5, 999)
    buffer = torch.full((5, 6), -77, device=target.device)
    target.sample(logits, top_k=5, seed=1, num_samples=3, out=buffer[:, ::2])
    assert (buffer[:, 1::2] == -77).all()
    expected = fastsample.sample(logits.cpu(), top_k=5, seed=1, num_samples=3)
    assert_same_tokens(target.maybe_spoilt(buffer[:, ::2]).cpu(), expected)
