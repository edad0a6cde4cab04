"""What requests bring along, on every backend: adjustments against tests/request_oracle.py by ==, `sample_full` against
the oracles and against the reference (log-probabilities within the 4 units in the last place that the law allows), and
what follows for the public functions.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import fastsample
import law_oracle
import request_oracle as oracle
from conftest import BACKENDS
from emulated import emulated_ops
from fastsample import BadWords, History, LogitBias, TokenLists, ops, reference_edits
from fastsample.arguments import NO_EDITS, NO_HISTORY, ORDERS, Details, Edits
from fastsample.distribution import distribution
from fastsample.ops import Ops
from missing import missing
from request_strategies import (
    FullCall,
    RequestCall,
    full_calls,
    public_arguments,
    request_calls,
    row_request,
)
from strategies import one_thread, same_bits, ulp_distance

REFERENCE = ops.for_backend("reference")
POISON = -77777

# How many examples of hypothesis each backend is given: an interpreter and an emulator take a hundred times as long.
EXAMPLES = {"reference": 120, "cpu-scalar": 60, "cpu-avx2": 60, "cpu-avx512": 60, "triton": 6, "cuda": 60}
SMALL = {"triton": (1, 33, 65)}


def kernels(name: str, operator: str) -> Ops:
    """The operators by the kernels that `name` stands for, "triton" and "cuda" on this CPU.

    Fails where `operator` has no kernel there: its registration is lost, and the reference would be tested instead.
    """
    if name == "reference":
        return REFERENCE
    if name == "triton":
        if ops.triton_status() != "ok" or not ops.triton_is_interpreted():
            missing("Triton's interpreter is not to be had here")
        backend, there = ops.triton_only, operator in ops._HAS_TRITON_KERNEL
    elif name == "cuda":
        backend = emulated_ops()
        there = getattr(backend, operator) is not getattr(REFERENCE, operator)
    else:
        backend = ops.compiled
        there = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastsample::{operator}", "CPU")
    assert there, f"{operator} has no kernel on {name}"
    return backend


@pytest.fixture(params=(*BACKENDS, "triton", "cuda"))
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend, with the instruction set that it says in force."""
    backend, _, instruction_set = request.param.partition("-")
    if backend != "cpu":
        yield request.param
        return
    if ops.cpu_status != "ok":
        missing(f"the native CPU kernels are not loaded ({ops.cpu_status})")
    with ops.instruction_set_capped(instruction_set) as in_force:
        if in_force != instruction_set:
            pytest.skip(f"this processor has {in_force} at most")
        yield request.param


# The interpreter and the emulator run operators, not the public functions' choice of a backend.
public = pytest.mark.parametrize("name", BACKENDS, indirect=True)


def run_examples(
    name: str,
    operator: str,
    calls: Callable[..., st.SearchStrategy],
    check: Callable[..., None],
    number: int | None = None,
) -> None:
    """Run `check(backend, call)` over calls, as many and as large as the backend has time for: the same ones in each
    process, or 10 times as many of a number.
    """
    backend = kernels(name, operator)
    strategy = calls(vocabularies=SMALL[name]) if name in SMALL else calls()

    # Not shrunk: that takes an interpreter minutes, and the calls are small.
    @settings(
        max_examples=EXAMPLES[name] * (1 if number is None else 10),
        deadline=None,
        derandomize=number is None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=(Phase.explicit, Phase.generate),
    )
    @given(call=strategy)
    def test(call: Any) -> None:
        with one_thread():
            check(backend, call)

    (test if number is None else seed(number)(test))()


many = pytest.mark.parametrize("number", [None, *(pytest.param(n, marks=pytest.mark.slow) for n in range(4))])


# --- section 0


def equal(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal by ==, which the sign of a zero is not part of; NaN equals NaN."""
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    return actual.dtype is expected.dtype and actual.shape == expected.shape and bool(same.all())


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def check_edits(backend: Ops, call: RequestCall) -> None:
    """`find_edits` gives, in the canonical form, what the oracle says; so does what the edits make of the logits."""
    bits, before, values, status = backend.find_edits(call.logits, call.indices, call.rows, *call.adjustments)
    vocab = call.logits.shape[1]
    words = (vocab + 31) // 32
    assert bits.shape == before.shape == (call.rows, words)
    assert bits.dtype is before.dtype is status.dtype is torch.int32
    assert all(found.is_contiguous() for found in (bits, before, values))
    edits = Edits(call.adjustments.allowed, bits, before, values)
    for row in range(call.rows):
        request = row_request(call, row)
        with np.errstate(all="ignore"):
            expected = oracle.RowEdits({}, 0, []) if request is None else oracle.edit(request)
        by_word = [[token for token in expected.edits if token // 32 == word] for word in range(words)]
        assert status[row] == expected.status
        assert bits[row].tolist() == [_signed(sum(1 << token % 32 for token in tokens)) for tokens in by_word]
        assert before[row].tolist() == np.cumsum([0, *map(len, by_word)])[:-1].tolist()
        expected_values = torch.from_numpy(np.array(list(expected.edits.values()), dtype=np.float32))
        assert equal(values[row, : len(expected.edits)], expected_values)
        if request is not None:
            source = row if call.indices is None else int(call.indices[row])
            _, processed = reference_edits.processed(call.logits[source : source + 1], edits, slice(row, row + 1))
            expected_row = torch.from_numpy(np.array(expected.processed, dtype=np.float32))
            assert equal(fastsample.reference.narrow(processed)[0], expected_row)


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


# --- sections 1 to 4 and 7 after it


def wanted_details(call: FullCall, batch: int) -> Details:
    """Room for what a call asks for: every second column of buffers of poison."""

    def room(wanted: bool, columns: int, dtype: torch.dtype) -> Tensor | None:
        return torch.full((batch, 2 * columns), POISON, dtype=dtype)[:, ::2] if wanted else None

    logprobs, raw_logprobs, ranks, top, numbers = call.details
    return Details(
        room(logprobs, call.num_samples, torch.float32),
        room(raw_logprobs, call.num_samples, torch.float32),
        room(ranks, call.num_samples, torch.int64),
        room(top, call.top, torch.int64),
        room(top, call.top, torch.float32),
        room(numbers, 8, torch.int64),
        call.top_of_processed,
    )


class Written:
    """Everything that a call of `sample_full` wrote, and the edits it was given."""

    def __init__(self, backend: Ops, call: FullCall, edits: Edits) -> None:
        request, batch = call.request, call.request.rows
        self.tokens = torch.full((batch, 2 * call.num_samples), POISON)[:, ::2]
        self.details = wanted_details(call, batch)
        self.history = History(*(None if field is None else _strided_copy(field) for field in call.history))
        outputs = (*edits, *self.history, *self.details)
        backend.sample_full(
            self.tokens, request.logits, request.indices, *call.filters, *call.randomness, call.replacement, *outputs
        )
        for field in (self.tokens, *self.details[:6], *self.history):
            if field is not None and field.dim() == 2 and field.numel():
                between = field.as_strided(field.shape, field.stride(), field.storage_offset() + 1)
                assert (between == POISON).all()


def _strided_copy(values: Tensor) -> Tensor:
    """A copy whose elements have one of poison after each."""
    buffer = torch.full((*values.shape, 2), POISON, dtype=values.dtype)
    buffer[..., 0] = values
    return buffer[..., 0]


def reference_edits_of(request: RequestCall) -> Edits:
    """The edits of a call, with NaN wherever no edit is."""
    bits, before, values, _ = REFERENCE.find_edits(request.logits, request.indices, request.rows, *request.adjustments)
    number = sum((bits >> bit) & 1 for bit in range(32)).sum(dim=1, keepdim=True)
    values = torch.where(torch.arange(values.shape[1]) < number, values, math.nan)
    if not bits.any():
        return Edits(request.adjustments.allowed)
    return Edits(request.adjustments.allowed, bits, before, values)


def check_full(backend: Ops, call: FullCall) -> None:
    """A backend writes what the reference writes."""
    edits = reference_edits_of(call.request)
    found, expected = Written(backend, call, edits), Written(REFERENCE, call, edits)
    assert torch.equal(found.tokens, expected.tokens)
    for field, one, other in zip(History._fields, found.history, expected.history, strict=True):
        assert one is other is None or torch.equal(one, other), field
    for field, one, other in zip(Details._fields[:6], found.details, expected.details, strict=False):
        if one is None or other is None:
            continue
        if one.dtype is torch.int64:
            assert torch.equal(one, other), (field, one, other)
        else:
            assert (ulp_distance(one.contiguous(), other.contiguous()) <= 4).all(), (field, one, other)
    if found.details.numbers is not None:
        numbers = found.details.numbers
        offsets = torch.nn.functional.pad(numbers[:, 5].cumsum(0), (1, 0))
        arguments = call.request.logits, call.request.indices, *edits, numbers, offsets, int(offsets[-1])
        assert torch.equal(backend.kept_tokens(*arguments), REFERENCE.kept_tokens(*arguments))


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


# --- what the public functions make of it


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


def backend_of(name: str) -> str:
    return name.partition("-")[0]


@public
@each_filters
def test_draws_are_those_of_sample_from_the_processed_logits(name: str, filters: dict[str, Any]) -> None:
    backend, given, order = backend_of(name), everything(), {k: v for k, v in filters.items() if k == "order"}
    processed = fastsample.process_logits(LOGITS, backend=backend, **given)
    common = {"seed": SEEDS, "num_samples": 3, "backend": backend, **filters}
    expected = fastsample.sample(processed, **common)
    assert torch.equal(fastsample.sample(LOGITS, **common, **given), expected)
    full = fastsample.sample_full(LOGITS, **common, **given, distribution=True, kept_set=True)
    assert torch.equal(full.tokens, expected)
    assert torch.equal(full.first_tokens, expected[:, 0])
    expected_logprobs = fastsample.log_probs(processed, expected, backend=backend, **filters)
    assert (ulp_distance(full.logprobs, expected_logprobs) <= 4).all()
    assert not full.status.any()

    filtered = fastsample.filter_logits(processed, backend=backend, **filters)
    assert full.kept is not None
    assert full.kept.tokens.tolist() == (filtered > -math.inf).nonzero()[:, 1].tolist()
    assert full.kept.offsets.tolist() == [0, *(filtered > -math.inf).sum(dim=1).cumsum(0).tolist()]
    assert full.kept_size.tolist() == (filtered > -math.inf).sum(dim=1).tolist()

    exact = distribution(processed, **filters)
    assert (torch.where(filtered > -math.inf, exact, 0.0).sum(dim=1) - 1).abs().max() < 1e-9
    entropy = -torch.xlogy(exact, exact).sum(dim=1)
    assert ((full.entropy - entropy).abs() <= 1e-6 * entropy + 1e-6).all()
    kept_mass = (distribution(processed, filters.get("temperature", 1.0), **order) * (exact > 0)).sum(dim=1)
    assert (full.kept_mass - kept_mass).abs().max() < 1e-6


@public
@each_filters
def test_what_is_said_of_the_raw_logits(name: str, filters: dict[str, Any]) -> None:
    """It knows nothing of adjustments, temperature and filters. 100 tokens, by a second pass, begin with the 20."""
    backend = backend_of(name)
    common = {"seed": SEEDS, "backend": backend, "raw_logprobs": True, **filters, **everything()}
    exact = torch.log_softmax(LOGITS.double(), dim=1)
    few, many = (fastsample.sample_full(LOGITS, **common, top_logprobs=count) for count in (20, 100))
    ranked = LOGITS.sort(dim=1, descending=True, stable=True).indices
    for full, count in ((few, 20), (many, 100)):
        assert torch.equal(full.top_tokens, ranked[:, :count])
        assert (full.top_logprobs - exact.gather(1, ranked[:, :count])).abs().max() < 2e-6
        tokens = full.tokens[:, None]
        assert (full.raw_logprobs - exact.gather(1, tokens)[:, 0]).abs().max() < 2e-6
        assert torch.equal(full.ranks, (ranked == tokens).nonzero()[:, 1] + 1)
    assert torch.equal(few.tokens, many.tokens)
    assert (ulp_distance(few.top_logprobs, many.top_logprobs[:, :20].contiguous()) <= 4).all()
    in_the_list = few.ranks <= 20
    assert in_the_list.any()
    at_rank = few.top_logprobs.gather(1, few.ranks.clamp(max=20)[:, None] - 1)[:, 0]
    assert (ulp_distance(at_rank, few.raw_logprobs)[in_the_list] == 0).all()


@public
@each_filters
def test_the_top_of_what_was_drawn_from(name: str, filters: dict[str, Any]) -> None:
    """The first kept tokens in rank with the log-probabilities that a draw of them has; both passes say the same."""
    backend = backend_of(name)
    common = {"seed": SEEDS, "backend": backend, "top_logprobs_of": "processed", **filters, **everything()}
    few, many = (fastsample.sample_full(LOGITS, **common, top_logprobs=count) for count in (20, 100))
    processed = fastsample.process_logits(LOGITS, **everything())
    kept = fastsample.filter_logits(processed, **filters)
    logprobs = fastsample.log_probs(processed, torch.arange(LOGITS.shape[1]).expand(LOGITS.shape), **filters)
    ranked = kept.sort(dim=1, descending=True, stable=True).indices
    is_kept = kept.gather(1, ranked) > -math.inf
    for full, count in ((few, 20), (many, 100)):
        listed = ranked[:, :count]
        assert torch.equal(full.top_tokens, torch.where(is_kept[:, :count], listed, -1))
        expected = torch.where(is_kept[:, :count], logprobs.gather(1, listed), -math.inf)
        assert (ulp_distance(full.top_logprobs, expected) <= 4).all()
    assert torch.equal(few.tokens, fastsample.sample(LOGITS, seed=SEEDS, backend=backend, **filters, **everything()))
    assert few.numbers is many.numbers is None


@public
@pytest.mark.parametrize("count", [3, 40])
def test_the_processed_top_of_few_tokens_and_of_invalid_rows(name: str, count: int) -> None:
    logits = torch.zeros(5, 6)
    logits[1, 4] = math.nan
    logits[2, 2] = math.inf
    logits[3] = torch.tensor([-2e38, 2e38, -math.inf, 1.0, -math.inf, -math.inf])
    logits[4] = torch.tensor([0.0, -0.0, 1e-45, 1.0, -1.0, 1.0])
    given = {"seed": 1, "top_logprobs": count, "top_logprobs_of": "processed", "backend": backend_of(name)}
    rest = [-1] * (count - 1)
    greedy = fastsample.sample_full(logits, 0.0, **given)
    assert greedy.top_tokens.tolist() == [[0, *rest], [-1, *rest], [2, *rest], [1, *rest], [3, *rest]]
    assert greedy.top_logprobs[[0, 2, 3, 4], 0].tolist() == [0, 0, 0, 0]
    assert greedy.top_logprobs[1].isnan().all()
    two = fastsample.sample_full(logits, top_k=2, num_samples=2, replacement=False, **given)
    pad = rest[1:]
    assert two.top_tokens.tolist() == [[0, 1, *pad], [-1, -1, *pad], [2, 0, *pad], [1, 3, *pad], [3, 5, *pad]]
    assert two.top_logprobs.isnan().all(dim=1).tolist() == [False, True, False, False, False]
    assert two.top_logprobs[2:4, 1].tolist() == [-math.inf, torch.tensor(-2e38)]
    nowhere = fastsample.sample_full(logits, indices=torch.tensor([0, 9]), **given)
    assert nowhere.top_tokens[1].tolist() == [-1] * count
    assert nowhere.top_logprobs[1].isnan().all()


@public
@pytest.mark.parametrize("count", [5, 33, 40])
def test_fewer_tokens_than_top_logprobs_asks_for(name: str, count: int) -> None:
    """-1 and -inf beyond what is above -inf; a token too far below the maximum has -inf too, but is named."""
    logits = torch.full((3, 38), -math.inf)
    logits[0, [3, 30]] = torch.tensor([1.0, 2.0])
    logits[1, :4] = torch.tensor([-2e38, 2e38, -math.inf, 1.0])
    logits[2, 5] = math.nan
    full = fastsample.sample_full(logits, seed=1, top_logprobs=count, raw_logprobs=True, backend=backend_of(name))
    assert full.top_tokens.tolist() == [[30, 3, *[-1] * (count - 2)], [1, 3, 0, *[-1] * (count - 3)], [-1] * count]
    assert full.top_logprobs.isnan().tolist() == [[False] * count, [False] * count, [True] * count]
    assert (full.top_logprobs[0, 2:] == -math.inf).all()
    assert (full.top_logprobs[1, 1:] == torch.tensor([-2e38, *[-math.inf] * (count - 2)])).all()
    assert full.ranks.tolist() == [1 if full.tokens[0] == 30 else 2, 1, 0]
    assert full.raw_logprobs.isnan().tolist() == [False, False, True]


@public
def test_a_row_whose_raw_logits_are_invalid_may_still_be_drawn_from(name: str) -> None:
    logits = torch.tensor([[1.0, math.nan, 2.0]])
    given = {"allowed_tokens": TokenLists.of([[0, 2]]), "top_k": 1}
    full = fastsample.sample_full(
        logits, seed=1, raw_logprobs=True, top_logprobs=2, distribution=True, backend=backend_of(name), **given
    )
    assert full.tokens.tolist() == [2]
    assert full.status.tolist() == [0]
    assert full.logprobs.tolist() == [0]
    assert full.raw_logprobs.isnan().all()
    assert full.ranks.tolist() == [0]
    assert full.top_tokens.tolist() == [[-1, -1]]
    assert full.top_logprobs.isnan().all()


@public
def test_ties(name: str) -> None:
    """Equal logits rank by index, in filters, ranks and lists, also where adjustments made them equal."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, -0.0, 0.0, 1.0]])
    given = {"logit_bias": LogitBias.of([{1: -2.0, 3: -2.0}]), "top_k": 3, "temperature": 0.5}
    full = fastsample.sample_full(
        logits, **given, seed=5, num_samples=3, replacement=False, kept_set=True, raw_logprobs=True, top_logprobs=7,
        backend=backend_of(name),
    )  # fmt: skip
    assert sorted(full.tokens[0].tolist()) == [0, 1, 2]
    assert full.kept.tokens.tolist() == [0, 1, 2]
    assert full.top_tokens.tolist() == [[1, 3, 0, 2, 6, 4, 5]]
    assert {int(token): int(rank) for token, rank in zip(full.tokens[0], full.ranks[0], strict=True)} == {
        0: 3,
        1: 1,
        2: 4,
    }
    assert (full.logprobs == full.logprobs[0, 0]).all()
    assert (full.logprobs.double() + math.log(3)).abs().max() < 2e-7


@public
def test_several_draws(name: str) -> None:
    """The first of several is the only one of one; without replacement no token twice, and -1 once nothing is left."""
    backend, given = backend_of(name), {"top_k": 4, "seed": SEEDS, "raw_logprobs": True, **everything()}
    one = fastsample.sample_full(LOGITS, backend=backend, **given)
    for replacement in (True, False):
        many = fastsample.sample_full(LOGITS, backend=backend, num_samples=9, replacement=replacement, **given)
        for field in ("tokens", "logprobs", "raw_logprobs", "ranks"):
            assert torch.equal(getattr(many, field)[:, 0], getattr(one, field))
        for row in range(ROWS):
            by_token = dict(zip(many.tokens[row].tolist(), many.logprobs[row].tolist(), strict=True))
            drawn = [token for token in many.tokens[row].tolist() if token >= 0]
            assert all(
                by_token[token] == logprob
                for token, logprob in zip(many.tokens[row].tolist(), many.logprobs[row].tolist(), strict=True)
                if token >= 0
            )
            if not replacement:
                assert len(drawn) == len(set(drawn)) == 4
                assert many.tokens[row, 4:].tolist() == [-1] * 5
                assert many.logprobs[row, 4:].isnan().all()
                assert many.raw_logprobs[row, 4:].isnan().all()
                assert many.ranks[row, 4:].tolist() == [0] * 5
                assert abs(sum(math.exp(by_token[token]) for token in drawn) - 1) < 1e-6


@public
@pytest.mark.parametrize("num_samples", [None, 2])
def test_one_row_without_a_batch(name: str, num_samples: int | None) -> None:
    given = {
        "presence_penalty": 0.5, "output_tokens": torch.tensor([[5, 6]]), "seed": 3, "num_samples": num_samples,
        "raw_logprobs": True, "top_logprobs": 3, "distribution": True, "kept_set": True, "top_p": 0.7,
        "backend": backend_of(name),
    }  # fmt: skip
    alone, batch = fastsample.sample_full(LOGITS[0], **given), fastsample.sample_full(LOGITS[:1], **given)
    for field in (
        "tokens",
        "logprobs",
        "raw_logprobs",
        "ranks",
        "top_tokens",
        "top_logprobs",
        "numbers",
        "first_tokens",
    ):
        assert torch.equal(getattr(alone, field), getattr(batch, field)[0]), field
    for field in ("status", "kept_size", "kept_mass", "entropy"):
        assert torch.equal(getattr(alone, field), getattr(batch, field)[0]), field
    assert torch.equal(alone.kept.tokens, batch.kept.tokens)
    assert torch.equal(alone.kept.offsets, batch.kept.offsets)
    assert torch.equal(
        fastsample.process_logits(LOGITS[0], presence_penalty=0.5, output_tokens=torch.tensor([[5, 6]])),
        fastsample.process_logits(LOGITS[:1], presence_penalty=0.5, output_tokens=torch.tensor([[5, 6]]))[0],
    )


@public
def test_adjustments_belong_to_output_rows(name: str) -> None:
    """`indices` choose the logits; everything else is of the output row, whose logits may not exist."""
    backend, indices = backend_of(name), torch.tensor([4, 4, 9, 0, -1, 2])
    given = {"seed": SEEDS, "top_p": 0.9, "raw_logprobs": True, "top_logprobs": 40, "kept_set": True, **everything()}
    found = fastsample.sample_full(LOGITS, indices=indices, backend=backend, **given)
    exists = (indices >= 0) & (indices < ROWS)
    gathered = LOGITS[indices.clamp(0, ROWS - 1)]
    expected = fastsample.sample_full(torch.where(exists[:, None], gathered, math.nan), backend=backend, **given)
    for field in ("tokens", "ranks", "top_tokens", "numbers", "status"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field
    for field in ("logprobs", "raw_logprobs", "top_logprobs"):
        assert same_bits(getattr(found, field), getattr(expected, field)), field
    assert torch.equal(found.kept.tokens, expected.kept.tokens)
    assert torch.equal(found.kept.offsets, expected.kept.offsets)
    assert (found.tokens < 0).tolist() == (~exists).tolist()


@public
def test_a_row_does_not_feel_its_neighbours(name: str) -> None:
    """Neither bad logits nor bad adjustments of another row change a row."""
    backend, good = backend_of(name), everything()
    common = {"seed": SEEDS, "top_p": 0.8, "raw_logprobs": True, "top_logprobs": 5, "kept_set": True}
    expected = fastsample.sample_full(LOGITS, backend=backend, **common, **good)
    bad = {name: value.clone() if isinstance(value, Tensor) else value for name, value in good.items()}
    logits = LOGITS.clone()
    logits[0, 5] = math.nan
    bad["repetition_penalty"][2] = -1
    bad["output_tokens"][3] = 2**40
    bad["prompt_lengths"][3] = -7
    bad["bitmask"][4] = 0
    found = fastsample.sample_full(logits, backend=backend, **common, **bad)
    assert found.status.tolist() == [1, 0, 1, 2, 1, 0]
    untouched = [1, 5]
    for field in ("tokens", "logprobs", "raw_logprobs", "ranks", "top_tokens", "top_logprobs", "numbers"):
        assert torch.equal(getattr(found, field)[untouched], getattr(expected, field)[untouched]), field
    assert found.tokens[[0, 2, 4]].tolist() == [-1, -1, -1]
    assert found.kept_size[[0, 2, 4]].tolist() == [0, 0, 0]
    assert found.entropy[[0, 2, 4]].isnan().all()
    assert found.kept_mass[[0, 2, 4]].isnan().all()
    assert found.numbers[[0, 2, 4]].tolist() == [[1, *[0] * 7]] * 3


@public
def test_threads_change_nothing(name: str) -> None:
    backend, results = backend_of(name), []
    before = torch.get_num_threads()
    wide = torch.randn(1, 70_001, generator=torch.Generator().manual_seed(5)) * 3
    history = wide.topk(30).indices
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for logits, given in (
                (LOGITS, everything()),
                (wide, {"repetition_penalty": 1.2, "frequency_penalty": 0.2, "output_tokens": history}),
            ):
                full = fastsample.sample_full(
                    logits, seed=5, top_p=0.9, raw_logprobs=True, top_logprobs=9, kept_set=True, num_samples=4,
                    backend=backend, **given,
                )  # fmt: skip
                results.append((full.tokens, full.ranks, full.top_tokens, full.numbers, full.kept.tokens))
    finally:
        torch.set_num_threads(before)
    for number, found in enumerate(results[2:]):
        assert all(torch.equal(one, other) for one, other in zip(found, results[number % 2], strict=True))


@public
def test_flushing_denormals_changes_nothing(name: str) -> None:
    """Torch's own arithmetic flushes then; the law's keeps them."""
    bits = torch.randint(0, 2**24, (ROWS, VOCAB), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    logits, ids = bits.view(torch.float32), torch.arange(2 * ROWS).view(ROWS, 2)
    given = {
        "repetition_penalty": torch.tensor([1.5, 1e-38, 2e-38, 1e38, 0.7, 1.0]),
        "presence_penalty": 1e-39,
        "frequency_penalty": torch.tensor(1.2e-38),
        "output_tokens": ids,
        "logit_bias": LogitBias.of([{int(row[0]): 3e-39, 50: -1e-45} for row in ids]),
    }
    common = {"temperature": 1e-38, "top_p": 0.9, "seed": 3, "num_samples": 3, "backend": backend_of(name)}

    def results() -> list[Tensor]:
        full = fastsample.sample_full(logits, **common, **given, raw_logprobs=True, top_logprobs=40, kept_set=True)
        processed = fastsample.process_logits(logits, **given, backend=backend_of(name))
        found = (full.tokens, full.ranks, full.top_tokens, full.numbers, full.kept.tokens, processed.view(torch.int32))
        return [*found, full.logprobs.view(torch.int32), full.raw_logprobs.view(torch.int32)]

    before = results()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        flushed = results()
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(one, other) for one, other in zip(before, flushed, strict=True))
    assert len(set(before[0].flatten().tolist())) > 1


@public
def test_the_default_generator_gives_what_sample_gives(name: str) -> None:
    torch.manual_seed(9)
    expected = fastsample.sample(LOGITS, top_k=9, presence_penalty=1.0, output_counts=torch.ones(ROWS, VOCAB).int())
    torch.manual_seed(9)
    full = fastsample.sample_full(
        LOGITS, top_k=9, presence_penalty=1.0, output_counts=torch.ones(ROWS, VOCAB).int(), backend=backend_of(name)
    )
    assert torch.equal(full.tokens, expected)


# --- the history


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
