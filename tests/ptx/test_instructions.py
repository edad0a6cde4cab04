"""Each instruction alone, against exact arithmetic (truth.py), on numbers that are hard for it."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from . import Grid, Machine, Memory, Module, PtxError, floats, truth
from .compilation import refused_by_ptxas
from .truth import FLOAT32, FLOAT64, signed

LANES = 1024
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


class Case(NamedTuple):
    """Instructions from the registers a, b, c and e to d, whose types are `types` (d's first)."""

    body: str
    types: tuple[str, ...]
    truth: Callable[..., int]


def case(body: str, types: str, function: Callable[..., int]) -> Case:
    return Case(body, tuple(types.split()), function)


def _integer_cases() -> list[Case]:
    cases = []
    for width in (16, 32, 64):
        three, same = f"b{width} b{width} b{width}", f"b{width} b{width}"
        for sign in "us":
            type_ = f"{sign}{width}"

            def number(x: int, sign: str = sign, width: int = width) -> int:
                return signed(x, width) if sign == "s" else x

            def quotient(a: int, b: int, number: Callable[[int], int] = number) -> int:
                return truth.truncated_quotient(number(a), number(b))

            def remainder(a: int, b: int, number: Callable[[int], int] = number) -> int:
                return number(a) - number(b) * truth.truncated_quotient(number(a), number(b))

            def high(a: int, b: int, number: Callable[[int], int] = number, width: int = width) -> int:
                return number(a) * number(b) >> width

            cases += [
                case(f"add.{type_} d, a, b;", three, lambda a, b: a + b),
                case(f"sub.{type_} d, a, b;", three, lambda a, b: a - b),
                case(f"mul.lo.{type_} d, a, b;", three, lambda a, b: a * b),
                case(f"mul.hi.{type_} d, a, b;", three, high),
                case(f"mad.lo.{type_} d, a, b, c;", f"{three} b{width}", lambda a, b, c: a * b + c),
                case(f"mad.hi.{type_} d, a, b, c;", f"{three} b{width}", lambda a, b, c, h=high: h(a, b) + c),
                case(f"min.{type_} d, a, b;", three, lambda a, b, n=number: min(n(a), n(b))),
                case(f"max.{type_} d, a, b;", three, lambda a, b, n=number: max(n(a), n(b))),
                case(f"or.b{width} b, b, 1; div.{type_} d, a, b;", three, lambda a, b, q=quotient: q(a, b | 1)),
                case(f"or.b{width} b, b, 1; rem.{type_} d, a, b;", three, lambda a, b, r=remainder: r(a, b | 1)),
                case(f"shr.{type_} d, a, b;", f"{same} b32", lambda a, b, n=number: n(a) >> min(b, 64)),
            ]
            for name in ("eq", "ne", "lt", "le", "gt", "ge"):
                cases.append(
                    case(
                        f"setp.{name}.{type_} p, a, b; selp.u32 d, 1, 0, p;",
                        f"b32 {same}",
                        lambda a, b, n=number, name=name: truth.relation(name, n(a), n(b)),
                    )
                )
            if width < 64:
                wide = f"b{2 * width} {same}"
                cases.append(case(f"mul.wide.{type_} d, a, b;", wide, lambda a, b, n=number: n(a) * n(b)))
            if width == 32:
                cases.append(
                    case(f"mad.wide.{type_} d, a, b, c;", "b64 b32 b32 b64", lambda a, b, c, n=number: n(a) * n(b) + c)
                )
        cases += [
            case(f"neg.s{width} d, a;", same, lambda a: -a),
            case(f"abs.s{width} d, a;", same, lambda a, w=width: abs(signed(a, w))),
            case(f"and.b{width} d, a, b;", three, lambda a, b: a & b),
            case(f"or.b{width} d, a, b;", three, lambda a, b: a | b),
            case(f"xor.b{width} d, a, b;", three, lambda a, b: a ^ b),
            case(f"not.b{width} d, a;", same, lambda a: ~a),
            case(f"shl.b{width} d, a, b;", f"{same} b32", lambda a, b: a << min(b, 64)),
            case(f"mov.b{width} d, a;", same, lambda a: a),
            case(
                f"setp.lt.u{width} p, a, b; selp.b{width} d, a, c, p;",
                f"{three} b{width}",
                lambda a, b, c: a if a < b else c,
            ),
        ]
    return cases


def _bit_cases() -> list[Case]:
    cases = []
    for width in (32, 64):
        same = f"b{width} b{width}"
        cases += [
            case(f"popc.b{width} d, a;", f"b32 b{width}", lambda a: a.bit_count()),
            case(f"clz.b{width} d, a;", f"b32 b{width}", lambda a, w=width: w - a.bit_length()),
            case(f"brev.b{width} d, a;", same, lambda a, w=width: int(f"{a:0{w}b}"[::-1], 2)),
            case(
                f"bfi.b{width} d, a, b, c, e;",
                f"{same} b{width} b32 b32",
                lambda a, b, c, e, w=width: truth.insert_field(a, b, c, e, w),
            ),
        ]
        for sign in "us":
            type_ = f"{sign}{width}"
            cases += [
                case(
                    f"bfe.{type_} d, a, b, c;",
                    f"{same} b32 b32",
                    lambda a, b, c, w=width, s=sign: truth.bit_field(a, b, c, w, s == "s"),
                ),
                case(f"bfind.{type_} d, a;", f"b32 b{width}", lambda a, t=type_: truth.highest_bit(a, t)),
                case(
                    f"bfind.shiftamt.{type_} d, a;",
                    f"b32 b{width}",
                    lambda a, t=type_, w=width: -1 if truth.highest_bit(a, t) < 0 else w - 1 - truth.highest_bit(a, t),
                ),
            ]
    for side, function in (("l", lambda x, n: x << n >> 32), ("r", lambda x, n: x >> n)):
        for beyond, amount in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
            cases.append(
                case(
                    f"shf.{side}.{beyond}.b32 d, a, b, c;",
                    "b32 b32 b32 b32",
                    lambda a, b, c, f=function, n=amount: f(b << 32 | a, n(c)),
                )
            )
    for mode in ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
        name = f"prmt.b32.{mode}" if mode else "prmt.b32"
        cases.append(case(f"{name} d, a, b, c;", "b32 b32 b32 b32", lambda a, b, c, m=mode: truth.permute(a, b, c, m)))
    for table in (0xE8, 0x96, 0x1B, 0x80):
        body = f"lop3.b32 d, a, b, c, {table:#x};"
        cases.append(case(body, "b32 b32 b32 b32", lambda a, b, c, t=table: truth.logic(a, b, c, t)))
    return cases


def _carry_cases() -> list[Case]:
    """Chains as long as 128 bits need, and the flag as a number."""
    cases = []
    for width in (32, 64):
        four = f"b{width} b{width} b{width} b{width}"

        def middle(a: int, b: int, c: int, e: int, width: int = width) -> int:
            total = a * e % 2**width + b + (a * b % 2**width + c >> width)
            return total % 2**width + (total >> width)

        def number(low: int, up: int, width: int = width) -> int:
            return up << width | low

        for name, sign in (("add", 1), ("sub", -1)):
            upper = f"{name}c.u{width}"
            cases += [
                case(
                    f"{name}.cc.u{width} d, a, b; {upper} d, c, e;",
                    f"{four} b{width}",
                    lambda a, b, c, e, s=sign, n=number, w=width: n(a, c) + s * n(b, e) >> w,
                ),
                case(
                    f"{name}.cc.u{width} d, a, b; {name}c.cc.u{width} d, c, e; {upper} d, 0, 0;",
                    f"{four} b{width}",
                    lambda a, b, c, e, s=sign, n=number, w=width: n(a, c) + s * n(b, e) >> 2 * w,
                ),
                case(
                    f"{name}.cc.s{width} d, a, b; {name}c.s{width} d, 0, 0;",
                    f"b{width} b{width} b{width}",
                    lambda a, b, s=sign, w=width: a + s * b >> w,
                ),
            ]
        cases += [
            case(
                f"mad.lo.cc.u{width} d, a, b, c; madc.hi.u{width} d, a, b, e;",
                f"{four} b{width}",
                lambda a, b, c, e, n=number, w=width: a * b + n(c, e) >> w,
            ),
            case(
                f"mad.hi.cc.u{width} d, a, b, c; addc.u{width} d, 0, 0;",
                four,
                lambda a, b, c, w=width: (a * b >> w) + c >> w,
            ),
            case(
                f"mad.lo.cc.u{width} d, a, b, c; madc.lo.cc.u{width} d, a, e, b; addc.u{width} d, d, 0;",
                f"{four} b{width}",
                middle,
            ),
        ]
    return cases


def _float_cases() -> list[Case]:
    two, three = "f32 f32 f32", "f32 f32 f32 f32"
    cases = [
        case("div.rn.f32 d, a, b;", two, truth.divide),
        case("rcp.rn.f32 d, a;", "f32 f32", lambda a: truth.divide(0x3F800000, a)),
        case("sqrt.rn.f32 d, a;", "f32 f32", truth.square_root),
        case("mov.f32 d, a;", "f32 f32", lambda a: a),
        case("mov.f32 d, 0fBF800000;", "f32", lambda: 0xBF800000),
        case("mov.b32 d, a;", "b32 f32", lambda a: a),
        case("abs.f32 d, a;", "f32 f32", lambda a: a & 0x7FFFFFFF),
        case("neg.f32 d, a;", "f32 f32", lambda a: a ^ 0x80000000),
        case("copysign.f32 d, a, b;", two, lambda a, b: a & 0x80000000 | b & 0x7FFFFFFF),
        case("setp.lt.f32 p, a, b; selp.f32 d, a, c, p;", three, lambda a, b, c: a if truth.compare("lt", a, b) else c),
    ]
    for mode in ("rn", "rz", "rm", "rp"):
        cases += [
            case(f"add.{mode}.f32 d, a, b;", two, lambda a, b, m=mode: truth.add(a, b, m)),
            case(f"sub.{mode}.f32 d, a, b;", two, lambda a, b, m=mode: truth.subtract(a, b, m)),
            case(f"mul.{mode}.f32 d, a, b;", two, lambda a, b, m=mode: truth.multiply(a, b, m)),
            case(f"fma.{mode}.f32 d, a, b, c;", three, lambda a, b, c, m=mode: truth.multiply_add(a, b, c, m)),
        ]
        for width in (8, 16, 32, 64):
            register = f"b{max(width, 16)}"
            cases += [
                case(
                    f"cvt.{mode}.f32.u{width} d, a;",
                    f"f32 {register}",
                    lambda a, m=mode, w=width: truth.from_integer(a % 2**w, m),
                ),
                case(
                    f"cvt.{mode}.f32.s{width} d, a;",
                    f"f32 {register}",
                    lambda a, m=mode, w=width: truth.from_integer(signed(a % 2**w, w), m),
                ),
            ]
    for name, larger in (("min", False), ("max", True)):
        cases += [
            case(f"{name}.f32 d, a, b;", two, lambda a, b, larger=larger: truth.extreme(a, b, larger, False)),
            case(f"{name}.NaN.f32 d, a, b;", two, lambda a, b, larger=larger: truth.extreme(a, b, larger, True)),
        ]
    for name in COMPARISONS:
        body = f"setp.{name}.f32 p, a, b; selp.u32 d, 1, 0, p;"
        cases.append(case(body, "b32 f32 f32", lambda a, b, n=name: truth.compare(n, a, b)))
    return cases


def _float64_cases() -> list[Case]:
    two, three = "f64 f64 f64", "f64 f64 f64 f64"
    cases = [
        case("add.rn.f64 d, a, b;", two, lambda a, b: truth.add(a, b, "rn", FLOAT64)),
        case("sub.rn.f64 d, a, b;", two, lambda a, b: truth.subtract(a, b, "rn", FLOAT64)),
        case("mul.rn.f64 d, a, b;", two, lambda a, b: truth.multiply(a, b, "rn", FLOAT64)),
        case("div.rn.f64 d, a, b;", two, lambda a, b: truth.divide(a, b, FLOAT64)),
        case("fma.rn.f64 d, a, b, c;", three, lambda a, b, c: truth.multiply_add(a, b, c, "rn", FLOAT64)),
        case("rcp.approx.ftz.f64 d, a;", "f64 f64", truth.approximate_reciprocal),
        case("abs.f64 d, a;", "f64 f64", lambda a: a & ~FLOAT64.sign),
        case("neg.f64 d, a;", "f64 f64", lambda a: a ^ FLOAT64.sign),
        case("mov.f64 d, a;", "f64 f64", lambda a: a),
        case(
            "add.rn.f64 d, a, 0dBFF0000000000000;", "f64 f64", lambda a: truth.subtract(a, FLOAT64.one, "rn", FLOAT64)
        ),
        case("mov.b64 {t, u}, a; mov.b64 d, {t, u};", "f64 f64", lambda a: a),
        case(
            "setp.lt.f64 p, a, b; selp.f64 d, a, c, p;",
            three,
            lambda a, b, c: a if truth.compare("lt", a, b, FLOAT64) else c,
        ),
        case("cvt.f64.f32 d, a;", "f64 f32", lambda a: truth.convert(a, FLOAT32, FLOAT64)),
        case("cvt.rn.f32.f64 d, a;", "f32 f64", lambda a: truth.convert(a, FLOAT64, FLOAT32)),
    ]
    for name in COMPARISONS:
        body = f"setp.{name}.f64 p, a, b; selp.u32 d, 1, 0, p;"
        cases.append(case(body, "b32 f64 f64", lambda a, b, n=name: truth.compare(n, a, b, FLOAT64)))
    return cases


def _conversion_cases() -> list[Case]:
    cases = []
    for mode in ("rni", "rzi", "rmi", "rpi"):
        cases.append(case(f"cvt.{mode}.f32.f32 d, a;", "f32 f32", lambda a, m=mode: truth.to_integral(a, m)))
        for type_ in ("u16", "s16", "u32", "s32", "u64", "s64"):
            body = f"cvt.{mode}.{type_}.f32 d, a;"
            types = f"b{type_[1:]} f32"
            cases.append(case(body, types, lambda a, m=mode, t=type_: truth.to_integer(a, m, t)))
    for source in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"):
        for target in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"):
            from_width, to_width = int(source[1:]), int(target[1:])

            def convert(a: int, source: str = source, target: str = target) -> int:
                from_width, to_width = int(source[1:]), int(target[1:])
                value = signed(a % 2**from_width, from_width) if source[0] == "s" else a % 2**from_width
                value %= 2**to_width
                return signed(value, to_width) if target[0] == "s" else value

            types = f"b{max(to_width, 16)} b{max(from_width, 16)}"
            cases.append(case(f"cvt.{target}.{source} d, a;", types, convert))
    cases += [
        case("cvt.u32.u8 d, a;", "b32 b32", lambda a: a & 255),  # from and to registers that are wider
        case("cvt.s8.s64 d, a;", "b32 b64", lambda a: signed(a & 255, 8)),
        case("cvt.f32.f16 d, a;", "f32 b16", truth.from_half),
        case("cvt.rn.f16.f32 d, a;", "b16 f32", lambda a: truth.to_narrow(a, 5, 10)),
        case("cvt.f32.bf16 d, a;", "f32 b16", lambda a: truth.NAN if a & 0x7FFF > 0x7F80 else a << 16),
        case("cvt.rn.bf16.f32 d, a;", "b16 f32", lambda a: truth.to_narrow(a, 8, 7)),
    ]
    return cases


def _moving_cases() -> list[Case]:
    return [
        case("mov.b64 {t, u}, a; mov.b64 d, {u, t};", "b64 b64", lambda a: a >> 32 | a << 32),
        case("mov.b32 {h, k}, a; mov.b32 d, {k, h};", "b32 b32", lambda a: a >> 16 | a << 16),
        case("mov.b64 {_, u}, a; mov.u32 d, u;", "b32 b64", lambda a: a >> 32),
        case("mov.u32 d, -7;", "b32", lambda: -7),
        case("mov.u64 d, 0xFFFFFFFFFFFFFFFF;", "b64", lambda: -1),
        case("mov.b64 d, 0d3FF8000000000000;", "b64", lambda: 0x3FF8000000000000),
        # A predicate, its negation, and the second result of a comparison.
        case(
            "setp.lt.u32 p|q, a, b; selp.u32 d, 2, 0, q; @p add.u32 d, d, 1;", "b32 b32 b32", lambda a, b: 1 + (a >= b)
        ),
        case("setp.lt.u32 p, a, b; mov.u32 d, 5; @!p mov.u32 d, 6;", "b32 b32 b32", lambda a, b: 5 + (a >= b)),
        case(
            "setp.lt.u32 q, a, c; setp.gt.and.u32 p, a, b, !q; selp.u32 d, 1, 0, p;",
            "b32 b32 b32 b32",
            lambda a, b, c: a > b and not a < c,
        ),
        case(
            "setp.lt.u32 q, a, c; setp.gt.or.u32 p|q, a, b, q; selp.u32 d, 1, 0, p; @q add.u32 d, d, 2;",
            "b32 b32 b32 b32",
            lambda a, b, c: (a > b or a < c) + 2 * (a <= b or a < c),
        ),
        case(
            "setp.lt.u32 p, a, b; setp.lt.u32 q, a, c; xor.pred p, p, q; not.pred p, p; selp.u32 d, 1, 0, p;",
            "b32 b32 b32 b32",
            lambda a, b, c: (a < b) == (a < c),
        ),
        # An inner declaration hides the outer one only up to its brace.
        case(
            "mov.u32 t, 3; { .reg .b32 t; mov.u32 t, 4; add.u32 d, t, a; } add.u32 d, d, t;",
            "b32 b32",
            lambda a: a + 7,
        ),
    ]


CASES = [
    *_integer_cases(),
    *_bit_cases(),
    *_carry_cases(),
    *_float_cases(),
    *_float64_cases(),
    *_conversion_cases(),
    *_moving_cases(),
]

HARD_INTEGERS = (0, 1, 2, 31, 32, 33, 63, 64, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000)
HARD_FLOATS = (
    *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x80800000),  # around the denormals
    *(0x3F800000, 0xBF800000, 0x3F800001, 0x3F7FFFFF, 0x3F000000, 0x3FC00000, 0xC0200000),  # 1, -1, 0.5, 1.5, -2.5
    *(0x4B000000, 0x4B400000, 0x4B7FFFFF, 0x4EFFFFFF, 0x4F000000, 0xCF000000, 0x5F000000, 0x5F800000),  # at 2^23 ...
    *(0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001),  # largest, infinite, NaN
)
HARD_DOUBLES = (
    *(0, 1, 0xFFFFFFFF, 1 << 32, 0x000FFFFFFFFFFFFF, 0x0010000000000000),  # 0 and around the denormals
    *(0x3FF0000000000000, 0x3FF0000000000001, 0x3FF0000080000000, 0x3FEFFFFFFFFFFFFF, 0x3FF8000000000000),  # around 1
    *(0x36A0000000000000, 0x3690000000000000, 0x3690000000000001, 0x380FFFFFF0000000),  # at float32's denormals
    *(0x47EFFFFFE0000000, 0x47EFFFFFEFFFFFFF, 0x47EFFFFFF0000000),  # float32's largest, and around what overflows it
    *(0x7FCFFFFFFFFFFFFF, 0x7FD0000000000000, 0x7FD0000080000000),  # at the largest that have a reciprocal
    *(0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000, 0x7FF0000000000001),  # largest, infinite, NaN
)
HARD_DOUBLES += tuple(bits | FLOAT64.sign for bits in HARD_DOUBLES[::4])
# What is hard for a float of that width, and exponents so near each other that sums round and cancel.
HARD = {"f32": HARD_FLOATS, "f64": HARD_DOUBLES}
LIKE_SIZE = {"f32": (FLOAT32, range(110, 140)), "f64": (FLOAT64, range(1000, 1050))}


def _numbers(type_: str, place: int, draw: random.Random) -> list[int]:
    """As many as there are lanes. The first operands are each hard number with each other one, and then others."""
    width = int(type_[1:])
    hard = HARD.get(type_, HARD_INTEGERS)
    values = []
    if place < 2:
        values = [pair[place] for pair in itertools.product(hard, hard)]
    for _ in range(len(values), LANES):
        kind = draw.randrange(3)
        if kind == 0:
            values.append(draw.choice(hard))
        elif kind == 1 and type_ not in LIKE_SIZE:
            values.append(
                draw.choice((-1, 1)) * draw.choice(hard) + draw.choice((0, 1 << (width - 1), 1 << width // 2))
            )
        elif kind == 1:
            form, exponents = LIKE_SIZE[type_]
            exponent = draw.choice(exponents) << form.fraction_bits
            values.append(draw.choice((0, form.sign)) | exponent | draw.getrandbits(form.fraction_bits))
        else:
            values.append(draw.getrandbits(width))
    return [value % 2**width for value in values]


def _kernel(number: int, case: Case) -> str:
    """Each lane has eight bytes for each register of the case, d's first."""
    names = ("d", "a", "b", "c", "e")[: len(case.types)]
    lines = [f".visible .entry case_{number}(.param .u64 records) {{"]
    lines += [".reg .b64 address; .reg .b32 lane, t, u; .reg .b16 h, k; .reg .pred p, q;"]
    lines += [f".reg .{type_} {name};" for name, type_ in zip(names, case.types, strict=True)]
    lines += ["ld.param.u64 address, [records]; mov.u32 lane, %tid.x;"]
    lines += [f"mad.wide.u32 address, lane, {8 * len(names)}, address;"]
    for place, (name, type_) in enumerate(zip(names, case.types, strict=True)):
        if place:
            lines.append(f"ld.global.{type_} {name}, [address+{8 * place}];")
    lines += [case.body, f"st.global.{case.types[0]} [address], d;", "ret;", "}"]
    return "\n".join(lines)


@functools.cache
def _text() -> str:
    kernels = "\n".join(_kernel(number, case) for number, case in enumerate(CASES))
    return f".version 8.0\n.target sm_90\n.address_size 64\n{kernels}\n"


@functools.cache
def _module() -> Module:
    return Module(_text())


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.body for case in CASES])
def test_an_instruction(number: int) -> None:
    body, types, function = CASES[number]
    draw = random.Random(number)
    operands = [_numbers(type_, place, draw) for place, type_ in enumerate(types[1:])]
    records = np.array([[0] * LANES, *operands], np.uint64).T.copy()
    memory = Memory(1 << 16)
    buffer = memory.add("records", records, writable=True)
    Machine(_module(), memory).launch(f"case_{number}", Grid(1, LANES), [buffer.address.to_bytes(8, "little")])
    width = int(types[0][1:])
    found = memory.content(buffer).view(np.uint64).reshape(LANES, -1)[:, 0] & np.uint64(2**width - 1)
    for lane, arguments in enumerate(zip(*operands, strict=True) if operands else [()] * LANES):
        expected = int(function(*arguments)) % 2**width
        assert int(found[lane]) == expected, (body, [hex(x) for x in arguments], hex(int(found[lane])), hex(expected))


def _fused_triples(draw: random.Random) -> Iterator[tuple[float, float, float]]:
    """Factors and an addend for which a second rounding, or a part that is lost, makes another float64."""
    for _ in range(1000):
        a, b = (draw.choice((-1, 1)) * draw.uniform(1, 2) * 2.0 ** draw.randrange(-3, 4) for _ in range(2))
        yield a, b, -a * b  # only the product's own error remains
        yield a, b, a * b * 2.0 ** draw.randrange(-60, 60)  # to half a unit, near midpoints
        scale = draw.randrange(480, 560)  # products that are denormal, or nearly, or nothing
        yield a * 2.0**-scale, b * 2.0**-scale, draw.choice((0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, a * 2.0**-1040))
        yield a * 2.0**scale, b * 2.0**scale, math.ldexp(-a * b, 2 * scale) if scale < 508 else -1.7e308
        yield a * 2.0 ** -draw.randrange(900), b, draw.choice((-1, 1)) * 2.0 ** draw.randrange(-1074, 1024)
        # Products a 2^60th more or less than half a unit of a, and than the middle of two denormals.
        left, right = draw.choice(((2**20 + 1, 2**40 - 2**20 + 1), (2**30 + 1, 2**30 - 1)))
        yield left * math.ulp(a) / 2, draw.choice((-1, 1)) * right * 2.0**-60, a
        odd = draw.randrange(2**13) * 2 + 1
        addend = draw.choice((-1, 1)) * draw.randrange(2**14) * 5e-324
        yield math.ldexp(odd * left, -600), draw.choice((-1, 1)) * math.ldexp(right, 600 - 60 - 1075), addend


def test_a_fused_float64_is_rounded_once() -> None:
    triples = np.array(list(_fused_triples(random.Random(0))))
    with np.errstate(all="ignore"):
        found = floats.fused_multiply_add_float64(*triples.T).view(np.uint64).tolist()
    for triple, bits, result in zip(triples.tolist(), triples.view(np.uint64).tolist(), found, strict=True):
        expected = truth.multiply_add(*bits, "rn", FLOAT64)
        assert result == expected, ([x.hex() for x in triple], hex(result), hex(expected))


def test_the_cases_are_ptx(tmp_path: Path) -> None:
    """A snippet that ptxas refuses would prove nothing."""
    assert not refused_by_ptxas(_text(), 90, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "add.f32 d, a, b;",
        "mul.f32 d, a, b;",
        "fma.rn.ftz.f32 d, a, b, a;",
        "add.f64 d, a, b;",
        "fma.rz.f64 d, a, b, a;",
        "ex2.approx.f32 d, a;",
        "div.full.f32 d, a, b;",
        "add.sat.s32 t, t, u;",
        "mov.u32 t, %smid;",
        "dp4a.u32.u32 t, t, u, u;",
    ],
)
def test_what_is_not_interpreted_raises_with_its_text(body: str) -> None:
    module = Module(_kernel(0, Case(body, ("f32", "f32", "f32"), lambda: 0)))
    memory = Memory(1 << 16)
    buffer = memory.add("records", np.zeros(3 * LANES, np.uint64), writable=True)
    with pytest.raises(PtxError) as raised:
        Machine(module, memory).launch("case_0", Grid(1, LANES), [buffer.address.to_bytes(8, "little")])
    assert body.rstrip(";") in str(raised.value)
