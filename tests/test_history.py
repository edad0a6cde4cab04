"""A history that `sample_full` advances by itself: tokens, lengths and counts of what was drawn."""

import math

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import BadWords, History
from request_backends import backend_of, name, public
from request_examples import LOGITS, ROWS, SEEDS, VOCAB

__all__ = ["name"]


def decoded(name: str, steps: int, recorded: bool) -> tuple[Tensor, list[Tensor]]:
    """Tokens [rows, steps] of a loop with penalties on its own output: recorded by the calls, or by hand."""
    random = torch.Generator().manual_seed(6)
    logits = [torch.randn(ROWS, 67, generator=random) for _ in range(steps)]
    tokens, lengths = torch.full((ROWS, steps), 99), torch.zeros(ROWS, dtype=torch.int64)
    counts = torch.zeros(ROWS, 67, dtype=torch.int32)
    given = {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.3,
        "seed": SEEDS,
        "top_p": 0.95,
        "backend": backend_of(name),
    }
    given |= {"bad_words": BadWords.of([[[token, token] for token in range(67)]] * ROWS)}
    drawn = []
    for step in range(steps):
        if recorded:
            history = {"output_tokens": tokens, "output_lengths": lengths, "offset": lengths}
            full = fastsample.sample_full(logits[step], **given, **history, history=History(tokens, lengths, counts))
            drawn.append(full.tokens)
        else:
            history = {"output_tokens": tokens[:, :step].clone(), "offset": torch.full((ROWS,), step)}
            drawn.append(fastsample.sample(logits[step], **given, **history))
            tokens[:, step] = drawn[-1]
            lengths += 1
            counts[torch.arange(ROWS), drawn[-1]] += 1
    return torch.stack(drawn, dim=1), [tokens, lengths, counts]


@public
def test_a_history_that_advances_by_itself(name: str) -> None:
    """`lengths` is the offset and the output's length too: a loop needs nothing else between its calls."""
    found, recorded = decoded(name, 12, recorded=True)
    expected, by_hand = decoded(name, 12, recorded=False)
    assert torch.equal(found, expected)
    assert torch.equal(recorded[0], found)
    assert all(torch.equal(one, other) for one, other in zip(recorded, by_hand, strict=True))
    assert (found[:, 1:] != found[:, :-1]).all()  # the bad words


@public
def test_counts_that_advance_are_read_before_they_do(name: str) -> None:
    counts = torch.zeros(ROWS, VOCAB, dtype=torch.int32)
    given = {"temperature": 0.0, "presence_penalty": 100.0, "output_counts": counts, "backend": backend_of(name)}
    drawn = [fastsample.sample_full(LOGITS, **given, seed=1, history=History(counts=counts)).tokens for _ in range(3)]
    assert torch.equal(torch.stack(drawn, dim=1), LOGITS.topk(3).indices)
    assert counts.sum() == 3 * ROWS


@public
def test_a_history_has_no_room(name: str) -> None:
    """Its length goes up all the same, so that offsets stay right; rows that draw nothing change nothing."""
    logits = LOGITS[:4].clone()
    logits[1] = -math.inf
    tokens, lengths = torch.full((4, 2), -5), torch.tensor([2, 1, 0, -3])
    counts = torch.zeros(4, VOCAB, dtype=torch.int32)
    full = fastsample.sample_full(
        logits, seed=2, num_samples=2, history=History(tokens, lengths, counts), backend=backend_of(name)
    )
    drawn = full.first_tokens.tolist()
    assert lengths.tolist() == [3, 1, 1, -2]
    assert tokens.tolist() == [[-5, -5], [-5, -5], [drawn[2], -5], [-5, -5]]
    assert [counts[row, token].item() for row, token in enumerate(drawn) if token >= 0] == [1, 1, 1]
    assert counts.sum() == 3


def test_a_history_that_autograd_needs_is_missed() -> None:
    """As with any change in place, a backward that saved the history says so."""
    tokens = torch.zeros(ROWS, 3, dtype=torch.int64)
    weight = torch.randn(VOCAB, 4, requires_grad=True)
    embedded = torch.nn.functional.embedding(tokens, weight)
    fastsample.sample_full(LOGITS, seed=1, history=History(tokens, torch.zeros(ROWS, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        embedded.sum().backward()
