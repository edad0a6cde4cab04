"""Every operator's schema, once, with its fake (shape-only) version beside it. `ops.py` says what implements them.

An argument list that operators share is written once, as a string here and as the tuple of the same order in
`arguments.py` or `adjustments.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

FILTERS = (
    "float temperature, Tensor? temperature_rows, int top_k, Tensor? top_k_rows, "
    "float top_p, Tensor? top_p_rows, float min_p, Tensor? min_p_rows, int order"
)
_DRAFT_FILTERS = ", ".join(
    f"{kind} draft_{name}" for kind, name in (argument.split(" ") for argument in FILTERS.split(", "))
)
RANDOMNESS = (
    "int seed, Tensor? seed_rows, int offset, Tensor? offset_rows, int stream, Tensor? stream_rows, bool stream_per_row"
)
ADJUSTMENTS = (
    "float repetition_penalty, Tensor? repetition_penalty_rows, float presence_penalty, Tensor? presence_penalty_rows, "
    "float frequency_penalty, Tensor? frequency_penalty_rows, "
    "Tensor? prompt_tokens, Tensor? prompt_lengths, Tensor? output_tokens, Tensor? output_lengths, "
    "Tensor? prompt_mask, Tensor? output_counts, Tensor? bias_tokens, Tensor? bias_values, Tensor? bias_offsets, "
    "Tensor? bad_words, Tensor? bad_word_offsets, Tensor? bad_word_rows, bool bad_words_in_prompt, "
    "int min_tokens, Tensor? min_tokens_rows, Tensor? stop_tokens, Tensor? stop_offsets, Tensor? allowed"
)
EDITS = "Tensor? allowed, Tensor? edit_bits, Tensor? edits_before, Tensor? edit_values"
HISTORY = "Tensor(b!)? history, Tensor(c!)? history_lengths, Tensor(d!)? counts"
DETAILS = (
    "Tensor(e!)? logprobs, Tensor(f!)? raw_logprobs, Tensor(g!)? ranks, Tensor(h!)? top_tokens, "
    "Tensor(i!)? top_logprobs, Tensor(j!)? numbers, bool top_of_processed"
)


class Operator(NamedTuple):
    """What torch is told of an operator."""

    schema: str
    fake: Callable[..., Any]


def _nothing(*_: object) -> None:
    return None


def _like_logits(logits: Tensor, *_: object) -> Tensor:
    return logits.new_empty(logits.shape)


def _float_like_logits(logits: Tensor, *_: object) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.float32)


def _float_like_tokens(logits: Tensor, tokens: Tensor, *_: object) -> Tensor:
    return logits.new_empty(tokens.shape, dtype=torch.float32)


def _integer_like_tokens(logits: Tensor, indices: Tensor | None, tokens: Tensor, *_: object) -> Tensor:
    return logits.new_empty(tokens.shape, dtype=torch.int64)


def _kept_tokens(logits: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty((rest[-1],), dtype=torch.int64)


def _random_words(like: Tensor, rows: int, *rest: Any) -> Tensor:
    return like.new_empty((rows, rest[-1]), dtype=torch.int64)


def _find_edits(logits: Tensor, indices: Tensor | None, rows: int, *adjustments: Any) -> tuple[Tensor, ...]:
    vocab = logits.shape[1]
    words = (vocab + 31) // 32
    return (
        logits.new_empty((rows, words), dtype=torch.int32),
        logits.new_empty((rows, words), dtype=torch.int32),
        logits.new_empty((rows, most_edits(vocab, *adjustments)), dtype=torch.float32),
        logits.new_empty((rows,), dtype=torch.int32),
    )


def most_edits(vocab: int, *adjustments: Any) -> int:
    """How many edits (law section 0) a row can have, as shapes alone tell; at least 1, for an invalid row's.

    vocab: the length of a row. adjustments: the arguments of `ADJUSTMENTS`.
    """
    prompt_tokens, output_tokens = adjustments[6], adjustments[8]
    prompt_mask, output_counts, bias_tokens = adjustments[10], adjustments[11], adjustments[12]
    bad_word_offsets, stop_tokens = adjustments[16], adjustments[21]
    if prompt_mask is not None or output_counts is not None:
        return vocab
    most = 1
    for lists in (prompt_tokens, output_tokens):
        most += 0 if lists is None else lists.shape[1]
    for entries in (bias_tokens, bad_word_offsets, stop_tokens):
        most += 0 if entries is None else entries.shape[0]
    return min(most, vocab)


OPERATORS = {
    "sample": Operator(
        f"(Tensor(a!) out, Tensor logits, Tensor? indices, {FILTERS}, {RANDOMNESS}, "
        "bool replacement, bool probabilities, Tensor(b!)? logprobs=None) -> ()",
        _nothing,
    ),
    "filter_logits": Operator(f"(Tensor logits, {FILTERS}) -> Tensor", _like_logits),
    "filtered_probs": Operator(f"(Tensor logits, {FILTERS}) -> Tensor", _float_like_logits),
    "log_probs": Operator(f"(Tensor logits, Tensor tokens, {FILTERS}) -> Tensor", _float_like_tokens),
    "find_edits": Operator(
        f"(Tensor logits, Tensor? indices, int rows, {ADJUSTMENTS}) "
        "-> (Tensor bits, Tensor before, Tensor values, Tensor status)",
        _find_edits,
    ),
    "sample_full": Operator(
        f"(Tensor(a!) out, Tensor logits, Tensor? indices, {FILTERS}, {RANDOMNESS}, bool replacement, "
        f"{EDITS}, {HISTORY}, {DETAILS}) -> ()",
        _nothing,
    ),
    "kept_tokens": Operator(
        f"(Tensor logits, Tensor? indices, {EDITS}, Tensor numbers, Tensor offsets, int total) -> Tensor",
        _kept_tokens,
    ),
    "kept_log_probs": Operator(
        "(Tensor logits, Tensor tokens, Tensor kept_tokens, Tensor kept_offsets, "
        "float temperature, Tensor? temperature_rows) -> Tensor",
        _float_like_tokens,
    ),
    "fixed_probs_at": Operator(
        f"(Tensor logits, Tensor? indices, Tensor tokens, {FILTERS}, bool probabilities) -> Tensor",
        _integer_like_tokens,
    ),
    "random_words": Operator(f"(Tensor like, int rows, {RANDOMNESS}, int first, int count) -> Tensor", _random_words),
    "sample_residual": Operator(
        f"(Tensor(a!) out, Tensor target, Tensor target_indices, {FILTERS}, bool target_probabilities, "
        f"Tensor draft, Tensor draft_indices, {_DRAFT_FILTERS}, bool draft_probabilities, {RANDOMNESS}) -> ()",
        _nothing,
    ),
    "draw_seed": Operator("(Tensor(a!) seed_and_offset) -> ()", _nothing),
}
