"""Writes tests/data/law_vectors.json: small cases and everything the sampling law says of them, by tests/law_oracle.py.

Run `python tests/make_law_vectors.py` after the law or the cases changed; the output depends on nothing else.
"""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np

from law_oracle import Answer, Case, answer

PATH = Path(__file__).with_name("data") / "law_vectors.json"

FORMAT = [
    "Test vectors of the fastsample sampling law, version 1 (docs/law.md). Each case is one row of logits (or, if its",
    "'probabilities' is true, of probabilities) with parameters, and what the law says of it. To check an",
    "implementation, demand equality everywhere but in log_probs, which may be off by 4 units in the last place.",
    "Floats are the hexadecimal digits of their bits, most significant first: 8 for a float32, 4 for a float16 or",
    "bfloat16; lists of them are separated by spaces. 64-bit unsigned numbers are 16 hexadecimal digits. Other numbers",
    "are decimal and below 2^53.",
    "Input: name; dtype (float32, float16, bfloat16); logits; temperature, top_p, min_p (float32); top_k; order;",
    "probabilities; seed, offset (64 bits); stream (32 bits, already the row's own).",
    "Output: valid; weights (w_i of every token before any filter); kept (indices of the kept set, ascending; of",
    "probabilities, a token of probability 0 counts as kept where no filter drops it, though it is never drawn);",
    "z (the sum of the kept weights); words (the 64-bit words of draws 0, 1, 2, ...); tokens (one for each word, drawn",
    "with replacement); tokens_without_replacement; and for logits probs and log_probs (float32, of every token; 0 and",
    "-inf where it is not kept). In an invalid row weights, kept, probs and log_probs are empty, z is 0 and every",
    "token is -1.",
]

ORDERS = ("top_k_first", "min_p_first", "joint")
WIDTHS = {"float32": 32, "float16": 16, "bfloat16": 16}


# --- numbers


def rounded(value: float) -> np.float32:
    """A Python float as the law takes it: rounded to float32."""
    with np.errstate(over="ignore"):
        return np.float32(value)


def bits_of(value: float | np.float32, dtype: str) -> int:
    """The bits of a value in `dtype`; bfloat16 takes the upper half of the float32."""
    with np.errstate(over="ignore"):
        if dtype == "float16":
            return int(np.float16(value).view(np.uint16))
        bits = int(np.float32(value).view(np.uint32))
    return bits if dtype == "float32" else bits >> 16


def value_of(bits: int, dtype: str) -> np.float32:
    """The float32 that bits in `dtype` widen to."""
    if dtype == "float16":
        return np.float32(np.uint16(bits).view(np.float16))
    return np.uint32(bits if dtype == "float32" else bits << 16).view(np.float32)


def digits(values: Iterable[float], dtype: str = "float32") -> str:
    """The bits of some numbers as the file holds them."""
    return " ".join(f"{bits_of(value, dtype):0{WIDTHS[dtype] // 4}x}" for value in values)


# --- rows; only random() and getrandbits(), whose output Python keeps the same from release to release


def normal(source: random.Random, count: int, scale: float) -> list[float]:
    """Roughly normal numbers, from sums of uniform ones so that no platform's logarithm is in them."""
    return [scale * (sum(source.random() for _ in range(12)) - 6) for _ in range(count)]


def ties(source: random.Random, count: int) -> list[float]:
    return [source.getrandbits(3) / 2 for _ in range(count)]


def any_bits(source: random.Random, count: int) -> list[float]:
    values = [float(value_of(source.getrandbits(32), "float32")) for _ in range(count)]
    return [value if value == value else -1.5 for value in values]


INF = float("inf")
NAN = float("nan")
FLT_MAX = 3.4028234663852886e38


def edge_rows(source: random.Random) -> dict[str, list[float]]:
    """Rows by name, for float32 and both 16-bit types alike."""
    return {
        "one token": [-3.5],
        "one infinite token": [INF],
        "two equal tokens": [1.0, 1.0],
        "all equal": [2.5] * 9,
        "signed zeros": [-0.0, 0.0, -0.0, 0.0, -1.0],
        "ties": ties(source, 21),
        "minus infinities": [-INF, 1.0, -INF, 0.5, -INF, -INF, 2.0, -INF],
        "only minus infinities": [-INF] * 4,
        "plus infinities": [1.0, INF, -INF, INF, 3.0, INF],
        "a NaN": [0.0, NAN, 1.0],
        "a NaN and infinities": [INF, NAN, -INF],
        "denormals": [1e-45, 0.0, -1e-45, 3e-39, 5e-39, 1.1e-38, -1.1e-38, 2e-38],
        "differences overflow": [FLT_MAX, -FLT_MAX, 3e38, -3e38, 0.0, 1.0],
        "float16 range": [65504.0, -65504.0, 6e-8, 65503.0, 1.0],
        "huge and flat": [30.0] + [0.0] * 12,
        "ascending": [i / 4 for i in range(17)],
        "descending": [-i / 4 for i in range(17)],
        "exponents from 0 to -160": [-8 * i * 0.6931471805599453 for i in range(21)],
        "just above and below 2^-40": [0.0, -27.725885, -27.725887, -27.725889, -27.72589, -27.7, -28.0],
        "any bits": any_bits(source, 24),
    }


# --- cases


def case(
    logits: Iterable[float],
    dtype: str = "float32",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    order: str = "top_k_first",
    probabilities: bool = False,
    seed: int = 0,
    offset: int = 0,
    stream: int = 0,
    num_samples: int = 4,
) -> tuple[str, Case]:
    """A dtype and a case; the logits are rounded to the dtype."""
    values = [value_of(bits_of(value, dtype), dtype) for value in logits]
    floats = [rounded(value) for value in (temperature, top_p, min_p)]
    return dtype, Case(values, floats[0], top_k, *floats[1:], order, probabilities, seed, offset, stream, num_samples)


def cases() -> Iterator[tuple[str, tuple[str, Case]]]:
    """Every case with its name."""
    source = random.Random(20240607)

    def new_seed() -> int:
        return source.getrandbits(64)

    for name, row in edge_rows(source).items():
        for dtype in WIDTHS:
            for t in (1.0, 0.25) if dtype == "float32" else (1.0,):
                yield f"{name}, {dtype}, T {t}", case(row, dtype, t, seed=new_seed())
        yield f"{name}, filtered", case(row, "float32", 0.7, 3, 0.8, 0.05, seed=new_seed())

    for t in (0.0, -0.0, 1e-45, 1e-40, 1.1e-38, 1.2e-38, 1e-30, 1e-5, 0.5, 3.0, 100.0, 1e20, 1e38, 3e38, INF):
        for name in ("ties", "plus infinities", "denormals", "differences overflow", "any bits"):
            yield f"{name}, T {t}", case(edge_rows(source)[name], "float32", t, 0, 0.95, seed=new_seed())

    for p in (0.0, 1e-45, 1e-38, 2.0**-63, 2.0**-62, 2.0**-41, 1e-6, 0.25, 0.5, 0.9, 0.99, 1 - 2.0**-24, 1.0):
        for order in ORDERS:
            row = normal(source, 33, 2.0)
            yield f"top_p {p}, {order}", case(row, "float32", 0.8, 9, p, 0.02, order, seed=new_seed())
        yield f"top_p {p} of ties", case([0.5] * 8, "bfloat16", 1.0, 0, p, seed=new_seed())

    for p in (1e-45, 1e-12, 2.0**-40, 2.0**-39, 0.01, 0.1, 0.5, 1 - 2.0**-24, 1.0):
        row = normal(source, 40, 3.0)
        for order in ORDERS:
            yield f"min_p {p}, {order}", case(row, "float32", 1.5, 0, 0.9, p, order, seed=new_seed())

    for k in (-1, 1, 2, 5, 20, 21, 1000000):
        yield f"top_k {k} of ties", case(ties(source, 21), "float16", 1.0, k, seed=new_seed())

    dtypes = cycle(WIDTHS)
    for order, k, p, min_p in product(ORDERS, (0, 40), (1.0, 0.9), (0.0, 0.03)):
        dtype = next(dtypes)
        row = normal(source, 150, 2.5)
        name = f"{dtype} row, k {k}, p {p}, min_p {min_p}, {order}"
        yield name, case(row, dtype, 0.8, k, p, min_p, order, seed=new_seed(), num_samples=6)

    for name, wrong in (
        *((f"temperature {t}", {"temperature": t}) for t in (-1.0, -1e-45, -INF, NAN)),
        *((f"top_p {p}", {"top_p": p}) for p in (-0.1, 1.0000001, NAN, INF)),
        *((f"min_p {p}", {"min_p": p}) for p in (-1e-45, 1.5, NAN)),
    ):
        yield f"invalid {name}", case([0.0, 1.0], **wrong)
    yield "top_p and min_p of -0", case([0.0, 1.0], top_p=-0.0, min_p=-0.0)

    for seed, offset, stream in (
        *product((0, 2**32 - 1, 2**63, 2**64 - 1), (0, 2**32, 2**64 - 1), (0, 2**32 - 1)),
        (0x0123456789ABCDEF, 0xFEDCBA9876543210, 0x89ABCDEF),
    ):
        row = normal(source, 12, 1.0)
        name = f"seed {seed:x}, offset {offset:x}, stream {stream:x}"
        yield name, case(row, seed=seed, offset=offset, stream=stream, num_samples=9)

    orders = cycle(ORDERS)
    for dtype in WIDTHS:
        for row_name, row in probability_rows(source).items():
            for k, p, min_p in ((0, 1.0, 0.0), (4, 0.7, 0.1)):
                order = next(orders)
                name = f"probabilities: {row_name}, {dtype}, k {k}, p {p}, min_p {min_p}, {order}"
                yield name, case(row, dtype, 1.0, k, p, min_p, order, True, new_seed(), num_samples=5)


def probability_rows(source: random.Random) -> dict[str, list[float]]:
    """Rows of probabilities by name."""
    roots = [source.random() for _ in range(30)]
    shares = [root * root * root * root for root in roots]
    return {
        "normalised": [share / sum(shares) for share in shares],
        "not normalised": [100 * share for share in shares],
        "one": [0.25],
        "zeros and signed zeros": [0.0, -0.0, 0.5, 0.0, 0.5, -0.0],
        "ties": [source.getrandbits(2) / 8 for _ in range(12)],
        "powers of two": [2.0**-i for i in range(60)],
        "denormals": [1e-45, 0.0, 3e-39, 1.1e-38, 1.2e-38],
        "huge": [3e38, 1e38, 1.0, 1e-38],
        "a negative one": [0.5, -0.1, 0.6],
        "a NaN": [0.5, NAN],
        "an infinity": [0.5, INF],
        "all zero": [0.0, -0.0, 0.0],
    }


# --- the file


def entry(name: str, dtype: str, case: Case, result: Answer) -> dict[str, Any]:
    """One case as the file holds it."""
    given = {
        "name": name,
        "dtype": dtype,
        "logits": digits(case.logits, dtype),
        "temperature": digits([case.temperature]),
        "top_k": case.top_k,
        "top_p": digits([case.top_p]),
        "min_p": digits([case.min_p]),
        "order": case.order,
        "probabilities": case.probabilities,
        "seed": f"{case.seed:016x}",
        "offset": f"{case.offset:016x}",
        "stream": case.stream,
    }
    found = {
        "valid": result.valid,
        "weights": result.weights,
        "kept": result.kept,
        "z": result.z,
        "words": " ".join(f"{word:016x}" for word in result.words),
        "tokens": result.tokens,
        "tokens_without_replacement": result.tokens_without_replacement,
    }
    if not case.probabilities:
        found |= {"probs": digits(result.probs), "log_probs": digits(result.log_probs)}
    return given | found


def text() -> str:
    """The whole file, one case a line."""
    lines = [json.dumps(entry(name, dtype, case, answer(case)), allow_nan=False) for name, (dtype, case) in cases()]
    header = json.dumps({"format": FORMAT, "law_version": 1}, indent=1)
    return header.removesuffix("\n}") + ',\n "cases": [\n' + ",\n".join(lines) + "\n]}\n"


if __name__ == "__main__":
    PATH.write_text(text())
