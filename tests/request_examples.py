"""Logits with every adjustment and many filters, for the tests of what the public functions make of requests."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsample import BadWords, LogitBias, TokenLists

ROWS, VOCAB = 6, 301
LOGITS = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(3)) * 3
SEEDS = torch.arange(ROWS) + 40
NUMBERS = ("status", "largest", "last", "last index + 1", "z", "size", "spread", "z of all")


def everything() -> dict[str, Any]:
    """Every adjustment at once."""
    random = torch.Generator().manual_seed(4)

    def ids(*shape: int) -> Tensor:
        return torch.randint(VOCAB, shape, generator=random)

    best = LOGITS.topk(4).indices
    output = torch.cat((ids(ROWS, 5), best[:, :2]), dim=1)
    return {
        "repetition_penalty": torch.linspace(0.8, 1.5, ROWS),
        "presence_penalty": 0.4,
        "frequency_penalty": torch.tensor(0.3),
        "prompt_tokens": ids(ROWS, 9),
        "prompt_lengths": torch.arange(ROWS),
        "output_tokens": output,
        "output_lengths": torch.full((ROWS,), 7),
        "logit_bias": LogitBias.of([{int(best[row, 2]): -2.0, 7: 5.0} if row % 2 else None for row in range(ROWS)]),
        "bad_words": BadWords.of([[[*output[row, -2:].tolist(), int(best[row, 0])], [9, 9]] for row in range(ROWS)]),
        "min_tokens": torch.arange(ROWS) * 3,
        "stop_tokens": TokenLists.of([[int(best[row, 1]), 11] for row in range(ROWS)]),
        "allowed_tokens": TokenLists.of([list(range(0, VOCAB, 1 + row % 3)) if row else None for row in range(ROWS)]),
        "bitmask": torch.randint(-(2**31), 2**31, (ROWS, 12), generator=random).to(torch.int32) | 0x1234567,
    }


FILTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "T 0.8, k 40, p 0.9": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "T inf, p 0.5": {"temperature": math.inf, "top_p": 0.5},
    "min_p 0.05, T 2": {"temperature": 2.0, "min_p": 0.05},
    "k 30, p 0.8, min_p 0.01, min_p first": {"top_k": 30, "top_p": 0.8, "min_p": 0.01, "order": "min_p_first"},
    "k 7, p 0.6, joint": {"top_k": 7, "top_p": 0.6, "order": "joint"},
    "a T for each row": {"temperature": torch.tensor([0.0, 0.5, 1.0, math.inf, 1e-3, 2.0])},
}
each_filters = pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
