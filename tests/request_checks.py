"""A backend against the oracle and the reference: `find_edits` by ==, `sample_full` within the 4 units in the last
place that the law allows log-probabilities, all else by ==.
"""

import math

import numpy as np
import torch
from torch import Tensor

import fastsample
import request_oracle as oracle
from fastsample import History, reference_edits
from fastsample.arguments import Details, Edits
from fastsample.ops import Ops
from request_backends import REFERENCE
from request_strategies import (
    FullCall,
    RequestCall,
    row_request,
)
from strategies import ulp_distance

POISON = -77777


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
