"""What instructions give for one lane, by exact arithmetic on Python's integers and fractions.

Arguments and results are bits, as integers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple


class Format(NamedTuple):
    """An IEEE 754 format, and the one NaN that an operation on it gives."""

    exponent_bits: int
    fraction_bits: int
    nan: int

    @property
    def sign(self) -> int:
        return 1 << (self.exponent_bits + self.fraction_bits)

    @property
    def infinity(self) -> int:
        return (2**self.exponent_bits - 1) << self.fraction_bits

    @property
    def one(self) -> int:
        return (2 ** (self.exponent_bits - 1) - 1) << self.fraction_bits


FLOAT32, FLOAT64 = Format(8, 23, 0x7FFFFFFF), Format(11, 52, 0xFFF8000000000000)
NAN = FLOAT32.nan


def signed(bits: int, width: int) -> int:
    return bits - (1 << width) if bits >> (width - 1) & 1 else bits


def float_of(bits: int, form: Format = FLOAT32) -> float:
    layout = ("<f", "<I") if form == FLOAT32 else ("<d", "<Q")
    value: float = struct.unpack(layout[0], struct.pack(layout[1], bits))[0]
    return value


def _rounded_up(quotient: int, rest: Fraction, mode: str, negative: bool) -> bool:
    if mode == "rn":
        return rest > Fraction(1, 2) or (rest == Fraction(1, 2) and quotient % 2 == 1)
    return rest > 0 and mode == ("rm" if negative else "rp")


def round_to_float(exact: Fraction, mode: str = "rn", exponent_bits: int = 8, fraction_bits: int = 23) -> int:
    """The bits of a number other than 0 in an IEEE 754 format (float32 unless told otherwise)."""
    bias = 2 ** (exponent_bits - 1) - 1
    negative, magnitude = exact < 0, abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    exponent = max(exponent, 1 - bias)  # below, the denormals have the spacing of the smallest normal numbers
    scaled = magnitude / Fraction(2) ** (exponent - fraction_bits)
    quotient, rest = int(scaled), scaled % 1
    quotient += _rounded_up(quotient, rest, mode, negative)
    # Quotients count the numbers from 0 on, and so do bit patterns; an overflow carries into the exponent.
    bits = quotient + ((exponent - 1 + bias) << fraction_bits) if quotient >> fraction_bits else quotient
    infinity = (2**exponent_bits - 1) << fraction_bits
    if bits >= infinity:
        to_infinity = mode == "rn" or mode == ("rm" if negative else "rp")
        bits = infinity if to_infinity else infinity - 1
    return bits | negative << (exponent_bits + fraction_bits)


def _signed_zero(negative: bool, form: Format = FLOAT32) -> int:
    return form.sign if negative else 0


def _special(value: float, form: Format = FLOAT32) -> int:
    """The bits of an infinity, a zero or NaN."""
    if math.isnan(value):
        return form.nan
    return _signed_zero(_negative(value), form) | (form.infinity if math.isinf(value) else 0)


def _rounded(exact: Fraction, mode: str, form: Format) -> int:
    return round_to_float(exact, mode, form.exponent_bits, form.fraction_bits)


def _negative(value: float) -> bool:
    return math.copysign(1, value) < 0


def multiply_add(a: int, b: int, c: int, mode: str, form: Format = FLOAT32) -> int:
    """a * b + c, rounded once."""
    x, y, z = float_of(a, form), float_of(b, form), float_of(c, form)
    if not all(map(math.isfinite, (x, y, z))):
        # Finite factors as their fractions: their product alone must not become infinite.
        return _special(math.frexp(x)[0] * math.frexp(y)[0] + z, form)
    product, addend = Fraction(x) * Fraction(y), Fraction(z)
    if product + addend:
        return _rounded(product + addend, mode, form)
    negative = _negative(x) != _negative(y), _negative(z)
    if product or addend or negative[0] != negative[1]:  # a sum of opposites
        return _signed_zero(mode == "rm", form)
    return _signed_zero(negative[0], form)


def add(a: int, b: int, mode: str, form: Format = FLOAT32) -> int:
    return multiply_add(a, form.one, b, mode, form)


def subtract(a: int, b: int, mode: str, form: Format = FLOAT32) -> int:
    return add(a, b ^ form.sign, mode, form)


def multiply(a: int, b: int, mode: str, form: Format = FLOAT32) -> int:
    x, y = float_of(a, form), float_of(b, form)
    if not (math.isfinite(x) and math.isfinite(y)) or x == 0 or y == 0:
        return _special(x * y, form)
    return _rounded(Fraction(x) * Fraction(y), mode, form)


def divide(a: int, b: int, form: Format = FLOAT32) -> int:
    x, y = float_of(a, form), float_of(b, form)
    if math.isnan(x) or math.isnan(y) or (x == 0 == y) or (math.isinf(x) and math.isinf(y)):
        return form.nan
    negative = _negative(x) != _negative(y)
    if math.isinf(x) or y == 0:
        return _special(-math.inf if negative else math.inf, form)
    if math.isinf(y) or x == 0:
        return _signed_zero(negative, form)
    return _rounded(Fraction(x) / Fraction(y), "rn", form)


def convert(a: int, source: Format, target: Format) -> int:
    x = float_of(a, source)
    return _rounded(Fraction(x), "rn", target) if math.isfinite(x) and x else _special(x, target)


def approximate_reciprocal(a: int) -> int:
    """Of the upper word of a float64, to the nearest number that is one, without denormals."""
    x = float_of(a, FLOAT64)
    upper = float_of(a >> 32 << 32, FLOAT64)
    if math.isnan(x):
        return FLOAT64.nan
    if math.isinf(upper):
        return _signed_zero(_negative(upper), FLOAT64)
    if abs(upper) < Fraction(2) ** -1022:
        return _signed_zero(_negative(upper), FLOAT64) | FLOAT64.infinity
    bits = round_to_float(1 / Fraction(upper), "rn", 11, 20) << 32
    return bits if bits & FLOAT64.infinity else bits & FLOAT64.sign


def square_root(a: int) -> int:
    x = float_of(a)
    if x == 0 or math.isnan(x) or x == math.inf:
        return _special(x)
    if x < 0:
        return NAN
    # Enough bits that what is cut off decides nothing but which side of a midpoint the root lies on.
    scale = 2**300
    root = math.isqrt(int(Fraction(x) * scale * scale))
    exact = root * root == Fraction(x) * scale * scale
    return round_to_float(Fraction(2 * root + (not exact), 2 * scale))


def extreme(a: int, b: int, larger: bool, nan: bool) -> int:
    x, y = float_of(a), float_of(b)
    if math.isnan(x) or math.isnan(y):
        return NAN if nan or (math.isnan(x) and math.isnan(y)) else b if math.isnan(x) else a
    if x == y:  # zeros of different sign, or the same bits
        return (a & b) if larger else (a | b)
    return a if (x > y) == larger else b


def compare(name: str, a: int, b: int, form: Format = FLOAT32) -> bool:
    x, y = float_of(a, form), float_of(b, form)
    unordered = math.isnan(x) or math.isnan(y)
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    if unordered:
        return name.endswith("u")
    return relation(name[:2], x, y)


def relation(name: str, x: float, y: float) -> bool:
    return {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[name]


_INTEGRAL: dict[str, Callable[[Fraction], int]] = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def to_integer(a: int, mode: str, type_: str) -> int:
    """Saturating."""
    x, width = float_of(a), int(type_[1:])
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if type_[0] == "s" else (0, 2**width - 1)
    if math.isnan(x):
        return 1 << 63 if width == 64 else 0
    if math.isinf(x):
        return (high if x > 0 else low) % 2**width
    return min(max(_INTEGRAL[mode](Fraction(x)), low), high) % 2**width


def to_integral(a: int, mode: str) -> int:
    x = float_of(a)
    if not math.isfinite(x):
        return _special(x)
    rounded = _INTEGRAL[mode](Fraction(x))
    return round_to_float(Fraction(rounded)) if rounded else _signed_zero(_negative(x))


def from_integer(value: int, mode: str) -> int:
    return round_to_float(Fraction(value), mode) if value else 0


def from_half(bits: int) -> int:
    x = struct.unpack("<e", struct.pack("<H", bits & 0xFFFF))[0]
    return round_to_float(Fraction(x)) if math.isfinite(x) and x else _special(x)


def to_narrow(a: int, exponent_bits: int, fraction_bits: int) -> int:
    """float16 or bfloat16."""
    x = float_of(a)
    if math.isnan(x):
        return 0x7FFF
    infinity = (2**exponent_bits - 1) << fraction_bits
    sign = _negative(x) << 15
    if x == 0 or math.isinf(x):
        return sign | (infinity if x else 0)
    return round_to_float(Fraction(x), "rn", exponent_bits, fraction_bits)


def bit_field(value: int, position: int, length: int, width: int, is_signed: bool) -> int:
    position, length = position & 255, length & 255
    if length == 0:
        return 0
    sign = value >> min(position + length - 1, width - 1) & 1 if is_signed else 0
    result = 0
    for place in range(width):
        inside = place < length and position + place < width
        result |= (value >> (position + place) & 1 if inside else sign) << place
    return result


def insert_field(field: int, value: int, position: int, length: int, width: int) -> int:
    position, length = position & 255, length & 255
    for place in range(length):
        if position + place >= width:
            break
        value = value & ~(1 << (position + place)) | (field >> place & 1) << (position + place)
    return value


def permute(low: int, high: int, selector: int, mode: str = "") -> int:
    source = (high << 32 | low).to_bytes(8, "little")
    first = selector & 3
    numbers = {
        "": [selector >> 4 * place & 15 for place in range(4)],
        "f4e": [first, first + 1, first + 2, first + 3],
        "b4e": [first, (first - 1) % 8, (first - 2) % 8, (first - 3) % 8],
        "rc8": [first] * 4,
        "ecl": [max(first, place) for place in range(4)],
        "ecr": [min(first, place) for place in range(4)],
        "rc16": [2 * (first & 1), 2 * (first & 1) + 1] * 2,
    }[mode]
    chosen = [0xFF * (source[n & 7] >> 7) if n & 8 else source[n & 7] for n in numbers]
    return int.from_bytes(bytes(chosen), "little")


def logic(a: int, b: int, c: int, table: int) -> int:
    numbers = ((a >> place & 1) << 2 | (b >> place & 1) << 1 | (c >> place & 1) for place in range(32))
    return sum((table >> number & 1) << place for place, number in enumerate(numbers))


def highest_bit(value: int, type_: str) -> int:
    """-1 if there is none; of a negative number that of the highest 0."""
    number = signed(value, int(type_[1:])) if type_[0] == "s" else value
    return (number if number >= 0 else ~number).bit_length() - 1


def truncated_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
