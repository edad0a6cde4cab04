"""The sampling law (docs/law.md) one number at a time, as Triton functions. They read no memory.

Triton in three sentences, for who knows PyTorch: a function under `@triton.jit` is compiled for the GPU and run by
many *programs* at once, each with its own value of `tl.program_id`. Inside one, a variable is a number or a small
tensor (a *tile*) spread over the registers of its threads, and `tl.load` and `tl.store` move tiles from and to memory
at tensors of addresses, where `mask` says. What is annotated `tl.constexpr` is known when the kernel is compiled.

What looks odd and why: `kernel[(n,)](...)` launches n programs; an `if` on what is known when compiling chooses code,
on a number of the GPU it branches; `tl.full((), 0, tl.int64)` is a number with a type, where a plain 0 would be an
int32 that cannot become an int64 later; and `tl.debug_barrier()` makes a program's threads wait for each other, so that
one can load from memory what another has stored.

Rounding. The kernels are compiled with `enable_fp_fusion=False`, so that a * b + c keeps its two roundings (an FMA
changes 17 % of the q of law section 1), and `divide` below, since `/` need not be correctly rounded.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(float.fromhex("0x1.715476p+0"))  # float32(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(float.fromhex("0x1.62e430p-1"))
FLOAT_MAX: tl.constexpr = tl.constexpr(float.fromhex("0x1.fffffep+127"))
INFINITY: tl.constexpr = tl.constexpr(float("inf"))
LARGEST_WEIGHT: tl.constexpr = tl.constexpr(1 << 40)

# The polynomial P of law section 1, constant term first.
P0: tl.constexpr = tl.constexpr(float.fromhex("0x1.0p+0"))
P1: tl.constexpr = tl.constexpr(float.fromhex("0x1.62e4c8p-1"))
P2: tl.constexpr = tl.constexpr(float.fromhex("0x1.ebd8a0p-3"))
P3: tl.constexpr = tl.constexpr(float.fromhex("0x1.c94440p-5"))
P4: tl.constexpr = tl.constexpr(float.fromhex("0x1.269df0p-7"))
P5: tl.constexpr = tl.constexpr(float.fromhex("0x1.eca6f0p-10"))

# Ranks (law section 2): int32, smaller for larger logits, so that "ranks above" is "is less than".
INFINITY_RANK: tl.constexpr = tl.constexpr(-0x7F800000)
LAST_RANK: tl.constexpr = tl.constexpr(0x7F7FFFFF)  # of -FLT_MAX; -inf lies one beyond and is never kept
NAN_RANK: tl.constexpr = tl.constexpr(-0x7FFFFFFF)  # above everything, so that the first rank of a row shows a NaN
_SIGN_BIT: tl.constexpr = tl.constexpr(-0x80000000)


@triton.jit
def rank_of(x):
    """Law section 2: the rank of float32 logits. -0.0 and +0.0 share rank 0."""
    bits = x.to(tl.int32, bitcast=True)
    rank = tl.where(bits < 0, bits - _SIGN_BIT, -bits)
    return tl.where(x != x, NAN_RANK, rank)


@triton.jit
def logit_of(rank):
    """The float32 logits of ranks: `rank_of` backwards, but for the sign of zero."""
    bits = tl.where(rank > 0, rank + _SIGN_BIT, -rank)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def at_or_above(rank, index, last_rank, last_index):
    """Law section 2: which tokens rank at or above the one of (last_rank, last_index); of equal logits the first do."""
    return (rank < last_rank) | ((rank == last_rank) & (index <= last_index))


# --- law section 0: edits


@triton.jit
def number_of_bits(word):
    """How many bits of int32 words are set. LLVM knows this for what GPUs have one instruction for."""
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def bits_below(word, bit):
    """How many bits of int32 words are set below bit number `bit`."""
    return number_of_bits(word & ((1 << bit) - 1))


# --- law section 1: weights


@triton.jit
def divide(a, b):
    """fl(a / b) of float32 numbers, correctly rounded, denormals kept.

    In float64 and rounded once more, which gives the same: a quotient of two 24-bit integers lies too far from the
    midpoints of float32 (`fastsample/reference.py`). Before Triton 3.6, `tl.div_rn` flushes denormals.
    """
    return (a.to(tl.float64) / b.to(tl.float64)).to(tl.float32)


@triton.jit
def scale_of(temperature):
    """Law section 1: c = min(fl(log2e / T), FLT_MAX)."""
    greedy = temperature == 0.0
    c = divide(tl.zeros_like(temperature) + LOG2E, tl.where(greedy, 1.0, temperature))
    return tl.where(greedy | (c > FLOAT_MAX), FLOAT_MAX, c)


@triton.jit
def exponent(x, m, c):
    """Law section 1: d_i = fl(fl(x_i - m) * c); 0 at the maximum, -inf where x_i - m overflows."""
    difference = x - m
    d = tl.where(difference == -INFINITY, -INFINITY, difference * c)  # T = inf has c = 0, and -inf * 0 would be NaN
    return tl.where(x == m, 0.0, d)  # +inf - +inf would be NaN


@triton.jit
def polynomial(f):
    """Law section 1: q = P(f) by Horner, each * and + rounded on its own."""
    q = f * P5
    q = (q + P4) * f
    q = (q + P3) * f
    q = (q + P2) * f
    q = (q + P1) * f
    return q + P0


@triton.jit
def weight_of_logit(x, m, c):
    """Law section 1: w_i, int64 in [0, 2^40]."""
    # `exponent` but for x - m = -inf, which weighs 0 either way: with c = 0 d is NaN, and no NaN is >= -40.
    d = tl.where(x == m, 0.0, (x - m) * c)
    heavy = d >= -40.0
    d = tl.where(heavy, d, 0.0)
    n = tl.floor(d)
    q = polynomial(d - n)
    fixed_point = (q.to(tl.int32, bitcast=True) - 0x3F000000).to(tl.int64) << 17
    return tl.where(heavy, fixed_point >> (-n).to(tl.int32).to(tl.int64), 0)


# --- law section 3: products in 128 bits


@triton.jit
def significand_and_exponent(x):
    """x = significand * 2^(exponent - 150), for float32 x >= 0; both int32, and exact for denormals too."""
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    exponent = bits >> 23
    fraction = bits & 0x7FFFFF
    return tl.where(exponent > 0, fraction | 0x800000, fraction), tl.maximum(exponent, 1)


@triton.jit
def ceil_product(p, z):
    """ceil(p * z) for float32 p in [0, 1] and int64 z in [0, 2^62], exact (law section 3)."""
    significand, exponent = significand_and_exponent(p)
    shift = (150 - exponent).to(tl.uint64)  # p = significand / 2^shift, 23 <= shift <= 149
    factor = significand.to(tl.uint64)
    low = factor * z.to(tl.uint64)
    high = tl.umulhi(factor, z.to(tl.uint64))  # below 2^22
    # Shifts of 64 and more are not defined: below 64 the result has bits of both words, from 64 on of `high` alone.
    near = tl.minimum(shift, 63)
    far = tl.minimum(tl.maximum(shift, 64) - 64, 63)
    one = factor * 0 + 1
    near_result = (high << (64 - near)) + (low >> near) + ((low & ((one << near) - 1)) != 0).to(tl.uint64)
    far_result = (high >> far) + (((high & ((one << far) - 1)) | low) != 0).to(tl.uint64)
    return tl.where(shift < 64, near_result, far_result).to(tl.int64)


# --- law section 4: the random words


@triton.jit
def philox4x32_10(key0, key1, counter0, counter1, counter2, counter3):
    """Philox4x32 with ten rounds on uint32 (Salmon et al. 2011, law section 4)."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(counter0, counter0 * 0 + 0xD2511F53)
        high2 = tl.umulhi(counter2, counter2 * 0 + 0xCD9E8D57)
        low0 = counter0 * 0xD2511F53
        low2 = counter2 * 0xCD9E8D57
        counter0 = high2 ^ counter1 ^ key0
        counter2 = high0 ^ counter3 ^ key1
        counter1 = low2
        counter3 = low0
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return counter0, counter1, counter2, counter3


@triton.jit
def random_word(seed, offset, stream, draw):
    """Law section 4: word number `draw`, uint64, of the stream of (seed, offset, stream): all int64, by their bits."""
    o0, o1, o2, o3 = philox4x32_10(
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
        offset.to(tl.uint32),
        (offset >> 32).to(tl.uint32),
        stream.to(tl.uint32),
        (draw >> 1).to(tl.uint32),
    )
    odd = (draw & 1) == 1
    low = tl.where(odd, o2, o0).to(tl.uint64)
    high = tl.where(odd, o3, o1).to(tl.uint64)
    return low | (high << 32)


@triton.jit
def target_of(word, z):
    """Law section 4: t = floor(r * Z / 2^64), int64."""
    return tl.umulhi(word, z.to(tl.uint64)).to(tl.int64)


# --- law section 5: probabilities in and out


@triton.jit
def weight_of_probability(x, shift):
    """Law section 5: w_i = floor(p_i * 2^(b - 1 - e)), int64, exact; `shift` is b - 1 - e."""
    significand, exponent = significand_and_exponent(x)
    left = (exponent - 150 + shift).to(tl.int64)
    raised = significand.to(tl.int64) << tl.minimum(tl.maximum(left, 0), 40)
    return raised >> tl.minimum(tl.maximum(-left, 0), 63)


@triton.jit
def shift_of_probabilities(largest, bits):
    """Law section 5: b - 1 - e with e = floor(log2 max p), for float32 max p > 0 and b = `bits`."""
    significand, exponent = significand_and_exponent(largest)
    # The place of the significand's leading bit, which only a denormal has below 23: its exponent as a float.
    leading = (significand.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    return bits - 1 - (leading + exponent - 150)


@triton.jit
def share_of(z):
    """Law section 5: fl(1 / fl(Z * 2^-40))."""
    total = z.to(tl.float32) * 2.0**-40
    return divide(tl.zeros_like(total) + 1.0, total)


@triton.jit
def probability(x, m, c, share):
    """Law section 5: p_i = fl(fl(q_i * 2^n_i) * share), and 0 below d_i = -126."""
    d = exponent(x, m, c)
    normal = d >= -126.0
    d = tl.where(normal, d, 0.0)
    n = tl.floor(d)
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(normal, polynomial(d - n) * power * share, 0.0)


@triton.jit
def log1p_of_rest(z):
    """Law section 5: log1p(S), S being float32(Z - 2^40) * 2^-40, as float32.

    In float64, and there by log(u) * S / (u - 1) with u = fl(1 + S), which takes back what the sum rounded off (Kahan).
    """
    s = (z - LARGEST_WEIGHT).to(tl.float32).to(tl.float64) * 2.0**-40
    u = s + 1.0
    rounded_away = u == 1.0
    corrected = tl.log(u) * (s / tl.where(rounded_away, 1.0, u - 1.0))
    return tl.where(rounded_away, s, corrected).to(tl.float32)


# --- law section 8: probabilities in fixed point


@triton.jit
def reciprocal(z):
    """Law section 8: floor(2^102 / Z), uint64, of int64 Z in [2^39, 2^62], by schoolbook division."""
    quotient = z * 0
    rest = quotient + (1 << 38)  # as after the first digits, which are above no Z
    for _ in range(64):
        rest = rest + rest
        fits = rest >= z
        rest = tl.where(fits, rest - z, rest)
        quotient = quotient + quotient + fits.to(tl.int64)
    return quotient.to(tl.uint64, bitcast=True)


@triton.jit
def fixed_probability(weight, share):
    """Law section 8: p^_i = (w_i * floor(2^102 / Z)) >> 62 of a tile of weights, int64; `share` is the `reciprocal`."""
    return tl.umulhi(tl.zeros_like(weight).to(tl.uint64) + share, (weight << 2).to(tl.uint64)).to(tl.int64)
