"""What requests add to a call, on the Triton kernels in Triton's interpreter: the bodies of tests/request_checks.py and
pieces of speculative decoding, over the divisions of tests/test_triton.py.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import fastsample
import request_checks
import test_backends_agree as agree
from fastsample import LogitBias, TokenLists, ops
from fastsample.adjustments import Adjustments
from fastsample.arguments import Details, Edits, Filters, History
from fastsample.triton_kernels import launch_edits, policy
from fastsample.triton_kernels.policy import Division
from request_strategies import FullCall, RequestCall, full_calls, request_calls
from strategies import DTYPES, Call, calls, layouts, one_thread, ulp_distance
from test_triton import (
    DIVISIONS,
    EXAMPLES,
    LARGE,
    SMALL,
    TRITON,
    _patched_once_a_launch,
    fitting,
    one_of_each,
    reads_during,
    real_logits,
)

__all__ = ["_patched_once_a_launch"]

REFERENCE = ops.for_backend("reference")
POISON = -77777


@contextmanager
def divided(division: Division | None, vocab: int) -> Iterator[None]:
    """Have calls divided in one way, None for that of policy.py; with short chunks, lists have short tiles too."""
    tile = launch_edits.TILE
    with ExitStack() as stack:
        if division is not None:
            stack.enter_context(policy.forced(fitting(division, vocab)))
            launch_edits.TILE = 16 if division.chunk < 64 else tile
        try:
            yield
        finally:
            launch_edits.TILE = tile


# --- pieces of speculative decoding


def rows_of(call: Call) -> int:
    return call.logits.shape[0] if call.indices is None else call.indices.shape[0]


@st.composite
def token_matrices(draw: st.DrawFn, rows: int, vocab: int) -> Tensor:
    """A few tokens for each row, or more than a program has in hand at a time; some are none."""
    columns = draw(st.sampled_from((0, 1, 3, 70)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = random.integers(0, vocab, (rows, columns))
    outside = random.choice([-1, vocab, 2**32, -(2**63)], tokens.shape)
    tokens = np.where(random.random(tokens.shape) < 0.1, outside, tokens)
    return draw(layouts(torch.from_numpy(tokens)))


class Residual(NamedTuple):
    """A call of `sample_residual`; the target is that of `call`."""

    call: Call
    draft: Tensor
    draft_indices: Tensor
    draft_filters: Filters
    probabilities: bool
    draft_probabilities: bool

    @property
    def logits(self) -> Tensor:
        return self.call.logits


@st.composite
def residuals(draw: st.DrawFn, probabilities: bool) -> Residual:
    """Drafts near their target, far from it or the same, of any dtype; some rows have none."""
    call = draw(calls(probabilities=probabilities, max_rows=3, vocabularies=SMALL))
    rows, batch = call.logits.shape[0], rows_of(call)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = call.logits.float()
    if draw(st.integers(0, 2)):
        noise = torch.from_numpy(random.normal(0, random.choice([0.01, 1.0, 5.0]), values.shape)).float()
        values = values * noise.exp() if probabilities else values + noise
    draft_probabilities = probabilities or draw(st.integers(0, 2)) == 0
    if draft_probabilities and not probabilities:
        values = values.softmax(1)
    draft = torch.cat([values, values[:1].roll(1, 1)]).to(draw(st.sampled_from(DTYPES)))
    indices = torch.arange(batch) if call.indices is None else call.indices
    other = torch.from_numpy(random.choice([rows, -1, 2**40], batch))
    draft_indices = torch.where(torch.from_numpy(random.random(batch) < 0.7), indices, other)
    filters = call.filters if draw(st.booleans()) else agree.PLAIN
    return Residual(call, draw(layouts(draft)), draft_indices, filters, probabilities, draft_probabilities)


def check_residual(backend: ops.Ops, given: Residual) -> None:
    call = given.call
    indices = torch.arange(rows_of(call)) if call.indices is None else call.indices

    def tokens_of(backend: ops.Ops) -> Tensor:
        out = torch.full((rows_of(call), 2), POISON)
        target = (call.logits, indices, *call.filters, given.probabilities)
        draft = (given.draft, given.draft_indices, *given.draft_filters, given.draft_probabilities)
        backend.sample_residual(out[:, :1], *target, *draft, *call.randomness)
        return out

    assert torch.equal(tokens_of(backend), tokens_of(REFERENCE))


class Fixed(NamedTuple):
    """A call of `fixed_probs_at`."""

    call: Call
    tokens: Tensor
    probabilities: bool

    @property
    def logits(self) -> Tensor:
        return self.call.logits


@st.composite
def fixed_calls(draw: st.DrawFn, probabilities: bool) -> Fixed:
    call = draw(calls(probabilities=probabilities, max_rows=3, vocabularies=SMALL))
    return Fixed(call, draw(token_matrices(rows_of(call), call.logits.shape[1])), probabilities)


def check_fixed(backend: ops.Ops, given: Fixed) -> None:
    call = given.call
    arguments = (call.logits, call.indices, given.tokens, *call.filters, given.probabilities)
    assert torch.equal(backend.fixed_probs_at(*arguments), REFERENCE.fixed_probs_at(*arguments))


def check_words(backend: ops.Ops, call: Call) -> None:
    for first, count in ((0, call.num_samples), (7, 0), (255, 129)):
        arguments = (call.logits, rows_of(call), *call.randomness, first, count)
        assert torch.equal(backend.random_words(*arguments), REFERENCE.random_words(*arguments))


# --- whatever hypothesis thinks of


def vocab_of(call: Any) -> int:
    request = call.request if isinstance(call, FullCall) else call
    return int(request.logits.shape[1])


class Body(NamedTuple):
    """What is run, over which calls, on how many of them in the ordinary tests."""

    calls: st.SearchStrategy[Any]
    check: Callable[[ops.Ops, Any], None]
    examples: int


BODIES = {
    "find_edits": Body(request_calls(3, SMALL), request_checks.check_edits, 20),
    "sample_full": Body(full_calls(3, SMALL), request_checks.check_full, 20),
    "fixed_probs_at": Body(fixed_calls(probabilities=False), check_fixed, 10),
    "fixed_probs_at of probabilities": Body(fixed_calls(probabilities=True), check_fixed, 5),
    "random_words": Body(calls(max_rows=3, vocabularies=(5,)), check_words, 5),
    "sample_residual": Body(residuals(probabilities=False), check_residual, 15),
    "sample_residual of probabilities": Body(residuals(probabilities=True), check_residual, 5),
}
each_body = pytest.mark.parametrize("body", BODIES)


def run_examples(body: str, examples: int | None = None, number: int | None = None) -> None:
    """Runs a body over calls and divisions: the same in each process, or those of a number."""
    any_call, check, ordinary = BODIES[body]
    examples_of = settings(EXAMPLES, max_examples=examples or ordinary, derandomize=number is None, database=None)

    @examples_of
    @given(call=any_call, division=st.sampled_from((None, *DIVISIONS)))
    def test(call: Any, division: Division | None) -> None:
        with divided(division, vocab_of(call)), one_thread():
            check(TRITON, call)

    (test if number is None else seed(number)(test))()


@each_body
def test_examples(body: str) -> None:
    run_examples(body)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
@each_body
def test_many_examples(body: str, number: int) -> None:
    run_examples(body, 300, number)


# --- rows made to hurt, and where edits lie


def asked(rows: int, samples: int = 1, top: int = 20) -> Details:
    """Room for every detail."""
    return Details(
        torch.full((rows, samples), 7.0),
        torch.full((rows, samples), 7.0),
        torch.full((rows, samples), POISON),
        torch.full((rows, top), POISON),
        torch.full((rows, top), 7.0),
        torch.full((rows, 8), POISON),
    )


def edits_at(tokens: list[int], vocab: int, rows: int) -> Edits:
    """Edits of tokens, in each row to other values; no bitmask."""
    adjustments = requests_of(tokens, rows)
    bits, before, values, _ = REFERENCE.find_edits(torch.zeros(rows, vocab), None, rows, *adjustments)
    return Edits(None, bits, before, values)


def requests_of(tokens: list[int], rows: int) -> Adjustments:
    bias = LogitBias.of([{token: token % 7 - 3.0 + row for token in tokens} for row in range(rows)])
    return Adjustments(bias_tokens=bias.tokens, bias_values=bias.values, bias_offsets=bias.offsets)


def check_details(logits: Tensor, edits: Edits, filters: Filters, samples: int = 2) -> None:
    """Tokens and every detail of draws from edited rows."""
    rows = logits.shape[0]
    written = []
    for backend in (TRITON, REFERENCE):
        out, details = torch.full((rows, samples), POISON), asked(rows, samples)
        with one_thread():
            backend.sample_full(out, logits, None, *filters, *agree.SEEDED, True, *edits, *History(), *details)
            top = Details(top_tokens=details.top_tokens.clone(), top_logprobs=details.top_logprobs.clone())
            top = top._replace(top_of_processed=True)
            backend.sample_full(out, logits, None, *filters, *agree.SEEDED, True, *edits, *History(), *top)
        written.append((out, *details[:6], top.top_tokens, top.top_logprobs))
    for found, expected in zip(*written, strict=True):
        if expected.is_floating_point():
            assert (ulp_distance(found, expected) <= 4).all()
        else:
            assert torch.equal(found, expected)


BORDERS = [0, 1, 15, 16, 31, 32, 33, 63, 64, 127, 128, 129, 255, 256]


@pytest.mark.parametrize("number", range(len(DIVISIONS)))
def test_edits_at_borders(number: int) -> None:
    """Of words, chunks, blocks and the row; then of everything."""
    logits = agree.normal(514, 2.0).view(2, 257)
    filters = list(agree.FILTERS.values())[number % len(agree.FILTERS)]
    with divided(one_of_each(number), 257):
        check_details(logits, edits_at(BORDERS, 257, 2), filters)
        check_details(logits, edits_at(list(range(257)), 257, 2), filters)


@pytest.mark.parametrize("number", range(len(agree.HOSTILE_ROWS)))
def test_details_of_hostile_rows(number: int) -> None:
    name = list(agree.HOSTILE_ROWS)[number]
    row = agree.hostile_row(name, 257, (torch.float32, torch.bfloat16)[number % 2])
    filters = list(agree.FILTERS.values())[(3 * number + 1) % len(agree.FILTERS)]
    with divided(one_of_each(number), 257):
        check_details(row, Edits(), filters)
        check_details(row, edits_at(BORDERS, 257, 1), filters)


def test_masks_of_few_and_of_all_tokens() -> None:
    logits = agree.normal(5 * 100, 2.0).view(5, 100)
    mask = torch.tensor([[0] * 4, [-1] * 4, [1, 0, 0, 0], [0, 0, 0, 8], [0, -(2**31), 1, 0]], dtype=torch.int32)
    for number in (3, 6):
        with divided(one_of_each(number), 100):
            check_details(logits, Edits(mask), agree.FILTERS["T .8, k 50, p .9"])
            check_details(logits, edits_at([0, 31, 99], 100, 5)._replace(allowed=mask), agree.PLAIN)


def test_details_of_a_real_model() -> None:
    row = real_logits()[3:4]
    tokens = row[0].topk(300).indices.sort().values.tolist()
    with policy.forced(LARGE._replace(block=1 << 14)):
        for edits in (Edits(), edits_at(tokens, row.shape[1], 1)):
            check_details(row, edits, agree.FILTERS["T .8, k 50, p .9"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", agree.HOSTILE_ROWS)
def test_details_of_hostile_rows_of_2_to_the_18(name: str) -> None:
    row = agree.hostile_row(name, 2**18, torch.float32)
    with policy.forced(LARGE):
        for filter_name in ("plain", "T .8, k 50, p .9"):
            check_details(row, edits_at(list(range(0, 2**18, 97)), 2**18, 1), agree.FILTERS[filter_name], 1)


def test_scratch_memory_need_not_be_zero(poisoned_memory: None) -> None:
    logits = agree.normal(2 * 257, 2.0).view(2, 257)
    for number in (3, 6):
        with divided(one_of_each(number), 257):
            check_details(logits, edits_at(BORDERS, 257, 2), agree.FILTERS["p .9"])
            request_checks.check_edits(TRITON, RequestCall(logits, None, 2, requests_of(BORDERS, 2)))
            call = Call(logits, None, agree.PLAIN, agree.SEEDED, 1)
            check_residual(TRITON, Residual(call, logits.roll(1, 1), torch.arange(2), agree.PLAIN, False, False))


def test_counts_that_span_more_than_32_bits() -> None:
    """Those of a large batch that lie token by token, of which only what is named here takes memory."""
    rows, vocab, stride = 2, 34, 2**26
    try:
        memory = torch.empty(rows + (vocab - 1) * stride, dtype=torch.int32)
    except RuntimeError as error:
        pytest.skip(f"no room for 2^31 counts here ({error})")
    counts = memory.as_strided((rows, vocab), (1, stride)).zero_()
    counts[:, 3], counts[0, 33] = 2, 5
    logits = agree.normal(rows * vocab, 2.0).view(rows, vocab)
    logits[:, 32] = 99.0
    request_checks.check_edits(
        TRITON, RequestCall(logits, None, rows, Adjustments(frequency_penalty=0.5, output_counts=counts))
    )
    expected = counts.clone()
    expected[:, 32] += 1
    TRITON.sample_full(
        torch.empty((rows, 1), dtype=torch.int64),
        *(logits, None, *agree.PLAIN, *agree.SEEDED, True, *Edits(), *History(counts=counts), *Details()),
    )
    assert torch.equal(counts, expected)


# --- through the public functions


def test_the_public_functions() -> None:
    logits = agree.normal(200, 2.0).view(2, 100)
    given: Any = {
        "temperature": 0.8,
        "top_k": 20,
        "seed": 3,
        "repetition_penalty": 1.3,
        "output_tokens": torch.tensor([[5, 6], [7, 5]]),
        "stop_tokens": TokenLists.of([[1], [2]]),
        "min_tokens": 3,
    }
    assert torch.equal(
        fastsample.sample(logits, **given, backend="triton"), fastsample.sample(logits, **given, backend="reference")
    )
    details: Any = {"raw_logprobs": True, "top_logprobs": 5, "distribution": True, "kept_set": True}
    found, expected = (
        fastsample.sample_full(logits, **given, **details, backend=backend) for backend in ("triton", "reference")
    )
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.ranks, expected.ranks)


def arguments_of(name: str) -> tuple[Any, ...]:
    """Those of a small call of an operator."""
    logits = agree.normal(40, 2.0).view(2, 20)
    filters, tokens = agree.FILTERS["T .8, k 50, p .9"], torch.tensor([[3], [4]])
    edits = edits_at([3, 7], 20, 2)
    randomness = agree.SEEDED
    return {
        # Every token is edited: what lies beyond a row's edits means nothing, and need not be the same twice.
        "find_edits": (
            *(logits, None, 2),
            *Adjustments(repetition_penalty=1.1, prompt_mask=torch.full((2, 1), -1, dtype=torch.int32)),
        ),
        "sample_full": (tokens, logits, None, *filters, *randomness, True, *edits, *History(), *asked(2)),
        "kept_tokens": (logits, None, *edits, torch.zeros(2, 8, dtype=torch.int64), torch.tensor([0, 3, 5]), 5),
        "fixed_probs_at": (logits, None, tokens, *filters, False),
        "random_words": (logits, 2, *randomness, 1, 3),
        "sample_residual": (
            *(tokens, logits, torch.arange(2), *filters, False),
            *(logits, torch.arange(2), *filters, False, *randomness),
        ),
    }[name]


@pytest.mark.parametrize(
    "name", ["find_edits", "sample_full", "kept_tokens", "fixed_probs_at", "random_words", "sample_residual"]
)
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.fastsample_triton, name).default
    torch.library.opcheck(operator, arguments_of(name))


# --- how often a row is read


@pytest.mark.parametrize(
    ("fields", "edited", "fewest", "most"),
    [
        ((), False, 1.0, 1.15),
        ((), True, 1.0, 1.15),
        (("logprobs",), True, 1.0, 1.15),
        (("ranks",), False, 1.0, 1.3),
        (("raw_logprobs",), False, 2.0, 2.15),
        (("raw_logprobs", "ranks", "numbers"), False, 2.0, 2.3),
        (("top_tokens", "top_logprobs"), False, 2.0, 2.2),
        (("top_tokens", "top_logprobs", "top_of_processed"), False, 1.0, 1.2),
        (("logprobs", "top_tokens", "top_logprobs", "top_of_processed"), True, 1.0, 1.2),
        (("numbers",), True, 2.0, 2.15),
        (("raw_logprobs", "numbers"), True, 3.0, 3.15),
    ],
)
def test_reads_of_a_row(fields: tuple[str, ...], edited: bool, fewest: float, most: float) -> None:
    """With top_k 50 one for the draws, one more for all sums over the row, and of an edited one its raw maximum."""
    vocab = 32768
    row = agree.normal(vocab, 1.0)[None]
    edits = edits_at(BORDERS, vocab, 1) if edited else Edits()
    room = asked(1, 1, 5)._replace(top_of_processed=True)
    details = Details(**{name: getattr(room, name) for name in fields})
    out = torch.empty(1, 1, dtype=torch.int64)
    operands = (*agree.FILTERS["k 50"], *agree.SEEDED, True, *edits, *History(), *details)
    reads = reads_during(row, lambda: TRITON.sample_full(out, row, None, *operands))
    assert fewest <= reads <= most


def test_edits_do_not_read_the_row() -> None:
    row = agree.normal(32768, 1.0)[None]
    adjustments = requests_of(BORDERS, 1)
    assert reads_during(row, lambda: TRITON.find_edits(row, None, 1, *adjustments)) <= len(BORDERS) / 32768
