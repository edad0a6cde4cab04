"""`sample_full` on every backend against the reference, and the reference against the oracles (law, section 7)."""

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsample
import law_oracle
import request_oracle as oracle
from conftest import BACKENDS
from fastsample.arguments import NO_EDITS, NO_HISTORY, ORDERS, Details
from fastsample.ops import Ops
from request_backends import REFERENCE, backend_of, kernels, many, name, public, run_examples
from request_checks import POISON, Written, check_full, reference_edits_of
from request_examples import LOGITS, SEEDS
from request_strategies import (
    FullCall,
    full_calls,
    row_request,
)
from strategies import ulp_distance

__all__ = ["name"]


@many
@pytest.mark.parametrize("name", [*BACKENDS[1:], "triton", "cuda"], indirect=True)
def test_sample_full_gives_what_the_reference_gives(name: str, number: int | None) -> None:
    run_examples(name, "sample_full", full_calls, check_full, number)


@pytest.mark.parametrize("one_draw", [True, False])
def test_sample_with_log_probabilities_is_sample_full(name: str, one_draw: bool) -> None:
    """The operator `sample` writes them too, of draws [batch] and [batch, n], and NaN for rows that have none."""
    backend = kernels(name, "sample")
    logits = torch.randn(5, 65, generator=torch.Generator().manual_seed(1)) * 3
    logits[3, 7] = math.nan
    filters = (torch.tensor(0.8).item(), None, 9, None, 0.9, None, 0.0, None, 0)
    randomness = (5, None, 0, None, 0, None, True)
    shape = (6,) if one_draw else (6, 4)
    found, expected = (
        (torch.full(shape, POISON), torch.full(shape, math.pi)),
        (torch.empty(shape).long(), torch.empty(shape)),
    )
    indices = torch.tensor([4, 0, 1, 3, 2, 9])
    backend.sample(found[0], logits, indices, *filters, *randomness, False, False, found[1])
    details = Details(expected[1])
    REFERENCE.sample_full(expected[0], logits, indices, *filters, *randomness, False, *NO_EDITS, *NO_HISTORY, *details)
    assert torch.equal(found[0], expected[0])
    assert (ulp_distance(found[1], expected[1]) <= 4).all()
    assert found[1].isnan().view(6, -1).all(dim=1).tolist() == [False, False, False, True, False, True]
    only_tokens = torch.full(shape, POISON)
    backend.sample(only_tokens, logits, indices, *filters, *randomness, False, False)
    assert torch.equal(only_tokens, expected[0])


@public
def test_log_probabilities_alone_are_those_beside_others(name: str) -> None:
    given = {"temperature": 0.8, "top_p": 0.9, "seed": SEEDS, "num_samples": 3, "backend": backend_of(name)}
    alone, beside = fastsample.sample_full(LOGITS, **given), fastsample.sample_full(LOGITS, **given, distribution=True)
    assert torch.equal(alone.tokens, beside.tokens)
    assert torch.equal(alone.logprobs, beside.logprobs)


def _entry(number: Any, rows: Tensor | None, row: int) -> Any:
    if rows is None:
        return number
    return rows.item() if rows.dim() == 0 else rows[row].item()


def processed_case(call: FullCall, row: int) -> tuple[law_oracle.Case, list[np.float32]] | None:
    """An output row after section 0, for the oracle of sections 1 to 5, and its raw logits."""
    request = row_request(call.request, row)
    if request is None:
        return None
    filters, randomness = call.filters, call.randomness
    with np.errstate(all="ignore"):
        temperature, top_p, min_p = (np.float32(_entry(*filters[number : number + 2], row)) for number in (0, 4, 6))
        logits = oracle.edit(request).processed
    stream = _entry(randomness.stream, randomness.stream_rows, row) + (row if randomness.stream_per_row else 0)
    case = law_oracle.Case(
        logits,
        temperature,
        _entry(filters.top_k, filters.top_k_rows, row),
        top_p,
        min_p,
        ORDERS[filters.order],
        False,
        _entry(randomness.seed, randomness.seed_rows, row) % 2**64,
        _entry(randomness.offset, randomness.offset_rows, row) % 2**64,
        stream % 2**32,
        call.num_samples,
    )
    return case, list(request.logits)


NO_DESCRIPTION = law_oracle.Answer(False, [], [], 0, [], [], [], [], [])


def check_full_row(call: FullCall, written: Written, row: int) -> None:
    """One row of what `sample_full` wrote against the oracles."""
    described = processed_case(call, row)
    if described is None:
        answer, raw = NO_DESCRIPTION, NO_DESCRIPTION
        tokens, numbers = [-1] * call.num_samples, [1, *[0] * 7]
    else:
        case, logits = described
        with np.errstate(all="ignore"):
            answer = law_oracle.answer(case)
            raw = law_oracle.answer(oracle.raw_case(logits)) if answer.valid else NO_DESCRIPTION
            numbers = oracle.numbers(case, answer)
        tokens = answer.tokens if call.replacement else answer.tokens_without_replacement
    assert written.tokens[row].tolist() == tokens

    nan = law_oracle.FLOAT(np.nan)
    drawn = [token if token >= 0 else None for token in tokens]
    details = written.details
    if details.logprobs is not None:
        assert_close(details.logprobs[row], [nan if token is None else answer.log_probs[token] for token in drawn])
    if details.numbers is not None:
        assert details.numbers[row].tolist() == numbers
    ranked = law_oracle.ranks(logits) if raw.valid else []
    if details.raw_logprobs is not None:
        known = [nan if token is None or not raw.valid else raw.log_probs[token] for token in drawn]
        assert_close(details.raw_logprobs[row], known)
    if details.ranks is not None:
        known_ranks = [0 if token is None or not raw.valid else ranked.index(token) + 1 for token in drawn]
        assert details.ranks[row].tolist() == known_ranks
    if details.top_tokens is not None and details.top_logprobs is not None:
        said = raw
        listed = [token for token in ranked if logits[token] > -np.inf]
        if call.top_of_processed:
            said = answer
            listed = [token for token in law_oracle.ranks(case.logits) if token in answer.kept] if answer.valid else []
        listed = listed[: call.top]
        missing_ones = call.top - len(listed)
        beyond = law_oracle.FLOAT(-np.inf) if said.valid else nan
        assert details.top_tokens[row].tolist() == listed + [-1] * missing_ones
        assert_close(details.top_logprobs[row], [said.log_probs[token] for token in listed] + [beyond] * missing_ones)
    check_history_row(call, written, row, tokens[0] if tokens else -1)


def check_history_row(call: FullCall, written: Written, row: int, token: int) -> None:
    before, after = call.history, written.history
    if before.counts is not None and after.counts is not None:
        counts = before.counts[row].tolist()
        if token >= 0:
            counts[token] += 1
        assert after.counts[row].tolist() == counts
    if before.lengths is None or after.lengths is None:
        return
    length = int(before.lengths[row])
    assert after.lengths[row] == length + (token >= 0)
    if before.tokens is not None and after.tokens is not None:
        history = before.tokens[row].tolist()
        if token >= 0 and 0 <= length < len(history):
            history[length] = token
        assert after.tokens[row].tolist() == history


def assert_close(found: Tensor, expected: list[np.float32]) -> None:
    distance = ulp_distance(found.contiguous(), torch.from_numpy(np.array(expected, dtype=np.float32)))
    assert (distance <= 4).all(), (found, expected)


def check_full_with_the_oracle(backend: Ops, call: FullCall) -> None:
    written = Written(backend, call, reference_edits_of(call.request))
    for row in range(call.request.rows):
        check_full_row(call, written, row)


@many
def test_sample_full_of_the_reference_is_the_law(number: int | None) -> None:
    small = functools.partial(full_calls, max_rows=3, vocabularies=(1, 2, 31, 33, 65))
    run_examples("reference", "sample_full", small, check_full_with_the_oracle, number)
