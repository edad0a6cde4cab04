"""Token ids, biases and words as users write them, in Python's lists: checked, and as tensors on the host.

Errors name the entry as Python would: `name[3]` is what `name` has at place 3.
"""

import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample.arguments import describe, integer_vector

_HOST = torch.device("cpu")
NO_TOKENS = torch.empty(0, dtype=torch.int64)


class Biases(NamedTuple):
    """Tokens, int64 [n], and what is added to the logit of each, float32 [n]."""

    tokens: Tensor = NO_TOKENS
    values: Tensor = NO_TOKENS.to(torch.float32)


class Words(NamedTuple):
    """The tokens of words, one word after another, int64 [total]; and the length of each word, int64 [words]."""

    tokens: Tensor = NO_TOKENS
    lengths: Tensor = NO_TOKENS


def entries(name: str, values: Any, accepted: str) -> list[Any]:
    """What a list, or anything else to be gone through, has; raises TypeError for a mapping or a text."""
    if isinstance(values, Mapping | str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: got {describe(values)}; accepted: {accepted}")
    return list(values)


def token_ids(name: str, values: Any) -> Tensor:
    """Token ids as int64 [n] on the host, a copy.

    values: whole numbers in a list, or whatever else has them one after another; an array or a 1-D tensor included.
    """
    if isinstance(values, Tensor):
        return integer_vector(name, values.to(_HOST, copy=True), None, _HOST)
    return _int64(name, _whole_numbers(name, values))


def biases(name: str, values: Any) -> Biases:
    """The biases of a mapping of token id to number; each is rounded to float32."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name}: got {describe(values)}; accepted: a mapping of token id to bias")
    numbers = [
        bias if type(bias) is float else _real_number(f"{name}[{token!r}]", bias) for token, bias in values.items()
    ]
    # Through float64: torch refuses to make a float32 of a number that rounds to infinity.
    tokens = [_whole_number(f"{name}, a key", token) for token in values]
    return Biases(_int64(name, tokens), torch.tensor(numbers, dtype=torch.float64).to(torch.float32))


def words(name: str, values: Any) -> Words:
    """The words of a list, each a list of token ids."""
    listed = entries(name, values, "a list of words, each a list of token ids")
    numbers = [_whole_numbers(f"{name}[{place}]", word) for place, word in enumerate(listed)]
    lengths = torch.tensor([len(word) for word in numbers], dtype=torch.int64)
    return Words(_int64(name, [token for word in numbers for token in word]), lengths)


def _whole_numbers(name: str, values: Any) -> list[int]:
    listed = values.tolist() if hasattr(values, "tolist") else values
    tokens = entries(name, listed, "a list of token ids")
    if all(type(token) is int for token in tokens):
        return tokens
    return [_whole_number(f"{name}[{place}]", token) for place, token in enumerate(tokens)]


def _whole_number(name: str, token: Any) -> int:
    if not isinstance(token, bool) and getattr(token, "dtype", None) is not torch.bool:
        try:
            return operator.index(token)
        except TypeError:
            pass
    raise TypeError(f"{name}: got {describe(token)}; accepted: a token id, which is a whole number")


def _real_number(name: str, bias: Any) -> float:
    if isinstance(bias, bool) or not isinstance(bias, Real):
        raise TypeError(f"{name}: got {describe(bias)}; accepted: a number, which may be -inf")
    try:
        return float(bias)
    except OverflowError:
        raise ValueError(f"{name}: got {describe(bias)}; accepted: a number that a float can hold") from None


def _int64(name: str, tokens: list[int]) -> Tensor:
    try:
        return torch.tensor(tokens, dtype=torch.int64)
    except (ValueError, RuntimeError):  # by the version of torch
        token = next(token for token in tokens if not -(2**63) <= token < 2**63)
        raise ValueError(f"{name}: got the token {token}; accepted: ids of 64 bits") from None
