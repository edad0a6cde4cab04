"""`find_edits` on Triton: what it launches, which is one kernel."""

from typing import Any

import torch
from torch import Tensor

from fastsample import adjustments as given
from fastsample import reference_edits
from fastsample.schemas import most_edits

from . import edits, work
from .call import EXACT, logits_of, on_device, per_row, sources_of, tokens_of, vector_of, word_of

# Entries of a list that a program has in hand at a time, and its warps.
TILE, _WARPS = 1024, 8


def find_edits(
    logits: Tensor, indices: Tensor | None, rows: int, *operands: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fastsample.reference_edits.find_edits` on Triton."""
    if logits.numel() == 0:
        return reference_edits.find_edits(logits, indices, rows, *operands)
    vocab, device = logits.shape[1], logits.device
    words, capacity = (vocab + 31) // 32, most_edits(vocab, *operands)
    bits = torch.empty((rows, words), dtype=torch.int32, device=device)
    before = torch.empty_like(bits)
    values = torch.empty((rows, capacity), dtype=torch.float32, device=device)
    status = torch.empty(rows, dtype=torch.int32, device=device)
    if rows > 0:
        # Two words for each edit; and what arguments point to that are not there.
        notes = torch.empty(2 * rows * capacity + 2, dtype=torch.int32, device=device)
        nothing = torch.empty(1, dtype=torch.int64, device=device)
        with on_device(logits):
            edits.find_edits_kernel[(rows,)](
                logits_of(logits, None, nothing),
                sources_of(indices, nothing),
                work.Sizes(work.coded(logits.shape[0]), vocab, work.coded(0), work.coded(0)),
                _adjustments(given.Adjustments(*operands), nothing),
                work.Found(
                    bits,
                    before,
                    values,
                    values.view(torch.int32),
                    status,
                    notes,
                    work.coded(words),
                    work.coded(capacity),
                ),
                TILE,
                num_warps=_WARPS,
                **EXACT,
            )
    return bits, before, values, status


def _adjustments(a: given.Adjustments, nothing: Tensor) -> work.Adjustments:
    floats, integers = nothing.view(torch.float32), nothing.view(torch.int32)

    def count(entries: Tensor | None) -> int:
        return work.coded(0 if entries is None else entries.shape[0])

    def histories(tokens: Tensor | None, lengths: Tensor | None) -> work.Histories:
        columns = work.coded(0 if tokens is None else tokens.shape[1])
        return work.Histories(tokens_of(tokens, nothing), columns, vector_of(lengths, nothing))

    return work.Adjustments(
        per_row(a.repetition_penalty, a.repetition_penalty_rows, floats),
        per_row(a.presence_penalty, a.presence_penalty_rows, floats),
        per_row(a.frequency_penalty, a.frequency_penalty_rows, floats),
        histories(a.prompt_tokens, a.prompt_lengths),
        histories(a.output_tokens, a.output_lengths),
        tokens_of(a.prompt_mask, integers),
        tokens_of(a.output_counts, integers),
        vector_of(a.bias_tokens, nothing),
        count(a.bias_tokens),
        vector_of(a.bias_offsets, nothing),
        vector_of(a.bias_values, floats),
        vector_of(a.bad_words, nothing),
        count(a.bad_words),
        vector_of(a.bad_word_offsets, nothing),
        work.coded(0 if a.bad_word_offsets is None else a.bad_word_offsets.shape[0] - 1),
        vector_of(a.bad_word_rows, nothing),
        work.coded(a.bad_words_in_prompt),
        word_of(a.min_tokens, a.min_tokens_rows, nothing),
        vector_of(a.stop_tokens, nothing),
        count(a.stop_tokens),
        vector_of(a.stop_offsets, nothing),
        tokens_of(a.allowed, integers),
    )
