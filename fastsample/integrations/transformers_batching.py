"""Continuous batching of transformers (`generate_batch` and its managers): each row filtered by its own parameters.

A manager applies a list of processors to the rows of a step, with a tensor [rows] for each parameter that a request may
set, and draws by softmax and multinomial. Its list is replaced by one that holds the same processors, so that requests
are checked and their tensors filled by transformers' code, and that applies the filters at its end by deferring them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingManager
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTemperatureLogitsWarper,
    ContinuousBatchingTopKLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)

from fastsample.integrations.deferred import DeferredScores, SamplingParameters
from fastsample.integrations.transformers_chain import PARAMETER_OF, can_defer, served_end, warn_once

_PARAMETER_OF = PARAMETER_OF | {
    ContinuousBatchingTemperatureLogitsWarper: "temperature",
    ContinuousBatchingTopKLogitsWarper: "top_k",
    ContinuousBatchingTopPLogitsWarper: "top_p",
}


def serve(manager: ContinuousBatchingManager, is_on: Callable[[], bool]) -> None:
    """Make a manager draw by the law, or warn why it does not.

    Args:
        manager: a new one, or one that the model keeps; with do_sample.
        is_on: whether to draw by the law, as a manager may be in use when `enable` has ended; asked at every step that
            is not the replay of a CUDA graph.
    """
    if isinstance(manager.logit_processor, _DeferringList):
        return
    config = manager.continuous_batching_config
    if config.varlen_compile_config is not None or config.decode_compile_config is not None:
        warn_once("fastsample does not serve compiled continuous batching: transformers samples as it always does")
    elif manager.batch_processor is not None:
        warn_once(
            "fastsample does not serve a continuous batching manager that was made before enable(model): call "
            "model.destroy_cached_continuous_batching_manager() to have a new one made"
        )
    else:
        manager.logit_processor = _DeferringList(manager.logit_processor, is_on)


class _DeferringList(ContinuousBatchingLogitsProcessorList):
    """A manager's processors, of which the last, as far as they are filters of the law, are applied by the draw."""

    def __init__(self, replaced: ContinuousBatchingLogitsProcessorList, is_on: Callable[[], bool]) -> None:
        vars(self).update(vars(replaced))
        self.do_processing = True  # also with no filter at all, for the draw
        self._is_on = is_on
        self._end = served_end(self.logits_processor, _PARAMETER_OF)

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Called for each new request: an error here fails that one, a later error all that share a step."""
        super().check_kwargs(kwargs)
        if not self._is_on():
            return
        if "temperature" in kwargs and not kwargs["temperature"] >= 0:
            raise ValueError(f"temperature: got {kwargs['temperature']} for this request; accepted: at least 0")
        if "top_p" in kwargs and math.isnan(kwargs["top_p"]):
            raise ValueError(
                "top_p: got nan for this request; accepted: a number, of which 1 and above keep every token"
            )

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        if not self._is_on():
            return super().__call__(input_ids, scores, logits_processor_args)
        tensors = iter(logits_processor_args)  # int32 [rows], one for each processor with parameters per request
        steps = [
            (
                processor,
                next(tensors)[: len(scores)] if isinstance(processor, ContinuousBatchingLogitsProcessor) else None,
            )
            for processor in self.logits_processor
        ]
        scores = _apply(steps[: self._end], input_ids, scores)
        if not can_defer(scores):
            return _apply(steps[self._end :], input_ids, scores)
        filters: dict[str, Any] = {}
        for processor, tensor in steps[self._end :]:
            name = _PARAMETER_OF[type(processor)]
            filters[name] = getattr(processor, name) if tensor is None else _values(name, tensor)
        return DeferredScores.of(scores, SamplingParameters(**filters))


def _apply(steps: list[tuple[Any, Tensor | None]], input_ids: Tensor, scores: Tensor) -> Tensor:
    """What transformers does with these processors and their tensors."""
    for processor, tensor in steps:
        scores = processor(input_ids, scores) if tensor is None else processor(scores, tensor)
    return scores


def _values(name: str, tensor: Tensor) -> Tensor:
    """A parameter of each row, which transformers keeps as the bits of an int32."""
    if name == "top_k":
        return tensor
    values = tensor.view(torch.float32)
    # Outside [0, 1] transformers keeps one token, or all; here the row would be invalid.
    return values.clamp(0.0, 1.0) if name == "top_p" else values
