"""The sampling law (docs/law.md, version 1) in plain PyTorch: the specification, the fallback and the oracle.

Written to be read beside the law: one heading per section of it, its steps under its names (load, maximum, weigh, cut,
draw; a plain sort, `rank`, stands where the other backends bound and gather). Vectorised over rows, on any device whose
float64 and int64 are IEEE 754 and two's complement. No step looks at data from the host, so nothing here synchronises
with a GPU.

Floating point. The law asks for float32 with denormals kept, but `torch.set_flush_denormal(True)` or a compiler may
flush them, and a flushed T, c or x_i - m changes the weights. So each float32 value is held in a float64 tensor, taken
in and out of float32 through its bits, and `fl` rounds a float64 result to float32. One float32 operation done in
float64 and rounded once more gives the float32 result: for +, -, * and / because 53 >= 2 * 24 + 2 (Figueroa 1995,
"When is double rounding innocuous?"), and where that result is a float32 denormal because sums are then exact,
products are exact in float64 anyhow, and a quotient of two 24-bit integers lies at least 2^-48 (relative) from any
float32 midpoint that it does not hit. No float64 in here is ever denormal. Only P is computed in float32 itself: it is
1 at f = 0, and from f = 2^-24 up none of its steps is near the denormals.

Integers. Everything summed is int64. Unsigned 64-bit words (seed, offset, r) are held as the int64 of the same bits;
products are cut into limbs so that no int64 operation overflows.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample.arguments import ORDERS, Filters, Randomness

INVALID_TOKEN = -1

_JOINT, _MIN_P_FIRST = ORDERS.index("joint"), ORDERS.index("min_p_first")

_MASK32 = 0xFFFFFFFF
_SIGN_BIT = -0x80000000  # as an int32
_INFINITY_KEY = 0x7F800000
_ONE = 1 << 40  # the weight of the maximum
_LOG2E = float.fromhex("0x1.715476p+0")  # float32(1.4426950408889634)
_LN2 = float.fromhex("0x1.62e430p-1")  # float32(0.6931471805599453)
_FLT_MAX = float.fromhex("0x1.fffffep+127")
_FLT_MIN_NORMAL = 2.0**-126
_FLT_DENORMAL_UNIT = 2.0**-149
_COEFFICIENTS = tuple(
    float.fromhex(c)
    for c in ("0x1.0p+0", "0x1.62e4c8p-1", "0x1.ebd8a0p-3", "0x1.c94440p-5", "0x1.269df0p-7", "0x1.eca6f0p-10")
)

# Elements in a block of rows. About ten 8-byte temporaries of that size live at once, so 2^20 keeps them near 80 MiB.
_BLOCK_ELEMENTS = 1 << 20


# --- float32 values in float64 tensors, whatever the denormal mode


def fl(value: Tensor) -> Tensor:
    """`fl` of law section 1: float64 values rounded to float32 (nearest, ties to even, denormals kept), as float64."""
    # float64 numbers of this size are 2^-149 apart, so adding it rounds to the grid of float32's denormals.
    denormal_rounder = 1.5 * 2.0**-97
    denormal = (value + denormal_rounder) - denormal_rounder
    return torch.where(value.abs() < _FLT_MIN_NORMAL, denormal, value.float().double())


def ordered_key(value: Tensor) -> Tensor:
    """int32 keys in the order of float32 values (law section 2).

    -0.0 and +0.0 share key 0, infinity is 0x7F800000, minus infinity its negative, and NaN lies beyond either.
    """
    bits = value.detach().float().view(torch.int32)
    return torch.where(bits < 0, _SIGN_BIT - bits, bits)


def widen(value: Tensor) -> Tensor:
    """The exact float64 values of float32, float16 or bfloat16 numbers, also where the processor flushes denormals."""
    key = ordered_key(value)
    return torch.where(key.abs() < 0x00800000, key.double() * _FLT_DENORMAL_UNIT, value.detach().float().double())


def narrow(value: Tensor) -> Tensor:
    """The float32 tensor of float64 values that `fl` has rounded, also where the processor flushes denormals."""
    magnitude = (value.abs() * 2.0**149).clamp(max=2.0**23).int()
    denormal = torch.where(value < 0, magnitude + _SIGN_BIT, magnitude).view(torch.float32)
    return torch.where(value.abs() < _FLT_MIN_NORMAL, denormal, value.float())


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, for int64 exponents in [-1022, 1023]."""
    # Not torch.ldexp: its power of two is float32 and overflows at 2^128.
    return ((exponent + 1023) << 52).view(torch.float64)


# --- exact integer products


def multiply_32x32(a: Tensor | int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a * b, for int64 tensors (or a number `a`) in [0, 2^32)."""
    low_part = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low_part >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low_part & 0xFFFF)


def multiply_high(r: Tensor, z: Tensor) -> Tensor:
    """floor(r * z / 2^64), exact (law section 4).

    r: int64, any shape, the bits of an unsigned 64-bit word. z: int64, broadcastable to r, in [0, 2^62].
    Returns int64 in [0, z) (0 where z is 0).
    """
    r_high, r_low = (r >> 32) & _MASK32, r & _MASK32
    z_high, z_low = z >> 32, z & _MASK32
    low_low, _ = multiply_32x32(r_low, z_low)
    low_high = multiply_32x32(r_low, z_high)
    high_low = multiply_32x32(r_high, z_low)
    carry = (low_low + low_high[1] + high_low[1]) >> 32
    return r_high * z_high + low_high[0] + high_low[0] + carry


def ceil_product(p: Tensor, z: Tensor) -> Tensor:
    """ceil(p * z), exact in 128 bits (law section 3).

    p: float64, any shape, float32 values in [0, 1]. z: int64, the shape of p, in [0, 2^62]. Returns int64 in [0, z].
    """
    mantissa, exponent = torch.frexp(p)  # p = mantissa * 2^exponent with mantissa in [1/2, 1)
    factor = (mantissa * 2.0**24).long()  # p = factor * 2^-shift, an integer over a power of two
    shift = 24 - exponent.long()
    low = factor * (z & _MASK32)  # below 2^56
    upper = factor * (z >> 32) + (low >> 32)  # below 2^55; the product is upper * 2^32 + low
    low = low & _MASK32

    # For shift >= 32 the quotient lies in `upper` alone, and beyond 2^-62 nothing is left but the rounding up to 1.
    far = (shift - 32).clamp(0, 62)
    far_result = (upper >> far) + (((upper & ((1 << far) - 1)) | low) != 0)
    near = shift.clamp(0, 31)
    near_result = (upper << (32 - near)) + ((low + (1 << near) - 1) >> near)
    return torch.where(shift >= 32, far_result, near_result)


# --- law section 1: weights


def load(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Law section 1, load: int32 rank keys and exact float64 values of logits of any dtype and strides."""
    return ordered_key(logits), widen(logits)


def maximum(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Law section 1, maximum: m of each row, float64 [rows, 1], and the lowest index that holds it, int64 [rows, 1]."""
    peak = key.amax(dim=1, keepdim=True)
    index = torch.arange(key.shape[1], device=key.device)
    first = torch.where(key == peak, index, key.shape[1]).amin(dim=1, keepdim=True)
    return value.gather(1, first), first


def exponent_scale(temperature: Tensor) -> Tensor:
    """Law section 1: c = min(fl(log2e / T), FLT_MAX), float64 like the temperature."""
    # A tensor over a tensor: torch computes number / tensor as number * reciprocal, which rounds twice.
    return fl(torch.full_like(temperature, _LOG2E) / temperature).clamp(max=_FLT_MAX)


def exponents(key: Tensor, value: Tensor, temperature: Tensor) -> Tensor:
    """Law section 1: d_i, the base-2 exponent of each token's weight before it is cut into n_i + f_i.

    key, value: as `load` returns them, [rows, vocab]. temperature: float64 [rows], float32 values.
    Returns float64 [rows, vocab] of float32 values <= 0: -inf for what can have no weight (x_i - m overflows or x_i is
    -inf), and in a row with temperature 0 for everything but the lowest index among the maxima. A row with a NaN in it
    comes out meaningless.
    """
    m, first = maximum(key, value)
    temperature = temperature[:, None]
    c = exponent_scale(temperature)
    difference = fl(value - m)
    d = fl(difference * c)
    d = torch.where(difference == -math.inf, -math.inf, d)  # T = inf has c = 0, and -inf * 0 would be NaN
    d = torch.where(value == m, 0.0, d)  # +inf - +inf would be NaN
    index = torch.arange(key.shape[1], device=key.device)
    return torch.where((temperature == 0) & (index != first), -math.inf, d)


def polynomial(f: Tensor) -> Tensor:
    """Law section 1: q = P(f), float32 in [1, 2] for float32 f in [0, 1]; Horner, each * and + rounded on its own."""
    q = torch.full_like(f, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        q = q * f  # apart from the addition, so that nothing can contract the two into an FMA
        q = q + coefficient
    return q


def split(d: Tensor) -> tuple[Tensor, Tensor]:
    """Law section 1: n_i (int64) and q_i (float32) of exponents d_i (float64); 0 and 1 where d_i < -126 (unused)."""
    d = torch.where(d >= -126.0, d, 0.0)
    n = torch.floor(d)
    f = fl(d - n).float()  # 0 or at least 2^-24: nothing to flush
    return n.long(), polynomial(f)


def weigh(d: Tensor) -> Tensor:
    """Law section 1, weigh: w_i = floor(2^40 * 2^d_i) up to P's error, int64 in [0, 2^40], of exponents (float64)."""
    heavy = d >= -40.0
    n, q = split(torch.where(heavy, d, 0.0))
    scaled = (q.view(torch.int32).long() - 0x3F000000) << 17
    return torch.where(heavy, scaled >> -n, 0)


# --- law section 2: order


def rank(key: Tensor) -> Tensor:
    """Law section 2: each row's indices in rank order, int64 [rows, vocab]: larger first, equal ones by index."""
    return torch.sort(key, dim=1, descending=True, stable=True).indices


# --- law section 3: filters


class RowFilters(NamedTuple):
    """The filters of a batch, one entry per row."""

    temperature: Tensor  # float64 [batch] of float32 values
    top_k: Tensor  # int64 [batch]
    top_p: Tensor  # float64 [batch] of float32 values
    min_p: Tensor  # float64 [batch] of float32 values
    order: int
    ranked: bool  # False only where it is known without looking at tensors that no row has top_k or top_p

    def rows(self, part: slice) -> "RowFilters":
        return RowFilters(
            self.temperature[part], self.top_k[part], self.top_p[part], self.min_p[part], self.order, self.ranked
        )


def row_floats(number: float, rows: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """A float parameter of every row, rounded to float32 as the law asks of Python floats, as float64 [batch]."""
    if rows is None:
        return fl(torch.full((batch,), number, dtype=torch.float64, device=device))
    return widen(rows).expand(batch)


def row_integers(number: int, rows: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """An integer parameter of every row, int64 [batch]."""
    if rows is None:
        return torch.full((batch,), number, dtype=torch.int64, device=device)
    return rows.expand(batch)


def row_filters(filters: Filters, batch: int, logits: Tensor) -> RowFilters:
    """Spread the operators' filter arguments over the `batch` output rows that are to come from `logits`."""
    vocab, device = logits.shape[1], logits.device
    top_k_off = filters.top_k_rows is None and not 0 < filters.top_k < vocab
    top_p_off = filters.top_p_rows is None and filters.top_p == 1.0
    return RowFilters(
        row_floats(filters.temperature, filters.temperature_rows, batch, device),
        row_integers(filters.top_k, filters.top_k_rows, batch, device),
        row_floats(filters.top_p, filters.top_p_rows, batch, device),
        row_floats(filters.min_p, filters.min_p_rows, batch, device),
        filters.order,
        not (top_k_off and top_p_off),
    )


def top_p_bound(top_p: Tensor, z: Tensor) -> Tensor:
    """Law section 3: max(1, ceil(top_p * Z_B)), int64 like z; a token is kept while what ranks above it weighs less."""
    return ceil_product(top_p, z).clamp(min=1)


def cut(key: Tensor, weight: Tensor, candidate: Tensor, peak: Tensor, filters: RowFilters) -> Tensor:
    """Law section 3, cut: the kept set, which is the intersection of top_k, min_p and top_p.

    key: int32 [rows, vocab], rank keys. weight: int64 [rows, vocab]. candidate: bool [rows, vocab], what may be kept at
    all (above -inf, in a valid row). peak: int64 [rows], the weight that min_p is relative to. Returns bool
    [rows, vocab].
    """
    vocab = key.shape[1]
    heavy_enough = weight >= ceil_product(filters.min_p, peak)[:, None]
    if not filters.ranked:
        return candidate & heavy_enough
    ranked = rank(key)
    k = torch.where((filters.top_k <= 0) | (filters.top_k >= vocab), vocab, filters.top_k)
    within_k = torch.arange(vocab, device=key.device) < k[:, None]  # in rank order, as all that follows

    base = candidate.gather(1, ranked)
    if filters.order != _JOINT:
        base = base & within_k
    if filters.order == _MIN_P_FIRST:
        base = base & heavy_enough.gather(1, ranked)
    base_weight = torch.where(base, weight.gather(1, ranked), 0)
    up_to_here = base_weight.cumsum(dim=1)
    bound = top_p_bound(filters.top_p, up_to_here[:, -1])
    within_p = (up_to_here - base_weight < bound[:, None]) | (filters.top_p == 1)[:, None]

    kept = torch.zeros_like(candidate).scatter(1, ranked, within_k & within_p)
    return kept & candidate & heavy_enough


class Row(NamedTuple):
    """What the law says of a block of rows before any draw."""

    exponent: Tensor  # d_i, float64 [rows, vocab]
    weight: Tensor  # w_i over the kept set and 0 elsewhere, int64 [rows, vocab]
    kept: Tensor  # bool [rows, vocab]
    valid: Tensor  # bool [rows]


def _filters_valid(filters: RowFilters) -> Tensor:
    top_p_valid = (filters.top_p >= 0) & (filters.top_p <= 1)
    min_p_valid = (filters.min_p >= 0) & (filters.min_p <= 1)
    return top_p_valid & min_p_valid


def rows_of_logits(logits: Tensor, filters: RowFilters) -> Row:
    """Law sections 1 to 3 for a block of rows of logits [rows, vocab], one entry of `filters` each."""
    return rows_of_loaded(*load(logits), filters)


def rows_of_loaded(key: Tensor, value: Tensor, filters: RowFilters) -> Row:
    """Law sections 1 to 3 for a block of rows as `load` returns them."""
    valid = (key.abs() <= _INFINITY_KEY).all(dim=1) & (key.amax(dim=1) > -_INFINITY_KEY)
    valid = valid & (filters.temperature >= 0) & _filters_valid(filters)
    d = exponents(key, value, filters.temperature)
    weight = torch.where(valid[:, None], weigh(d), 0)
    candidate = valid[:, None] & (key > -_INFINITY_KEY)
    kept = cut(key, weight, candidate, torch.full_like(filters.top_k, _ONE), filters)
    greedy = (filters.temperature == 0)[:, None]
    kept = torch.where(greedy, weight > 0, kept)
    return Row(d, torch.where(kept, weight, 0), kept, valid)


# --- law section 4: the draw


def philox4x32_10(
    key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32 with ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; law section 4).

    key, counter: int64 tensors in [0, 2^32), broadcastable to one shape. Returns the four outputs, int64 in [0, 2^32).
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = multiply_32x32(0xD2511F53, c0)
        high1, low1 = multiply_32x32(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def random_words(seed: Tensor, offset: Tensor, stream: Tensor, draw: Tensor) -> Tensor:
    """Law section 4: word number `draw` of the random stream of (seed, offset, stream).

    seed, offset: int64, the bits of unsigned 64-bit numbers. stream, draw: int64, of which the low 32 bits count. All
    broadcastable to one shape. Returns int64 of that shape, the bits of unsigned 64-bit words.
    """
    key = seed & _MASK32, (seed >> 32) & _MASK32
    counter = offset & _MASK32, (offset >> 32) & _MASK32, stream & _MASK32, (draw & _MASK32) >> 1
    o0, o1, o2, o3 = philox4x32_10(key, counter)
    odd = (draw & 1) == 1
    return torch.where(odd, o2, o0) | (torch.where(odd, o3, o1) << 32)


def row_words(randomness: Randomness, batch: int, count: int, device: torch.device, first: int = 0) -> Tensor:
    """Law section 4: the words of `count` draws, from number `first` on, of every output row, int64 [batch, count]."""
    stream = row_integers(randomness.stream, randomness.stream_rows, batch, device)
    if randomness.stream_per_row:
        stream = stream + torch.arange(batch, device=device)
    return random_words(
        row_integers(randomness.seed, randomness.seed_rows, batch, device)[:, None],
        row_integers(randomness.offset, randomness.offset_rows, batch, device)[:, None],
        stream[:, None],
        torch.arange(first, first + count, device=device),
    )


def draw(weight: Tensor, words: Tensor, replacement: bool) -> Tensor:
    """Law section 4, draw: tokens of a block of rows.

    weight: int64 [rows, vocab], 0 outside the kept set. words: int64 [rows, num_samples]. replacement: False takes each
    drawn token's weight out before the next draw. Returns int64 [rows, num_samples]; -1 once nothing is left.
    """
    mass = weight.cumsum(dim=1)  # right=True below finds the smallest index whose mass is more than t
    if replacement:
        z = mass[:, -1:]
        token = torch.searchsorted(mass, multiply_high(words, z), right=True)
        return torch.where(z > 0, token, INVALID_TOKEN)
    tokens = torch.full_like(words, INVALID_TOKEN)
    index = torch.arange(weight.shape[1], device=weight.device)
    for number in range(words.shape[1]):
        z = mass[:, -1:]
        t = multiply_high(words[:, number : number + 1], z)
        token = torch.searchsorted(mass, t, right=True).clamp(max=weight.shape[1] - 1)
        tokens[:, number : number + 1] = torch.where(z > 0, token, INVALID_TOKEN)
        taken = torch.where(z > 0, weight.gather(1, token), 0)
        mass = mass - torch.where(index >= token, taken, 0)
    return tokens


# --- law section 5: probabilities in, probabilities out


def weigh_probabilities(value: Tensor) -> Tensor:
    """Law section 5: w_i = floor(p_i * 2^(b - 1 - e)), int64 [rows, vocab], of valid rows of p (float64 of float32)."""
    vocab = value.shape[1]
    b = min(40, 62 - (vocab - 1).bit_length())
    peak = value.amax(dim=1, keepdim=True)
    e = torch.frexp(peak).exponent.long() - 1
    return torch.floor(value * _power_of_two(b - 1 - e)).long()


def rows_of_probabilities(probabilities: Tensor, filters: RowFilters) -> Row:
    """Law sections 5, 2 and 3 for a block of rows of probabilities [rows, vocab]; the temperature plays no part."""
    key, value = load(probabilities)
    valid = ((key >= 0) & (key < _INFINITY_KEY)).all(dim=1) & (key.amax(dim=1) > 0) & _filters_valid(filters)
    weight = weigh_probabilities(torch.where(valid[:, None], value, 1.0))
    weight = torch.where(valid[:, None], weight, 0)
    candidate = valid[:, None].expand_as(key)
    kept = cut(key, weight, candidate, weight.amax(dim=1), filters)
    return Row(torch.zeros_like(value), torch.where(kept, weight, 0), kept, valid)


def probabilities_of(row: Row) -> Tensor:
    """Law section 5: p_i = fl(fl(q_i * 2^n_i) * fl(1 / fl(Z * 2^-40))), float32 [rows, vocab]; NaN in invalid rows."""
    n, q = split(row.exponent)
    z = row.weight.sum(dim=1, keepdim=True).float() * 2.0**-40  # int64 to float32 rounds once; scaling is exact
    share = (torch.ones_like(z) / z).double()
    probability = fl(fl(q.double() * _power_of_two(n)) * share)
    probability = torch.where(row.kept & (row.exponent >= -126.0), probability, 0.0)
    return torch.where(row.valid[:, None], narrow(probability), math.nan)


def log_probabilities_of(row: Row, tokens: Tensor) -> Tensor:
    """Law section 5: -(fl(-d_i * ln2) + log1p(S)) of `tokens` (int64 [rows, n]) as float32 [rows, n].

    -inf for a token that is not kept, NaN for one outside [0, vocab) and in invalid rows.
    """
    vocab = row.exponent.shape[1]
    known = (tokens >= 0) & (tokens < vocab)
    token = tokens.clamp(0, vocab - 1)
    s = (row.weight.sum(dim=1, keepdim=True) - _ONE).float().double() * 2.0**-40
    log_probability = -fl(fl(-row.exponent.gather(1, token) * _LN2) + fl(torch.log1p(s)))
    log_probability = torch.where(row.kept.gather(1, token), log_probability, -math.inf)
    return torch.where(known & row.valid[:, None], narrow(log_probability), math.nan)


# --- whole tensors, block by block


def by_draw(tokens: Tensor) -> Tensor:
    """[batch, num_samples] of that, or of [batch] for one draw a row: a view less for who asks for one."""
    return tokens.unsqueeze(1) if tokens.dim() == 1 else tokens


def blocks(batch: int, elements_per_row: int) -> Iterator[slice]:
    """Slices of rows, so that temporaries stay bounded however large the batch is (one row is never cut)."""
    step = max(1, _BLOCK_ELEMENTS // max(1, elements_per_row))
    return (slice(start, min(start + step, batch)) for start in range(0, batch, step))


def weights(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """The law's integer weights, before any filter.

    logits: [rows, vocab], float32, float16 or bfloat16. temperature: >= 0, a number or a float32 tensor, 0-d or [rows].
    Returns int64 [rows, vocab] in [0, 2^40]; invalid rows hold zeros. Source: law section 1.
    """
    number, rows = (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
    filters = Filters(number, rows, 0, None, 1.0, None, 0.0, None, 0)
    return rows_of_logits(logits, row_filters(filters, logits.shape[0], logits)).weight


def kept_set(logits: Tensor, filters: Filters, probabilities: bool = False) -> Tensor:
    """Which tokens the filters keep.

    logits: [rows, vocab], float32, float16 or bfloat16 (with `probabilities`: probabilities instead).
    Returns bool [rows, vocab], all False in invalid rows. Source: law section 3.
    """
    kept = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    if logits.numel() == 0:
        return kept
    per_row = row_filters(filters, logits.shape[0], logits)
    describe = rows_of_probabilities if probabilities else rows_of_logits
    for part in blocks(*logits.shape):
        kept[part] = describe(logits[part], per_row.rows(part)).kept
    return kept


def sample(out: Tensor, logits: Tensor, indices: Tensor | None, *arguments: Any) -> None:
    """Draw tokens by the law into `out`.

    out: int64 [batch, num_samples] or [batch], written; -1 for an invalid row, an index out of range, and once nothing
    is left.
    logits: [rows, vocab], float32, float16 or bfloat16, any strides; or probabilities, see below.
    indices: int64 [batch], the logits row of each output row, or None for row b = output row b.
    arguments: in schema order the fields of `Filters`, those of `Randomness`, then two bools: `replacement` (False: no
    token twice in a row of `out`) and `probabilities` (True: `logits` holds probabilities); and `logprobs`, float32
    like `out`, the log-probabilities of tokens drawn from logits, written; or None, which torch leaves out.
    Source: law sections 1 to 5.
    """
    filters, randomness = Filters(*arguments[:9]), Randomness(*arguments[9:16])
    replacement, probabilities, *rest = arguments[16:]
    logprobs: Tensor | None = by_draw(rest[0]) if rest and rest[0] is not None else None
    out = by_draw(out)
    batch, num_samples = out.shape
    if logits.numel() == 0:
        out.fill_(INVALID_TOKEN)
        if logprobs is not None:
            logprobs.fill_(math.nan)
        return
    rows, vocab = logits.shape
    per_row = row_filters(filters, batch, logits)
    words = row_words(randomness, batch, num_samples, logits.device)
    describe = rows_of_probabilities if probabilities else rows_of_logits
    for part in blocks(batch, max(vocab, num_samples)):
        if indices is None:
            row = describe(logits[part], per_row.rows(part))
        else:
            index = indices[part]
            row = describe(logits[index.clamp(0, rows - 1)], per_row.rows(part))
            exists = (index >= 0) & (index < rows)
            row = row._replace(weight=torch.where(exists[:, None], row.weight, 0), valid=row.valid & exists)
        out[part] = draw(row.weight, words[part], replacement)
        if logprobs is not None:
            logprobs[part] = log_probabilities_of(row, out[part])


def filter_logits(logits: Tensor, *filters: Any) -> Tensor:
    """Logits with everything outside the kept set at -inf.

    logits: [rows, vocab], float32, float16 or bfloat16, any strides. filters: the fields of `Filters`.
    Returns a new tensor of the same shape and dtype: kept values unchanged, invalid rows all NaN.
    Source: law section 3.
    """
    result = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if logits.numel() == 0:
        return result
    per_row = row_filters(Filters(*filters), logits.shape[0], logits)
    for part in blocks(*logits.shape):
        row = rows_of_logits(logits[part], per_row.rows(part))
        kept = torch.where(row.kept, logits[part].detach(), -math.inf)
        result[part] = torch.where(row.valid[:, None], kept, math.nan)
    return result


def filtered_probs(logits: Tensor, *filters: Any) -> Tensor:
    """Probabilities of the tokens under the filtered, renormalised distribution.

    logits: [rows, vocab], float32, float16 or bfloat16, any strides. filters: the fields of `Filters`.
    Returns float32 [rows, vocab]: 0 outside the kept set, invalid rows all NaN. Source: law section 5.
    """
    result = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    if logits.numel() == 0:
        return result
    per_row = row_filters(Filters(*filters), logits.shape[0], logits)
    for part in blocks(*logits.shape):
        result[part] = probabilities_of(rows_of_logits(logits[part], per_row.rows(part)))
    return result


def log_probs(logits: Tensor, tokens: Tensor, *filters: Any) -> Tensor:
    """Natural logarithms of the probabilities of given tokens under the filtered, renormalised distribution.

    logits: [rows, vocab], float32, float16 or bfloat16, any strides. tokens: int64 [rows, n]. filters: the fields of
    `Filters`. Returns float32 [rows, n]: -inf for a token that is not kept, NaN for one outside [0, vocab) and in
    invalid rows. Source: law section 5.
    """
    result = torch.full(tokens.shape, math.nan, dtype=torch.float32, device=logits.device)
    if logits.numel() == 0:
        return result
    per_row = row_filters(Filters(*filters), logits.shape[0], logits)
    for part in blocks(*logits.shape):
        row = rows_of_logits(logits[part], per_row.rows(part))
        result[part] = log_probabilities_of(row, tokens[part])
    return result
