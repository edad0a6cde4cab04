"""What adjustments make of the logits, on every backend, against tests/request_oracle.py by == (law section 0)."""

import math

import numpy as np
import pytest
import torch

import fastsample
import request_oracle as oracle
from fastsample import BadWords, LogitBias, TokenLists
from request_backends import backend_of, many, name, public, run_examples
from request_checks import check_edits, equal
from request_strategies import (
    RequestCall,
    public_arguments,
    request_calls,
    row_request,
)

__all__ = ["name"]


@many
def test_edits_are_those_of_the_oracle(name: str, number: int | None) -> None:
    run_examples(name, "find_edits", request_calls, check_edits, number)


def check_process_logits(backend: str, call: RequestCall) -> None:
    if call.indices is not None or call.rows == 0:
        return
    found = fastsample.process_logits(call.logits, backend=backend, **public_arguments(call))
    for row in range(call.rows):
        request = row_request(call, row)
        assert request is not None
        with np.errstate(all="ignore"):
            expected = oracle.edit(request).processed
        assert equal(found[row], torch.from_numpy(np.array(expected, dtype=np.float32)))


@public
def test_process_logits_is_the_oracle_s(name: str) -> None:
    run_examples(name, "find_edits", request_calls, lambda _, call: check_process_logits(name.partition("-")[0], call))


def test_blocks_of_rows_know_their_rows() -> None:
    """The reference works through blocks of rows; everything that is given a row has to be cut alike."""
    vocab, rows = 2**19 + 5, 5
    lists = TokenLists.of([[row] for row in range(rows)])
    given = {
        "repetition_penalty": torch.linspace(1.1, 1.9, rows),
        "prompt_tokens": torch.arange(rows)[:, None] + 10,
        "prompt_lengths": torch.tensor([1, 0, 1, 0, 1]),
        "output_tokens": torch.arange(rows)[:, None] + 20,
        "output_lengths": torch.tensor([0, 1, 1, 0, 1]),
        "logit_bias": LogitBias.of([{30 + row: 1.0 + row} for row in range(rows)]),
        "bad_words": BadWords.of([[[20 + row, 40 + row]] for row in range(rows)]),
        "stop_tokens": lists,
        "min_tokens": torch.tensor([0, 2, 1, 1, 1]),
    }
    logits = torch.ones(1, 1).expand(rows, vocab)
    together = fastsample.process_logits(logits, backend="reference", **given)
    for row in range(rows):
        alone = {
            "repetition_penalty": given["repetition_penalty"][row : row + 1],
            "prompt_tokens": given["prompt_tokens"][row : row + 1],
            "prompt_lengths": given["prompt_lengths"][row : row + 1],
            "output_tokens": given["output_tokens"][row : row + 1],
            "output_lengths": given["output_lengths"][row : row + 1],
            "logit_bias": LogitBias.of([{30 + row: 1.0 + row}]),
            "bad_words": BadWords.of([[[20 + row, 40 + row]]]),
            "stop_tokens": TokenLists.of([[row]]),
            "min_tokens": given["min_tokens"][row : row + 1],
        }
        assert torch.equal(together[row], fastsample.process_logits(logits[:1], backend="reference", **alone)[0])
        assert (together[row] != 1).sum() >= 2


def test_an_output_of_which_only_the_length_is_known() -> None:
    """It counts for min_tokens; a bad word can only end what is there as a list."""
    given = {
        "output_lengths": torch.tensor([4, 1]),
        "stop_tokens": TokenLists.of([[0], [0]]),
        "min_tokens": 3,
        "bad_words": BadWords.of([[[1, 2], [3]], [[1, 2], [3]]]),
    }
    found = fastsample.process_logits(torch.ones(2, 5), backend="reference", **given)
    assert found.tolist() == [[1, 1, 1, -math.inf, 1], [-math.inf, 1, 1, -math.inf, 1]]
    in_prompt = BadWords.of([[[1, 2], [4, 3]]] * 2, in_prompt=True)
    given |= {"bad_words": in_prompt, "prompt_tokens": torch.tensor([[0, 1]] * 2)}
    found = fastsample.process_logits(torch.ones(2, 5), backend="reference", **given)
    assert found.tolist() == [[1, 1, -math.inf, 1, 1], [-math.inf, 1, -math.inf, 1, 1]]


@public
def test_a_list_beside_what_is_known_by_token_is_not_for_penalties(name: str) -> None:
    """They count no token twice, and do not judge what they do not look at (9 is no token); bad words and min_tokens
    need the list all the same.
    """
    given = {
        "repetition_penalty": 2.0,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.125,
        "prompt_tokens": torch.tensor([[0, 9]]),
        "output_tokens": torch.tensor([[1, 1, 9]]),
        "bad_words": BadWords.of([[[0, 9, 1, 1, 9, 4]]], in_prompt=True),
        "min_tokens": 4,
        "stop_tokens": TokenLists.of([[5]]),
    }
    by_token = {
        "prompt_mask": torch.tensor([[1 << 6]], dtype=torch.int32),
        "output_counts": torch.tensor([[0, 0, 3, 0, 0, 0, 0, 0]], dtype=torch.int32),
    }
    ban, logits, backend = -math.inf, torch.ones(1, 8), backend_of(name)
    for more, expected, status in (
        ({}, [0.5, 0, 1, 1, ban, ban, 1, 1], 2),
        (by_token, [1, 1, 0.5 - 3 * 0.125 - 0.25, 1, ban, ban, 0.5, 1], 0),
    ):
        assert fastsample.process_logits(logits, backend=backend, **given, **more).tolist() == [expected]
        assert fastsample.sample_full(logits, seed=1, backend=backend, **given, **more).status.tolist() == [status]


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_an_invalid_penalty_makes_the_row_invalid_whatever_there_is_to_penalise(penalty: str) -> None:
    given = {penalty: torch.tensor([1.0, math.nan]), "output_tokens": torch.empty((2, 0), dtype=torch.int64)}
    tokens = fastsample.sample(torch.zeros(2, 4), seed=1, **given)
    assert (tokens < 0).tolist() == [False, True]
    assert fastsample.process_logits(torch.zeros(2, 4), **given)[1, 0].isnan()
