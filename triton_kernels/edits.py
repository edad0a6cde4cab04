"""find_edits: what penalties, bias and bans make of a row's logits (law section 0), as the edits that `load` looks up.

One program a row, which never reads the row itself, only the logits of what is edited. It goes through the row's lists
twice: it sets a bit for each token named, sums the bits up, which gives each edit its place, and notes at the places
what each list says. Then it works out the edits, place by place. Counts and masks over the vocabulary are read whole.
"""

import triton
import triton.language as tl

from . import load
from .law import INFINITY, bits_below, divide, number_of_bits
from .work import is_given, number_of, place_in, plain, source_of, word_of

# What a list says of a token, in its note; from the next bit on, how often it is in the output.
_IN_PROMPT: tl.constexpr = tl.constexpr(1)
_BANNED: tl.constexpr = tl.constexpr(2)
_IN_OUTPUT: tl.constexpr = tl.constexpr(4)
# No bit: of a bias, its place is told which entry of the list it is, and remembers the last.
_BIAS: tl.constexpr = tl.constexpr(0)

_INVALID_PENALTY: tl.constexpr = tl.constexpr(1)
_ENTRIES_IGNORED: tl.constexpr = tl.constexpr(2)


@triton.jit
def clamped(number, largest):
    """A number brought into [0, largest], and whether it was outside, as int32."""
    inside = tl.minimum(tl.maximum(number, 0), largest)
    return inside, (inside != number).to(tl.int32)


@triton.jit
def length_of(histories, row):
    """How long a row's history is, at most as long as its list if it has one; and whether that had to be clamped."""
    lengths = histories.lengths
    place = lengths.data + row * plain(lengths.stride)
    length = tl.load(place, mask=is_given(lengths), other=plain(histories.columns).to(tl.int64))
    return clamped(length, tl.where(is_given(histories.tokens), plain(histories.columns), tl.maximum(length, 0)))


@triton.jit
def range_of(offsets, row, count):
    """The entries [offsets[row], offsets[row + 1]) of `count`; and whether an offset had to be clamped."""
    stride = plain(offsets.stride)
    given = stride >= 0
    begin, ignored = clamped(tl.load(offsets.data + row * stride, mask=given, other=0), plain(count))
    end, ignored_too = clamped(tl.load(offsets.data + (row + 1) * stride, mask=given, other=0), plain(count))
    return begin, end, ignored | ignored_too | (begin > end).to(tl.int32)


@triton.jit
def place_of_edit(bits, before, token, wanted):
    """Which of a row's edits, by number, tokens are; int32."""
    word = token >> 5
    mask = tl.load(bits + word, mask=wanted, other=0)
    return tl.load(before + word, mask=wanted, other=0) + bits_below(mask, token & 31)


@triton.jit
def note(room, token, said, entry, vocab, what: tl.constexpr, noting: tl.constexpr):
    """Has a tile of tokens edited where something is `said` of them: sets their bits, or if `noting`, says it.

    entry: from 1, which entry of the row's list says it. Returns whether some token is none, as int32.
    """
    bits, before, entries, tokens, notes = room
    inside = said & (token >= 0) & (token < vocab)
    token = tl.where(inside, token, 0).to(tl.int32)
    if noting:
        place = place_of_edit(bits, before, token, inside)
        tl.store(tokens + place, token, mask=inside)
        if what == _BIAS:
            tl.atomic_max(entries + place, entry.to(tl.int32), mask=inside, sem="relaxed")
        elif what == _IN_OUTPUT:
            tl.atomic_add(notes + place, tl.zeros_like(token) + _IN_OUTPUT, mask=inside, sem="relaxed")
        else:
            tl.atomic_or(notes + place, tl.zeros_like(token) + what, mask=inside, sem="relaxed")
    else:
        one = tl.zeros_like(token) + 1
        tl.atomic_or(bits + (token >> 5), one << (token & 31), mask=inside, sem="relaxed")
    return tl.max((said & (inside == 0)).to(tl.int32), axis=0)


@triton.jit
def note_list(room, data, stride, begin, end, vocab, what: tl.constexpr, noting: tl.constexpr, tile: tl.constexpr):
    """`note` the entries [begin, end) of a list."""
    ignored = tl.full((), 0, tl.int32)
    for first in range(begin, end, tile):
        number = first + tl.arange(0, tile).to(tl.int64)
        there = number < end
        token = tl.load(data + number * stride, mask=there, other=0)
        ignored |= note(room, token, there, number - begin + 1, vocab, what, noting)
    return ignored


@triton.jit
def in_history(adjustments, row, prompt_length, place, wanted):
    """The tokens at places of prompt, if that counts, and output, one after the other."""
    of_prompt = place < prompt_length
    token = tl.load(place_in(adjustments.prompt.tokens, row, place), mask=wanted & of_prompt, other=0)
    place = place_in(adjustments.output.tokens, row, place - prompt_length)
    return tl.load(place, mask=wanted & (of_prompt == 0), other=token)


@triton.jit
def note_words(room, adjustments, row, prompt_length, output_length, vocab, noting: tl.constexpr, tile: tl.constexpr):
    """Bans the last token of each bad word whose other tokens end the history. Words side by side, token by token."""
    words = adjustments.bad_words
    stride = plain(words.stride)
    offsets_stride = plain(adjustments.bad_word_offsets.stride)
    begin, end, ignored = range_of(adjustments.bad_word_rows, row, adjustments.bad_word_count)
    prompt_length = tl.where(plain(adjustments.bad_words_in_prompt) != 0, prompt_length, 0)
    length = prompt_length + output_length
    for first in range(begin, end, tile):
        number = first + tl.arange(0, tile).to(tl.int64)
        mine = number < end
        offset = adjustments.bad_word_offsets.data + number * offsets_stride
        word, outside = clamped(tl.load(offset, mask=mine, other=0), plain(adjustments.bad_word_tokens))
        next_word, outside_too = clamped(
            tl.load(offset + offsets_stride, mask=mine, other=0), plain(adjustments.bad_word_tokens)
        )
        broken = ((outside | outside_too) != 0) | (next_word <= word)
        ignored |= tl.max((mine & broken).to(tl.int32), axis=0)
        others = next_word - word - 1
        matches = mine & (broken == 0) & (others <= length)
        longest = tl.max(tl.where(matches, others, 0), axis=0)
        token = longest * 0
        while token < longest:
            compared = matches & (token < others)
            expected = tl.load(words.data + (word + token) * stride, mask=compared, other=0)
            there = in_history(adjustments, row, prompt_length, length - others + token, compared)
            matches = matches & ((compared == 0) | (expected == there))
            longest = tl.max(tl.where(matches, others, 0), axis=0)
            token += 1
        last = tl.load(words.data + (next_word - 1) * stride, mask=matches, other=0)
        ignored |= note(room, last, matches, number, vocab, _BANNED, noting)
    return ignored


@triton.jit
def note_lists(room, adjustments, row, look_at_prompt, look_at_output, vocab, noting: tl.constexpr, tile: tl.constexpr):
    """`note` what every list of a row says. Returns whether something is ignored, as int32."""
    prompt_length, ignored = length_of(adjustments.prompt, row)
    output_length, ignored_too = length_of(adjustments.output, row)
    ignored |= ignored_too
    # What has no list has nothing to be looked through, whatever its length.
    prompt_listed = tl.where(is_given(adjustments.prompt.tokens), prompt_length, 0)
    output_listed = tl.where(is_given(adjustments.output.tokens), output_length, 0)
    zero = prompt_length * 0

    tokens = adjustments.prompt.tokens
    data = tokens.data + row * plain(tokens.row_stride)
    by_list = look_at_prompt & (is_given(adjustments.prompt_mask) == 0)
    end = tl.where(by_list, prompt_listed, 0)
    ignored |= note_list(room, data, plain(tokens.stride), zero, end, vocab, _IN_PROMPT, noting, tile)
    tokens = adjustments.output.tokens
    data = tokens.data + row * plain(tokens.row_stride)
    by_list = look_at_output & (is_given(adjustments.output_counts) == 0)
    end = tl.where(by_list, output_listed, 0)
    ignored |= note_list(room, data, plain(tokens.stride), zero, end, vocab, _IN_OUTPUT, noting, tile)

    tokens = adjustments.bias
    begin, end, ignored_too = range_of(adjustments.bias_offsets, row, adjustments.bias_count)
    ignored |= ignored_too
    ignored |= note_list(room, tokens.data, plain(tokens.stride), begin, end, vocab, _BIAS, noting, tile)

    tokens = adjustments.stops
    begin, end, ignored_too = range_of(adjustments.stop_offsets, row, adjustments.stop_count)
    ignored |= ignored_too
    end = tl.where(output_length < word_of(adjustments.min_tokens, row), end, begin)
    ignored |= note_list(room, tokens.data, plain(tokens.stride), begin, end, vocab, _BANNED, noting, tile)

    # Few words are many tokens: a loop over their tokens for each tile of them.
    ignored |= note_words(room, adjustments, row, prompt_listed, output_listed, vocab, noting, tile // 8)
    return ignored


@triton.jit
def of_mask(mask, row, token, wanted):
    """A row's bits at a tile of tokens, in a bitmask that may not be there; as int32."""
    word = tl.load(place_in(mask, row, token >> 5), mask=wanted & is_given(mask), other=0)
    return (word >> (token & 31)) & 1


@triton.jit
def count_of(counts, row, token, wanted):
    """A row's counts at a tile of tokens, in a matrix that may not be there; none is negative."""
    # Those of a large batch that lie token by token span more than 2^31 elements.
    place = place_in(counts, row, token.to(tl.int64))
    return tl.maximum(tl.load(place, mask=wanted & is_given(counts), other=0), 0)


@triton.jit
def begin_bits(room, prompt_mask, row, look_at_prompt, words, vocab, tile: tl.constexpr):
    """A row's bits: those of the mask of its prompt, or none."""
    bits = room[0]
    looked_at = look_at_prompt & is_given(prompt_mask)
    for first in range(0, words, tile):
        word = first + tl.arange(0, tile)
        mask = tl.load(place_in(prompt_mask, row, word), mask=(word < words) & looked_at, other=0)
        tokens = tl.minimum(vocab - 32 * word, 31)
        inside = tl.where(vocab - 32 * word >= 32, -1, ((tokens * 0 + 1) << tl.maximum(tokens, 0)) - 1)
        tl.store(bits + word, mask & inside, mask=word < words)


@triton.jit
def note_counts(
    room, prompt_mask, counts, row, look_at_prompt, look_at_output, vocab, noting: tl.constexpr, tile: tl.constexpr
):
    """Sets the bits of what has a count; if `noting`, notes the tokens that counts or the mask of the prompt name."""
    bits, before, _, tokens, _ = room
    counted = look_at_output & is_given(counts)
    masked = look_at_prompt & is_given(prompt_mask) & noting
    for first in range(0, tl.where(counted | masked, vocab, 0), tile):
        token = first + tl.arange(0, tile)
        inside = token < vocab
        named = count_of(counts, row, token, inside & counted) > 0
        if noting:
            named = named | (of_mask(prompt_mask, row, token, inside & masked) != 0)
            tl.store(tokens + place_of_edit(bits, before, token, named), token, mask=named)
        else:
            one = tl.zeros_like(token) + 1
            tl.atomic_or(bits + (token >> 5), one << (token & 31), mask=named, sem="relaxed")


@triton.jit
def sum_up(room, words, tile: tl.constexpr):
    """How many edits come before each word, and in all."""
    bits, before, _, _, _ = room
    total = tl.full((), 0, tl.int32)
    for first in range(0, words, tile):
        word = first + tl.arange(0, tile)
        size = number_of_bits(tl.load(bits + word, mask=word < words, other=0))
        tl.store(before + word, total + tl.cumsum(size, axis=0) - size, mask=word < words)
        total += tl.sum(size, axis=0)
    return total


@triton.jit
def edited_logit(x, has_bias, bias, in_prompt, count, banned, repetition, presence, frequency):
    """Law section 0, the formula: float32 logits, each operation rounded on its own."""
    x = tl.where(has_bias, x + bias, x)
    penalised = tl.where(x > 0.0, divide(x, tl.zeros_like(x) + repetition), x * repetition)
    x = tl.where(in_prompt | (count > 0), penalised, x)
    reduced = x - count.to(tl.float32) * frequency
    x = tl.where(count > 0, reduced - presence, x)
    return tl.where(banned, -INFINITY, x)


@triton.jit
def work_out(logits, source, adjustments, row, room, values, total, penalties, looks, vocab, tile: tl.constexpr):
    """The values of the edits, place by place."""
    _, _, entries, tokens, notes = room
    repetition, presence, frequency = penalties
    look_at_prompt, look_at_output = looks
    data = logits.data + source * logits.row_stride
    first_bias, _, _ = range_of(adjustments.bias_offsets, row, adjustments.bias_count)
    for first in range(0, total, tile):
        place = first + tl.arange(0, tile)
        there = place < total
        token = tl.load(tokens + place, mask=there, other=0)
        said = tl.load(notes + place, mask=there, other=0)
        entry = tl.load(entries + place, mask=there, other=0)
        at = data + token.to(tl.int64) * logits.stride
        x = load.widen(tl.load(at, mask=there, other=0.0))
        has_bias = entry > 0
        at = adjustments.bias_values.data + (first_bias + entry - 1) * plain(adjustments.bias_values.stride)
        bias = tl.load(at, mask=has_bias, other=0.0)
        in_prompt = (said & _IN_PROMPT) | of_mask(adjustments.prompt_mask, row, token, there & look_at_prompt)
        count = (said // _IN_OUTPUT).to(tl.int64)
        count += count_of(adjustments.output_counts, row, token, there & look_at_output).to(tl.int64)
        allowed = of_mask(adjustments.allowed, row, token, there) | (is_given(adjustments.allowed) == 0).to(tl.int32)
        banned = ((said & _BANNED) != 0) | (allowed == 0)
        x = edited_logit(x, has_bias, bias, in_prompt != 0, count, banned, repetition, presence, frequency)
        tl.store(values + place, x, mask=there)


@triton.jit
def no_edits(room, values, words, invalid, tile: tl.constexpr):
    """The edits of a row that has none, or where it is invalid one: token 0 becomes NaN."""
    bits, before, _, _, _ = room
    for first in range(0, words, tile):
        word = first + tl.arange(0, tile)
        tl.store(bits + word, ((word == 0) & invalid).to(tl.int32), mask=word < words)
        tl.store(before + word, ((word > 0) & invalid).to(tl.int32), mask=word < words)
    tl.store(values, float("nan"), mask=invalid)


@triton.jit
def find_edits_kernel(logits, sources, sizes, adjustments, found, tile: tl.constexpr):
    """The edits of one row."""
    row = tl.program_id(0).to(tl.int64)
    vocab = sizes.vocab
    words = plain(found.words)
    capacity = plain(found.capacity)
    values = found.new_logits + row * capacity
    room = (
        found.bits + row * words,
        found.before + row * words,
        found.entries + row * capacity,
        found.notes + row * capacity * 2,
        found.notes + row * capacity * 2 + capacity,
    )
    source, exists = source_of(sources, row, sizes)
    repetition = number_of(adjustments.repetition_penalty, row)
    presence = number_of(adjustments.presence_penalty, row)
    frequency = number_of(adjustments.frequency_penalty, row)
    valid = (repetition > 0.0) & (repetition < INFINITY)
    valid = valid & (tl.abs(presence) < INFINITY) & (tl.abs(frequency) < INFINITY)
    if (exists & valid) == 0:
        no_edits(room, values, words, exists, tile)
        tl.store(found.status + row, tl.where(exists, _INVALID_PENALTY, 0))
        return

    # By way of an integer: spread over a tile, Triton's interpreter takes what compares floats for floats.
    look_at_prompt = (repetition != 1.0).to(tl.int32) != 0
    look_at_output = look_at_prompt | (((presence != 0.0) | (frequency != 0.0)).to(tl.int32) != 0)
    begin_bits(room, adjustments.prompt_mask, row, look_at_prompt, words, vocab, tile)
    tl.debug_barrier()
    ignored = note_lists(room, adjustments, row, look_at_prompt, look_at_output, vocab, False, tile)
    note_counts(
        room,
        adjustments.prompt_mask,
        adjustments.output_counts,
        row,
        look_at_prompt,
        look_at_output,
        vocab,
        False,
        tile,
    )
    tl.store(found.status + row, ignored * _ENTRIES_IGNORED)
    tl.debug_barrier()
    total = sum_up(room, words, tile)
    for first in range(0, total, tile):
        place = first + tl.arange(0, tile)
        nothing = tl.zeros([tile], tl.int32)
        tl.store(room[2] + place, nothing, mask=place < total)
        tl.store(room[4] + place, nothing, mask=place < total)
    tl.debug_barrier()
    note_lists(room, adjustments, row, look_at_prompt, look_at_output, vocab, True, tile)
    note_counts(
        room,
        adjustments.prompt_mask,
        adjustments.output_counts,
        row,
        look_at_prompt,
        look_at_output,
        vocab,
        True,
        tile,
    )
    tl.debug_barrier()
    penalties = repetition, presence, frequency
    looks = look_at_prompt, look_at_output
    work_out(logits, source, adjustments, row, room, values, total, penalties, looks, vocab, tile)
