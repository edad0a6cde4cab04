"""What a request of a `Sampler` is given, and its checks: numbers and lists of one request, on the host."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from fastsample.adjustments import check_penalty
from fastsample.arguments import check_names, describe, integer_number, normalise_filters
from fastsample.python_lists import NO_TOKENS, Biases, Words, biases, token_ids, words
from fastsample.randomness import seeded

# What a `Sampler` can be made without, and by which arguments of a request it is needed.
FEATURES = {
    "penalties": ("repetition_penalty", "presence_penalty", "frequency_penalty"),
    "logit_bias": ("logit_bias",),
    "bad_words": ("bad_words",),
    "min_tokens": ("min_tokens",),
    "bitmask": ("allowed_tokens", "bitmask"),
}

_HOST = torch.device("cpu")


class RequestParameters(TypedDict, total=False):
    """The optional arguments of `Sampler.add` and `Sampler.update`: numbers and lists of one request.

    They mean what they mean in `sample`. A list of tokens is a sequence of ids in [0, vocab), or a 1-D integer tensor
    on the CPU.

    Attributes:
        temperature: At least 0, 1 by default; 0 is greedy.
        top_k: 0, the default, keeps all.
        top_p: In [0, 1]; 1, the default, keeps all.
        min_p: In [0, 1]; 0, the default, keeps all.
        seed: 64 bits. None, the default, draws one from torch's default generator: a request that is to be resumed with
            the tokens it would have drawn needs a seed of its own.
        repetition_penalty: Above 0; 1, the default, is off.
        presence_penalty: Finite; 0, the default, is off.
        frequency_penalty: Finite; 0, the default, is off.
        prompt_tokens: What the repetition penalty finds besides the output. Ids outside [0, vocab), such as the
            placeholders of images in some models, are passed over.
        output_tokens: What the request has drawn so far, if it is being resumed; its next token is that at this offset.
        logit_bias: What is added to the logits of which token; -inf bans it.
        bad_words: Sequences of tokens that the output must not contain; none is empty.
        min_tokens: `stop_tokens` are banned while the output is shorter; at most the max_tokens of the Sampler.
        stop_tokens: The tokens that `min_tokens` bans.
        allowed_tokens: The only tokens that may be drawn; an empty list, the default, does not restrict.
        bitmask: What a grammar allows: int32 [at least ceil(vocab / 32)] on the CPU, copied; bit i % 32 of word i / 32
            allows token i, as xgrammar and llguidance write it. None, the default, does not restrict.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    prompt_tokens: Sequence[int] | Tensor
    output_tokens: Sequence[int] | Tensor
    logit_bias: Mapping[int, float]
    bad_words: Sequence[Sequence[int]]
    min_tokens: int
    stop_tokens: Sequence[int] | Tensor
    allowed_tokens: Sequence[int] | Tensor
    bitmask: Tensor | None


class Request(NamedTuple):
    """`RequestParameters`, checked."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_tokens: Tensor = NO_TOKENS
    output_tokens: Tensor = NO_TOKENS
    logit_bias: Biases = Biases()
    bad_words: Words = Words()
    min_tokens: int = 0
    stop_tokens: Tensor = NO_TOKENS
    allowed_tokens: Tensor = NO_TOKENS
    bitmask: Tensor | None = None

    @property
    def penalties(self) -> tuple[float, float, float]:
        """In the order of `LogitsAdjustments`."""
        return self.repetition_penalty, self.presence_penalty, self.frequency_penalty

    @property
    def features(self) -> frozenset[str]:
        """Which of `FEATURES` it needs."""
        needed = (
            self.penalties != (1.0, 0.0, 0.0),
            len(self.logit_bias.tokens) > 0,
            len(self.bad_words.tokens) > 0,
            self.min_tokens > 0,
            self.bitmask is not None or len(self.allowed_tokens) > 0,
        )
        return frozenset(name for name, is_needed in zip(FEATURES, needed, strict=True) if is_needed)

    @property
    def list_sizes(self) -> dict[str, int]:
        """How much room each of its lists takes."""
        return {
            "logit_bias": len(self.logit_bias.tokens),
            "bad_words": len(self.bad_words.tokens),
            "stop_tokens": len(self.stop_tokens),
        }


def check_parameters(parameters: RequestParameters, vocab: int) -> dict[str, Any]:
    """Check parameters of a request for `vocab` tokens, and bring them to the form of `Request`.

    Raises TypeError or ValueError, which names the argument, what it got and what is accepted.
    """
    check_names(parameters, sorted(_CHECKS))
    return {name: _CHECKS[name](name, value, vocab) for name, value in parameters.items()}


def _filter(name: str, value: Any, _: int) -> Any:
    _check_number(name, value)
    numbers = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, name: value}
    return getattr(normalise_filters(**numbers, order="top_k_first", batch=1, device=_HOST), name)


def _top_k(name: str, value: Any, vocab: int) -> Any:
    return _filter(name, integer_number(name, value, tensors=""), vocab)


def _penalty(name: str, value: Any, _: int) -> Any:
    _check_number(name, value)
    return check_penalty(name, value, 1, _HOST)[0]


def _check_number(name: str, value: Any) -> None:
    """In `sample` it might be a tensor too, of the numbers of a batch."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {describe(value)}; accepted: a number")


def _seed(name: str, value: Any, _: int) -> int:
    if value is None:
        return int(torch.empty((), dtype=torch.int64).random_())
    return seeded(integer_number(name, value, tensors=", or None"), None, None, 1, _HOST).seed


def _least(name: str, value: Any, _: int) -> int:
    return max(0, min(integer_number(name, value, tensors=""), 2**62))


def _ids(name: str, values: Any, vocab: int) -> Tensor:
    """Token ids as int64 [n] on the CPU, a copy; raises unless all are below `vocab`."""
    return _known(name, _tokens(name, values), vocab)


def _prompt(name: str, values: Any, vocab: int) -> Tensor:
    ids = _tokens(name, values)
    return ids[(ids >= 0) & (ids < vocab)]


def _tokens(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor) and not values.is_cpu:
        raise ValueError(f"{name}: got a tensor on {values.device}; accepted: on the CPU (to copy it would wait)")
    return token_ids(name, values)


def _known(name: str, ids: Tensor, vocab: int) -> Tensor:
    outside = ids[(ids < 0) | (ids >= vocab)]
    if len(outside) > 0:
        raise ValueError(f"{name}: got the token {int(outside[0])}; accepted: ids from 0 to {vocab - 1}")
    return ids


def _bias(name: str, values: Any, vocab: int) -> Biases:
    found = biases(name, values)
    _known(name, found.tokens, vocab)
    if found.values.isnan().any():
        token = int(found.tokens[found.values.isnan()][0])
        raise ValueError(f"{name}[{token}]: got nan; accepted: a number, which may be -inf")
    return found


def _words(name: str, values: Any, vocab: int) -> Words:
    found = words(name, values)
    _known(name, found.tokens, vocab)
    if not found.lengths.all():
        empty = int((found.lengths == 0).nonzero()[0])
        raise ValueError(f"{name}[{empty}]: got an empty word; accepted: words of at least one token")
    return found


def _bitmask(name: str, mask: Any, vocab: int) -> Tensor | None:
    words = (vocab + 31) // 32
    accepted = f"an int32 tensor [at least {words}] on the CPU, or None"
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype is not torch.int32:
        raise TypeError(f"{name}: got {describe(mask)}; accepted: {accepted}")
    if mask.dim() != 1 or mask.shape[0] < words or not mask.is_cpu:
        raise ValueError(f"{name}: got {describe(mask)}; accepted: {accepted}")
    return mask[:words].clone()  # grammars write the next one into the same memory


_CHECKS: dict[str, Callable[[str, Any, int], Any]] = {
    "temperature": _filter,
    "top_k": _top_k,
    "top_p": _filter,
    "min_p": _filter,
    "seed": _seed,
    "repetition_penalty": _penalty,
    "presence_penalty": _penalty,
    "frequency_penalty": _penalty,
    "prompt_tokens": _prompt,
    "output_tokens": _ids,
    "logit_bias": _bias,
    "bad_words": _words,
    "min_tokens": _least,
    "stop_tokens": _ids,
    "allowed_tokens": _ids,
    "bitmask": _bitmask,
}
