"""fastsample inside Hugging Face transformers (docs/transformers.md).

    from fastsample.integrations.transformers import enable

    enable(model)
    model.generate(**inputs, do_sample=True, temperature=0.8, top_k=50, top_p=0.9)

`generate` builds a chain of logits processors, then calls softmax and multinomial on what the chain returns. `enable`
ends that chain with a processor of ours, in place of the temperature, top-k, top-p and min-p filters at its end
(transformers_chain.py); it returns deferred scores (deferred.py), from which transformers' own code draws by the law.
Continuous batching (transformers_batching.py) and the verification of drafts (transformers_assisted.py) have ways of
their own.
"""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

try:
    from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
    from transformers import __version__ as transformers_version
except ImportError as error:
    raise ImportError(
        "fastsample.integrations.transformers needs Hugging Face transformers 5 or newer, which could not be imported "
        f"({error}); install it with: pip install 'fastsample[transformers]'"
    ) from error

from fastsample.integrations.deferred import DeferredScores, KeptScores
from fastsample.integrations.transformers_assisted import _get_candidate_generator
from fastsample.integrations.transformers_chain import (
    PARAMETER_OF,
    FilterAndDraw,
    ServedChain,
    logger,
    served_end,
    warn_once,
)


def enable(model: GenerationMixin) -> _Enabled:
    """Make `model.generate(..., do_sample=True)` draw its tokens by the sampling law.

    Temperature, top_k, top_p and min_p are those of the call: from the model's GenerationConfig, the one passed to
    `generate`, or its keyword arguments. Tokens come from torch's default generator on the device of the logits, so
    `torch.manual_seed` and `transformers.set_seed` reproduce them. Greedy search is left as it is.

    Continuous batching (`generate_batch`) draws each row with its request's parameters; drafts of assisted generation
    are accepted or replaced by law section 8. Served in part, with one warning: filters that fastsample does not have
    (typical_p, epsilon_cutoff, eta_cutoff, top_h) and processors that stand after the filters (watermarks,
    renormalize_logits) run in transformers, as do the filters before them, and fastsample draws from what they leave.
    Not served, with one warning: beam sampling, which draws over beams x vocabulary, compiled continuous batching, and
    assistant_ensemble_weight.

    Two things differ from transformers, by law sections 2 and 1: top_k keeps exactly k tokens, where transformers keeps
    every token that ties with the k-th; and a step whose logits hold a NaN or nothing but -inf raises ValueError, not
    RuntimeError (on a GPU, where looking would make it wait, the token is -1).

    Args:
        model: a transformers model with `generate`. For a pipeline pass `pipeline.model`, for a PEFT model
            `peft_model.get_base_model()`.

    Returns:
        A context manager for `with enable(model):`, whose end, also by an exception, undoes this call: the model is
        disabled by the last such block to end, in whichever thread, unless it was enabled without `with` as well.
        Without `with` the model stays enabled until `disable(model)`.

    Raises:
        TypeError: `model` is not a transformers model that generates, or has other methods of its own where those of
            fastsample would be set.
    """
    _check_model(model)
    with _lock:
        was_enabled = is_enabled(model)
        if not was_enabled:
            if names := _replaced_by_others(model):
                raise TypeError(
                    f"model: {', '.join(names)} of this {type(model).__name__} were replaced by somebody else; undo "
                    "that first"
                )
            # On the instance, so that no other model changes; bound methods, so that a copy of the model calls its own.
            for method in _METHODS:
                setattr(model, method.__name__, types.MethodType(method, model))
            _calls_of[model] = _Calls()
        # A copy of an enabled model is enabled, though nobody has called this for it.
        calls = _calls_of.setdefault(model, _Calls(1))
        calls.in_force += 1
    if not was_enabled:
        _destroy_kept_manager(model)
        logger.info("fastsample draws the tokens of this %s", type(model).__name__)
    return _Enabled(model, calls)


def disable(model: GenerationMixin) -> None:
    """Make `model.generate` sample as transformers does; nothing happens where `enable` had not been called.

    It also ends what open `with enable(model):` blocks have turned on. Once an enabled model has had drafts to verify,
    transformers' function `_speculative_sampling` stays wrapped for the rest of the process: what it is given by other
    models goes to the original, unchanged.

    Args:
        model: a transformers model with `generate`.

    Raises:
        TypeError: `model` is not a transformers model that generates.
    """
    _check_model(model)
    with _lock:
        was_enabled = _switch_off(model)
    if was_enabled:
        _destroy_kept_manager(model)


def is_enabled(model: GenerationMixin) -> bool:
    """Whether `model.generate(..., do_sample=True)` draws with fastsample.

    Args:
        model: a transformers model with `generate`.

    Returns:
        True between `enable(model)` and `disable(model)`.
    """
    return _is_ours(model, _get_logits_processor)


class _Calls:
    """How many calls of `enable` are in force for a model: without `with`, or with a block that has not ended."""

    def __init__(self, in_force: int = 0) -> None:
        self.in_force = in_force


class _Enabled:
    """What `enable` returns: leaving the `with` block undoes that one call."""

    def __init__(self, model: GenerationMixin, calls: _Calls) -> None:
        self._model = model
        self._calls: _Calls | None = calls

    def __enter__(self) -> GenerationMixin:
        return self._model

    def __exit__(self, *exception: object) -> None:
        calls, self._calls = self._calls, None
        if calls is None:
            return
        with _lock:
            calls.in_force -= 1
            # After disable(model) inside of the block, the calls in force now are later ones.
            is_last = calls.in_force == 0 and _calls_of.get(self._model) is calls
            was_enabled = is_last and _switch_off(self._model)
        if was_enabled:
            _destroy_kept_manager(self._model)


_lock = threading.Lock()  # for the calls, and for what is set on a model
_calls_of: weakref.WeakKeyDictionary[Any, _Calls] = weakref.WeakKeyDictionary()


def _is_ours(model: GenerationMixin, method: Callable[..., Any]) -> bool:
    return getattr(vars(model).get(method.__name__), "__func__", None) is method


def _replaced_by_others(model: GenerationMixin) -> list[str]:
    return [method.__name__ for method in _METHODS if method.__name__ in vars(model) and not _is_ours(model, method)]


def _switch_off(model: GenerationMixin) -> bool:
    """Take what is ours off the model, under the lock; whether there was anything."""
    calls = _calls_of.pop(model, None)
    ours = [method for method in _METHODS if _is_ours(model, method)]
    for method in ours:
        delattr(model, method.__name__)
    was_enabled = calls is not None or len(ours) > 0
    if was_enabled and (names := _replaced_by_others(model)):
        warn_once(
            f"fastsample could not be taken off this {type(model).__name__}: somebody else has replaced "
            f"{', '.join(names)} after enable(model); undo that, then call disable(model) again"
        )
    return was_enabled


def _destroy_kept_manager(model: Any) -> None:
    # It may have captured a draw in CUDA graphs, whose replay asks nobody whether fastsample is on. Called without the
    # lock, since a manager that is running finishes its requests first.
    if destroy := getattr(model, "destroy_cached_continuous_batching_manager", None):
        destroy()


def _check_model(model: object) -> None:
    # Wrappers such as PEFT's forward unknown attributes, but what is set on them never reaches the model inside.
    if not isinstance(model, GenerationMixin):
        raise TypeError(
            f"model: got {type(model).__name__}; accepted: the transformers model whose generate() runs "
            "(for a pipeline pass pipeline.model, for a PEFT model peft_model.get_base_model(), for what torch.compile "
            "made the model that went into it)"
        )


def _get_logits_processor(
    model: Any, generation_config: GenerationConfig, *args: Any, **kwargs: Any
) -> LogitsProcessorList:
    """Stands in for the model's own method of this name.

    pickle stores a bound method by its name, so this name makes a pickled model load as one that is not enabled, and
    where there is no fastsample as well.
    """
    chain = type(model)._get_logits_processor(model, generation_config, *args, **kwargs)
    if not generation_config.do_sample:
        return chain
    if not args and "input_ids_seq_length" not in kwargs:
        return chain  # for a manager of continuous batching, which makes a list of its own of it
    if (generation_config.num_beams or 1) > 1:
        warn_once("fastsample does not serve beam sampling (num_beams > 1): transformers samples as it always does")
        return chain
    end = served_end(chain, PARAMETER_OF)
    # Where `generate` returns the scores of every step, its user must find ordinary tensors in them.
    keep_scores = bool(generation_config.return_dict_in_generate and generation_config.output_scores)
    return ServedChain([*chain[:end], FilterAndDraw(chain[end:], KeptScores if keep_scores else DeferredScores)])


def init_continuous_batching(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the model's own method of this name, through which every manager is made."""
    manager = type(model).init_continuous_batching(model, *args, **kwargs)
    if not manager.generation_config.do_sample:
        return manager
    try:
        from fastsample.integrations.transformers_batching import serve
    except ImportError:
        warn_once(
            f"fastsample does not serve continuous batching of transformers {transformers_version}, which has no "
            "filters per request yet: transformers samples as it always does"
        )
        return manager
    serve(manager, lambda: is_enabled(model))
    return manager


# What of a model `enable` replaces: the names of transformers' inside that it relies on.
_METHODS = (_get_logits_processor, init_continuous_batching, _get_candidate_generator)
