"""Law section 0 in plain PyTorch: what penalties, bias, bans and masks make of the logits.

Dense over the vocabulary and vectorised over rows, like `reference.py`; `find_edits` packs the result into the form
that backends exchange, and `processed` is the load of a row that has been edited.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastsample import reference
from fastsample.adjustments import ENTRIES_IGNORED, INVALID_PENALTY, Adjustments
from fastsample.arguments import Edits
from fastsample.schemas import most_edits


def _unpack(mask: Tensor, vocab: int) -> Tensor:
    """The bits of int32 [rows, words] as bool [rows, vocab]."""
    bits = (mask.unsqueeze(2) >> torch.arange(32, device=mask.device)) & 1
    return bits.flatten(1)[:, :vocab] != 0


def _pack(bits: Tensor) -> Tensor:
    """Bool [rows, vocab] as the bits of int32 [rows, ceil(vocab / 32)]."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 32)).unflatten(1, (-1, 32))
    words = (padded.long() << torch.arange(32, device=bits.device)).sum(dim=2)
    return words.to(torch.int32)


class _Judged(NamedTuple):
    """Numbers brought into their range, and in which rows one was outside."""

    value: Tensor
    outside: Tensor


def _judge(value: Tensor, largest: int) -> _Judged:
    return _Judged(value.clamp(0, largest), (value < 0) | (value > largest))


class _Marks(NamedTuple):
    """What entries say of tokens."""

    marked: Tensor  # int64 [rows, vocab]: how often, or the largest number given
    ignored: Tensor  # bool [rows]: an id was outside the vocabulary


def _mark(ids: Tensor, counts: Tensor, vocab: int, number: Tensor | None = None) -> _Marks:
    """Mark the tokens `ids` [rows, n] where `counts`: how often each is there, or the largest `number` it has."""
    inside = (ids >= 0) & (ids < vocab)
    marked = torch.zeros((ids.shape[0], vocab), dtype=torch.int64, device=ids.device)
    weight = (counts & inside).long() * (1 if number is None else number)
    marked.scatter_reduce_(1, torch.where(inside, ids, 0), weight, "sum" if number is None else "amax")
    return _Marks(marked, (counts & ~inside).any(dim=1))


class _Entries(NamedTuple):
    """Which entries of a list are each row's."""

    mine: Tensor  # bool [rows, n]
    ignored: Tensor  # bool [rows]: an offset was outside


def _entries(offsets: Tensor, count: int, part: slice) -> _Entries:
    """The entries [offsets[r], offsets[r + 1]) of `count`, for each row r of `part`."""
    begin = _judge(offsets[:-1][part], count)
    end = _judge(offsets[1:][part], count)
    number = torch.arange(count, device=offsets.device)
    mine = (number >= begin.value[:, None]) & (number < end.value[:, None])
    return _Entries(mine, begin.outside | end.outside | (begin.value > end.value))


class _Histories(NamedTuple):
    """The prompts or the outputs of a block of rows."""

    tokens: Tensor  # int64 [rows, n], n may be 0
    length: Tensor  # int64 [rows], at most n where there are tokens
    ignored: Tensor  # bool [rows]: the length was outside


def _histories(tokens: Tensor | None, lengths: Tensor | None, part: slice, like: Tensor) -> _Histories:
    rows = like.shape[0]
    if tokens is None:
        length = like.new_zeros(rows, dtype=torch.int64) if lengths is None else lengths[part]
        empty = like.new_empty((rows, 0), dtype=torch.int64)
        return _Histories(empty, length.clamp(min=0), length < 0)
    columns = tokens.shape[1]
    length = like.new_full((rows,), columns, dtype=torch.int64) if lengths is None else lengths[part]
    judged = _judge(length, columns)
    return _Histories(tokens[part], judged.value, judged.outside)


def _bad_words(
    adjustments: Adjustments, prompt: _Histories, output: _Histories, vocab: int, part: slice
) -> tuple[Tensor, Tensor]:
    """The tokens that bad words ban, bool [rows, vocab], and the rows that had something ignored."""
    flat, offsets, rows = adjustments.bad_words, adjustments.bad_word_offsets, adjustments.bad_word_rows
    assert flat is not None
    assert offsets is not None
    assert rows is not None
    number = offsets.shape[0] - 1
    words = _entries(rows, number, part)
    begin, end = _judge(offsets[:-1], flat.shape[0]), _judge(offsets[1:], flat.shape[0])
    size = end.value - begin.value
    broken = begin.outside | end.outside | (size <= 0)
    ignored = words.ignored | (words.mine & broken).any(dim=1)

    # An output of which only the length is known ends in nothing that a word could.
    history, length = output.tokens, output.length.clamp(max=output.tokens.shape[1])
    if adjustments.bad_words_in_prompt:
        place = torch.arange(prompt.tokens.shape[1] + output.tokens.shape[1], device=flat.device)
        both = torch.cat([prompt.tokens, output.tokens], dim=1)
        moved = torch.where(
            place < prompt.length[:, None], place, place - prompt.length[:, None] + prompt.tokens.shape[1]
        )
        history = both.gather(1, moved.clamp(max=max(both.shape[1] - 1, 0))) if both.shape[1] else both
        length = prompt.length + length
    # How far before its last token a word's tokens lie, and with them the history's end, [rows, words, places].
    places = torch.arange(min(flat.shape[0], history.shape[1] + 1), device=flat.device)
    before_last = places < size[:, None] - 1
    wanted = flat[(begin.value[:, None] + places).clamp(max=max(flat.shape[0] - 1, 0))] if flat.shape[0] else None
    matches = words.mine & ~broken & (size - 1 <= length[:, None])
    if wanted is not None and places.shape[0] and history.shape[1]:
        at = length[:, None, None] - (size[:, None] - 1) + places
        there = history.gather(1, at.clamp(0, history.shape[1] - 1).flatten(1)).view(at.shape)
        matches = matches & ((there == wanted) | ~before_last).all(dim=2)
    if not flat.shape[0]:
        return torch.zeros((words.mine.shape[0], vocab), dtype=torch.bool, device=flat.device), ignored
    last = flat[(end.value - 1).clamp(min=0)].expand(matches.shape)
    banned = _mark(last, matches, vocab)
    return banned.marked > 0, ignored | banned.ignored


def _edit_rows(value: Tensor, adjustments: Adjustments, batch: int, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Law section 0 for a block of rows.

    value: float64 [rows, vocab], the logits as `reference.widen` returns them. batch, part: which of how many output
    rows these are. Returns which tokens are edited (bool), to what (float64), and the status of each row (int32).
    """
    a, device = adjustments, value.device
    rows, vocab = value.shape

    def of_rows(number: float, values: Tensor | None) -> Tensor:
        return reference.row_floats(number, values, batch, device)[part][:, None]

    repetition = of_rows(a.repetition_penalty, a.repetition_penalty_rows)
    presence = of_rows(a.presence_penalty, a.presence_penalty_rows)
    frequency = of_rows(a.frequency_penalty, a.frequency_penalty_rows)
    valid = ((repetition > 0) & repetition.isfinite() & presence.isfinite() & frequency.isfinite())[:, 0]
    look_at_prompt = (repetition != 1)[:, 0]
    look_at_output = look_at_prompt | (presence != 0)[:, 0] | (frequency != 0)[:, 0]
    nothing = torch.zeros((rows, vocab), dtype=torch.bool, device=device)

    prompt = _histories(a.prompt_tokens, a.prompt_lengths, part, value)
    output = _histories(a.output_tokens, a.output_lengths, part, value)
    ignored = prompt.ignored | output.ignored

    def marks_of(histories: _Histories, looked_at: Tensor) -> _Marks:
        place = torch.arange(histories.tokens.shape[1], device=device)
        return _mark(histories.tokens, looked_at[:, None] & (place < histories.length[:, None]), vocab)

    if a.prompt_mask is None:
        listed = marks_of(prompt, look_at_prompt)
        in_prompt, ignored = listed.marked > 0, ignored | listed.ignored
    else:
        in_prompt = look_at_prompt[:, None] & _unpack(a.prompt_mask[part], vocab)
    if a.output_counts is None:
        listed = marks_of(output, look_at_output)
        count, ignored = listed.marked, ignored | listed.ignored
    else:
        count = look_at_output[:, None] * a.output_counts[part].long().clamp(min=0)

    has_bias, bias = nothing, torch.zeros_like(value)
    if a.bias_tokens is not None and a.bias_values is not None and a.bias_offsets is not None:
        entries = _entries(a.bias_offsets, a.bias_tokens.shape[0], part)
        number = torch.arange(1, a.bias_tokens.shape[0] + 1, device=device)
        last = _mark(a.bias_tokens.expand(entries.mine.shape), entries.mine, vocab, number)
        ignored = ignored | entries.ignored | last.ignored
        has_bias = last.marked > 0
        if a.bias_tokens.shape[0]:
            bias = reference.widen(a.bias_values)[(last.marked - 1).clamp(min=0)]

    banned = nothing
    if a.stop_tokens is not None and a.stop_offsets is not None:
        entries = _entries(a.stop_offsets, a.stop_tokens.shape[0], part)
        least = reference.row_integers(a.min_tokens, a.min_tokens_rows, batch, device)[part]
        stops = _mark(a.stop_tokens.expand(entries.mine.shape), entries.mine & (output.length < least)[:, None], vocab)
        ignored = ignored | entries.ignored | stops.ignored
        banned = stops.marked > 0
    if a.bad_words is not None:
        by_words, words_ignored = _bad_words(a, prompt, output, vocab, part)
        banned, ignored = banned | by_words, ignored | words_ignored

    fl = reference.fl
    x = torch.where(has_bias, fl(value + bias), value)
    penalised = torch.where(x > 0, fl(x / repetition), fl(x * repetition))
    x = torch.where(in_prompt | (count > 0), penalised, x)
    reduced = fl(fl(x - fl(frequency * fl(count.double()))) - presence)
    x = torch.where(count > 0, reduced, x)
    x = torch.where(banned, -math.inf, x)
    if a.allowed is not None:
        x = torch.where(_unpack(a.allowed[part], vocab), x, -math.inf)

    edited = has_bias | in_prompt | (count > 0) | banned
    only_first = torch.arange(vocab, device=device) == 0
    edited = torch.where(valid[:, None], edited, only_first)
    x = torch.where(valid[:, None], x, math.nan)
    status = torch.where(valid, ignored.int() * ENTRIES_IGNORED, INVALID_PENALTY)
    return edited, x, status.int()


def find_edits(
    logits: Tensor, indices: Tensor | None, rows: int, *adjustments: Tensor | float | int | bool | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The edits of every output row (law section 0).

    logits: [logits rows, vocab], float32, float16 or bfloat16, any strides. indices: int64 [rows], the logits row of
    each output row, or None. adjustments: the fields of `Adjustments`.
    Returns `bits` and `before` (int32 [rows, ceil(vocab / 32)]), `values` (float32 [rows, capacity]; what lies beyond a
    row's edits means nothing) and `status` (int32 [rows]: bit 0 for invalid penalties, bit 1 for ignored entries).
    """
    named = Adjustments(*adjustments)  # type: ignore[arg-type]
    vocab, device = logits.shape[1], logits.device
    words, capacity = (vocab + 31) // 32, most_edits(vocab, *adjustments)
    bits = torch.zeros((rows, words), dtype=torch.int32, device=device)
    before = torch.zeros_like(bits)
    values = torch.zeros((rows, capacity), dtype=torch.float32, device=device)
    status = torch.zeros(rows, dtype=torch.int32, device=device)
    if logits.numel() == 0:
        return bits, before, values, status
    lists = (named.bias_tokens, named.bad_words, named.stop_tokens)
    longest = max(vocab, *(0 if entries is None else entries.shape[0] ** 2 for entries in lists[1:2]))
    longest = max(longest, *(0 if entries is None else entries.shape[0] for entries in lists))
    for part in reference.blocks(rows, longest):
        source = torch.arange(part.start, part.stop, device=device) if indices is None else indices[part]
        exists = (source >= 0) & (source < logits.shape[0])
        value = reference.widen(logits[source.clamp(0, logits.shape[0] - 1)])
        edited, x, of_rows = _edit_rows(value, named, rows, part)
        edited = edited & exists[:, None]
        number = edited.cumsum(dim=1)
        place = torch.where(edited, number - 1, capacity)
        room = torch.zeros((x.shape[0], capacity + 1), dtype=torch.float32, device=device)
        values[part] = room.scatter_(1, place, reference.narrow(x))[:, :capacity]
        bits[part] = _pack(edited)
        before[part, 1:] = number[:, 31 : 32 * (words - 1) : 32].int()
        status[part] = torch.where(exists, of_rows, 0).int()
    return bits, before, values, status


def processed(logits: Tensor, edits: Edits, part: slice) -> tuple[Tensor, Tensor]:
    """Law section 1, load, after section 0: keys and values of rows [rows, vocab], which are output rows `part`."""
    vocab = logits.shape[1]
    value = reference.widen(logits)
    if edits.allowed is not None:
        value = torch.where(_unpack(edits.allowed[part], vocab), value, -math.inf)
    if edits.bits is not None and edits.before is not None and edits.values is not None:
        edited = _unpack(edits.bits[part], vocab)
        word = torch.arange(vocab, device=logits.device) // 32
        number = edited.long().cumsum(dim=1)
        in_words_before = torch.nn.functional.pad(number, (1, 0)).gather(1, (word * 32).expand(number.shape))
        place = edits.before[part].long()[:, word] + number - in_words_before - 1
        place = place.clamp(0, edits.values.shape[1] - 1)
        value = torch.where(edited, reference.widen(edits.values[part]).gather(1, place), value)
    return reference.ordered_key(reference.narrow(value)), value


def process(logits: Tensor, edits: Edits) -> Tensor:
    """The logits that edits leave, float32 [rows, vocab] (law section 0).

    Without arithmetic on the logits, so that nothing can flush a denormal.
    """
    vocab = logits.shape[1]
    result = logits.detach().to(torch.float32, copy=True)
    if logits.numel() == 0:
        return result
    if edits.allowed is not None:
        result.masked_fill_(~_unpack(edits.allowed, vocab), -math.inf)
    if edits.bits is not None and edits.values is not None:
        edited = _unpack(edits.bits, vocab)
        place = edited.cumsum(dim=1).sub_(1).clamp_(0, edits.values.shape[1] - 1)
        result = torch.where(edited, edits.values.gather(1, place), result)
    return result
