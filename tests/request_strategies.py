"""Hypothesis strategies for what requests bring along: adjustments in the operators' form, with whatever nonsense a
tensor may hold, and whole calls of `sample_full`. Also the same as rows of tests/request_oracle.py.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import request_oracle as oracle
from fastsample.adjustments import Adjustments, BadWords, LogitBias, TokenLists
from fastsample.arguments import Details, Edits, Filters, History, Randomness
from law_oracle import FLOAT
from strategies import DTYPES, filters_for, layouts, randomness_for, rows

# At, below and above the width of a word of bits.
VOCABULARIES = (1, 2, 31, 32, 33, 63, 64, 65, 100)

# 1e-50 and 1e39 are fine as Python floats and out of range once rounded to float32.
REPETITIONS = (1.0, 1.0, 1.3, 0.5, 2.0, 1.0 + 2.0**-23, 1e-30, 1e38, 1e-45)
PENALTIES = (0.0, 0.0, -0.0, 0.5, -0.7, 1.5, 1e-45, 1e38, -3e38)
INVALID_REPETITIONS = (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf)
INVALID_PENALTIES = (math.nan, math.inf, -math.inf)
BIASES = (0.0, -0.0, 1.5, -2.0, 1e-45, 1e38, 3e38, -3e38, -100.0, math.inf, -math.inf, math.nan)
_OUTSIDE = (-1, -100, 2**31, 2**40, -(2**63), 2**63 - 1)


class RequestCall(NamedTuple):
    """A call of the operator `find_edits`."""

    logits: Tensor
    indices: Tensor | None
    rows: int
    adjustments: Adjustments

    def __repr__(self) -> str:
        given = {name: value for name, value in self.adjustments._asdict().items() if value is not None}
        return f"RequestCall({_layout(self.logits)}, {self.indices}, {self.rows} rows, {given})"


class FullCall(NamedTuple):
    """A call of the operator `sample_full`, but for what it writes."""

    request: RequestCall
    filters: Filters
    randomness: Randomness
    num_samples: int
    replacement: bool
    history: History  # copied for each run
    details: tuple[bool, ...]  # which of `Details` are asked for, top tokens and their log-probabilities as one
    top_of_processed: bool
    top: int

    def __repr__(self) -> str:
        return f"FullCall({self.request!r}, {self[1:]})"


def _layout(values: Tensor) -> str:
    shown = values.tolist() if values.numel() < 100 else "..."
    return f"{values.dtype} strides {values.stride()} offset {values.storage_offset()} {shown}"


# --- adjustments


def _numbers(random: np.random.Generator, choices: tuple[float, ...], shape: Any) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(random.choice(np.array(choices, dtype=np.float64).astype(np.float32), shape))


@st.composite
def _penalty(
    draw: st.DrawFn, random: np.random.Generator, valid: tuple[float, ...], invalid: tuple[float, ...], batch: int
) -> tuple[float, Tensor | None]:
    form = draw(st.sampled_from(("number", "number", "0-d", "rows", "rows", "expanded")))
    if form == "number":
        return draw(st.sampled_from(valid)), None
    choices = valid + invalid if draw(st.integers(0, 3)) == 0 else valid
    if form == "rows":
        return valid[0], draw(layouts(_numbers(random, choices, (batch, 1))))[:, 0]
    one = _numbers(random, choices, ())
    return valid[0], one if form == "0-d" else one.expand(batch)


def _ids(random: np.random.Generator, vocab: int, shape: Any, outside: bool) -> np.ndarray:
    """Token ids, few enough to repeat; one in eight outside the vocabulary where that is asked for."""
    ids = random.integers(0, min(vocab, random.choice([2, 5, vocab])), shape, dtype=np.int64)
    spoiled = outside & (random.random(shape) < 0.125)
    return np.where(spoiled, random.choice([*_OUTSIDE, vocab], shape), ids)


@st.composite
def _histories(
    draw: st.DrawFn, random: np.random.Generator, vocab: int, batch: int
) -> tuple[Tensor | None, Tensor | None]:
    if draw(st.integers(0, 3)) == 0:
        return None, None
    columns = draw(st.sampled_from((0, 1, 3, 8, 20)))
    tokens = draw(layouts(torch.from_numpy(_ids(random, vocab, (batch, columns), draw(st.booleans())))))
    if draw(st.booleans()):
        return tokens, None
    lengths = random.integers(0, columns + 1, batch)
    if draw(st.integers(0, 3)) == 0:
        lengths = np.where(random.random(batch) < 0.5, lengths, random.choice([*_OUTSIDE, columns + 1], batch))
    return tokens, draw(layouts(torch.from_numpy(lengths)[:, None]))[:, 0]


@st.composite
def bitmasks(draw: st.DrawFn, random: np.random.Generator, vocab: int, batch: int) -> Tensor:
    """int32 [batch, at least ceil(vocab / 32)] of any density, also beyond the vocabulary, in any layout."""
    words = (vocab + 31) // 32 + draw(st.integers(0, 2))
    density = random.choice([0.0, 0.02, 0.5, 0.98, 1.0], (batch, 1, 1), p=[0.05, 0.2, 0.3, 0.3, 0.15])
    bits = random.random((batch, words, 32)) < density
    packed = (bits.astype(np.int64) << np.arange(32)).sum(axis=2)
    return draw(layouts(torch.from_numpy(packed.astype(np.uint32).view(np.int32))))


@st.composite
def _offsets(draw: st.DrawFn, random: np.random.Generator, total: int, parts: int) -> Tensor:
    """Offsets of `parts` lists in `total` entries; sometimes nonsense."""
    offsets = np.sort(random.integers(0, total + 1, parts + 1))
    if draw(st.booleans()):
        offsets[0], offsets[-1] = 0, total
        offsets = np.sort(offsets)
    if draw(st.integers(0, 4)) == 0:
        offsets = np.where(random.random(parts + 1) < 0.5, offsets, random.choice([*_OUTSIDE, total + 1], parts + 1))
    elif draw(st.integers(0, 4)) == 0:
        random.shuffle(offsets)
    return draw(layouts(torch.from_numpy(offsets)[:, None]))[:, 0]


def _words(random: np.random.Generator, histories: list[np.ndarray], vocab: int, count: int) -> list[list[int]]:
    """Sequences, most of which end some row's history but for their last token; a few empty or too long."""
    words = []
    for _ in range(count):
        history = histories[random.integers(len(histories))]
        tail = history[len(history) - random.integers(0, min(len(history), 3) + 1) :].tolist()
        kind = random.choice(["tail", "tail", "any", "empty"], p=[0.4, 0.3, 0.25, 0.05])
        any_ids = _ids(random, vocab, random.integers(1, 6), True).tolist()
        words.append({"tail": [*tail, any_ids[0]], "any": any_ids, "empty": []}[str(kind)])
    return words


@st.composite
def adjustments_for(draw: st.DrawFn, vocab: int, batch: int) -> Adjustments:
    """Adjustments of `batch` rows in the operators' form, most of them there about half of the time."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    repetition = draw(_penalty(random, REPETITIONS, INVALID_REPETITIONS, batch))
    presence = draw(_penalty(random, PENALTIES, INVALID_PENALTIES, batch))
    frequency = draw(_penalty(random, PENALTIES, INVALID_PENALTIES, batch))
    prompt = draw(_histories(random, vocab, batch))
    output = draw(_histories(random, vocab, batch))
    prompt_mask = draw(bitmasks(random, vocab, batch)) if draw(st.integers(0, 2)) == 0 else None
    output_counts = None
    if draw(st.integers(0, 2)) == 0:
        counts = random.choice(
            [0, 1, 2, 7, -3, 2**24 + 1, 2**31 - 1, -(2**31)], (batch, vocab), p=[0.6, *[0.4 / 7] * 7]
        )
        output_counts = draw(layouts(torch.from_numpy(counts.astype(np.int32))))

    bias: tuple[Tensor | None, ...] = (None, None, None)
    if draw(st.booleans()):
        total = draw(st.sampled_from((0, 1, 4, 4 * batch)))
        ids = torch.from_numpy(_ids(random, vocab, total, draw(st.booleans())))
        values = draw(layouts(_numbers(random, BIASES, (total, 1))))[:, 0]
        bias = ids, values, draw(_offsets(random, total, batch))

    bad_words: tuple[Any, ...] = (None, None, None, False)
    if draw(st.booleans()):
        histories = [np.zeros(0, dtype=np.int64)]
        for tokens, lengths in (prompt, output):
            for row in range(0 if tokens is None else batch):
                length = tokens.shape[1] if lengths is None else int(lengths[row].clamp(0, tokens.shape[1]))
                histories.append(tokens[row, :length].numpy())
        words = _words(random, histories, vocab, draw(st.sampled_from((0, 1, 5, 12))))
        flat = np.array([token for word in words for token in word], dtype=np.int64)
        begins = torch.from_numpy(np.cumsum([0, *map(len, words)]))
        if draw(st.integers(0, 5)) == 0:
            begins = draw(_offsets(random, len(flat), len(words)))
        by_row = draw(_offsets(random, len(words), batch))
        bad_words = torch.from_numpy(flat), begins, by_row, draw(st.booleans())

    least: tuple[int, Tensor | None] = (0, None)
    stops: tuple[Tensor | None, ...] = (None, None)
    if draw(st.booleans()):
        least = draw(st.sampled_from((0, 1, 4, 100))), None
        if draw(st.booleans()):
            least = 0, torch.from_numpy(random.choice([0, 1, 4, 100, -5, 2**62], batch))
        total = draw(st.sampled_from((0, 2, 2 * batch)))
        stops = torch.from_numpy(_ids(random, vocab, total, draw(st.booleans()))), draw(_offsets(random, total, batch))
        if output == (None, None):  # `min_tokens` needs to know how long the outputs are
            output = None, torch.from_numpy(random.choice([0, 1, 5, 2**40, -1], batch, p=[0.3, 0.3, 0.2, 0.1, 0.1]))
    allowed = draw(bitmasks(random, vocab, batch)) if draw(st.integers(0, 2)) == 0 else None
    return Adjustments(
        *repetition, *presence, *frequency, *prompt, *output, prompt_mask, output_counts,
        *bias, *bad_words, *least, *stops, allowed,
    )  # fmt: skip


# --- calls


@st.composite
def request_calls(
    draw: st.DrawFn, max_rows: int = 4, vocabularies: tuple[int, ...] = VOCABULARIES, valid_logits: bool = False
) -> RequestCall:
    """A call of `find_edits`; a third of them map output rows to logits rows, some of those out of range."""
    vocab, count = draw(st.sampled_from(vocabularies)), draw(st.integers(0, max_rows))
    matrix = np.stack([draw(rows(vocab)) for _ in range(count)]) if count else np.zeros((0, vocab))
    with np.errstate(over="ignore"):
        values = torch.from_numpy(matrix.astype(np.float32))
    logits = draw(layouts(values.to(draw(st.sampled_from(DTYPES)))))
    indices, batch = None, count
    if draw(st.integers(0, 2)) == 0:
        batch = draw(st.integers(0, max_rows + 1))
        entries = st.sampled_from([*range(count)] * 4 + [-1, count, 2**40, -(2**63)])
        indices = torch.tensor([draw(entries) for _ in range(batch)], dtype=torch.int64)
    return RequestCall(logits, indices, batch, draw(adjustments_for(vocab, batch)))


@st.composite
def full_calls(
    draw: st.DrawFn, max_rows: int = 4, vocabularies: tuple[int, ...] = (*VOCABULARIES, 257, 1025)
) -> FullCall:
    """A call of `sample_full` with anything that it takes."""
    request = draw(request_calls(max_rows, vocabularies))
    batch, vocab = request.rows, request.logits.shape[1]
    filters, randomness = draw(filters_for(batch)), draw(randomness_for(batch))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    history = History()
    if draw(st.booleans()):
        columns = draw(st.sampled_from((0, 1, 5)))
        lengths = torch.from_numpy(
            random.choice([0, 1, 4, 5, -1, 2**40, -(2**63)], batch, p=[0.2] * 4 + [0.1, 0.05, 0.05])
        )
        counts = torch.from_numpy(random.integers(-2, 3, (batch, vocab), dtype=np.int32))
        tokens = torch.full((batch, columns), -5)
        with_lengths, with_tokens, with_counts = (draw(st.booleans()) for _ in range(3))
        history = History(
            tokens if with_lengths and with_tokens else None,
            lengths if with_lengths else None,
            counts if with_counts else None,
        )
    details = tuple(draw(st.booleans()) for _ in range(5))
    num_samples = draw(st.sampled_from((1, 1, 1, 2, 5, 33, 0)))
    top = draw(st.sampled_from((1, 2, 5, 20, 32)))
    return FullCall(
        request, filters, randomness, num_samples, draw(st.booleans()), history, details, draw(st.booleans()), top
    )


# --- the same for the oracle, and for the public functions


def floats(values: Tensor) -> list[np.float32]:
    """float32, float16 or bfloat16 numbers as numpy float32, exactly."""
    return list(values.detach().float().contiguous().numpy())


def _of_row(number: float, tensor: Tensor | None, row: int) -> np.float32:
    with np.errstate(over="ignore"):
        return FLOAT(number) if tensor is None else FLOAT((tensor if tensor.dim() == 0 else tensor[row]).item())


def _entries(data: list | None, offsets: Tensor | None, row: int) -> oracle.Entries | None:
    if data is None or offsets is None:
        return None
    return oracle.Entries(data, int(offsets[row]), int(offsets[row + 1]))


def _words_of(mask: Tensor | None, row: int) -> list[int] | None:
    return None if mask is None else [word % 2**32 for word in mask[row].tolist()]


def row_request(call: RequestCall, row: int) -> oracle.RowRequest | None:
    """Output row `row` of a call for the oracle; None where there are no such logits."""
    a = call.adjustments
    source = row if call.indices is None else int(call.indices[row])
    if not 0 <= source < call.logits.shape[0]:
        return None

    def history(tokens: Tensor | None, lengths: Tensor | None) -> oracle.TokenHistory:
        return oracle.TokenHistory(
            None if tokens is None else tokens[row].tolist(), None if lengths is None else int(lengths[row])
        )

    bias = None
    if a.bias_tokens is not None and a.bias_values is not None:
        bias = list(zip(a.bias_tokens.tolist(), floats(a.bias_values), strict=True))
    words = None
    if a.bad_word_offsets is not None:
        begins = a.bad_word_offsets.tolist()
        words = list(pairwise(begins))
    least = a.min_tokens
    if a.min_tokens_rows is not None:
        least = int(a.min_tokens_rows.expand(call.rows)[row])
    return oracle.RowRequest(
        floats(call.logits[source]),
        _of_row(a.repetition_penalty, a.repetition_penalty_rows, row),
        _of_row(a.presence_penalty, a.presence_penalty_rows, row),
        _of_row(a.frequency_penalty, a.frequency_penalty_rows, row),
        history(a.prompt_tokens, a.prompt_lengths),
        history(a.output_tokens, a.output_lengths),
        _words_of(a.prompt_mask, row),
        None if a.output_counts is None else a.output_counts[row].tolist(),
        _entries(bias, a.bias_offsets, row),
        _entries(words, a.bad_word_rows, row),
        [] if a.bad_words is None else a.bad_words.tolist(),
        a.bad_words_in_prompt,
        least,
        _entries(None if a.stop_tokens is None else a.stop_tokens.tolist(), a.stop_offsets, row),
        _words_of(a.allowed, row),
    )


def public_arguments(call: RequestCall) -> dict[str, Any]:
    """Adjustments as a user would write them; penalties and min_tokens as numbers where they are."""
    a = call.adjustments
    given: dict[str, Any] = {}
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        tensor = getattr(a, f"{name}_rows")
        given[name] = getattr(a, name) if tensor is None else tensor
    for name in ("prompt_tokens", "prompt_lengths", "output_tokens", "output_lengths", "prompt_mask", "output_counts"):
        if getattr(a, name) is not None:
            given[name] = getattr(a, name)
    if a.output_tokens is None and a.output_counts is None:  # which penalties insist on
        given["output_counts"] = torch.zeros((call.rows, call.logits.shape[1]), dtype=torch.int32)
    if a.bias_tokens is not None and a.bias_values is not None and a.bias_offsets is not None:
        given["logit_bias"] = LogitBias(a.bias_tokens, a.bias_values, a.bias_offsets)
    if a.bad_words is not None and a.bad_word_offsets is not None and a.bad_word_rows is not None:
        given["bad_words"] = BadWords(a.bad_words, a.bad_word_offsets, a.bad_word_rows, a.bad_words_in_prompt)
    if a.stop_tokens is not None and a.stop_offsets is not None:
        given["stop_tokens"] = TokenLists(a.stop_tokens, a.stop_offsets)
        given["min_tokens"] = a.min_tokens if a.min_tokens_rows is None else a.min_tokens_rows
    if a.allowed is not None:
        given["bitmask"] = a.allowed
    return given


NO_EDITS, NO_HISTORY, NO_DETAILS = Edits(), History(), Details()
