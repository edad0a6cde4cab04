"""Filtered scores and their softmax as tensors whose values exist only once somebody looks at them.

Hosts such as transformers filter the logits, take a softmax and call multinomial on it. Given `DeferredScores` instead
of filtered scores, the same code of the host draws by `fastsample.sample` from the unfiltered logits, and no
[batch, vocab] tensor is sorted, scanned or written. Any other use computes the values that the host would have there,
and from then on the very same object is an ordinary tensor. This is torch's override mechanism, `__torch_function__`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

import fastsample

_SOFTMAX = frozenset({torch.nn.functional.softmax, torch.softmax, Tensor.softmax})
_MULTINOMIAL = frozenset({torch.multinomial, Tensor.multinomial})
# Questions whose answer does not depend on the values.
_SHAPE_QUERIES = frozenset(
    {Tensor.dim, Tensor.size, *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device"))}
)


class SamplingParameters(NamedTuple):
    """As in `fastsample.sample`: each a number for all rows, or a tensor [batch] with a value per row."""

    temperature: float | Tensor = 1.0
    top_k: int | Tensor = 0
    top_p: float | Tensor = 1.0
    min_p: float | Tensor = 0.0

    def scores(self, logits: Tensor) -> Tensor:
        """The logits divided by the temperature, and -inf where a token is filtered out (law section 3).

        Args:
            logits: [batch, vocab], float32, float16 or bfloat16.

        Returns:
            A tensor of the same shape and dtype.
        """
        kept = fastsample.filter_logits(logits, *self)
        if not isinstance(self.temperature, Tensor):
            return kept if self.temperature == 1.0 else kept / self.temperature
        # A temperature of 0 has kept one token, whose probability is 1 at any other temperature.
        return (kept / torch.where(self.temperature == 0, 1.0, self.temperature)[:, None]).to(logits.dtype)


class Deferred(Tensor):
    """A tensor that stands for a function of `logits`, of the same shape.

    Its own storage is a single NaN, expanded: code that gets past `__torch_function__` finds NaN and fails loudly, and
    can not take unfiltered logits for filtered ones.
    """

    logits: Tensor
    parameters: SamplingParameters

    @classmethod
    def of(cls, logits: Tensor, parameters: SamplingParameters) -> Deferred:
        """A stand-in for what this class computes from the logits, which must not be written to while it is deferred.

        Args:
            logits: [batch, vocab], or what the class says; float32, float16 or bfloat16; kept by reference.
            parameters: the filters.

        Returns:
            A tensor of the shape, dtype and device of the logits.
        """
        deferred = logits.new_full((), math.nan).expand(logits.shape).as_subclass(cls)
        deferred.logits, deferred.parameters = logits, parameters
        return deferred

    def compute(self) -> None:
        """Compute the values and become an ordinary torch.Tensor, in place, for everyone who holds this object."""
        values = self._values()
        with torch._C.DisableTorchFunctionSubclass():
            self.data = values
        del self.logits, self.parameters
        # What torch itself does to turn a lazy parameter into an ordinary one.
        self.__class__ = Tensor  # type: ignore[assignment]

    def _values(self) -> Tensor:
        raise NotImplementedError

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the one call that needs no values; NotImplemented for any other."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SHAPE_QUERIES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if args and isinstance(args[0], Deferred):
            answer = args[0]._answer(func, args[1:], kwargs)
            if answer is not NotImplemented:
                return answer
        for leaf in _pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Deferred):
                leaf.compute()
        return func(*args, **kwargs)


class DeferredScores(Deferred):
    """`SamplingParameters.scores` of the logits; its softmax over the vocabulary is deferred as well."""

    def _values(self) -> Tensor:
        return self.parameters.scores(self.logits)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is Tensor.view and args == (1, *self.logits.shape):
            return DeferredBatch.of(self.logits[None], self.parameters)
        dim = kwargs.get("dim", args[0] if args else None)
        dtype = kwargs.get("dtype", args[1] if len(args) > 1 else None)
        if func not in _SOFTMAX or dim not in (-1, 1) or dtype not in (None, self.logits.dtype):
            return NotImplemented
        return self._softmax()

    def _softmax(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            # A view of the same NaN: one operator where `of` takes three.
            probabilities = self.as_subclass(DeferredProbabilities)
        probabilities.logits, probabilities.parameters = self.logits, self.parameters
        return probabilities


class DeferredBatch(Deferred):
    """DeferredScores seen as [1, batch, vocab], from which a host takes element 0."""

    def _values(self) -> Tensor:
        return self.parameters.scores(self.logits[0])[None]

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is not Tensor.__getitem__ or type(args[0]) is not int or args[0] != 0:
            return NotImplemented
        return DeferredScores.of(self.logits[0], self.parameters)


class KeptScores(DeferredScores):
    """DeferredScores for a host that keeps them for its user: an ordinary tensor once the softmax is taken."""

    def _softmax(self) -> Tensor:
        probabilities = super()._softmax()
        self.compute()
        return probabilities


class DeferredProbabilities(Deferred):
    """The softmax of the scores; drawing one token of each row, by torch.multinomial, needs no values."""

    def _values(self) -> Tensor:
        return torch.softmax(self.parameters.scores(self.logits), dim=-1)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        num_samples = kwargs.get("num_samples", args[0] if args else None)
        if func not in _MULTINOMIAL or num_samples != 1 or kwargs.get("out") is not None:
            return NotImplemented
        return fastsample.sample(
            self.logits,
            *self.parameters,
            generator=kwargs.get("generator"),
            num_samples=1,
            # Looking at the tokens is free on a CPU; a GPU would have to be waited for at every step.
            errors="raise" if self.logits.device.type == "cpu" else "sentinel",
        )
