"""Validation and normalisation of arguments: from what users write to what the operators trust.

Everything is checked before any work, and every message names the argument, what it got and what is accepted. TypeError
is for a type or dtype that is never accepted; ValueError for a value, shape or device that does not fit.

The checks stand on the hot path of a call that takes a few microseconds, so each parameter tests for its usual form
first (`type(x) is float`, which a NaN or an out-of-range value fails too) and leaves everything else to the slow
functions below.
"""

from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

ORDERS = ("top_k_first", "min_p_first", "joint")
LOGITS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Law section 1: the weights of 2^22 tokens, each at most 2^40, sum without overflow in 64 bits.
MAX_VOCAB = 2**22

_INTEGER_DTYPES = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_REAL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INT64_MAX = 2**63 - 1
# Configurations elsewhere write None for a filter that is off.
_KEEPS_ALL = {"top_k": " (0 keeps all)", "top_p": " (1 keeps all)", "min_p": " (0 keeps all)"}


class Filters(NamedTuple):
    """Temperature, filters and their order, in the order of the schemas.

    Where `*_rows` is a tensor it holds the parameter (0-d, or one value per output row) and the number beside it is not
    read.
    """

    temperature: float
    temperature_rows: Tensor | None
    top_k: int
    top_k_rows: Tensor | None
    top_p: float
    top_p_rows: Tensor | None
    min_p: float
    min_p_rows: Tensor | None
    order: int


NO_FILTERS = Filters(1.0, None, 0, None, 1.0, None, 0.0, None, 0)


class Randomness(NamedTuple):
    """Where the random words come from (law section 4), in the order of the schemas; numbers are signed int64."""

    seed: int
    seed_rows: Tensor | None
    offset: int
    offset_rows: Tensor | None
    stream: int
    stream_rows: Tensor | None
    stream_per_row: bool


class Edits(NamedTuple):
    """What requests change in the logits (law section 0), in the order of the schemas; None where there is nothing."""

    allowed: Tensor | None = None  # int32 [batch, at least ceil(vocab / 32)], a bit a token
    bits: Tensor | None = None  # int32 [batch, ceil(vocab / 32)], a bit an edit
    before: Tensor | None = None  # int32, the shape of bits: the row's edits in earlier words
    values: Tensor | None = None  # float32 [batch, n], in token order


class History(NamedTuple):
    """Where the first token of each row is recorded (law section 7), in the order of the schemas.

    Attributes:
        tokens: int64 [batch, n]: the token goes to place lengths[b]; where that is n or more it is not recorded.
        lengths: int64 [batch], one up for each token, also for one that `tokens` has no room for.
        counts: int32 [batch, vocab], one up at the token.
    """

    tokens: Tensor | None = None
    lengths: Tensor | None = None
    counts: Tensor | None = None


class Details(NamedTuple):
    """What a call writes about its draws (law section 7), in the order of the schemas; None where nobody asks."""

    logprobs: Tensor | None = None  # float32, the shape of the tokens
    raw_logprobs: Tensor | None = None  # float32, the shape of the tokens
    ranks: Tensor | None = None  # int64, the shape of the tokens
    top_tokens: Tensor | None = None  # int64 [batch, n], n at most 32
    top_logprobs: Tensor | None = None  # float32, the shape of top_tokens, given with it
    numbers: Tensor | None = None  # int64 [batch, 8]
    top_of_processed: bool = False  # whether the top is of what was drawn from, or of the raw logits

    def by_draw(self) -> "Details":
        """With a column for each draw where there was none, of one draw a row."""
        columns = (field.unsqueeze(1) if field is not None and field.dim() == 1 else field for field in self[:3])
        return Details._make((*columns, *self[3:]))


NO_EDITS, NO_HISTORY, NO_DETAILS = Edits(), History(), Details()


def check_logits(logits: Tensor) -> int:
    """The number of rows of `logits`; raises unless it is a dense [batch, vocab] or [vocab] that the kernels take."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: got {describe(logits)}; accepted: a torch.Tensor [batch, vocab] or [vocab]")
    if logits.dtype not in LOGITS_DTYPES:
        raise TypeError(f"logits: got dtype {logits.dtype}; accepted: float32, float16 or bfloat16")
    if logits.layout is not torch.strided or logits.is_nested:
        raise TypeError("logits: got a sparse or nested tensor; accepted: a dense (strided) one")
    if not logits.is_cpu:
        _check_device_type(logits.device)
    shape = logits.shape
    if not 1 <= len(shape) <= 2:
        raise ValueError(f"logits: got shape {list(shape)}; accepted: [batch, vocab] or [vocab]")
    vocab = shape[-1]
    if vocab == 0:
        raise ValueError(f"logits: got shape {list(shape)}, a vocabulary of 0 tokens; accepted: at least 1")
    if vocab > MAX_VOCAB:
        raise ValueError(
            f"logits: got a vocabulary of {vocab} tokens; accepted: at most 2^22 = {MAX_VOCAB} "
            "(the integer weights of more could overflow their 64-bit sum)"
        )
    return shape[0] if len(shape) == 2 else 1


def normalise_filters(
    temperature: Any, top_k: Any, top_p: Any, min_p: Any, order: Any, batch: int, device: torch.device
) -> Filters:
    """Check the filter parameters against `batch` output rows on `device` and bring them to what the operators take.

    Numbers stay numbers (the kernels round them to float32); tensors become float32 or int64 and are never read here: a
    bad value in one makes its row invalid (law section 1).
    """
    temperature_rows = top_k_rows = top_p_rows = min_p_rows = None
    if not (type(temperature) is float and temperature >= 0.0):
        if isinstance(temperature, Tensor):
            temperature_rows = real_rows("temperature", temperature, batch, device)
            temperature = 1.0
        else:
            temperature = _real_number("temperature", temperature, None)
    if not (type(top_k) is int and -1 <= top_k <= MAX_VOCAB):
        if isinstance(top_k, Tensor):
            top_k_rows = integer_rows("top_k", top_k, batch, device)
            top_k = 0
        else:
            # No vocabulary reaches int64's end (multinomial allows 2^31), so a larger k keeps all just the same.
            top_k = max(-1, min(integer_number("top_k", top_k), _INT64_MAX))
    if not (type(top_p) is float and 0.0 <= top_p <= 1.0):
        if isinstance(top_p, Tensor):
            top_p_rows = real_rows("top_p", top_p, batch, device)
            top_p = 1.0
        else:
            top_p = _real_number("top_p", top_p, 1.0)
    if not (type(min_p) is float and 0.0 <= min_p <= 1.0):
        if isinstance(min_p, Tensor):
            min_p_rows = real_rows("min_p", min_p, batch, device)
            min_p = 0.0
        else:
            min_p = _real_number("min_p", min_p, 1.0)
    if order not in ORDERS:
        raise ValueError(f"order: got {order!r}; accepted: {', '.join(map(repr, ORDERS))}")
    return Filters(
        temperature, temperature_rows, top_k, top_k_rows, top_p, top_p_rows, min_p, min_p_rows, ORDERS.index(order)
    )


def normalise_indices(indices: Any, logits: Tensor) -> Tensor:
    """Check `indices` (the logits row of each output row) and bring it to int64. The kernels check its values."""
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices: got {describe(indices)}; accepted: an integer tensor [batch], or None")
    if logits.dim() != 2:
        raise ValueError(f"indices: given with logits of shape {list(logits.shape)}; it needs logits [rows, vocab]")
    _check_integer_dtype("indices", indices)
    if indices.dim() != 1:
        raise ValueError(f"indices: got {describe(indices)}; accepted: shape [batch]")
    check_device("indices", indices, logits.device)
    return _to_int64(indices)


def normalise_tokens(tokens: Any, logits: Tensor) -> Tensor:
    """Check token ids against 1-D or 2-D `logits`, bring them to int64 [batch, n]. The kernels check their values."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens: got {describe(tokens)}; accepted: an integer tensor")
    _check_integer_dtype("tokens", tokens)
    if logits.dim() == 1:
        fits, accepted = tokens.dim() <= 1, "a 0-d tensor or shape [n] for 1-D logits"
    else:
        batch = logits.shape[0]
        fits = 1 <= tokens.dim() <= 2 and tokens.shape[0] == batch
        accepted = f"shape [{batch}] or [{batch}, n], one row per row of logits"
    if not fits:
        raise ValueError(f"tokens: got {describe(tokens)}; accepted: {accepted}")
    check_device("tokens", tokens, logits.device)
    rows = _to_int64(tokens)
    if logits.dim() == 1:
        return rows.view(1, -1) if rows.dim() == 0 else rows.unsqueeze(0)
    return rows.unsqueeze(1) if rows.dim() == 1 else rows


def check_names(given: Collection[str], accepted: Collection[str], others: Collection[str] = ()) -> None:
    """Raise a TypeError, with the name that is probably meant, unless all names of arguments are accepted.

    others: names that are meant by some of those who mistype one, but are not accepted here.
    """
    unknown = sorted(set(given) - set(accepted))
    if unknown:
        meant = "".join(
            f", did you mean {close!r}?" for close in get_close_matches(unknown[0], (*accepted, *others), 1)
        )
        raise TypeError(f"got an unknown argument {unknown[0]!r}{meant}; accepted: {', '.join(accepted)}")


def check_flag(name: str, flag: Any) -> None:
    """Raise unless `flag` is True or False."""
    if flag is not True and flag is not False:
        raise TypeError(f"{name}: got {describe(flag)}; accepted: True or False")


def check_num_samples(num_samples: Any) -> int:
    """Raise unless `num_samples` is a whole number of at least 1; return it as an int."""
    count = integer_number("num_samples", num_samples, tensors="")
    if count < 1:
        raise ValueError(f"num_samples: got {num_samples}; accepted: at least 1, or None for one token per row")
    return count


def check_out(out: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise unless `out` is an int64 tensor of this shape on this device, each element in a place of its own."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out: got {describe(out)}; accepted: an int64 tensor {list(shape)}, or None")
    if out.dtype is not torch.int64:
        raise TypeError(f"out: got dtype {out.dtype}; accepted: torch.int64")
    if out.shape != shape:
        raise ValueError(f"out: got shape {list(out.shape)}; accepted: {list(shape)}, the shape of the result")
    check_device("out", out, device)
    if out.layout is not torch.strided:
        raise TypeError("out: got a sparse tensor; accepted: a dense (strided) one")
    if has_overlap(out):
        raise ValueError("out: several of its elements share one place in memory (is it expanded?); pass out.clone()")


def has_overlap(tensor: Tensor) -> bool:
    """Whether a dimension of stride 0 puts several elements into one place, as `expand` does."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def describe(value: object) -> str:
    """A value as error messages name it."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}, dtype {value.dtype}, on {value.device}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _check_device_type(device: torch.device) -> None:
    if device.type == "meta":
        raise ValueError("logits: got a meta tensor, which has no values; accepted: a tensor on a real device")
    if device.type == "mps":
        raise ValueError("logits: got a tensor on MPS, which does not round as the law requires; move it: logits.cpu()")


def _real_number(name: str, value: Any, largest: float | None) -> float:
    accepted = "a number of at least 0" if largest is None else f"a number from 0 to {largest:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name}: got {describe(value)}; accepted: {accepted}{_KEEPS_ALL.get(name, '')}, "
            "or a floating-point tensor, 0-d or [batch]"
        )
    try:
        number = float(value)
    except OverflowError:  # an int beyond 1.8e308: infinite, as it is after rounding to float32
        number = float("inf") if value == abs(value) else float("-inf")
    if not (number >= 0.0 and (largest is None or number <= largest)):
        raise ValueError(f"{name}: got {value}; accepted: {accepted}")
    return number


def integer_number(name: str, value: Any, tensors: str = ", or an integer tensor, 0-d or [batch]") -> int:
    # numpy's integers are registered as Integral, and so are Python's bools, which are somebody's mistake here.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {describe(value)}; accepted: a whole number{_KEEPS_ALL.get(name, '')}{tensors}")
    return int(value)


def real_rows(name: str, rows: Tensor, batch: int, device: torch.device) -> Tensor:
    if rows.dtype not in _REAL_DTYPES:
        raise TypeError(
            f"{name}: got dtype {rows.dtype}; accepted: float32, float64 (rounded to float32), float16 or bfloat16"
        )
    _check_rows(name, rows, batch, device)
    return rows if rows.dtype is torch.float32 else rows.to(torch.float32)


def integer_rows(name: str, rows: Tensor, batch: int, device: torch.device) -> Tensor:
    _check_integer_dtype(name, rows)
    _check_rows(name, rows, batch, device)
    return _to_int64(rows)


def integer_vector(name: str, values: Any, size: int | None, device: torch.device) -> Tensor:
    """An integer tensor [size], or of any length where `size` is None, as int64; raises where it is none."""
    return _integer_tensor(name, values, (size,), device)


def integer_matrix(name: str, values: Any, batch: int, device: torch.device) -> Tensor:
    """An integer tensor [batch, any], as int64; raises where it is none."""
    return _integer_tensor(name, values, (batch, None), device)


def _integer_tensor(name: str, values: Any, sizes: tuple[int | None, ...], device: torch.device) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: got {describe(values)}; accepted: {_integers_of(sizes)}")
    _check_integer_dtype(name, values)
    if values.layout is not torch.strided or values.is_nested:
        raise TypeError(f"{name}: got a sparse or nested tensor; accepted: a dense (strided) one")
    fits = len(sizes) == values.dim() and all(
        size in (None, given) for size, given in zip(sizes, values.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: got {describe(values)}; accepted: {_integers_of(sizes)}")
    check_device(name, values, device)
    return _to_int64(values)


def _integers_of(sizes: tuple[int | None, ...]) -> str:
    return f"an integer tensor [{', '.join('any' if size is None else str(size) for size in sizes)}]"


def _to_int64(rows: Tensor) -> Tensor:
    if rows.dtype is torch.int64:
        return rows
    # The same bits: seeds and offsets count mod 2^64, and a top_k of 2^63 or more becomes one below 0, which keeps all
    # too.
    return rows.view(torch.int64) if rows.dtype is torch.uint64 else rows.to(torch.int64)


def _check_rows(name: str, rows: Tensor, batch: int, device: torch.device) -> None:
    if rows.layout is not torch.strided or rows.is_nested:
        raise TypeError(f"{name}: got a sparse or nested tensor; accepted: a dense (strided) one")
    dimensions = rows.dim()
    if dimensions != 0 and (dimensions != 1 or rows.shape[0] != batch):
        raise ValueError(
            f"{name}: got a tensor of shape {list(rows.shape)}; accepted: a number, a 0-d tensor or shape [{batch}], "
            "one value per output row"
        )
    check_device(name, rows, device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: got a tensor on {tensor.device}; accepted: on the device of the logits, {device}")


def _check_integer_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"{name}: got dtype {tensor.dtype}; accepted: an integer dtype (int64 is used without a copy)")
