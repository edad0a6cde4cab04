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
    return _checked_values(name, rows, ("rows", "vocab"), most_tokens)


def checked_chains(draft_probs: Any, draft_token_ids: Any, target_probs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The chains of a verification, float64 rounded to float32; raises unless they fit together.

    Args:
        draft_probs: [batch, n, vocab].
        draft_token_ids: [batch, n].
        target_probs: [batch, n + 1, vocab], by which the others are judged.
    """
    target = _checked_values("target_probs", target_probs, ("batch", "n + 1", "vocab"), arguments.MAX_VOCAB)
    batch, rows, vocab = target.shape
    if rows == 0:
        raise ValueError(f"target_probs: got shape {list(target.shape)}; accepted: [batch, n + 1, vocab], n at least 0")
    drafted = arguments.integer_matrix("draft_token_ids", draft_token_ids, batch, target.device)
    draft = _checked_values("draft_probs", draft_probs, ("batch", "n", "vocab"), arguments.MAX_VOCAB)
    for name, given, shape in (
        ("draft_token_ids", drafted, (batch, rows - 1)),
        ("draft_probs", draft, (batch, rows - 1, vocab)),
    ):
        if given.shape != shape:
            raise ValueError(
                f"{name}: got shape {list(given.shape)}; accepted: {list(shape)} with target_probs of shape "
                f"{list(target.shape)}, which has a row for each draft and one more"
            )
    arguments.check_device("draft_probs", draft, target.device)
    return draft, drafted, target


def _checked_values(name: str, values: Any, dimensions: tuple[str, ...], most_tokens: int) -> Tensor:
    accepted = f"a float32, float16, bfloat16 or float64 tensor [{', '.join(dimensions)}]"
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: got {describe(values)}; accepted: {accepted}")
    if values.dtype not in _DTYPES or values.layout is not torch.strided or values.is_nested:
        raise TypeError(f"{name}: got {describe(values)}; accepted: {accepted}, dense (strided)")
    if values.dim() != len(dimensions) or not 1 <= values.shape[-1] <= most_tokens:
        raise ValueError(f"{name}: got {describe(values)}; accepted: {accepted}, vocab from 1 to {most_tokens}")
    if values.device.type in ("meta", "mps"):
        raise ValueError(f"{name}: got a tensor on {values.device}; accepted: one on a CPU or a GPU")
    return values.float() if values.dtype is torch.float64 else values


def checked_generator(generator: Any, seed: Any) -> torch.Generator | None:
    """The generator that a call draws from, which beside a seed is none, as in FlashInfer; raises for anything else."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {describe(generator)}; accepted: a torch.Generator, or None")
    return generator if seed is None else None


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


def check_counter(name: str, counter: Any, target: Tensor) -> None:
    """Raise unless `counter` is None or an integer per request of `target` [batch, n + 1, vocab] on its device."""
    if counter is None:
        return
    fits = isinstance(counter, Tensor) and counter.shape == target.shape[:1] and counter.device == target.device
    if not fits or counter.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: got {describe(counter)}; accepted: int32 or int64 [{target.shape[0]}], or None")


def shared(value: Any) -> Any:
    """A tensor [1] as the 0-d tensor of a value that the outputs share."""
    return value[0] if isinstance(value, Tensor) and value.shape == (1,) else value
