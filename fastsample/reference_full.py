"""Law section 7 in plain PyTorch: draws from edited rows, what is said of them, and their kept sets."""

import math
from typing import Any

import torch
from torch import Tensor

from fastsample import reference
from fastsample.arguments import NO_FILTERS, Details, Edits, Filters, History, Randomness
from fastsample.reference_edits import processed

NUMBERS = 8  # of a row, see `numbers_of`
_LN2 = float.fromhex("0x1.62e430p-1")  # float32(0.6931471805599453)


def sample_full(out: Tensor, logits: Tensor, indices: Tensor | None, *arguments: Any) -> None:
    """`reference.sample` from rows that requests have edited; records the tokens and describes the draws.

    out: int64 [batch, num_samples] or [batch], written. logits: [rows, vocab]. indices: int64 [batch] or None.
    arguments: in schema order the fields of `Filters`, those of `Randomness`, the bool `replacement`, the fields of
    `Edits`, of `History` (written) and of `Details` (written). Source: law sections 0 to 4 and 7.
    """
    filters, randomness = Filters(*arguments[:9]), Randomness(*arguments[9:16])
    replacement, edits = arguments[16], Edits(*arguments[17:21])
    history, details = History(*arguments[21:24]), Details(*arguments[24:31])
    out, details = reference.by_draw(out), details.by_draw()
    batch, num_samples = out.shape
    rows, vocab = logits.shape
    if logits.numel() == 0:
        out.fill_(reference.INVALID_TOKEN)
        _describe_nothing(details)
        return
    per_row = reference.row_filters(filters, batch, logits)
    words = reference.row_words(randomness, batch, num_samples, logits.device)
    for part in reference.blocks(batch, max(vocab, num_samples)):
        source = torch.arange(part.start, part.stop, device=logits.device) if indices is None else indices[part]
        exists = (source >= 0) & (source < rows)
        raw = logits[source.clamp(0, rows - 1)]
        row = reference.rows_of_loaded(*processed(raw, edits, part), per_row.rows(part))
        row = row._replace(weight=torch.where(exists[:, None], row.weight, 0), valid=row.valid & exists)
        row = row._replace(kept=row.kept & row.valid[:, None])
        out[part] = reference.draw(row.weight, words[part], replacement)
        of_part = (field[part] if isinstance(field, Tensor) else field for field in details)
        _describe(Details._make(of_part), out[part], row, raw, edits, part)
    if num_samples > 0:
        record(out[:, 0], history)


def record(token: Tensor, history: History) -> None:
    """Law section 7: record each row's first token, int64 [batch]."""
    drawn = token >= 0
    number = torch.arange(token.shape[0], device=token.device)
    if history.counts is not None:
        at = number, token.clamp(min=0)
        history.counts.index_put_(at, history.counts[at] + drawn)
    if history.lengths is None:
        return
    if history.tokens is not None and history.tokens.shape[1] > 0:
        columns = history.tokens.shape[1]
        has_room = drawn & (history.lengths >= 0) & (history.lengths < columns)
        place = number, history.lengths.clamp(0, columns - 1)
        history.tokens.index_put_(place, torch.where(has_room, token, history.tokens[place]))
    history.lengths.add_(drawn)


def _describe_nothing(details: Details) -> None:
    nothings = (math.nan, math.nan, 0, reference.INVALID_TOKEN, math.nan, 0)
    for field, nothing in zip(details[:6], nothings, strict=True):
        if field is not None:
            field.fill_(nothing)
    if details.numbers is not None:
        details.numbers[:, 0] = 1


def _describe(details: Details, tokens: Tensor, row: reference.Row, logits: Tensor, edits: Edits, part: slice) -> None:
    """Law section 7 for a block of rows; `logits` are the raw ones."""
    if details.logprobs is not None:
        details.logprobs.copy_(reference.log_probabilities_of(row, tokens))
    if details.numbers is not None:
        details.numbers.copy_(numbers_of(row, *processed(logits, edits, part)))
    if details.top_of_processed:
        _describe_top(details, row, processed(logits, edits, part)[0])
    elif details.raw_logprobs is None and details.ranks is None and details.top_tokens is None:
        return
    key, value = reference.load(logits)
    neutral = reference.row_filters(NO_FILTERS, logits.shape[0], logits)
    raw = reference.rows_of_loaded(key, value, neutral)
    raw = raw._replace(valid=raw.valid & row.valid)
    if details.raw_logprobs is not None:
        details.raw_logprobs.copy_(reference.log_probabilities_of(raw, tokens))
    if details.ranks is not None:
        details.ranks.copy_(_ranks(key, tokens, raw.valid))
    if not details.top_of_processed:
        _describe_top(details, raw, key)


def _describe_top(details: Details, row: reference.Row, key: Tensor) -> None:
    """Law section 7, `top`: the first kept tokens of rows whose order is `key`."""
    if details.top_tokens is None or details.top_logprobs is None:
        return
    n = details.top_tokens.shape[1]
    listed = reference.rank(key)[:, :n]
    listed = torch.nn.functional.pad(listed, (0, n - listed.shape[1]))
    place = torch.arange(n, device=key.device)
    there = (place < key.shape[1]) & row.kept.gather(1, listed) & row.valid[:, None]
    logprobs = torch.where(there, reference.log_probabilities_of(row, listed), -math.inf)
    details.top_tokens.copy_(torch.where(there, listed, reference.INVALID_TOKEN))
    details.top_logprobs.copy_(torch.where(row.valid[:, None], logprobs, math.nan))


def _ranks(key: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Law section 7: 1 + how many tokens come before each of `tokens`, int64; 0 where there is no token."""
    ranks = torch.zeros_like(tokens)
    index = torch.arange(key.shape[1], device=key.device)
    for number in range(tokens.shape[1]):
        token = tokens[:, number : number + 1]
        its_key = key.gather(1, token.clamp(min=0))
        before = (key > its_key) | ((key == its_key) & (index < token))
        ranks[:, number] = torch.where(valid & (token[:, 0] >= 0), before.sum(dim=1) + 1, 0)
    return ranks


def _float_bits(value: Tensor) -> Tensor:
    """The bits of float32 values (float64), as int64 of a signed 32-bit integer, with +0.0 for -0.0."""
    return reference.narrow(torch.where(value == 0, 0.0, value)).view(torch.int32).long()


def numbers_of(row: reference.Row, key: Tensor, value: Tensor) -> Tensor:
    """Law section 7, `numbers`: int64 [rows, 8] of a block of rows and their load."""
    vocab = key.shape[1]
    index = torch.arange(vocab, device=key.device)
    largest = value.amax(dim=1)
    last_key = torch.where(row.kept, key, 0x7FFFFFFF).amin(dim=1)
    last = torch.where(row.kept & (key == last_key[:, None]), index, -1).amax(dim=1)
    terms = torch.where(row.weight > 0, -row.exponent, 0.0) * 2.0**20
    numbers = (
        torch.zeros_like(last),
        _float_bits(largest),
        _float_bits(value.gather(1, last.clamp(min=0)[:, None])[:, 0]),
        last + 1,
        row.weight.sum(dim=1),
        row.kept.sum(dim=1),
        ((row.weight * terms.long()) >> 20).sum(dim=1),
        torch.where(value > -math.inf, reference.weigh(row.exponent), 0).sum(dim=1),
    )
    invalid = torch.zeros(NUMBERS, dtype=torch.int64, device=key.device)
    invalid[0] = 1
    return torch.where(row.valid[:, None], torch.stack(numbers, dim=1), invalid)


def kept_tokens(logits: Tensor, indices: Tensor | None, *arguments: Any) -> Tensor:
    """The kept sets of rows that `sample_full` gave the `numbers` of, as one list.

    logits, indices: as there. arguments: in schema order the fields of `Edits`, `numbers` (int64 [batch, 8]), `offsets`
    (int64 [batch + 1], where each row's tokens begin) and `total`, the length of the list.
    Returns int64 [total], each row's tokens in index order; -1 where `offsets` leave room. Source: law section 7.
    """
    edits, (numbers, offsets, total) = Edits(*arguments[:4]), arguments[4:]
    batch, (rows, vocab) = numbers.shape[0], logits.shape
    out = torch.full((total + 1,), reference.INVALID_TOKEN, dtype=torch.int64, device=logits.device)
    if logits.numel() == 0:
        return out[:total]
    index = torch.arange(vocab, device=logits.device)
    for part in reference.blocks(batch, vocab):
        source = torch.arange(part.start, part.stop, device=logits.device) if indices is None else indices[part]
        key, _ = processed(logits[source.clamp(0, rows - 1)], edits, part)
        cut = reference.ordered_key(numbers[part, 2].int().view(torch.float32))[:, None]
        kept = (key > cut) | ((key == cut) & (index < numbers[part, 3:4]))
        kept = kept & ((numbers[part, 0] == 0) & (source >= 0) & (source < rows))[:, None]
        begin, end = offsets[:-1][part, None], offsets[1:][part, None].clamp(max=total)
        place = begin + kept.long().cumsum(dim=1) - 1
        place = torch.where(kept & (place >= 0) & (place < end), place, total)
        out[place] = torch.where(place < total, index, reference.INVALID_TOKEN)
    return out[:total]


def kept_log_probs(
    logits: Tensor,
    tokens: Tensor,
    kept_tokens: Tensor,
    kept_offsets: Tensor,
    temperature: float,
    temperature_rows: Tensor | None,
) -> Tensor:
    """Log-probabilities of given tokens over given kept sets: law section 5 without a filter.

    logits: [rows, vocab]. tokens: int64 [rows, n]. kept_tokens: int64 [total], kept_offsets: int64 [rows + 1], with the
    row's ids from offset to offset, in any order. temperature, temperature_rows: as in `Filters`.
    Returns float32 [rows, n]: -inf for a token outside the row's kept set, NaN in a row that has none or whose kept
    logits are invalid (law section 1).
    """
    rows, vocab = logits.shape
    row, inside = kept_places(kept_tokens, kept_offsets, rows, vocab)
    sums = KeptSums(logits, kept_tokens, row, inside, temperature, temperature_rows)
    result = torch.full(tokens.shape, math.nan, dtype=torch.float32, device=logits.device)
    if logits.numel() == 0 or tokens.numel() == 0:
        return result
    number = torch.arange(rows, device=logits.device)[:, None]
    place = number * vocab + torch.where((tokens >= 0) & (tokens < vocab), tokens, 0)
    # Not torch.isin, whose search for unique values makes a GPU wait for the host.
    listed = torch.zeros(rows * vocab + 1, dtype=torch.bool, device=logits.device)
    listed[torch.where(inside, row * vocab + kept_tokens, rows * vocab)] = True
    kept = listed[place] & (tokens >= 0) & (tokens < vocab)
    d = sums.exponents(reference.widen(logits.gather(1, (place - number * vocab))), number.expand(tokens.shape), place)
    s = (sums.z - (1 << 40)).float().double() * 2.0**-40
    log_probability = -reference.fl(reference.fl(-d * _LN2) + reference.fl(torch.log1p(s.clamp(min=0)))[:, None])
    log_probability = torch.where(kept, log_probability, -math.inf)
    return torch.where(sums.valid[:, None], reference.narrow(log_probability), math.nan)


def kept_places(kept_tokens: Tensor, kept_offsets: Tensor, rows: int, vocab: int) -> tuple[Tensor, Tensor]:
    """The row of each entry of a kept set, int64 [total], and whether it is a token of one (bool)."""
    place = torch.arange(kept_tokens.shape[0], device=kept_tokens.device)
    row = torch.searchsorted(kept_offsets.contiguous(), place, right=True) - 1
    inside = (row >= 0) & (row < rows) & (kept_tokens >= 0) & (kept_tokens < vocab)
    return row.clamp(0, max(rows - 1, 0)), inside


class KeptSums:
    """The maximum, the weights and Z of each row over a kept set that is given as a list."""

    def __init__(
        self,
        logits: Tensor,
        kept_tokens: Tensor,
        row: Tensor,
        inside: Tensor,
        temperature: float,
        temperature_rows: Tensor | None,
    ) -> None:
        rows, vocab = logits.shape
        self.temperature = reference.row_floats(temperature, temperature_rows, rows, logits.device)
        token = torch.where(inside, kept_tokens, 0)
        x = reference.widen(logits[row, token]) if logits.numel() else torch.zeros_like(token, dtype=torch.float64)
        nothing = torch.full((rows,), -math.inf, dtype=torch.float64, device=logits.device)
        invalid = torch.zeros(rows, dtype=torch.int64, device=logits.device)
        invalid = invalid.scatter_add(0, row, (inside & x.isnan()).long())
        self.largest = nothing.scatter_reduce(0, row, torch.where(inside & ~x.isnan(), x, -math.inf), "amax")
        beyond = torch.full((rows,), rows * vocab, dtype=torch.int64, device=logits.device)
        place = row * vocab + token
        is_largest = inside & (x == self.largest[row])
        self.first = beyond.scatter_reduce(0, row, torch.where(is_largest, place, rows * vocab), "amin")
        self.valid = (invalid == 0) & (self.largest > -math.inf) & (self.temperature >= 0)
        self.exponent = self.exponents(x, row, place)
        weight = torch.where(inside & (x > -math.inf) & self.valid[row], reference.weigh(self.exponent), 0)
        self.z = torch.zeros(rows, dtype=torch.int64, device=logits.device).scatter_add(0, row, weight)

    def exponents(self, x: Tensor, row: Tensor, place: Tensor) -> Tensor:
        """Law section 1: d of logits x (float64) of rows `row` at places row * vocab + token."""
        m, temperature = self.largest[row], self.temperature[row]
        c = reference.exponent_scale(temperature)
        difference = reference.fl(x - m)
        d = reference.fl(difference * c)
        d = torch.where(difference == -math.inf, -math.inf, d)
        d = torch.where(x == m, 0.0, d)
        return torch.where((temperature == 0) & (place != self.first[row]), -math.inf, d)
