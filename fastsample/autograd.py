"""Gradients of the transforms with respect to the logits, in closed form.

The kept set is a step function of the logits, so its gradient is zero almost everywhere and is taken as zero; what is
left is the softmax over a fixed kept set. Nothing flows to temperature or the filter parameters. Rows with temperature
0 have gradient 0 (their distribution does not move with the logits), invalid rows NaN.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample.arguments import Filters
from fastsample.reference_full import KeptSums, kept_places

_NO_FILTER_GRADIENT = (None,) * len(Filters._fields)


def _inverse_temperature(number: float, rows: Tensor | None) -> Tensor | float:
    """1 / T, broadcastable to [batch, vocab]; 0 where T is 0."""
    if rows is None:
        return 1.0 / number if number > 0.0 else 0.0
    inverse = torch.where(rows == 0.0, 0.0, rows.reciprocal())
    return inverse if rows.dim() == 0 else inverse.unsqueeze(1)


def _save_filter_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _filter_logits_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (filtered,) = ctx.saved_tensors
    kept = torch.where(filtered == float("-inf"), 0.0, gradient)
    return torch.where(filtered.isnan(), filtered, kept), *_NO_FILTER_GRADIENT


def _save_filtered_probs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, temperature, temperature_rows = inputs[:3]
    ctx.logits_dtype = logits.dtype
    ctx.temperature = temperature
    ctx.save_for_backward(output, temperature_rows)


def _filtered_probs_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    probs, temperature_rows = ctx.saved_tensors
    mean = (gradient * probs).sum(dim=1, keepdim=True)
    scaled = probs * (gradient - mean) * _inverse_temperature(ctx.temperature, temperature_rows)
    return scaled.to(ctx.logits_dtype), *_NO_FILTER_GRADIENT


def _save_log_probs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, tokens, *filters = inputs
    named = Filters(*filters)
    rows = (named.temperature_rows, named.top_k_rows, named.top_p_rows, named.min_p_rows)
    ctx.numbers = (named.temperature, named.top_k, named.top_p, named.min_p, named.order)
    ctx.save_for_backward(logits, tokens, output, *rows)


def _log_probs_backward(filtered_probs: Callable[..., Tensor], ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    logits, tokens, log_probs, temperature_rows, top_k_rows, top_p_rows, min_p_rows = ctx.saved_tensors
    temperature, top_k, top_p, min_p, order = ctx.numbers
    filters = Filters(temperature, temperature_rows, top_k, top_k_rows, top_p, top_p_rows, min_p, min_p_rows, order)
    # A token that is filtered out has the constant -inf, and one outside the vocabulary NaN: neither moves with the
    # logits.
    moving = torch.where(log_probs.isfinite(), gradient, 0.0)
    probs = filtered_probs(logits, *filters)
    inside = torch.where(log_probs.isfinite(), tokens, 0)
    at_tokens = torch.zeros_like(probs).scatter_add(1, inside, moving)
    scaled = (at_tokens - moving.sum(dim=1, keepdim=True) * probs) * _inverse_temperature(temperature, temperature_rows)
    return scaled.to(logits.dtype), None, *_NO_FILTER_GRADIENT


def _save_kept_log_probs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, tokens, kept_tokens, kept_offsets, temperature, temperature_rows = inputs
    ctx.temperature = temperature
    ctx.save_for_backward(logits, tokens, kept_tokens, kept_offsets, temperature_rows, output)


def _kept_log_probs_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    logits, tokens, kept_tokens, kept_offsets, temperature_rows, log_probs = ctx.saved_tensors
    rows, vocab = logits.shape
    row, inside = kept_places(kept_tokens, kept_offsets, rows, vocab)
    sums = KeptSums(logits, kept_tokens, row, inside, ctx.temperature, temperature_rows)
    moving = torch.where(log_probs.isfinite(), gradient, 0.0).double()
    share = torch.exp2(sums.exponent) / (sums.z.double() * 2.0**-40)[row]
    slope = torch.where(sums.temperature == 0, 0.0, sums.temperature.reciprocal())
    at_kept = torch.where(inside, -moving.sum(dim=1)[row] * share * slope[row], 0.0)
    result = torch.zeros_like(logits, dtype=torch.float32)
    place = row, torch.where(inside, kept_tokens, 0)
    result.index_put_(place, at_kept.float(), accumulate=True)
    result.scatter_add_(1, torch.where(log_probs.isfinite(), tokens, 0), (moving * slope[:, None]).float())
    return result.to(logits.dtype), None, None, None, None, None


def register(library: torch.library.Library, filtered_probs: Callable[..., Tensor]) -> None:
    """Register the gradients of one namespace's transforms.

    Args:
        library: the namespace, in which the operators are defined.
        filtered_probs: its operator of that name, so that a backward stays on the backend of its forward.
    """

    def log_probs_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _log_probs_backward(filtered_probs, ctx, gradient)

    for name, backward, setup in (
        ("filter_logits", _filter_logits_backward, _save_filter_logits),
        ("filtered_probs", _filtered_probs_backward, _save_filtered_probs),
        ("log_probs", log_probs_backward, _save_log_probs),
        ("kept_log_probs", _kept_log_probs_backward, _save_kept_log_probs),
    ):
        torch.library.register_autograd(f"{library.ns}::{name}", backward, setup_context=setup, lib=library)
