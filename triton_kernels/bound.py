"""bound: where to look for the last token that a row keeps, before anything is weighed.

top_k: a rank that at least k tokens reach, for sure; from the peaks alone. top_p: a guess, from the peaks and one token
of each chunk, which is the only read here: the pivots at which the next read of the row measures. A bad guess costs
reads, never a result.
"""

import triton
import triton.language as tl

from . import load
from .crossing import crossing
from .law import LAST_RANK, exponent, logit_of, rank_of
from .work import PIVOTS

# 2^-13 of forty octaves: finer than the distance between two pivots needs to be.
_HALVINGS: tl.constexpr = tl.constexpr(13)
_OCTAVES: tl.constexpr = tl.constexpr(40.0)
_DEVIATIONS: tl.constexpr = tl.constexpr(2.5)
_NEAR: tl.constexpr = tl.constexpr(0.25)  # octaves around the guess, over which the mass per octave is taken
_WIDEST: tl.constexpr = tl.constexpr(4.0)  # octaves to either side
# Of the parts between the pivots: the sample's count of tokens is a guess too.
_SHARE_OF_LIST: tl.constexpr = tl.constexpr(0.7)


@triton.jit
def of_top_k(peak, k, first_rank):
    """The k-th of the peaks: as many tokens reach it. The last rank of all where there are not so many chunks."""
    candidate = peak <= LAST_RANK
    last = tl.max(tl.where(candidate, peak, first_rank), axis=0)
    bound = crossing(peak, candidate.to(tl.int32), k, first_rank, last)
    return tl.where(tl.sum(candidate.to(tl.int32), axis=0) >= k, bound, LAST_RANK)


@triton.jit
def even_pivots(low, high):
    """Pivots that cut the ranks in (low, high] into equal parts; at least one of them cuts."""
    part = (high - low) * (tl.arange(0, PIVOTS) + 1).to(tl.int64)
    return low + part // (PIVOTS + 1)


@triton.jit
def depth_of(x, weighing, shape):
    """How many octaves a value weighs less than the largest: roughly, for a guess."""
    m, c, _ = weighing
    if shape.probabilities:
        return -tl.log2(tl.maximum(x, 0.0) / m)
    else:
        return -exponent(x, m, c)


@triton.jit
def rank_at(depth, weighing, shape):
    """The rank of the value that lies so many octaves below the largest, roughly."""
    m, c, _ = weighing
    if shape.probabilities:
        return rank_of(m * tl.exp2(-depth))
    else:
        return rank_of(m - depth / c)


@triton.jit
def guessed_pivots(row, peak, weighing, top_p, shape):
    """Pivots around the rank at which a sample of the row says that `top_p` of its mass is reached, int64.

    A chunk's peak counts as itself, and one other token of it, at a place that varies, for all the rest. The pivots
    reach 2.5 standard deviations, of what the sample says of that mass, to either side; farther if the list has room.
    """
    chunk = tl.arange(0, shape.chunks)
    within = ((chunk.to(tl.uint32) * 0x9E3779B1) >> 16) % shape.chunk
    x = load.values(row, chunk * shape.chunk + within.to(tl.int32), shape)
    depth_of_peak = depth_of(logit_of(peak), weighing, shape)
    depth_of_rest = depth_of(x, weighing, shape)
    peak_mass = tl.exp2(-depth_of_peak)
    rest_mass = tl.where(load.ranks(x, shape) > peak, tl.exp2(-depth_of_rest) * shape.chunk, 0.0)
    total = tl.sum(peak_mass + rest_mass, axis=0)

    above = total * 0.0  # in octaves: less than the target lies above it, and the target above `below`
    below = above + _OCTAVES
    for _ in range(_HALVINGS):
        middle = (above + below) * 0.5
        of_peaks = tl.where(depth_of_peak <= middle, peak_mass, 0.0)
        mass = tl.sum(of_peaks + tl.where(depth_of_rest <= middle, rest_mass, 0.0), axis=0)
        reached = mass >= top_p * total
        above = tl.where(reached, above, middle)
        below = tl.where(reached, middle, below)

    # The share above is a ratio of two sums of the same sample, hence the two factors.
    error = tl.where(depth_of_rest <= below, 1.0 - top_p, top_p) * rest_mass
    deviation = tl.sqrt(tl.sum(error * error, axis=0))
    near_peaks = tl.where(tl.abs(depth_of_peak - below) <= _NEAR, peak_mass, 0.0)
    near_rest = tl.where(tl.abs(depth_of_rest - below) <= _NEAR, rest_mass, 0.0)
    mass_per_octave = tl.sum(near_peaks + near_rest, axis=0) / (2.0 * _NEAR)
    width = deviation * _DEVIATIONS / tl.maximum(mass_per_octave, total * 1e-6)
    # And as far as the list has room: where few tokens hold the mass, the sample misses those that share a chunk.
    near_count = tl.sum((tl.abs(depth_of_peak - below) <= _NEAR).to(tl.int32), axis=0)
    near_count += shape.chunk * tl.sum(
        ((tl.abs(depth_of_rest - below) <= _NEAR) & (rest_mass > 0)).to(tl.int32), axis=0
    )
    tokens_per_octave = tl.maximum(near_count, 1).to(tl.float32) / (2.0 * _NEAR)
    width = tl.maximum(width, (1.0 / tokens_per_octave) * (shape.list * (PIVOTS - 1) * 0.5 * _SHARE_OF_LIST))
    width = tl.minimum(width, _WIDEST)
    place = tl.arange(0, PIVOTS).to(tl.float32) * (2.0 / (PIVOTS - 1)) - 1.0
    return rank_at(below + width * place, weighing, shape).to(tl.int64)
