"""float32 arithmetic as PTX defines it, in every rounding mode, and float64's to nearest: exactly, and one NaN of each.

A sum or product is held as a pair of float64 numbers whose exact sum it is. Rounded to odd, which keeps whatever the
last bit needs to know, the pair becomes one float64 that rounds to float32 as the exact value does (53 >= 24 + 2).
float64's own sums and products are numpy's; what it lacks, the fused one, rounds the smaller of its parts to odd.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Array = NDArray[Any]
Scalar = TypeVar("Scalar", np.float32, np.float64)

# What every operation gives for a NaN. Which one in float64 PTX leaves open; this is the one that CUDA's headers name.
_NAN = {
    np.dtype(np.float32): np.uint32(0x7FFFFFFF).view(np.float32),
    np.dtype(np.float64): np.uint64(0xFFF8000000000000).view(np.float64),
}
_HALF_NAN = np.uint16(0x7FFF)  # of float16 and of bfloat16


def canonical(x: NDArray[Scalar]) -> NDArray[Scalar]:
    nan = np.isnan(x)
    return np.where(nan, _NAN[x.dtype], x) if nan.any() else x


def _two_sum(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """a + b rounded, and the error (Knuth)."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return total, np.where(np.isfinite(total), error, 0.0)


def _to_odd(total: Float64, error: Float64) -> Float64:
    inexact = (error != 0) & ((total.view(np.uint64) & np.uint64(1)) == 0)
    return np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total)


def _rounded(value: Float64, mode: str) -> Float32:
    """A float64 that is rounded to odd as float32."""
    nearest = value.astype(np.float32)
    if mode == "rn":
        return canonical(nearest)
    down, up = np.float32(-np.inf), np.float32(np.inf)
    lower = np.where(nearest > value, np.nextafter(nearest, down), nearest)
    upper = np.where(nearest < value, np.nextafter(nearest, up), nearest)
    toward_zero = np.where(value < 0, upper, lower)
    return canonical({"rm": lower, "rp": upper, "rz": toward_zero}[mode])


def _signed_zero(result: Float32, a: Float64, b: Float64, mode: str) -> Float32:
    """a + b = 0 exactly is -0 where both are, and, rounding down, also where they are not both +0."""
    if mode != "rm":
        return result
    return np.where((a + b == 0) & (np.signbit(a) | np.signbit(b)), np.float32(-0.0), result)


def add(a: Float32, b: Float32, mode: str) -> Float32:
    if mode == "rn":
        return canonical(a + b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    return _signed_zero(_rounded(_to_odd(*_two_sum(x, y)), mode), x, y, mode)


def multiply(a: Float32, b: Float32, mode: str) -> Float32:
    if mode == "rn":
        return canonical(a * b)
    return _rounded(a.astype(np.float64) * b, mode)


def fused_multiply_add(a: Float32, b: Float32, c: Float32, mode: str) -> Float32:
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    return _signed_zero(_rounded(_to_odd(*_two_sum(product, addend)), mode), product, addend, mode)


def divide(a: Float32, b: Float32) -> Float32:
    return canonical(a / b)


def square_root(a: Float32) -> Float32:
    return canonical(np.sqrt(a))


def _extreme(a: Float32, b: Float32, larger: bool, nan: bool) -> Float32:
    """-0 is smaller than +0. A NaN loses to a number, or wins with `nan`."""
    result = (np.maximum if nan else np.fmax)(a, b) if larger else (np.minimum if nan else np.fmin)(a, b)
    zero = (a == 0) & (b == 0)
    if zero.any():
        x, y = a.view(np.uint32), b.view(np.uint32)
        result = np.where(zero, (x & y if larger else x | y).view(np.float32), result)
    return canonical(result)


def minimum(a: Float32, b: Float32, nan: bool) -> Float32:
    return _extreme(a, b, False, nan)


def maximum(a: Float32, b: Float32, nan: bool) -> Float32:
    return _extreme(a, b, True, nan)


# --- float64


_FAR = 200  # binary places; a product has 106
_UPPER_WORD = np.uint64(0xFFFFFFFF00000000)


def _split(x: Float64) -> tuple[Float64, Float64]:
    """x as a sum of two numbers so short that products of such are exact (Veltkamp)."""
    large = x * (2.0**27 + 1)
    high = large - (large - x)
    return high, x - high


def _two_product(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """a * b rounded, and the error (Dekker), of numbers of moderate size."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    return product, a_high * b_high - product + a_high * b_low + a_low * b_high + a_low * b_low


def _scaled(total: Float64, error: Float64, exponent: NDArray[np.integer]) -> Float64:
    """(total + error) * 2^exponent, rounded once, where total alone is what total + error rounds to.

    A denormal has fewer bits than total: what total lies exactly between two of them for, the error decides.
    """
    result = np.ldexp(total, exponent)
    rest = total - np.ldexp(result, -exponent)
    wrong = (np.abs(rest) == np.ldexp(0.5, -1074 - exponent)) & (rest * error > 0)
    return np.where(wrong, np.nextafter(result, np.copysign(np.inf, rest)), result)


def fused_multiply_add_float64(a: Float64, b: Float64, c: Float64) -> Float64:
    """Boldo and Melquiond, "Emulation of a FMA and Correctly Rounded Sums", with the exponents apart."""
    (x, x_exponent), (y, y_exponent), (z, z_exponent) = np.frexp(a), np.frexp(b), np.frexp(c)
    exponent = x_exponent + y_exponent
    # Of two that are far apart, the smaller decides no more than which side of a midpoint is meant; nearer, the same.
    distance = np.where(z == 0, 0, z_exponent - exponent)
    exponent = exponent + np.maximum(distance - _FAR, 0)
    addend = np.ldexp(z, np.clip(distance, -_FAR, _FAR))
    product, product_error = _two_product(x, y)
    low, low_error = _two_sum(addend, product_error)
    high, high_error = _two_sum(product, low)
    total, error = _two_sum(high, _to_odd(*_two_sum(low_error, high_error)))
    # A zero, an infinity or NaN is its own fraction.
    plain = (product == 0) | ~np.isfinite(product + c)
    return canonical(np.where(plain, product + c, _scaled(total, error, exponent)))


def _flushed(x: Float64) -> Float64:
    return np.where(np.abs(x) < np.finfo(np.float64).tiny, np.copysign(0.0, x), x)


def approximate_reciprocal(x: Float64) -> Float64:
    """rcp.approx.ftz.f64, which reads and writes upper words only, and has zeros for denormals.

    This is the nearest result that there is, which a device's need not be: Newton steps follow it.
    """
    exact = 1 / _flushed((x.view(np.uint64) & _UPPER_WORD).view(np.float64))
    nearest = ((exact.view(np.uint64) + np.uint64(1 << 31)) & _UPPER_WORD).view(np.float64)
    return canonical(np.where(np.isnan(x), x, _flushed(nearest)))


# --- conversions


def to_float64(x: Float32) -> Float64:
    return canonical(x.astype(np.float64))


def to_float32(x: Float64) -> Float32:
    return canonical(x.astype(np.float32))


_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_integral(x: Float32, mode: str) -> Float32:
    return canonical(_INTEGRAL[mode](x))


def to_integer(x: Float32, mode: str, target: np.dtype) -> Array:
    """The nearest integer of the type for what is beyond it; NaN is 0, or 2^63 where the type has 64 bits."""
    limits = np.iinfo(target)
    value = _INTEGRAL[mode](x.astype(np.float64))
    low, high = value < limits.min, value >= float(limits.max)
    result = np.where(low | high | np.isnan(value), 0, value).astype(target)
    result = np.where(low, target.type(limits.min), np.where(high, target.type(limits.max), result))
    nan = np.uint64(1 << 63).astype(target) if target.itemsize == 8 else target.type(0)
    return np.where(np.isnan(value), nan, result)


def from_integer(x: Array, mode: str) -> Float32:
    if x.dtype.itemsize < 8:
        return _rounded(x.astype(np.float64), mode)
    low = x & x.dtype.type(0xFFFFFFFF)
    high = (x - low).astype(np.float64)  # a multiple of 2^32: exact
    return _rounded(_to_odd(*_two_sum(high, low.astype(np.float64))), mode)


def from_half(x: NDArray[np.uint16]) -> Float32:
    return canonical(np.ascontiguousarray(x).view(np.float16).astype(np.float32))


def to_half(x: Float32) -> NDArray[np.uint16]:
    return np.where(np.isnan(x), _HALF_NAN, x.astype(np.float16).view(np.uint16))


def from_bfloat16(x: NDArray[np.uint16]) -> Float32:
    return canonical((x.astype(np.uint32) << np.uint32(16)).view(np.float32))


def to_bfloat16(x: Float32) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), _HALF_NAN, rounded.astype(np.uint16))
