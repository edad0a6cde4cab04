"""fastsample inside Hugging Face transformers.

    from fastsample.integrations.transformers import enable

    enable(model)
    model.generate(**inputs, do_sample=True, temperature=0.8, top_k=50, top_p=0.9)

`generate` builds a chain of logits processors, then calls softmax and multinomial on what the chain returns. `enable`
ends that chain with a processor of ours, in place of the temperature, top-k, top-p and min-p filters at its end; it
returns deferred scores (fastsample/integrations/deferred.py), from which transformers' own code draws by the law.
"""

from __future__ import annotations

import functools
import logging
import math
import types
from typing import Any

import torch
from torch import Tensor

from fastsample.integrations.deferred import Deferred, DeferredScores, KeptScores, SamplingParameters

try:
    from transformers import (
        EpsilonLogitsWarper,
        EtaLogitsWarper,
        GenerationConfig,
        GenerationMixin,
        LogitsProcessor,
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopHLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )
except ImportError as error:
    raise ImportError(
        "fastsample.integrations.transformers needs Hugging Face transformers 5 or newer, which could not be imported "
        f"({error}); install it with: pip install 'fastsample[transformers]'"
    ) from error

logger = logging.getLogger(__name__)

# What `generate` calls to build its chain: the one name of transformers' inside that this module relies on.
_HOOK = "_get_logits_processor"

# In the order in which `generate` applies them, which is the law's order "top_k_first".
_SERVED_WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
_OTHER_WARPERS = (TopHLogitsWarper, TypicalLogitsWarper, EpsilonLogitsWarper, EtaLogitsWarper)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST_VOCABULARY = 2**22  # law section 1


def enable(model: GenerationMixin) -> _Enabled:
    """Make `model.generate(..., do_sample=True)` draw its tokens by the sampling law.

    Temperature, top_k, top_p and min_p are those of the call: from the model's GenerationConfig, the one passed to
    `generate`, or its keyword arguments. Tokens come from torch's default generator on the device of the logits, so
    `torch.manual_seed` and `transformers.set_seed` reproduce them. Greedy search is left as it is.

    Served in part, with one warning: filters that fastsample does not have (typical_p, epsilon_cutoff, eta_cutoff,
    top_h) and processors that stand after the filters (watermarks, renormalize_logits) run in transformers, as do the
    filters before them, and fastsample draws from what they leave. Not served, with one warning: beam sampling, which
    draws over beams x vocabulary, and continuous batching, whose parameters are per request. In assisted generation the
    filters are fastsample's and the draw, which compares two models, is transformers'.

    Two things differ from transformers, by law sections 2 and 1: top_k keeps exactly k tokens, where transformers keeps
    every token that ties with the k-th; and a step whose logits hold a NaN or nothing but -inf raises ValueError, not
    RuntimeError (on a GPU, where looking would make it wait, the token is -1).

    Args:
        model: a transformers model with `generate`. For a pipeline pass `pipeline.model`, for a PEFT model
            `peft_model.get_base_model()`.

    Returns:
        A context manager for `with enable(model):`, whose end, also by an exception, leaves the model as it was before.
        Without `with` the model stays enabled until `disable(model)`.

    Raises:
        TypeError: `model` is not a transformers model that generates.
    """
    _check_model(model)
    was_enabled = is_enabled(model)
    if not was_enabled:
        # On the instance, so that no other model changes; a bound method, so that a copy of the model calls its own.
        setattr(model, _HOOK, types.MethodType(_get_logits_processor, model))
        logger.info("fastsample draws the tokens of this %s", type(model).__name__)
    return _Enabled(model, was_enabled)


def disable(model: GenerationMixin) -> None:
    """Make `model.generate` sample as transformers does; nothing happens where `enable` had not been called.

    Args:
        model: a transformers model with `generate`.

    Raises:
        TypeError: `model` is not a transformers model that generates.
    """
    _check_model(model)
    if is_enabled(model):
        delattr(model, _HOOK)


def is_enabled(model: GenerationMixin) -> bool:
    """Whether `model.generate(..., do_sample=True)` draws with fastsample.

    Args:
        model: a transformers model with `generate`.

    Returns:
        True between `enable(model)` and `disable(model)`.
    """
    return getattr(vars(model).get(_HOOK), "__func__", None) is _get_logits_processor


class _Enabled:
    """What `enable` returns: leaving the `with` block restores what the model had on entry."""

    def __init__(self, model: GenerationMixin, was_enabled: bool) -> None:
        self._model = model
        self._was_enabled = was_enabled

    def __enter__(self) -> GenerationMixin:
        return self._model

    def __exit__(self, *exception: object) -> None:
        if not self._was_enabled:
            disable(self._model)


def _check_model(model: object) -> None:
    # Wrappers such as PEFT's forward unknown attributes, but what is set on them never reaches the model inside.
    if not isinstance(model, GenerationMixin):
        raise TypeError(
            f"model: got {type(model).__name__}; accepted: the transformers model whose generate() runs "
            "(for a pipeline pass pipeline.model, for a PEFT model peft_model.get_base_model(), for what torch.compile "
            "made the model that went into it)"
        )


def _get_logits_processor(
    model: GenerationMixin, generation_config: GenerationConfig, *args: Any, **kwargs: Any
) -> LogitsProcessorList:
    """Stands in for the model's own method of this name.

    pickle stores a bound method by its name, so this name makes a pickled model load as one that is not enabled, and
    where there is no fastsample as well.
    """
    chain = getattr(type(model), _HOOK)(model, generation_config, *args, **kwargs)
    if not generation_config.do_sample:
        return chain
    if (generation_config.num_beams or 1) > 1:
        _warn_once("fastsample does not serve beam sampling (num_beams > 1): transformers samples as it always does")
        return chain
    if not args and "input_ids_seq_length" not in kwargs:  # `generate` always passes it
        _warn_once("fastsample does not serve continuous batching: transformers samples as it always does")
        return chain

    end = _served_end(chain)
    left = [type(warper).__name__ for warper in chain[:end] if isinstance(warper, _SERVED_WARPERS + _OTHER_WARPERS)]
    if left:
        _warn_once(
            f"fastsample serves only the temperature, top-k, top-p and min-p filters at the end of the chain "
            f"({', '.join(type(processor).__name__ for processor in chain)}): {', '.join(left)} run in transformers, "
            "and fastsample draws from what they leave"
        )
    # Where `generate` returns the scores of every step, its user must find ordinary tensors in them.
    keep_scores = bool(generation_config.return_dict_in_generate and generation_config.output_scores)
    return LogitsProcessorList(
        [*chain[:end], _FilterAndDraw(chain[end:], KeptScores if keep_scores else DeferredScores)]
    )


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _served_end(chain: list[LogitsProcessor]) -> int:
    """Where the longest end of the chain begins that is filters of the law in the law's order, each at most once."""
    start, next_rank = len(chain), len(_SERVED_WARPERS)
    while start > 0 and (rank := _rank(chain[start - 1])) is not None and rank < next_rank:
        start, next_rank = start - 1, rank
    return start


def _rank(processor: Any) -> int | None:
    """The processor's place in the law's order; None if it computes something that the law does not."""
    # A subclass may compute anything, so only the very classes count.
    if type(processor) not in _SERVED_WARPERS or getattr(processor, "filter_value", -math.inf) != -math.inf:
        return None
    # The law keeps at least one token and no more. TopKLogitsWarper has folded its minimum into its top_k.
    if isinstance(processor, (TopPLogitsWarper, MinPLogitsWarper)) and processor.min_tokens_to_keep > 1:
        return None
    return _SERVED_WARPERS.index(type(processor))


class _FilterAndDraw(LogitsProcessor):
    """The end of the chain: takes the logits, returns deferred scores in place of those of the warpers it replaces."""

    def __init__(self, replaced: list[LogitsProcessor], kind: type[DeferredScores]) -> None:
        self.replaced = LogitsProcessorList(replaced)
        self.kind = kind
        names = dict(zip(_SERVED_WARPERS, SamplingParameters._fields, strict=True))
        self.parameters = SamplingParameters(
            **{names[type(warper)]: getattr(warper, names[type(warper)]) for warper in replaced}
        )

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Tensor:
        if isinstance(scores, Deferred):  # an assistant model gets the main model's chain before its own
            scores.compute()
        served = scores.dim() == 2 and scores.dtype in _DTYPES and 1 <= scores.shape[1] <= _LARGEST_VOCABULARY
        if not served or scores.requires_grad:
            return self.replaced(input_ids, scores)
        return self.kind.of(scores, self.parameters)
