"""The instructions that compute: each lane's result from that lane's operands and nothing else.

An opcode is looked up as a whole. One that no pattern here matches is not interpreted: neither what nobody needed so
far, nor what has no one result: approximations, `.ftz`, and additions and multiplications of floats without a rounding
mode, which ptxas may contract. The exception is rcp.approx.ftz.f64, with which log1p begins, and refines it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from . import floats, integers
from .lanes import Array
from .memory import BASE, SHARED, WINDOW


@dataclass(frozen=True)
class Operation:
    """`compute` maps arrays of the types of `sources` to one of type `result`.

    With `carry_in` it is given the carry flag (0 or 1) after the sources, with `carry_out` it returns (result, carry).
    """

    result: str
    sources: tuple[str, ...]
    compute: Callable[..., Any]
    carry_in: bool = False
    carry_out: bool = False


Match = re.Match[str]
_PATTERNS: list[tuple[re.Pattern[str], Callable[[Match], Operation]]] = []

_INTEGER = r"(?P<type>[us](16|32|64))"
_BITS = r"(?P<type>b(16|32|64))"
_UNTYPED_32_64 = r"(?P<type>b(32|64))"
_ROUNDING = r"(?P<mode>rn|rz|rm|rp)"


def _operation(pattern: str) -> Callable[[Callable[[Match], Operation]], Callable[[Match], Operation]]:
    def register(make: Callable[[Match], Operation]) -> Callable[[Match], Operation]:
        _PATTERNS.append((re.compile(pattern), make))
        return make

    return register


@cache
def find(opcode: str) -> Operation | None:
    for pattern, make in _PATTERNS:
        if match := pattern.fullmatch(opcode):
            return make(match)
    return None


def _same(type_: str, count: int, compute: Callable[..., Any]) -> Operation:
    return Operation(type_, (type_,) * count, compute)


def _plain(type_: str) -> str:
    """The unsigned type of that width: numpy's unsigned arithmetic wraps, as the device's does for either."""
    return "u" + type_[1:]


def _numpy_type(type_: str) -> np.dtype:
    return np.dtype(f"{'i' if type_[0] == 's' else 'u'}{int(type_[1:]) // 8}")


def _wide(type_: str) -> str:
    return type_[0] + str(2 * int(type_[1:]))


# --- integers


@_operation(rf"(?P<name>add|sub|mul\.lo)\.{_INTEGER}")
def _(m: Match) -> Operation:
    compute = {"add": np.add, "sub": np.subtract, "mul.lo": np.multiply}[m["name"]]
    return _same(_plain(m["type"]), 2, compute)


@_operation(rf"mul\.(?P<part>hi|wide)\.{_INTEGER}")
def _(m: Match) -> Operation:
    type_ = m["type"]
    if m["part"] == "hi":
        return _same(type_, 2, integers.multiply_high)
    return Operation(_wide(type_), (type_, type_), integers.multiply_wide)


@_operation(rf"mad\.(?P<part>lo|hi|wide)\.{_INTEGER}")
def _(m: Match) -> Operation:
    type_ = m["type"]
    if m["part"] == "lo":
        return _same(_plain(type_), 3, lambda a, b, c: a * b + c)
    if m["part"] == "hi":
        return _same(type_, 3, lambda a, b, c: integers.multiply_high(a, b) + c)
    return Operation(_wide(type_), (type_, type_, _wide(type_)), lambda a, b, c: integers.multiply_wide(a, b) + c)


def _add_with_carry(a: Array, b: Array, carry: Array | int) -> tuple[Array, Array]:
    partial = a + b
    total = partial + np.asarray(carry).astype(a.dtype)
    return total, ((partial < a) | (total < partial)).astype(np.uint8)


def _subtract_with_borrow(a: Array, b: Array, borrow: Array | int) -> tuple[Array, Array]:
    partial = a - b
    total = partial - np.asarray(borrow).astype(a.dtype)
    return total, ((a < b) | (partial < total)).astype(np.uint8)


@_operation(r"(?P<name>add|sub)(?P<carry>c?)(?P<out>\.cc)?\.(?P<type>[us](32|64))")
def _(m: Match) -> Operation:
    both = _add_with_carry if m["name"] == "add" else _subtract_with_borrow
    carry_in, carry_out = bool(m["carry"]), bool(m["out"])

    def compute(a: Array, b: Array, carry: Array | int = 0) -> Any:
        result = both(a, b, carry)
        return result if carry_out else result[0]

    return Operation(_plain(m["type"]), (_plain(m["type"]),) * 2, compute, carry_in, carry_out)


@_operation(r"mad(?P<carry>c?)\.(?P<part>lo|hi)(?P<out>\.cc)?\.(?P<type>[us](32|64))")
def _(m: Match) -> Operation:
    type_, carry_in, carry_out = m["type"], bool(m["carry"]), bool(m["out"])
    multiply: Callable[[Array, Array], Array] = np.multiply if m["part"] == "lo" else integers.multiply_high

    def compute(a: Array, b: Array, c: Array, carry: Array | int = 0) -> Any:
        result = _add_with_carry(integers.unsigned(multiply(a, b)), integers.unsigned(c), carry)
        return result if carry_out else result[0]

    return Operation(_plain(type_), (type_,) * 3, compute, carry_in, carry_out)


@_operation(rf"(?P<name>div|rem|min|max)\.{_INTEGER}")
def _(m: Match) -> Operation:
    functions: dict[str, Callable[[Array, Array], Array]] = {
        "div": integers.divide,
        "rem": integers.remainder,
        "min": np.minimum,
        "max": np.maximum,
    }
    return _same(m["type"], 2, functions[m["name"]])


@_operation(r"(?P<name>neg|abs)\.(?P<type>s(16|32|64))")
def _(m: Match) -> Operation:
    return _same(m["type"], 1, {"neg": np.negative, "abs": np.abs}[m["name"]])


@_operation(rf"(?P<name>and|or|xor)\.({_BITS}|pred)")
def _(m: Match) -> Operation:
    compute = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[m["name"]]
    return _same(m["type"] or "pred", 2, compute)


@_operation(rf"not\.({_BITS}|pred)")
def _(m: Match) -> Operation:
    return _same(m["type"] or "pred", 1, np.invert)


@_operation(r"(?P<name>shl|shr)\.(?P<type>[bus](16|32|64))")
def _(m: Match) -> Operation:
    compute = integers.shift_left if m["name"] == "shl" else integers.shift_right
    return Operation(m["type"], (m["type"], "u32"), compute)


@_operation(r"shf\.(?P<side>l|r)\.(?P<beyond>wrap|clamp)\.b32")
def _(m: Match) -> Operation:
    left, wrap = m["side"] == "l", m["beyond"] == "wrap"
    return _same("u32", 3, lambda low, high, count: integers.funnel_shift(low, high, count, left, wrap))


@_operation(rf"(?P<name>popc|clz)\.{_UNTYPED_32_64}")
def _(m: Match) -> Operation:
    compute = np.bitwise_count if m["name"] == "popc" else integers.leading_zeros
    return Operation("u32", (m["type"],), compute)


@_operation(r"bfind(?P<shift>\.shiftamt)?\.(?P<type>[us](32|64))")
def _(m: Match) -> Operation:
    return Operation("s32", (m["type"],), lambda x: integers.find_bit(x, bool(m["shift"])))


@_operation(rf"brev\.{_UNTYPED_32_64}")
def _(m: Match) -> Operation:
    return _same(m["type"], 1, integers.reverse_bits)


@_operation(r"bfe\.(?P<type>[us](32|64))")
def _(m: Match) -> Operation:
    return Operation(m["type"], (m["type"], "u32", "u32"), integers.extract_bits)


@_operation(rf"bfi\.{_UNTYPED_32_64}")
def _(m: Match) -> Operation:
    return Operation(m["type"], (m["type"], m["type"], "u32", "u32"), integers.insert_bits)


@_operation(r"prmt\.b32(\.(?P<mode>f4e|b4e|rc8|ecl|ecr|rc16))?")
def _(m: Match) -> Operation:
    mode = m["mode"] or ""
    return _same("u32", 3, lambda a, b, selector: integers.permute_bytes(a, b, selector, mode))


@_operation(r"lop3\.b32")
def _(m: Match) -> Operation:
    return _same("u32", 4, lambda a, b, c, table: integers.logic(a, b, c, int(table[0])))


# --- moving and choosing


@_operation(r"mov\.(?P<type>[busf](16|32|64)|pred)")
def _(m: Match) -> Operation:
    return _same(m["type"], 1, lambda x: x)


@_operation(r"selp\.(?P<type>[busf](16|32|64))")
def _(m: Match) -> Operation:
    return Operation(m["type"], (m["type"], m["type"], "pred"), lambda a, b, p: np.where(p, a, b))


# --- float32


@_operation(rf"(?P<name>add|sub|mul)\.{_ROUNDING}\.f32")
def _(m: Match) -> Operation:
    mode = m["mode"]
    if m["name"] == "mul":
        return _same("f32", 2, lambda a, b: floats.multiply(a, b, mode))
    if m["name"] == "sub":
        return _same("f32", 2, lambda a, b: floats.add(a, -b, mode))
    return _same("f32", 2, lambda a, b: floats.add(a, b, mode))


@_operation(rf"fma\.{_ROUNDING}\.f32")
def _(m: Match) -> Operation:
    return _same("f32", 3, lambda a, b, c: floats.fused_multiply_add(a, b, c, m["mode"]))


@_operation(r"div\.rn\.f32")
def _(m: Match) -> Operation:
    return _same("f32", 2, floats.divide)


@_operation(r"(?P<name>rcp|sqrt)\.rn\.f32")
def _(m: Match) -> Operation:
    if m["name"] == "sqrt":
        return _same("f32", 1, floats.square_root)
    return _same("f32", 1, lambda x: floats.divide(np.ones_like(x), x))


@_operation(r"(?P<name>min|max)(?P<nan>\.NaN)?\.f32")
def _(m: Match) -> Operation:
    function, nan = {"min": floats.minimum, "max": floats.maximum}[m["name"]], bool(m["nan"])
    return _same("f32", 2, lambda a, b: function(a, b, nan))


@_operation(r"(?P<name>neg|abs)\.(?P<type>f(32|64))")
def _(m: Match) -> Operation:
    type_ = _plain(m["type"])
    sign = _numpy_type(type_).type(1 << (int(type_[1:]) - 1))
    return _same(type_, 1, (lambda x: x ^ sign) if m["name"] == "neg" else (lambda x: x & ~sign))


@_operation(r"copysign\.f32")
def _(m: Match) -> Operation:
    return _same("f32", 2, lambda sign, magnitude: np.copysign(magnitude, sign))


# --- float64


@_operation(r"(?P<name>add|sub|mul|div)\.rn\.f64")
def _(m: Match) -> Operation:
    compute = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[m["name"]]
    return _same("f64", 2, lambda a, b: floats.canonical(compute(a, b)))


@_operation(r"fma\.rn\.f64")
def _(m: Match) -> Operation:
    return _same("f64", 3, floats.fused_multiply_add_float64)


@_operation(r"rcp\.approx\.ftz\.f64")
def _(m: Match) -> Operation:
    return _same("f64", 1, floats.approximate_reciprocal)


# --- comparisons


_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def comparison(name: str, type_: str) -> Callable[[Array, Array], Array]:
    """What setp computes. Comparisons of floats are false with a NaN, or true if the name ends in u."""
    if type_ not in ("f32", "f64"):
        return _COMPARE[name]
    if name in ("num", "nan"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    if name == "ne":  # the one that numpy has true with a NaN
        return lambda a, b: (a < b) | (a > b)
    if name == "neu":
        return np.not_equal
    if name.endswith("u"):
        return lambda a, b: _COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    return _COMPARE[name]


# --- conversions


@_operation(r"cvt\.(?P<result>[us](8|16|32|64))\.(?P<source>[us](8|16|32|64))")
def _(m: Match) -> Operation:
    return Operation(m["result"], (m["source"],), lambda x: x.astype(_numpy_type(m["result"])))


@_operation(r"cvt\.(?P<mode>rni|rzi|rmi|rpi)\.(?P<result>[us](8|16|32|64))\.f32")
def _(m: Match) -> Operation:
    return Operation(m["result"], ("f32",), lambda x: floats.to_integer(x, m["mode"], _numpy_type(m["result"])))


@_operation(r"cvt\.(?P<mode>rni|rzi|rmi|rpi)\.f32\.f32")
def _(m: Match) -> Operation:
    return _same("f32", 1, lambda x: floats.to_integral(x, m["mode"]))


@_operation(rf"cvt\.{_ROUNDING}\.f32\.(?P<source>[us](8|16|32|64))")
def _(m: Match) -> Operation:
    return Operation("f32", (m["source"],), lambda x: floats.from_integer(x, m["mode"]))


@_operation(r"cvt\.f64\.f32")
def _(m: Match) -> Operation:
    return Operation("f64", ("f32",), floats.to_float64)


@_operation(r"cvt\.rn\.f32\.f64")
def _(m: Match) -> Operation:
    return Operation("f32", ("f64",), floats.to_float32)


@_operation(r"cvt\.f32\.(?P<source>f16|bf16)")
def _(m: Match) -> Operation:
    return Operation("f32", ("u16",), floats.from_half if m["source"] == "f16" else floats.from_bfloat16)


@_operation(r"cvt\.rn\.(?P<result>f16|bf16)\.f32")
def _(m: Match) -> Operation:
    return Operation("u16", ("f32",), floats.to_half if m["result"] == "f16" else floats.to_bfloat16)


# --- addresses


@_operation(r"cvta(?P<to>\.to)?\.(?P<space>param|shared|local|global|const)(::cta)?\.(?P<type>u64)")
def _(m: Match) -> Operation:
    base = np.uint64(BASE[m["space"]])
    return _same("u64", 1, (lambda x: x - base) if m["to"] else (lambda x: x + base))


@_operation(r"mapa\.u64")
def _(m: Match) -> Operation:
    base, window = np.uint64(SHARED), np.uint64(WINDOW)
    return Operation("u64", ("u64", "u32"), lambda address, rank: base + (address - base) % window + rank * window)


@_operation(r"mapa\.shared::cluster\.(?P<type>u32|u64)")
def _(m: Match) -> Operation:
    return Operation(m["type"], (m["type"], "u32"), lambda a, rank: a % WINDOW + rank.astype(a.dtype) * WINDOW)
