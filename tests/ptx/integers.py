"""Integer instructions of PTX that are more than an operator of numpy's. Arguments are arrays of one type."""

from __future__ import annotations

import numpy as np

from .lanes import Array

_WIDER = {"u2": "u4", "i2": "i4", "u4": "u8", "i4": "i8"}


def bits(x: Array) -> int:
    return 8 * x.dtype.itemsize


def unsigned(x: Array) -> Array:
    return x.view(f"u{x.dtype.itemsize}")


def multiply_wide(a: Array, b: Array) -> Array:
    wider = _WIDER[a.dtype.str[1:]]
    return a.astype(wider) * b.astype(wider)


def multiply_high(a: Array, b: Array) -> Array:
    if bits(a) < 64:
        return (multiply_wide(a, b) >> bits(a)).astype(a.dtype)
    x, y, low, half = unsigned(a), unsigned(b), np.uint64(0xFFFFFFFF), np.uint64(32)
    x_high, x_low, y_high, y_low = x >> half, x & low, y >> half, y & low
    middle = x_low * y_high + (x_low * y_low >> half)
    middle_low = x_high * y_low + (middle & low)
    high = x_high * y_high + (middle >> half) + (middle_low >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, 0).astype(np.uint64) - np.where(b < 0, x, 0).astype(np.uint64)
    return high.view(a.dtype)


def divide(a: Array, b: Array) -> Array:
    """Truncated; all ones for a division by 0, where PTX leaves the result open."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    with np.errstate(over="ignore"):  # the lowest number by -1 wraps
        quotient = (a - np.fmod(a, divisor)) // divisor
    return np.where(b == 0, np.array(-1).astype(a.dtype), quotient)


def remainder(a: Array, b: Array) -> Array:
    """With the sign of a; a itself for a division by 0."""
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, b.dtype.type(1), b)))


def shift_left(a: Array, count: Array) -> Array:
    return np.left_shift(a, np.minimum(count, bits(a)).astype(a.dtype))


def shift_right(a: Array, count: Array) -> Array:
    return np.right_shift(a, np.minimum(count, bits(a)).astype(a.dtype))


def funnel_shift(low: Array, high: Array, count: Array, left: bool, wrap: bool) -> Array:
    """The high word of high:low shifted left, or the low word of it shifted right."""
    amount = (count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
    both = high.astype(np.uint64) << np.uint64(32) | low
    if left:
        return ((both << amount) >> np.uint64(32)).astype(np.uint32)
    return (both >> amount).astype(np.uint32)


def highest_bit(x: Array) -> Array:
    """The number of the highest 1, as int32; -1 for 0."""
    smeared = unsigned(x).copy()
    for distance in (1, 2, 4, 8, 16, 32):
        if distance < bits(x):
            smeared |= smeared >> smeared.dtype.type(distance)
    return np.bitwise_count(smeared).astype(np.int32) - 1


def find_bit(x: Array, as_shift: bool) -> Array:
    """bfind: of a negative number the highest 0."""
    found = highest_bit(np.where(x < 0, ~x, x) if x.dtype.kind == "i" else x)
    return np.where(found < 0, found, bits(x) - 1 - found) if as_shift else found


def leading_zeros(x: Array) -> Array:
    return bits(x) - 1 - highest_bit(x)


def reverse_bits(x: Array) -> Array:
    each = np.unpackbits(np.ascontiguousarray(x).view(np.uint8).reshape(-1, x.dtype.itemsize), axis=1)
    return np.packbits(each[:, ::-1], axis=1).view(x.dtype)[:, 0]


def extract_bits(x: Array, position: Array, length: Array) -> Array:
    """bfe: `length` bits from `position` on, those beyond the top being the sign (0 if there is none)."""
    first, count = position & np.uint32(255), length & np.uint32(255)
    if x.dtype.kind == "u":
        mask = shift_left(np.ones_like(x), count) - x.dtype.type(1)
        return shift_right(x, first) & mask
    end = np.minimum(first + count, bits(x))
    field = shift_right(shift_left(x, bits(x) - end), bits(x) - np.minimum(count, bits(x)))
    cut_short = first + count > bits(x)  # the field's upper bits are the number's sign
    field = np.where(cut_short, shift_right(x, first), field)
    return np.where(count == 0, x.dtype.type(0), field)


def insert_bits(field: Array, x: Array, position: Array, length: Array) -> Array:
    first, count = position & np.uint32(255), length & np.uint32(255)
    mask = shift_left(shift_left(np.ones_like(x), count) - x.dtype.type(1), first)
    return (shift_left(field, first) & mask) | (x & ~mask)


def permute_bytes(low: Array, high: Array, selector: Array, mode: str) -> Array:
    """prmt; a selector's fourth bit replicates the sign of the byte."""
    both = high.astype(np.uint64) << np.uint64(32) | low
    result = np.zeros(low.shape, np.uint64)
    for place in range(4):
        four = (selector >> np.uint32(4 * place)) & np.uint32(15) if not mode else _selected(selector, place, mode)
        byte = (both >> ((four & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= np.where(four & np.uint32(8), sign, byte) << np.uint64(8 * place)
    return result.astype(np.uint32)


def _selected(selector: Array, place: int, mode: str) -> Array:
    number = selector & np.uint32(3)
    if mode == "f4e":
        return number + np.uint32(place)
    if mode == "b4e":
        return (number - np.uint32(place)) & np.uint32(7)
    if mode == "rc8":
        return number
    if mode == "rc16":
        return (number & np.uint32(1)) * np.uint32(2) + np.uint32(place % 2)
    clamped = {"ecl": np.maximum, "ecr": np.minimum}[mode](number, np.uint32(place))
    return clamped


def logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit 4 a + 2 b + c of the table for every bit."""
    result = np.zeros_like(a)
    for number in range(8):
        if table >> number & 1:
            result |= (a if number & 4 else ~a) & (b if number & 2 else ~b) & (c if number & 1 else ~c)
    return result
