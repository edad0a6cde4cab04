"""Logits of a real model, under every filter: tokens, kept sets and probabilities equal to the CPU's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from .target import Target

DATA = Path(__file__).resolve().parents[1] / "data" / "real_logits.npz"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FILTERS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (1.0, 50, 1.0, 0.0),
    (1.0, 5000, 1.0, 0.0),
    (0.8, 50, 0.9, 0.0),
    (2.0, 1000, 0.99, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.5, 0, 0.999, 0.0),
    (0.7, 0, 0.1, 0.0),
    (1.0, 0, 1.0, 0.05),
    (0.8, 40, 0.95, 0.05),
]


def real_logits(device: torch.device, dtype: torch.dtype, pieces: int = 1) -> Tensor:
    """The rows of the file, or `pieces` of them set end to end."""
    with np.load(DATA) as archive:
        rows = torch.from_numpy(archive["logits"].astype(np.float32))
    return torch.cat([rows.roll(piece, 0) for piece in range(pieces)], dim=1).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_tokens(target: Target, filters: tuple[float, int, float, float], dtype: torch.dtype) -> None:
    logits = real_logits(target.device, dtype)
    for order in ("top_k_first", "min_p_first", "joint"):
        target.check_sample(logits, *filters, seed=17, offset=4, order=order, num_samples=8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_transforms(target: Target, filters: tuple[float, int, float, float], dtype: torch.dtype) -> None:
    target.check_transforms(real_logits(target.device, dtype), *filters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_rows_set_end_to_end(target: Target, filters: tuple[float, int, float, float], dtype: torch.dtype) -> None:
    """As long as the vocabularies that are benchmarked: a row is shared by several blocks."""
    target.check_sample(real_logits(target.device, dtype, pieces=4), *filters, seed=3, num_samples=3)
