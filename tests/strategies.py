"""Hypothesis strategies for what the operators take: rows of logits that hurt, views of every layout, parameters as
numbers and as tensors. Also what tests of the law compare with, and `one_thread`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fastsample.arguments import Filters, Randomness

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Around the widths of vector registers (4 to 64) and of the kernels' chunks (256, 1024), and plain odd ones.
VOCABULARIES = (1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 255, 256, 257, 511, 513, 1000, 1023, 1025, 2049, 4099)

TEMPERATURES = (0.0, 1e-45, 1.1e-38, 1e-30, 1e-6, 0.1, 0.5, 0.8, 1.0, 1.3, 2.0, 50.0, 1e30, 3e38, math.inf)
# 2^-62 is where the law's bound becomes 1; 1 - 2^-24 is the largest float32 below 1.
TOP_PS = (0.0, 1e-45, 1e-38, 2.0**-63, 2.0**-62, 1e-10, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 2.0**-24, 1.0)
MIN_PS = (0.0, 1e-45, 1e-12, 2.0**-40, 0.01, 0.05, 0.3, 1 - 2.0**-24, 1.0)
TOP_KS = (-1, 0, 1, 2, 5, 40, 255, 256, 257, 1000, 2**22, 2**40)
SEEDS = (0, 1, 2**31, 2**32, 2**63 - 1, -(2**63), -1)

_ZEROS_AND_ONES = (0.0, -0.0, 1.0, -1.0, 1.0 + 2.0**-23, 0.5, 3.0)
_DENORMAL = (1e-45, -1e-45, 1.1e-38, -1.1e-38, 1.2e-38, 1e-20)
_HUGE = (3e38, -3e38, 3.4028234663852886e38, -3.4028234663852886e38, 65504.0)
_AT_A_WEIGHT_OF_NEARLY_0 = (-27.725887, -27.7, -87.3, 88.0, -88.0)
_INFINITE = (-math.inf, -math.inf, math.inf)
SPECIAL_FLOATS = (*_ZEROS_AND_ONES, *_DENORMAL, *_HUGE, *_AT_A_WEIGHT_OF_NEARLY_0, *_INFINITE)


class Call(NamedTuple):
    """The arguments of one call of the operators `sample`, `filter_logits` and the rest, but for `out`."""

    logits: Tensor
    indices: Tensor | None
    filters: Filters
    randomness: Randomness
    num_samples: int

    def __repr__(self) -> str:
        """What a failing test should print: layouts and parameters, and the values of small tensors only."""
        layout = f"{self.logits.dtype} strides {self.logits.stride()} offset {self.logits.storage_offset()}"
        values = self.logits.tolist() if self.logits.numel() < 100 else "..."
        return f"Call({list(self.logits.shape)} {layout} {values}, {self[1:]})"


# --- rows


def _normal(random: np.random.Generator, vocab: int) -> np.ndarray:
    return random.normal(0, random.choice([1e-3, 0.3, 1, 3, 10, 100]), vocab)


def _ties(random: np.random.Generator, vocab: int) -> np.ndarray:
    return np.round(random.normal(0, 3, vocab) * random.choice([0.5, 1, 4])) / 4


def _two_values(random: np.random.Generator, vocab: int) -> np.ndarray:
    low = random.choice([-40.0, -12.0, -1.0, -1e-3])
    return np.where(random.random(vocab) < random.choice([0.01, 0.5, 0.99]), 0.0, low)


def _all_equal(random: np.random.Generator, vocab: int) -> np.ndarray:
    return np.full(vocab, random.choice([0.0, -7.25, 3e38, 1e-45, -np.inf, np.inf], p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]))


def _signed_zeros(random: np.random.Generator, vocab: int) -> np.ndarray:
    return np.where(random.random(vocab) < 0.5, -0.0, 0.0) - (random.random(vocab) < 0.2) * 2.0


def _denormals(random: np.random.Generator, vocab: int) -> np.ndarray:
    return random.integers(-(2**23), 2**23, vocab) * 2.0**-149 * random.choice([1.0, 2.0**-10, 2.0**-20])


def _any_bits(random: np.random.Generator, vocab: int) -> np.ndarray:
    values = random.integers(0, 2**32, vocab, dtype=np.uint32).view(np.float32)
    return np.where(np.isnan(values), np.float32(0), values).astype(np.float64)


def _wide(random: np.random.Generator, vocab: int) -> np.ndarray:
    return random.choice([-1.0, 1.0], vocab) * 10.0 ** random.uniform(-44, 38.4, vocab)


def _ascending(random: np.random.Generator, vocab: int) -> np.ndarray:
    return np.arange(vocab) * random.choice([1e-3, 0.1, 5.0])


def _descending(random: np.random.Generator, vocab: int) -> np.ndarray:
    return -_ascending(random, vocab)


def _sawtooth(random: np.random.Generator, vocab: int) -> np.ndarray:
    return (np.arange(vocab) % random.choice([2, 16, 255, 256, 257])) * random.choice([-0.1, 0.01, 1.0])


def _one_huge(random: np.random.Generator, vocab: int) -> np.ndarray:
    row = random.normal(0, 1e-3, vocab)
    row[random.integers(vocab)] = random.choice([12.0, 30.0, 1000.0])
    return row


def _log_probabilities(random: np.random.Generator, vocab: int) -> np.ndarray:
    row = random.normal(0, 3, vocab)
    return row - np.log(np.exp(row).sum())


_ORDINARY_ROWS = (_normal, _ties, _log_probabilities)
_ODD_ROWS = (_two_values, _all_equal, _signed_zeros, _denormals, _any_bits, _wide)
_HOSTILE_ROWS = (_ascending, _descending, _sawtooth, _one_huge)
_ROW_KINDS = (*_ORDINARY_ROWS, *_ORDINARY_ROWS, *_ODD_ROWS, *_HOSTILE_ROWS)


@st.composite
def rows(draw: st.DrawFn, vocab: int) -> np.ndarray:
    """One row of `vocab` logits as float64, some of them replaced by infinities, zeros or, rarely, a NaN."""
    if vocab <= 8 and draw(st.booleans()):
        return np.array(draw(st.lists(st.sampled_from(SPECIAL_FLOATS), min_size=vocab, max_size=vocab)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    row = draw(st.sampled_from(_ROW_KINDS))(random, vocab).copy()
    places = random.permutation(vocab)
    spoil = draw(st.sampled_from(("nothing", "nothing", "nothing", "-inf", "most -inf", "zeros", "+inf", "nan")))
    if spoil == "-inf":
        row[places[: vocab // 3]] = -np.inf
    elif spoil == "most -inf":
        row[places[1 + vocab // 100 :]] = -np.inf
    elif spoil == "zeros":
        row[places[: vocab // 4]] = 0.0
        row[places[vocab // 4 : vocab // 2]] = -0.0
    elif spoil == "+inf":
        row[places[: 1 + random.integers(3)]] = np.inf
    elif spoil == "nan":
        row[places[0]] = np.nan
    return row


@st.composite
def layouts(draw: st.DrawFn, values: Tensor) -> Tensor:
    """A view with the values of a 2-D tensor: offset, row-strided, column-strided, transposed or expanded.

    What lies around the view is poison (NaN, or a token id that no vocabulary has).
    """
    rows_, columns = values.shape
    poison = math.nan if values.is_floating_point() else -77777
    layout = draw(
        st.sampled_from(("contiguous", "offset", "row stride", "column stride", "transposed", "one row", "one column"))
    )
    if layout == "contiguous":
        return values
    if layout == "transposed":
        return values.t().contiguous().t()
    if layout == "one row" and rows_ > 0:
        return values[:1].contiguous().expand(rows_, columns)
    if layout == "one column" and columns > 0:
        return values[:, :1].contiguous().expand(rows_, columns)
    before = draw(st.integers(0, 9))
    step = draw(st.integers(2, 3)) if layout == "column stride" else 1
    width = columns * step + (draw(st.integers(0, 9)) if layout != "offset" else 0)
    buffer = torch.full((before + rows_ * width,), poison, dtype=values.dtype)
    view = buffer[before:].view(rows_, width)[:, : columns * step : step]
    view.copy_(values)
    return view


@st.composite
def logits_of(draw: st.DrawFn, max_rows: int = 5, vocabularies: tuple[int, ...] = VOCABULARIES) -> Tensor:
    """Logits [rows, vocab] of any dtype and layout; sometimes no row at all."""
    vocab = draw(st.one_of(st.integers(1, 40), st.sampled_from(vocabularies)))
    count = draw(st.integers(0, max_rows))
    matrix = np.stack([draw(rows(vocab)) for _ in range(count)]) if count else np.zeros((0, vocab))
    with np.errstate(over="ignore"):
        values = torch.from_numpy(matrix.astype(np.float32))
    return draw(layouts(values.to(draw(st.sampled_from(DTYPES)))))


@st.composite
def probabilities_of(draw: st.DrawFn, max_rows: int = 5, vocabularies: tuple[int, ...] = VOCABULARIES) -> Tensor:
    """Probabilities [rows, vocab], normalised or not, with zeros, denormals and, rarely, what makes a row invalid."""
    vocab = draw(st.one_of(st.integers(1, 40), st.sampled_from(vocabularies)))
    count = draw(st.integers(1, max_rows))
    matrix = np.empty((count, vocab))
    for row in matrix:
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        kind = draw(st.sampled_from(("softmax", "softmax", "uniform", "ties", "denormal", "any", "one", "bad")))
        if kind == "softmax":
            exponentials = np.exp(random.normal(0, random.choice([0.1, 2, 10]), vocab))
            row[:] = exponentials / exponentials.sum()
        elif kind == "uniform":
            row[:] = random.random(vocab)
        elif kind == "ties":
            row[:] = random.integers(0, 4, vocab) / 4
        elif kind == "denormal":
            row[:] = random.integers(0, 2**20, vocab) * 2.0**-149
        elif kind == "any":
            row[:] = np.abs(_any_bits(random, vocab))
        elif kind == "one":
            row[:] = -0.0
            row[random.integers(vocab)] = random.choice([1.0, 1e-45, 3e38, 0.3])
        else:
            row[:] = random.random(vocab) * random.choice([0.0, 1.0])
            row[random.integers(vocab)] = random.choice([-1e-45, -1.0, np.nan, np.inf, 0.5])
    with np.errstate(over="ignore"):
        values = torch.from_numpy(matrix.astype(np.float32))
    return draw(layouts(values.to(draw(st.sampled_from(DTYPES)))))


# --- parameters


def _tensor(values: float | list[float], dtype: torch.dtype) -> Tensor:
    """A tensor of numbers rounded once to `dtype`."""
    return torch.tensor(values, dtype=torch.float64 if dtype.is_floating_point else dtype).to(dtype)


@st.composite
def _row_parameter(
    draw: st.DrawFn, numbers: tuple[float, ...], only_in_tensors: tuple[float, ...], batch: int, dtype: torch.dtype
) -> tuple[float, Tensor | None]:
    """A number, and None or the tensor that replaces it: 0-d, or one entry per row with stride 0, 1 or 2."""
    form = draw(st.sampled_from(("number", "number", "0-d", "rows", "rows", "strided rows", "expanded")))
    if form == "number":
        return draw(st.sampled_from(numbers)), None
    entries = st.sampled_from(numbers + only_in_tensors) if draw(st.integers(0, 3)) == 0 else st.sampled_from(numbers)
    if form == "0-d":
        return numbers[0], _tensor(draw(entries), dtype)
    if form == "expanded":
        return numbers[0], _tensor([draw(entries)], dtype).expand(batch)
    tensor = _tensor([draw(entries) for _ in range(batch)], dtype)
    return numbers[0], torch.stack((tensor, torch.zeros_like(tensor)), 1)[:, 0] if form == "strided rows" else tensor


@st.composite
def filters_for(draw: st.DrawFn, batch: int) -> Filters:
    """Temperature and filters for `batch` rows; values that make a row invalid appear only in tensors."""
    nan = math.nan
    temperature = draw(_row_parameter(TEMPERATURES, (-1.0, -0.0, nan, -math.inf), batch, torch.float32))
    # A filter that is off leaves the others visible: each is off about half of the time.
    top_k, top_p, min_p = (0, None), (1.0, None), (0.0, None)
    if draw(st.booleans()):
        top_k = draw(_row_parameter(TOP_KS, (-(2**63), 2**63 - 1), batch, torch.int64))
    if draw(st.booleans()):
        top_p = draw(_row_parameter(TOP_PS, (1.0 + 2.0**-23, -1e-45, nan, -0.0, math.inf), batch, torch.float32))
    if draw(st.booleans()):
        min_p = draw(_row_parameter(MIN_PS, (1.0 + 2.0**-23, -1e-45, nan, -0.0, math.inf), batch, torch.float32))
    return Filters(*temperature, *top_k, *top_p, *min_p, draw(st.integers(0, 2)))


@st.composite
def randomness_for(draw: st.DrawFn, batch: int) -> Randomness:
    """Seeds, offsets and streams for `batch` rows."""
    parts = [draw(_row_parameter(SEEDS, (2**40 + 3,), batch, torch.int64)) for _ in range(3)]
    return Randomness(*parts[0], *parts[1], *parts[2], draw(st.booleans()))


@st.composite
def calls(
    draw: st.DrawFn, probabilities: bool = False, max_rows: int = 5, vocabularies: tuple[int, ...] = VOCABULARIES
) -> Call:
    """A whole call; about half of them map output rows to logits rows, some of those out of range."""
    logits = draw((probabilities_of if probabilities else logits_of)(max_rows, vocabularies))
    count = logits.shape[0]
    indices, batch = None, count
    if draw(st.booleans()):
        batch = draw(st.integers(0, 6))
        out_of_range = [-1, count, 2**40, -(2**63)]
        entries = st.sampled_from([*range(count)] * 4 + out_of_range)
        indices = torch.tensor([draw(entries) for _ in range(batch)], dtype=torch.int64)
        if draw(st.booleans()):
            indices = torch.stack((indices, indices + 1), 1)[:, 0]
    num_samples = draw(st.sampled_from((1, 1, 2, 5, 33)))
    return Call(logits, indices, draw(filters_for(batch)), draw(randomness_for(batch)), num_samples)


@st.composite
def calls_without_indices(draw: st.DrawFn, max_rows: int = 5, vocabularies: tuple[int, ...] = VOCABULARIES) -> Call:
    """A call in which output row b is logits row b, as the operators that return rows want it."""
    logits = draw(logits_of(max_rows, vocabularies))
    filters = draw(filters_for(logits.shape[0]))
    return Call(logits, None, filters, Randomness(0, None, 0, None, 0, None, False), 1)


# --- comparisons


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, signs of zero included; any NaN equals any NaN."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    nan = actual.isnan()
    if not torch.equal(nan, expected.isnan()):
        return False
    return bool(((actual.view(integer) == expected.view(integer)) | nan).all())


def ulp_distance(actual: Tensor, expected: Tensor) -> Tensor:
    """How many float32 numbers apart two tensors are; NaN and NaN are 0 apart, NaN and a number 2^32."""

    def place(value: Tensor) -> Tensor:
        bits = value.view(torch.int32).long()
        return torch.where(bits < 0, -0x80000000 - bits, bits)

    apart = (place(actual) - place(expected)).abs()
    one, other = actual.isnan(), expected.isnan()
    return torch.where(one & other, 0, torch.where(one | other, 2**32, apart))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the many small steps of the reference take up to 15 times as long on two (measured)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
