"""Pieces of speculative decoding (law section 8): random words, fixed-point probabilities, draws from a residual.

They go on from what `kernels.row_kernel` kept of a row. The fixed probabilities of given tokens read those tokens; a
draw from the residual reads both rows once more, with several programs a row, and then a chunk of each.
"""

import triton
import triton.language as tl

from . import draw, load, selection, weigh
from .kernels import part_of
from .law import fixed_probability, random_word, rank_of, reciprocal, target_of
from .work import masses_in, number_of, place_in, plain, scratch_of, source_of


@triton.jit(do_not_specialize=["count"])
def random_words_kernel(randomness, first, count, out, tile: tl.constexpr):
    """Words first, first + 1, ... of each row (law section 4), by their bits."""
    blocks = tl.cdiv(count, tile)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    number = (tl.program_id(0) % blocks) * tile + tl.arange(0, tile)
    seed, offset, stream = draw.random_of(randomness, row)
    nothing = tl.zeros([tile], tl.int64)
    word = random_word(seed + nothing, offset + nothing, stream + nothing, plain(first) + number.to(tl.int64))
    tl.store(place_in(out, row, number.to(tl.int64)), word.to(tl.int64, bitcast=True), mask=number < count)


@triton.jit
def side_of(side, row):
    """A row of the target or of the draft, its weighing, what it keeps, floor(2^102 / Z), and whether it is valid."""
    valid, last_rank, last_index, least, z, m = selection.stored(side.scratch, row, side.shape)
    source, _ = source_of(side.sources, row, side.sizes)
    vocab = side.sizes.vocab
    logits_row = load.row_at(side.logits, source, row, vocab, side.shape)
    weighing = weigh.weighing_of(rank_of(m), number_of(side.temperature, row), vocab, side.shape)
    return logits_row, weighing, (last_rank, last_index, least), reciprocal(z), valid


@triton.jit
def kept_weights(x, index, weighing, kept_set, shape):
    """w_i of loaded values where they are kept, else 0."""
    last_rank, last_index, least = kept_set
    weight = weigh.weights(x, weighing, shape)
    return tl.where(selection.keeps(load.ranks(x, shape), index, weight, last_rank, last_index, least), weight, 0)


@triton.jit(do_not_specialize=["count"])
def fixed_probs_kernel(side, wanted, count, out):
    """p^ of given tokens; -1 for one that is none and in an invalid row."""
    blocks = tl.cdiv(count, side.shape.chunk)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    number = (tl.program_id(0) % blocks) * side.shape.chunk + tl.arange(0, side.shape.chunk)
    logits_row, weighing, kept_set, share, valid = side_of(side, row)
    token = tl.load(place_in(wanted, row, number.to(tl.int64)), mask=number < count, other=-1)
    known = (token >= 0) & (token < side.sizes.vocab) & valid
    index = tl.where(known, token, 0).to(tl.int32)
    x = load.values(logits_row, index, side.shape)
    p = fixed_probability(kept_weights(x, index, weighing, kept_set, side.shape), share)
    tl.store(place_in(out, row, number.to(tl.int64)), tl.where(known, p, -1), mask=number < count)


@triton.jit
def residual(x, y, index, of_target, of_draft, target_shape, draft_shape):
    """Of a tile of tokens u and p^; where there is no draft 0 and the target's weights.

    x, y: what target and draft have at the tile's indices.
    """
    _, target_weighing, target_kept, target_share, _ = of_target
    _, draft_weighing, draft_kept, draft_share, drafted = of_draft
    weight = kept_weights(x, index, target_weighing, target_kept, target_shape)
    p = fixed_probability(weight, target_share)
    q = fixed_probability(kept_weights(y, index, draft_weighing, draft_kept, draft_shape), draft_share)
    return tl.where(drafted, tl.maximum(p - q, 0), 0), tl.where(drafted, p, weight)


@triton.jit(do_not_specialize=["parts"])
def residual_kernel(target, draft, parts):
    """Sums u up chunk by chunk, and what is drawn from where that is 0 everywhere, with `parts` programs a row."""
    per_block: tl.constexpr = target.shape.block // target.shape.chunk
    row = (tl.program_id(0) // parts).to(tl.int64)
    of_target = side_of(target, row)
    of_draft = side_of(draft, row)
    first, last = part_of(tl.program_id(0) % parts, parts, target.sizes, target.shape)
    masses = masses_in(scratch_of(target.scratch, row, target.shape), target.shape)
    other_masses = masses_in(scratch_of(draft.scratch, row, draft.shape), draft.shape)
    if of_target[4]:
        for chunk in range(first, last, per_block):
            x, index = load.block(of_target[0], chunk, target.shape)
            y, _ = load.block(of_draft[0], chunk, draft.shape)
            u, other = residual(x, y, index, of_target, of_draft, target.shape, draft.shape)
            place = chunk + tl.arange(0, per_block)
            mass = tl.sum(tl.reshape(u, [per_block, target.shape.chunk]), axis=1)
            tl.store(masses + place, mass, mask=place < last)
            mass = tl.sum(tl.reshape(other, [per_block, target.shape.chunk]), axis=1)
            tl.store(other_masses + place, mass, mask=place < last)


@triton.jit
def draw_residual_kernel(target, draft, randomness, out):
    """The draw from what `residual_kernel` has summed up."""
    row = tl.program_id(0).to(tl.int64)
    of_target = side_of(target, row)
    of_draft = side_of(draft, row)
    if of_target[4] == 0:
        tl.store(place_in(out, row, 0), tl.full((), -1, tl.int64))
        return
    chunk_number = tl.arange(0, target.shape.chunks)
    there = chunk_number < target.sizes.chunks
    masses = masses_in(scratch_of(target.scratch, row, target.shape), target.shape)
    other_masses = masses_in(scratch_of(draft.scratch, row, draft.shape), draft.shape)
    mass = tl.load(masses + chunk_number, mask=there, other=0)
    something_left = tl.sum(mass, axis=0) > 0
    mass = tl.where(something_left, mass, tl.load(other_masses + chunk_number, mask=there, other=0))

    seed, offset, stream = draw.random_of(randomness, row)
    t = target_of(random_word(seed, offset, stream, tl.full((), 0, tl.int64)), tl.sum(mass, axis=0))
    up_to = tl.cumsum(mass, axis=0)
    chunk = tl.sum((up_to <= t).to(tl.int32), axis=0)
    rest = t - tl.max(tl.where(up_to <= t, up_to, 0), axis=0)
    index = chunk * target.shape.chunk + tl.arange(0, target.shape.chunk)
    x = load.values(of_target[0], index, target.shape)
    y = load.values(of_draft[0], index, draft.shape)
    u, other = residual(x, y, index, of_target, of_draft, target.shape, draft.shape)
    measure = tl.where(something_left, u, other)
    drawn = tl.sum((tl.cumsum(measure, axis=0) <= rest).to(tl.int32), axis=0)
    tl.store(place_in(out, row, 0), (chunk * target.shape.chunk + drawn).to(tl.int64))
