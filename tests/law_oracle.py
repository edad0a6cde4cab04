"""A third implementation of the sampling law (docs/law.md), straight from its text: one row at a time, in Python
integers, fractions and numpy float32 scalars. It imports neither torch nor fastsample, and favours the law's wording
over speed.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple

import numpy as np

FLOAT = np.float32
LOG2E = FLOAT(1.4426950408889634)
LN2 = FLOAT(0.6931471805599453)
FLT_MAX = np.finfo(FLOAT).max
COEFFICIENTS = [
    FLOAT(float.fromhex(c))
    for c in ("0x1.0p+0", "0x1.62e4c8p-1", "0x1.ebd8a0p-3", "0x1.c94440p-5", "0x1.269df0p-7", "0x1.eca6f0p-10")
]
ONE = 2**40


class Case(NamedTuple):
    """One row with its parameters. Floats are numpy float32, already rounded."""

    logits: list[np.float32]
    temperature: np.float32
    top_k: int
    top_p: np.float32
    min_p: np.float32
    order: str
    probabilities: bool
    seed: int  # [0, 2^64)
    offset: int  # [0, 2^64)
    stream: int  # [0, 2^32)
    num_samples: int


class Answer(NamedTuple):
    """What the law says of a case. In an invalid row everything but `words` and the tokens (-1) is empty or 0."""

    valid: bool
    weights: list[int]  # w_i before any filter
    kept: list[int]  # indices, ascending
    z: int
    words: list[int]  # one per draw
    tokens: list[int]  # with replacement
    tokens_without_replacement: list[int]
    probs: list[np.float32]  # logits only
    log_probs: list[np.float32]  # logits only; other implementations may be off by 4 units in the last place


# --- law section 1


def exponent(x: np.float32, m: np.float32, temperature: np.float32) -> np.float32:
    """d_i; -inf where x_i - m overflows, also under an infinite temperature, whose c of 0 would make it NaN."""
    if x == m:
        return FLOAT(0)
    c = min(LOG2E / temperature, FLT_MAX)
    difference = x - m
    return difference if difference == -np.inf else difference * c


def split(d: np.float32) -> tuple[int, np.float32]:
    """n_i and q_i of a finite d_i."""
    n = math.floor(d)
    f = d - FLOAT(n)
    assert f.dtype == FLOAT
    q = COEFFICIENTS[5]
    for coefficient in COEFFICIENTS[4::-1]:
        q = q * f
        q = q + coefficient
    return n, q


def weight(d: np.float32) -> int:
    """w_i of a d_i."""
    if not d >= -40:
        return 0
    n, q = split(d)
    bits = int(q.view(np.uint32))
    return ((bits - 0x3F000000) << 17) >> -n


# --- law sections 2 and 3


def ranks(values: list[np.float32]) -> list[int]:
    """Indices from the largest value to the smallest, equal ones by index."""
    return sorted(range(len(values)), key=lambda i: (-float(values[i]), i))


def ceil_product(p: np.float32, z: int) -> int:
    """ceil(p * z) of the real numbers."""
    return math.ceil(Fraction(float(p)) * z)


def kept_set(case: Case, weights: list[int], peak: int) -> list[int]:
    """The intersection of top_k, min_p and top_p, as ascending indices."""
    ranked = ranks(case.logits)
    candidates = {i for i in ranked if case.probabilities or case.logits[i] > -np.inf}
    by_top_k = set(ranked if case.top_k <= 0 else ranked[: case.top_k])
    threshold = ceil_product(case.min_p, peak)
    by_min_p = {i for i in ranked if weights[i] >= threshold}

    base = {
        "top_k_first": candidates & by_top_k,
        "min_p_first": candidates & by_top_k & by_min_p,
        "joint": candidates,
    }[case.order]
    bound = max(1, ceil_product(case.top_p, sum(weights[i] for i in base)))
    by_top_p, above = set(), 0
    for i in ranked:
        if above < bound or case.top_p == 1:
            by_top_p.add(i)
        if i in base:
            above += weights[i]
    return sorted(candidates & by_top_k & by_min_p & by_top_p)


# --- law section 4


def philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 over Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a = 0xD2511F53 * c[0]
        b = 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def word(seed: int, offset: int, stream: int, draw: int) -> int:
    """The 64-bit word number `draw`."""
    o = philox4x32_10([offset % 2**32, offset >> 32, stream, draw // 2], [seed % 2**32, seed >> 32])
    return o[0] | o[1] << 32 if draw % 2 == 0 else o[2] | o[3] << 32


def draw(weights: list[int], r: int) -> int:
    """The token that the word r draws from weights that are 0 outside the kept set; -1 if all are 0."""
    t = (r * sum(weights)) >> 64
    total = 0
    for j, w in enumerate(weights):
        total += w
        if total > t:
            return j
    return -1


# --- law section 5


def probability_weights(p: list[np.float32]) -> list[int]:
    """w_i of the probabilities of a valid row."""
    b = min(40, 62 - math.ceil(math.log2(len(p))))
    e = math.frexp(float(max(p)))[1] - 1
    return [math.floor(Fraction(float(x)) * Fraction(2) ** (b - 1 - e)) for x in p]


def probability(d: np.float32, z: int) -> np.float32:
    """The probability of a kept token."""
    if not d >= -126:
        return FLOAT(0)
    n, q = split(d)
    return FLOAT(math.ldexp(q, n)) * (FLOAT(1) / FLOAT(round_to_float32(z) * Fraction(1, ONE)))


def round_to_float32(integer: int) -> int:
    """An integer to 24 significant bits, ties to even. (numpy would go through a float64 and round twice.)"""
    shift = max(0, integer.bit_length() - 24)
    return round(Fraction(integer, 2**shift)) * 2**shift


def log_probability(d: np.float32, z: int) -> np.float32:
    """The log-probability of a kept token; the logarithm in decimal, so that no platform's library matters."""
    if d == -np.inf:
        return FLOAT(-np.inf)
    s = Fraction(round_to_float32(z - ONE), ONE)
    with localcontext() as context:
        context.prec = 60
        logarithm = FLOAT(float((1 + Decimal(s.numerator) / Decimal(s.denominator)).ln()))
    return -(-d * LN2 + logarithm)


# --- a whole case


def is_valid(case: Case) -> bool:
    """Whether the row is valid, by the end of law section 1 and the first point of section 5."""
    x = case.logits
    if any(np.isnan(v) for v in x) or not (0 <= case.top_p <= 1) or not (0 <= case.min_p <= 1):
        return False
    if case.probabilities:
        return all(0 <= v < np.inf for v in x) and any(v > 0 for v in x)
    return bool(case.temperature >= 0) and any(v > -np.inf for v in x)


def answer(case: Case) -> Answer:
    """What the law says of `case`."""
    words = [word(case.seed, case.offset, case.stream, number) for number in range(case.num_samples)]
    if not is_valid(case):
        nothing = [-1] * case.num_samples
        return Answer(False, [], [], 0, words, nothing, nothing, [], [])
    vocab = len(case.logits)
    with np.errstate(all="ignore"):
        if case.probabilities:
            weights = probability_weights(case.logits)
            kept = kept_set(case, weights, max(weights))
        else:
            m = max(case.logits)
            if case.temperature == 0:
                first = ranks(case.logits)[0]
                exponents = [FLOAT(0 if i == first else -np.inf) for i in range(vocab)]
            else:
                exponents = [exponent(x, m, case.temperature) for x in case.logits]
            weights = [weight(d) for d in exponents]
            kept = [first] if case.temperature == 0 else kept_set(case, weights, ONE)

        z = sum(weights[i] for i in kept)
        left = [weights[i] if i in set(kept) else 0 for i in range(vocab)]
        tokens = [draw(left, r) for r in words]
        without = []
        for r in words:
            without.append(draw(left, r))
            if without[-1] >= 0:
                left[without[-1]] = 0

        probs, log_probs = [], []
        if not case.probabilities:
            probs = [probability(exponents[i], z) if i in set(kept) else FLOAT(0) for i in range(vocab)]
            log_probs = [log_probability(exponents[i], z) if i in set(kept) else FLOAT(-np.inf) for i in range(vocab)]
    return Answer(True, weights, kept, z, words, tokens, without, probs, log_probs)
