"""A million random rows, every parameter mixed within a batch: tokens equal to the CPU's."""

import pytest
import torch

from .mixed_rows import mixed_logits, mixed_parameters
from .target import Target, of_full_size

ROWS = 65536
BATCHES = [
    (vocab, dtype, order)
    for dtype, order in ((torch.float32, "top_k_first"), (torch.bfloat16, "min_p_first"))
    for vocab in (17, 64, 257, 511, 1000, 1023, 2049, 4099)
]


@pytest.mark.parametrize(("vocab", "dtype", "order"), BATCHES, ids=str)
def test_sixteenth_of_a_million(target: Target, vocab: int, dtype: torch.dtype, order: str) -> None:
    rows = of_full_size(ROWS)
    logits = mixed_logits(rows, vocab, dtype, target.device, seed=vocab)
    tokens = target.check_sample(logits, order=order, **mixed_parameters(rows, target.device, seed=vocab))
    assert (tokens < 0).any()
    assert (tokens >= 0).float().mean() > 0.5


@pytest.mark.parametrize("replacement", [True, False])
def test_several_draws_of_mixed_rows(target: Target, replacement: bool) -> None:
    rows = of_full_size(8192)
    logits = mixed_logits(rows, 515, torch.float16, target.device, seed=1)
    parameters = mixed_parameters(rows, target.device, seed=2)
    target.check_sample(logits, order="joint", num_samples=7, replacement=replacement, **parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_transforms_of_mixed_rows(target: Target, dtype: torch.dtype) -> None:
    rows = of_full_size(8192)
    parameters = mixed_parameters(rows, target.device, seed=3)
    filters = [parameters[name] for name in ("temperature", "top_k", "top_p", "min_p")]
    target.check_transforms(mixed_logits(rows, 771, dtype, target.device, seed=4), *filters)
