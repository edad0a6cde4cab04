"""Calls of the operators that requests bring in, for the emulator: larger rows than hypothesis has time for, with
everything at once, and those of speculative decoding.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastsample import ops
from fastsample.adjustments import Adjustments
from fastsample.arguments import Details, Filters, History, Randomness
from fastsample.ops import Ops
from request_checks import check_edits, check_full
from request_strategies import FullCall, RequestCall
from strategies import filters_for, logits_of, one_thread, probabilities_of, randomness_for

REFERENCE = ops.for_backend("reference")
SEEDED = Randomness(1234, None, 5, None, 0, None, True)
FILTERS = {
    "plain": Filters(1.0, None, 0, None, 1.0, None, 0.0, None, 0),
    "greedy": Filters(0.0, None, 0, None, 1.0, None, 0.0, None, 0),
    "T .8, k 50, p .9": Filters(0.8, None, 50, None, 0.9, None, 0.0, None, 0),
    "p .9": Filters(1.0, None, 0, None, 0.9, None, 0.0, None, 0),
    "k 400, min_p .01": Filters(1.0, None, 400, None, 1.0, None, 0.01, None, 1),
}
EVERYTHING = (True,) * 5


def normal_rows(rows: int, vocab: int, dtype: torch.dtype, before: int = 0) -> Tensor:
    """Rows of N(0, 9), of which the first begins `before` tokens after an aligned address."""
    random = torch.Generator().manual_seed(vocab)
    buffer = torch.randn(before + rows * vocab, generator=random) * 3
    return buffer.to(dtype)[before:].view(rows, vocab)


def everything_at_once(rows: int, vocab: int, by_token: bool = False) -> Adjustments:
    """Every kind of adjustment, each token in several of them; histories `by_token` too, or by their lists alone."""
    random = torch.Generator().manual_seed(rows * vocab)

    def ids(*shape: int) -> Tensor:
        return torch.randint(vocab, shape, generator=random)

    outputs, prompts = ids(rows, 40), ids(rows, 200)
    outputs[:, 20:] = outputs[:, :20]
    # A token that only one entry of a bias names would not tell the last entry from any other.
    biased = ids(rows * 6).repeat(20)
    words = torch.stack((outputs[:, -2], outputs[:, -1], ids(rows)), 1).flatten()
    by_row = torch.arange(rows + 1)
    mask = torch.randint(-(2**31), 2**31, (rows, (vocab + 31) // 32), generator=random, dtype=torch.int32) & 0x01000401
    counts = (torch.rand(rows, vocab, generator=random) < 0.01).int() * 3
    return Adjustments(
        repetition_penalty=1.3,
        presence_penalty_rows=torch.linspace(-0.5, 0.5, rows),
        frequency_penalty=0.25,
        prompt_tokens=prompts,
        prompt_lengths=torch.arange(rows) * 7 + 150,
        output_tokens=outputs,
        prompt_mask=mask if by_token else None,
        output_counts=counts if by_token else None,
        bias_tokens=biased,
        bias_values=torch.randn(biased.shape[0], generator=random),
        bias_offsets=by_row * (biased.shape[0] // rows),
        bad_words=words,
        bad_word_offsets=by_row * 3,
        bad_word_rows=by_row,
        min_tokens=1000,
        stop_tokens=ids(rows * 3),
        stop_offsets=by_row * 3,
        allowed=~torch.where(
            torch.rand(rows, (vocab + 31) // 32, generator=random) < 0.3,
            torch.randint(-(2**31), 2**31, (rows, (vocab + 31) // 32), generator=random, dtype=torch.int32),
            0,
        ),
    )


def full_call(
    logits: Tensor,
    filters: Filters,
    adjustments: Adjustments,
    num_samples: int = 1,
    replacement: bool = True,
    top_of_processed: bool = False,
) -> FullCall:
    """A call that is asked for everything."""
    rows, vocab = logits.shape
    history = History(torch.full((rows, 3), -5), torch.arange(rows), torch.zeros((rows, vocab), dtype=torch.int32))
    request = RequestCall(logits, None, rows, adjustments)
    return FullCall(request, filters, SEEDED, num_samples, replacement, history, EVERYTHING, top_of_processed, 20)


def larger_calls(vocab: int) -> Iterator[FullCall]:
    """Rows aligned and not, of each dtype, with edits and without, with one draw and several."""
    for number, filters in enumerate(FILTERS.values()):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[number % 3]
        logits = normal_rows(2, vocab, dtype, before=number)
        odd = number % 2 == 1
        yield full_call(logits, filters, everything_at_once(2, vocab, by_token=odd), top_of_processed=odd)
        yield full_call(logits, filters, Adjustments(), num_samples=3, replacement=not odd, top_of_processed=not odd)
    tied = (normal_rows(2, vocab, torch.float32) > 0).float()  # more equal tokens than a list holds
    tied[1, vocab // 3] = -math.inf
    some = Adjustments(allowed=everything_at_once(2, vocab).allowed)
    yield full_call(tied, FILTERS["p .9"], some, num_samples=2, replacement=False, top_of_processed=True)
    yield full_call(tied, FILTERS["p .9"], some)
    unknown = normal_rows(2, vocab, torch.float32)
    unknown[0, 5], unknown[1, 6] = math.nan, math.inf
    yield full_call(unknown, FILTERS["plain"], Adjustments())
    banned = Adjustments(allowed=torch.full((2, (vocab + 31) // 32), ~(1 << 5), dtype=torch.int32))
    yield full_call(unknown, FILTERS["plain"], banned)  # only the raw row is invalid


def check_larger(backend: Ops, call: FullCall) -> None:
    with one_thread():
        check_edits(backend, call.request)
        check_full(backend, call)


def check_offsets_in_the_history(backend: Ops, rows: int = 3, vocab: int = 701) -> None:
    """The history's lengths as the rows' offsets: each draw reads what it then adds to."""
    logits = normal_rows(rows, vocab, torch.float32)

    def drawn(operators: Ops, lengths: Tensor, offsets: Tensor) -> list[list[int]]:
        out, history = torch.empty((rows, 1), dtype=torch.int64), torch.full((rows, 4), -5)
        randomness = SEEDED._replace(offset_rows=offsets)
        tokens = []
        for _ in range(2):
            where = History(history, lengths)
            operators.sample_full(
                out, logits, None, *FILTERS["plain"], *randomness, True, *(None,) * 4, *where, *Details()
            )
            tokens.append(out[:, 0].tolist())
        return [*tokens, *history.tolist(), lengths.tolist()]

    in_history, apart = torch.arange(rows), torch.arange(rows)
    first = drawn(backend, in_history, in_history)
    assert first == drawn(REFERENCE, apart, apart)


# --- speculative decoding


class SpeculativeCall(NamedTuple):
    """What fixed_probs_at and sample_residual are given."""

    target: Tensor
    target_filters: Filters
    target_probabilities: bool
    draft: Tensor
    draft_filters: Filters
    draft_probabilities: bool
    indices: Tensor  # into both
    tokens: Tensor
    randomness: Randomness


@st.composite
def speculative_calls(draw: st.DrawFn, vocabularies: tuple[int, ...] = (1, 2, 33, 100, 600)) -> SpeculativeCall:
    """Targets and drafts of one vocabulary, each logits or probabilities."""
    probabilities = draw(st.booleans()), draw(st.booleans())
    vocab = (draw(st.sampled_from(vocabularies)),)
    target, draft = (draw((probabilities_of if are else logits_of)(vocabularies=vocab)) for are in probabilities)
    width = min(target.shape[1], draft.shape[1])
    target, draft = target[:, :width], draft[:, :width]
    batch = draw(st.integers(0, 4))
    entries = st.sampled_from([*range(max(target.shape[0], draft.shape[0]))] * 4 + [-1, 2**40])
    indices = torch.tensor([draw(entries) for _ in range(batch)], dtype=torch.int64)
    ids = st.sampled_from([*range(width), -1, width, -(2**63)])
    tokens = torch.tensor([[draw(ids) for _ in range(3)] for _ in range(batch)], dtype=torch.int64).view(batch, 3)
    filters = draw(filters_for(batch)), draw(filters_for(batch))
    return SpeculativeCall(
        target,
        filters[0],
        probabilities[0],
        draft,
        filters[1],
        probabilities[1],
        indices,
        tokens,
        draw(randomness_for(batch)),
    )


def check_speculative(backend: Ops, call: SpeculativeCall) -> None:
    """The kernels of speculative decoding give what the reference gives."""

    def results(operators: Ops) -> list[list[list[int]]]:
        rows = call.indices.shape[0]
        out = torch.full((rows, 2), -77777)
        target = call.target, call.indices, *call.target_filters, call.target_probabilities
        draft = call.draft, call.indices, *call.draft_filters, call.draft_probabilities
        operators.sample_residual(out[:, :1], *target, *draft, *call.randomness)
        at = [
            operators.fixed_probs_at(matrix, call.indices, call.tokens, *filters, probabilities)
            for matrix, filters, probabilities in (
                (call.target, call.target_filters, call.target_probabilities),
                (call.draft, call.draft_filters, call.draft_probabilities),
            )
        ]
        words = [operators.random_words(call.target, rows, *call.randomness, first, 5) for first in (0, 7, 2**32 - 2)]
        return [tensor.tolist() for tensor in (out, *at, *words)]

    with one_thread():
        assert results(backend) == results(REFERENCE)


def larger_speculative_call(vocab: int) -> SpeculativeCall:
    """Rows that several warps share: a draft near its target, one far from it, and one that does not exist."""
    target = normal_rows(3, vocab, torch.bfloat16, before=1)
    draft = target + normal_rows(3, vocab, torch.bfloat16) * torch.tensor([[0.01], [2.0], [1.0]])
    draft[2] = math.nan
    tokens = torch.arange(3 * 9).view(3, 9) * (vocab // 27)
    return SpeculativeCall(
        target, FILTERS["p .9"], False, draft, FILTERS["plain"], False, torch.arange(3), tokens, SEEDED
    )
