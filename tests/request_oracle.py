"""Law section 0 a second time, straight from its text: one row and one token at a time, in Python integers and numpy
float32 scalars. It imports neither torch nor fastsample, as tests/law_oracle.py, which has sections 1 to 5; what
section 7 adds to those is below.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import law_oracle
from law_oracle import FLOAT, Case

INVALID_PENALTY, ENTRIES_IGNORED = 1, 2


class TokenHistory(NamedTuple):
    """A row's prompt or output as it was given."""

    tokens: Sequence[int] | None  # all columns
    length: int | None  # None: all columns


class Entries(NamedTuple):
    """The part [begin, end) of `data` that a row claims."""

    data: Sequence
    begin: int
    end: int


class RowRequest(NamedTuple):
    """One row with all that section 0 may do to it."""

    logits: Sequence[np.float32]
    repetition: np.float32
    presence: np.float32
    frequency: np.float32
    prompt: TokenHistory
    output: TokenHistory
    prompt_mask: Sequence[int] | None  # 32-bit words
    output_counts: Sequence[int] | None
    bias: Entries | None  # of (token, value)
    bad_words: Entries | None  # of (begin, end) in bad_tokens
    bad_tokens: Sequence[int]
    bad_words_in_prompt: bool
    min_tokens: int
    stop_tokens: Entries | None
    allowed: Sequence[int] | None  # 32-bit words


class RowEdits(NamedTuple):
    """What becomes of the row."""

    edits: dict[int, np.float32]  # by token, ascending
    status: int
    processed: list[np.float32]


def has_bit(words: Sequence[int], token: int) -> bool:
    """Bit token % 32 of word token / 32."""
    return words[token // 32] >> (token % 32) & 1 == 1


class _Flags:
    """Whether anything of the row had to be ignored."""

    def __init__(self) -> None:
        self.ignored = False

    def clamped(self, number: int, largest: int | None) -> int:
        if number < 0 or (largest is not None and number > largest):
            self.ignored = True
        return max(0, number if largest is None else min(number, largest))

    def known(self, token: int, vocab: int) -> bool:
        if not 0 <= token < vocab:
            self.ignored = True
            return False
        return True

    def part(self, entries: Entries) -> Sequence:
        begin, end = (self.clamped(offset, len(entries.data)) for offset in (entries.begin, entries.end))
        if begin > end:
            self.ignored = True
        return entries.data[begin:end]

    def length(self, history: TokenHistory) -> int:
        columns = None if history.tokens is None else len(history.tokens)
        return self.clamped((columns or 0) if history.length is None else history.length, columns)


def banned_by_words(row: RowRequest, history: Sequence[int], flags: _Flags) -> set[int]:
    """The last tokens of the bad words whose other tokens end `history`."""
    banned: set[int] = set()
    if row.bad_words is None:
        return banned
    for begin, end in flags.part(row.bad_words):
        if not (0 <= begin < end <= len(row.bad_tokens)):
            flags.ignored = True
            continue
        *others, last = row.bad_tokens[begin:end]
        matches = len(others) <= len(history) and list(history[len(history) - len(others) :]) == others
        if matches and flags.known(last, len(row.logits)):
            banned.add(last)
    return banned


def edit(row: RowRequest) -> RowEdits:
    """Law section 0 for one row."""
    vocab, flags = len(row.logits), _Flags()
    is_allowed = [row.allowed is None or has_bit(row.allowed, token) for token in range(vocab)]
    masked = [x if is_allowed[token] else FLOAT(-np.inf) for token, x in enumerate(row.logits)]
    if not (0 < row.repetition < np.inf and np.isfinite(row.presence) and np.isfinite(row.frequency)):
        nan = FLOAT(np.nan)
        return RowEdits({0: nan}, INVALID_PENALTY, [nan, *masked[1:]])

    repeats = row.repetition != 1
    penalises = repeats or row.presence != 0 or row.frequency != 0
    prompt_length, output_length = flags.length(row.prompt), flags.length(row.output)
    prompt, output = list(row.prompt.tokens or ())[:prompt_length], list(row.output.tokens or ())[:output_length]

    in_prompt: set[int] = set()
    counts: dict[int, int] = {}
    if repeats and row.prompt_mask is not None:
        in_prompt = {token for token in range(vocab) if has_bit(row.prompt_mask, token)}
    elif repeats:
        in_prompt = {token for token in prompt if flags.known(token, vocab)}
    if penalises and row.output_counts is not None:
        counts = {token: count for token, count in enumerate(row.output_counts) if count > 0}
    elif penalises:
        counts = dict(Counter(token for token in output if flags.known(token, vocab)))

    bias: dict[int, np.float32] = {}
    if row.bias is not None:
        bias = {token: value for token, value in flags.part(row.bias) if flags.known(token, vocab)}
    banned = banned_by_words(row, prompt + output if row.bad_words_in_prompt else output, flags)
    if row.stop_tokens is not None:
        stop_tokens = flags.part(row.stop_tokens)
        if output_length < row.min_tokens:
            banned |= {token for token in stop_tokens if flags.known(token, vocab)}

    edits = {}
    for token in sorted(in_prompt | counts.keys() | bias.keys() | banned):
        x = row.logits[token]
        if token in bias:
            x = x + bias[token]
        if token in in_prompt or token in counts:
            x = x / row.repetition if x > 0 else x * row.repetition
        if token in counts:
            x = x - row.frequency * FLOAT(counts[token])
            x = x - row.presence
        if token in banned or not is_allowed[token]:
            x = FLOAT(-np.inf)
        assert x.dtype == FLOAT
        edits[token] = x
    processed = [edits.get(token, x) for token, x in enumerate(masked)]
    return RowEdits(edits, ENTRIES_IGNORED if flags.ignored else 0, processed)


# --- law section 7


def float_bits(x: np.float32) -> int:
    """The bits of a float32 as a signed 32-bit integer, with +0.0 for -0.0."""
    return int((FLOAT(0) if x == 0 else x).view(np.int32))


def exponents(case: Case) -> list[np.float32]:
    """d_i of a valid row."""
    first = law_oracle.ranks(list(case.logits))[0]
    if case.temperature == 0:
        return [FLOAT(0 if token == first else -np.inf) for token in range(len(case.logits))]
    return [law_oracle.exponent(x, case.logits[first], case.temperature) for x in case.logits]


def numbers(case: Case, answer: law_oracle.Answer) -> list[int]:
    """`numbers` of a row, as law section 7 lists them."""
    if not answer.valid:
        return [1, 0, 0, 0, 0, 0, 0, 0]
    ranked = law_oracle.ranks(list(case.logits))
    last = [token for token in ranked if token in set(answer.kept)][-1]
    d = exponents(case)
    weights = [law_oracle.weight(exponent) for exponent in d]
    spread = sum(weights[token] * int(-float(d[token]) * 2**20) >> 20 for token in answer.kept if weights[token])
    above = sum(weight for weight, x in zip(weights, case.logits, strict=True) if x > -np.inf)
    bits = float_bits(case.logits[ranked[0]]), float_bits(case.logits[last])
    return [0, *bits, last + 1, answer.z, len(answer.kept), spread, above]


def raw_case(logits: Sequence[np.float32]) -> Case:
    """The row that raw log-probabilities are of: no temperature, no filter."""
    one, zero = FLOAT(1), FLOAT(0)
    return Case(list(logits), one, 0, one, zero, "top_k_first", False, 0, 0, 0, 0)
