"""What FlashInfer's functions are given: checked, and brought to what the operators take."""

from typing import Any

import torch
from torch import Tensor

from fastsample import arguments
from fastsample.arguments import Filters, describe

_ORDERS = ("top_k_first", "joint")
_DTYPES = (*arguments.LOGITS_DTYPES, torch.float64)


def checked_rows(name: str, rows: Any, most_tokens: int = arguments.MAX_VOCAB) -> Tensor:
    """The logits or probabilities of a call, float64 rounded to float32; raises unless they can be served."""
    accepted = "a float32, float16, bfloat16 or float64 tensor [rows, vocab]"
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name}: got {describe(rows)}; accepted: {accepted}")
    if rows.dtype not in _DTYPES or rows.layout is not torch.strided or rows.is_nested:
        raise TypeError(f"{name}: got {describe(rows)}; accepted: {accepted}, dense (strided)")
    if rows.dim() != 2 or not 1 <= rows.shape[1] <= most_tokens:
        raise ValueError(f"{name}: got {describe(rows)}; accepted: {accepted}, vocab from 1 to {most_tokens}")
    if rows.device.type in ("meta", "mps"):
        raise ValueError(f"{name}: got a tensor on {rows.device}; accepted: one on a CPU or a GPU")
    return rows.float() if rows.dtype is torch.float64 else rows


def checked_order(filter_apply_order: Any) -> str:
    """The law's name of an order, which is FlashInfer's; raises for any that FlashInfer does not have."""
    if filter_apply_order not in _ORDERS:
        raise ValueError(f"filter_apply_order: got {filter_apply_order!r}; accepted: {' or '.join(map(repr, _ORDERS))}")
    return filter_apply_order


def raise_for_nan(name: str, bad: Tensor) -> None:
    """Raise, in FlashInfer's words, for the rows that hold a NaN (bool [rows])."""
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"Input {name} contains NaN. In {int(bad.sum())} of {bad.numel()} rows, the first is {first}.")


def filters_of_outputs(top_k: Any, top_p: Any, min_p: Any, order: str, rows: Tensor, source: Tensor | None) -> Filters:
    """The parameters of the rows as those of the outputs; source: the row of each output, or None for one each."""
    outputs = rows.shape[0] if source is None else source.shape[0]
    k = _of_outputs("top_k", top_k, torch.int64, rows, source)
    top_p = _of_outputs("top_p", top_p, torch.float32, rows, source)
    min_p = _of_outputs("min_p", min_p, torch.float32, rows, source)
    filters = arguments.normalise_filters(1.0, k, top_p, min_p, order, outputs, rows.device)
    if not (isinstance(top_k, Tensor) and top_k.is_floating_point()):
        return filters
    # As an integer a NaN would be any number, and the law knows no bad top_k. One in top_p makes the row invalid.
    no_number = _of_outputs("top_k", top_k.isnan(), torch.bool, rows, source)
    top_p = filters.top_p_rows
    if top_p is None:
        top_p = torch.full((), filters.top_p, dtype=torch.float32, device=rows.device)
    return filters._replace(top_p_rows=torch.where(no_number, torch.nan, top_p))


def _of_outputs(name: str, value: Any, dtype: torch.dtype, rows: Tensor, source: Tensor | None) -> Any:
    """A parameter of the rows as one of the outputs: a number or 0-d tensor as it is, a value per row by `source`."""
    if not isinstance(value, Tensor):
        return value
    # FlashInfer converts whatever it is given.
    if value.is_floating_point() != dtype.is_floating_point:
        value = value.to(dtype)
    if source is None or value.dim() == 0:
        return value
    if value.shape != rows.shape[:1]:
        raise ValueError(
            f"{name}: got {describe(value)}; accepted: a number or shape [{rows.shape[0]}], one value per row that "
            "indices chooses from"
        )
    arguments.check_device(name, value, rows.device)
    if rows.shape[0] == 0:
        return value.new_zeros(source.shape)
    return value[source.clamp(0, rows.shape[0] - 1)]


def check_counter(name: str, counter: Any, target: Any) -> None:
    """Raise unless `counter` is None or an integer per request of `target` [batch, n, vocab] on its device."""
    if counter is None or not isinstance(target, Tensor) or target.dim() != 3:
        return
    fits = isinstance(counter, Tensor) and counter.shape == target.shape[:1] and counter.device == target.device
    if not fits or counter.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: got {describe(counter)}; accepted: int32 or int64 [{target.shape[0]}], or None")


def shared(value: Any) -> Any:
    """A tensor [1] as the 0-d tensor of a value that the outputs share."""
    return value[0] if isinstance(value, Tensor) and value.shape == (1,) else value
