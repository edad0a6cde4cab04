"""Law section 8 in plain PyTorch: fixed-point probabilities, acceptance words and draws from a residual."""

from typing import Any

import torch
from torch import Tensor

from fastsample import reference
from fastsample.arguments import Filters, Randomness


def fixed_probabilities(weight: Tensor) -> Tensor:
    """Law section 8: p^_i = (w_i * floor(2^102 / Z)) >> 62 of kept weights, int64 [rows, vocab]; 0 where Z is 0."""
    z = weight.sum(dim=1, keepdim=True)
    return reference.multiply_high(_reciprocal(z), weight << 2)


def _reciprocal(z: Tensor) -> Tensor:
    """floor(2^102 / z) for int64 z in [2^39, 2^62], as the bits of an unsigned 64-bit word; 0 where z is 0."""
    quotient, rest = torch.zeros_like(z), torch.full_like(z, 1 << 38)  # as after the first digits, since 2^38 < z
    divisor = z.clamp(min=1)
    for _ in range(64):  # schoolbook division: the rest stays below z, so twice it fits 63 bits
        rest = 2 * rest
        fits = rest >= divisor
        rest = torch.where(fits, rest - divisor, rest)
        quotient = 2 * quotient + fits
    return torch.where(z > 0, quotient, 0)


def _rows(
    matrix: Tensor, indices: Tensor | None, filters: reference.RowFilters, part: slice, probabilities: bool
) -> reference.Row:
    """Law sections 1 to 3 for output rows `part`; a row that does not exist is invalid."""
    rows = matrix.shape[0]
    source = torch.arange(part.start, part.stop, device=matrix.device) if indices is None else indices[part]
    describe = reference.rows_of_probabilities if probabilities else reference.rows_of_logits
    row = describe(matrix[source.clamp(0, rows - 1)], filters.rows(part))
    exists = (source >= 0) & (source < rows)
    return row._replace(weight=torch.where(exists[:, None], row.weight, 0), valid=row.valid & exists)


def fixed_probs_at(logits: Tensor, indices: Tensor | None, tokens: Tensor, *arguments: Any) -> Tensor:
    """p^ of given tokens (law section 8).

    logits: [rows, vocab], or probabilities. indices: int64 [batch] or None. tokens: int64 [batch, n]. arguments: the
    fields of `Filters`, then the bool `probabilities`.
    Returns int64 [batch, n] in [0, 2^40]; -1 in an invalid row and for an id outside [0, vocab).
    """
    filters, probabilities = Filters(*arguments[:9]), arguments[9]
    result = torch.full(tokens.shape, -1, dtype=torch.int64, device=logits.device)
    if logits.numel() == 0 or tokens.numel() == 0:
        return result
    batch, vocab = tokens.shape[0], logits.shape[1]
    per_row = reference.row_filters(filters, batch, logits)
    for part in reference.blocks(batch, vocab):
        row = _rows(logits, indices, per_row, part, probabilities)
        token = tokens[part]
        known = (token >= 0) & (token < vocab) & row.valid[:, None]
        at = fixed_probabilities(row.weight).gather(1, token.clamp(0, vocab - 1))
        result[part] = torch.where(known, at, -1)
    return result


def random_words(like: Tensor, rows: int, *arguments: Any) -> Tensor:
    """Words of the random streams of output rows (law section 4).

    like: any tensor on the device. arguments: the fields of `Randomness`, then `first` and `count`.
    Returns int64 [rows, count]: words first, first + 1, ... of each row, the bits of unsigned 64-bit words.
    """
    randomness, (first, count) = Randomness(*arguments[:7]), arguments[7:]
    return reference.row_words(randomness, rows, count, like.device, first)


def sample_residual(out: Tensor, target: Tensor, target_indices: Tensor, *arguments: Any) -> None:
    """Draw from max(p^ - q^, 0), or from the target alone where there is no draft (law section 8).

    out: int64 [batch, 1], written; -1 where the target's row is invalid or does not exist. target: [rows, vocab].
    target_indices: int64 [batch]. arguments: the target's `Filters` and whether it holds probabilities; `draft`
    [draft rows, vocab], `draft_indices` (int64 [batch], outside [0, draft rows) for a draw from the target alone), the
    draft's `Filters` and whether it holds probabilities; the fields of `Randomness`.
    """
    filters, target_probabilities = Filters(*arguments[:9]), arguments[9]
    draft, draft_indices = arguments[10:12]
    draft_filters, draft_probabilities = Filters(*arguments[12:21]), arguments[21]
    batch, vocab = out.shape[0], target.shape[1]
    if target.numel() == 0:
        out.fill_(reference.INVALID_TOKEN)
        return
    words = reference.row_words(Randomness(*arguments[22:29]), batch, 1, target.device)
    of_target = reference.row_filters(filters, batch, target)
    of_draft = reference.row_filters(draft_filters, batch, draft) if draft.numel() else None
    for part in reference.blocks(batch, 2 * vocab):
        row = _rows(target, target_indices, of_target, part, target_probabilities)
        weight = row.weight
        if of_draft is not None:
            drafted = _rows(draft, draft_indices, of_draft, part, draft_probabilities)
            weight = torch.where(drafted.valid[:, None], residual(weight, drafted.weight), weight)
        out[part] = reference.draw(weight, words[part], True)


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """Law section 8: u = max(p^ - q^, 0) of kept weights, or p^ where that is 0 everywhere, int64 [rows, vocab]."""
    p = fixed_probabilities(target)
    u = (p - fixed_probabilities(draft)).clamp(min=0)
    return torch.where((u.sum(dim=1, keepdim=True) > 0), u, p)
