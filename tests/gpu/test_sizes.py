"""Batches of 1 to 65536 rows, vocabularies of 1 to 2^22 tokens, and rows further apart than 32 bits can say."""

import pytest
import torch

from fastsample.benchmarks.peers.base import Work

from .target import REHEARSAL, Target, needs_gpu, of_full_size

WORKS = ("greedy", "plain", "k50", "t0.8-k50-p0.9", "p0.9", "k1000", "m0.05", "mixed")
VOCABULARIES = (1, 2, 31, 129, 1024, 8191, 32000, 65537, 128256, 151936, 262144)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", VOCABULARIES[:8] if REHEARSAL else VOCABULARIES)
def test_vocabularies(target: Target, vocab: int, dtype: torch.dtype) -> None:
    """Few rows are shared by many blocks each, many rows by few: both for every kind of work."""
    generator = torch.Generator(target.device).manual_seed(vocab)
    for batch in (1, 5, 100):
        batch = min(batch, of_full_size(100_000))
        logits = torch.randn(batch, vocab, generator=generator, device=target.device).mul_(3).to(dtype)
        for key in WORKS:
            target.check_sample(logits, **Work.parse(key).parameters(batch), seed=2)


@pytest.mark.parametrize("batch", [1, 2, 3, 17, 131, 132, 133, 1000, 65536])
def test_batches(target: Target, batch: int) -> None:
    batch = min(batch, of_full_size(65536))
    logits = torch.randn(batch, 999, generator=torch.Generator(target.device).manual_seed(1), device=target.device)
    for key in ("t0.8-k50-p0.9", "p0.9", "mixed"):
        target.check_sample(logits, **Work.parse(key).parameters(batch), seed=torch.arange(batch), offset=3)


def test_no_rows_at_all(target: Target) -> None:
    logits = torch.empty(0, 100, device=target.device)
    assert target.sample(logits, top_p=0.5, seed=1).shape == (0,)
    assert target.sample(torch.zeros(2, 9, device=target.device), indices=torch.empty(0, dtype=torch.int64)).shape == (
        0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [2**19 + 1, 2**20, 2**21 - 3, 2**22])
def test_rows_beyond_what_fits_on_the_chip(target: Target, vocab: int, dtype: torch.dtype) -> None:
    vocab = vocab // 64 if REHEARSAL else vocab
    generator = torch.Generator(target.device).manual_seed(vocab)
    logits = torch.randn(2, vocab, generator=generator, device=target.device).mul_(3).to(dtype)
    for key in WORKS:
        target.check_sample(logits, **Work.parse(key).parameters(2), seed=4)
    target.check_transforms(logits, 0.8, 5000, 0.95)


def test_the_largest_sum_of_weights(target: Target) -> None:
    """2^22 tokens of the largest weight sum to 2^62."""
    logits = torch.full((2, 2**22 // (64 if REHEARSAL else 1)), -1.5, dtype=torch.bfloat16, device=target.device)
    target.check_sample(logits, seed=1, num_samples=50)
    target.check_sample(logits, top_k=2**21, top_p=0.7, seed=1, num_samples=50)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_further_apart_than_32_bits(target: Target, dtype: torch.dtype) -> None:
    """The third row begins 2^31 + 2 * 4001 elements after the first."""
    apart = 2**30 + 4001
    buffer = torch.empty(2 * apart + 4001, dtype=dtype, device=target.device)
    view = buffer.as_strided((3, 4001), (apart, 1))
    view.copy_(torch.randn(3, 4001, generator=torch.Generator().manual_seed(5)) * 3)
    target.check_sample(view, 0.8, 50, 0.9, seed=1)
    target.check_sample(view, top_p=0.9, seed=1, indices=torch.tensor([2, 1, 2, 0]))
    target.check_transforms(view, 0.8, 50)


@needs_gpu
def test_tokens_further_apart_than_32_bits(target: Target) -> None:
    """A stride of 2^20 between the tokens of a row, so that the last is 2^31 elements from the first."""
    vocab, stride = 2049, 2**20
    buffer = torch.empty(2048 * stride + 1, dtype=torch.bfloat16, device=target.device)
    view = buffer.as_strided((1, vocab), (1, stride))
    view.copy_(torch.randn(1, vocab, generator=torch.Generator().manual_seed(5)) * 3)
    target.check_sample(view, 0.8, 50, 0.9, seed=1, num_samples=20)
