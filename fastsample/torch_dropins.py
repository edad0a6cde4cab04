"""Drop-ins for torch: `multinomial` with torch's signature, and `patch_torch`, under which torch's own name runs it."""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastsample import ops
from fastsample.arguments import NO_FILTERS, has_overlap
from fastsample.randomness import generated, is_on_device

# Without replacement the draws of a row come one after the other, where torch sorts the row once. Measured on 1 thread
# with 128256 categories: 256 draws take 0.3 ms against torch's 4 ms, 1024 take 2.4 against 5, 4096 take 50 against 6.
MAX_DRAWS_WITHOUT_REPLACEMENT = 1024
# Law section 5: the weights of probabilities are scaled so that this many still sum within 64 bits.
MAX_CATEGORIES = 2**31
TORCH_MAX_CATEGORIES = 2**24

_PROBABILITY_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NOT_PROBABILITIES = "probability tensor contains either `inf`, `nan` or element < 0"
_NEGATIVE_ENTRY = "invalid multinomial distribution (encountering probability entry < 0)"
_INFINITE_ENTRY = "invalid multinomial distribution (encountering probability entry = infinity or NaN)"
_ZERO_SUM = "invalid multinomial distribution (sum of probabilities <= 0)"


def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw categories by their probabilities, as `torch.multinomial` does, but by the sampling law (section 5).

    Signature, shapes, dtypes and errors are torch's, with these differences. Other tokens are drawn from the same
    generator state. There may be 2^31 categories, not 2^24. A category less probable than about 2^-40 of the row's most
    probable one (2^-31 with 2^31 categories) is never drawn. Without replacement, fewer non-zero categories than draws
    is an error, where torch documents that it must not be and draws impossible categories. What the law does not serve
    is handed over to `torch.multinomial`, so that its result or its error is torch's: other dtypes, layouts and
    devices; more than `MAX_DRAWS_WITHOUT_REPLACEMENT` = 1024 draws without replacement (up to torch's 2^24 categories);
    and rows that have enough non-zero categories only when the improbable ones above are counted.

    Args:
        input: [batch, categories] or [categories], float32, float64, float16 or bfloat16, any strides: weights, at
            least 0, finite, with a sum above 0, which need not be 1. Rows of float64 are scaled by a power of two, so
            that none overflows or vanishes, and rounded to float32 (a temporary of that size).
        num_samples: at least 1; without replacement at most the number of categories.
        replacement: whether a category can be drawn again.
        generator: a torch.Generator on the device of `input`; None is torch's default one.
        out: int64 tensor for the result, resized to its shape.

    Returns:
        int64: [batch, num_samples], or [num_samples] for 1-D input.

    Raises:
        RuntimeError, TypeError: as `torch.multinomial`. Rows that are no probabilities are found out in the result: on
            a GPU and under torch.compile by an assertion on the device, without synchronising.
    """
    # The name `input` is torch's: a drop-in has to take the keyword too.
    if not _serves(input, num_samples, replacement, generator, out):
        return _torch_multinomial(input, num_samples, replacement, generator, out)
    count = operator.index(num_samples)
    vocab = input.shape[-1]
    if vocab > MAX_CATEGORIES:
        raise RuntimeError("number of categories cannot exceed 2^31")
    rows = input.unsqueeze(0) if input.dim() == 1 else input
    if rows.dtype is torch.float64:
        rows = _scaled_to_float32(rows)

    shape = (count,) if input.dim() == 1 else (input.shape[0], count)
    if out is None:
        result = torch.empty(shape, dtype=torch.int64, device=input.device)
    else:
        result = out if out.shape == shape else out.resize_(shape)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(result)
    randomness = generated(generator, ops.compiled, input.device)
    tokens = result.unsqueeze(0) if input.dim() == 1 else result
    ops.compiled.sample(tokens, rows, None, *NO_FILTERS, *randomness, replacement, True)

    if not input.is_cpu or torch.compiler.is_compiling():
        torch._assert_async((tokens >= 0).all(), f"{_NOT_PROBABILITIES}, or too few elements > 0")
    elif tokens.numel() > 0 and int(tokens.min()) < 0:
        _check_rows(input, count, replacement)
        if vocab > TORCH_MAX_CATEGORIES:
            raise RuntimeError(f"a row has fewer than {count} categories that are probable enough to be drawn")
        return _torch_multinomial(input, num_samples, replacement, generator, out)
    return result


@contextmanager
def patch_torch() -> Iterator[None]:
    """Run torch's `multinomial` on fastsample, for the calls made in this thread while the context is open.

    As a context (`with patch_torch():`) or a decorator (`@patch_torch()`); a call alone does nothing.
    `torch.multinomial`, `Tensor.multinomial` and what is written on them, such as
    `torch.distributions.Categorical.sample`, go to `fastsample.multinomial`; what that hands over to torch runs as
    before. It uses torch's own override mechanism (`torch.overrides.TorchFunctionMode`): nothing in torch is replaced,
    contexts nest, other threads are not touched (open one there), and an exception closes it as it leaves.
    """
    with _MultinomialMode():
        yield


class _MultinomialMode(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # `types` names tensor subclasses with overrides of their own, whose meaning is theirs.
        if not types and (func is torch.multinomial or func is torch.Tensor.multinomial):
            return multinomial(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _serves(input: Any, num_samples: Any, replacement: Any, generator: Any, out: Any) -> bool:
    """Whether the law serves a call. Where an argument is bad the answer is no, and torch raises its own error."""
    if not isinstance(input, Tensor) or input.dtype not in _PROBABILITY_DTYPES or input.dim() not in (1, 2):
        return False
    if input.layout is not torch.strided or input.is_nested or input.device.type in ("meta", "mps"):
        return False
    if isinstance(num_samples, bool) or not hasattr(num_samples, "__index__") or not isinstance(replacement, bool):
        return False
    if isinstance(num_samples, Tensor) and (num_samples.numel() != 1 or num_samples.dtype in _PROBABILITY_DTYPES):
        return False
    if generator is not None and not (isinstance(generator, torch.Generator) and is_on_device(generator, input.device)):
        return False
    if out is not None and not (
        isinstance(out, Tensor)
        and out.dtype is torch.int64
        and out.device == input.device
        and out.layout is torch.strided
        and not has_overlap(out)
    ):
        return False
    vocab = input.shape[-1]
    count = operator.index(num_samples)
    if vocab == 0 or count < 1:
        return False
    if replacement:
        return True
    return count <= vocab and (count <= MAX_DRAWS_WITHOUT_REPLACEMENT or vocab > TORCH_MAX_CATEGORIES)


def _torch_multinomial(input: Any, num_samples: Any, replacement: Any, generator: Any, out: Any) -> Tensor:
    with torch._C.DisableTorchFunction():  # else `patch_torch` would bring the call back here
        return torch.multinomial(input, num_samples, replacement, generator=generator, out=out)


def _scaled_to_float32(rows: Tensor) -> Tensor:
    """float64 `rows` as float32 weights: each row scaled by a power of two to a maximum in [1/2, 1), then rounded."""
    exponent = torch.frexp(rows.amax(dim=1, keepdim=True)).exponent.long()
    # In two steps, since 2^1073, which the smallest denormal needs, is no float64.
    half = exponent >> 1
    scaled = rows * _power_of_two(-half) * _power_of_two(half - exponent)
    # A negative entry must not round to -0.0, which is a probability; a NaN makes the row as invalid.
    return torch.where(rows >= 0, scaled, torch.nan).to(torch.float32)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as float64 from its bits, for int64 in [-1022, 1023] (a power function need not be exact)."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _check_rows(input: Tensor, count: int, replacement: bool) -> None:
    """Raise torch's error for the first thing wrong with the probabilities; return when there is nothing."""
    rows = input.unsqueeze(0) if input.dim() == 1 else input
    bad = ~((rows >= 0) & (rows < torch.inf))
    empty = (rows == 0).all(dim=1)
    if replacement and count > 1:
        # torch goes row by row here, and through each in order.
        invalid = (bad.any(dim=1) | empty).nonzero().flatten()
        if invalid.numel() > 0:
            row = int(invalid[0])
            if bool(empty[row]):
                raise RuntimeError(_ZERO_SUM)
            entry = float(rows[row, int(bad[row].nonzero()[0])])
            raise RuntimeError(_INFINITE_ENTRY if entry == float("inf") else _NEGATIVE_ENTRY)
        return
    if bool(bad.any()):
        raise RuntimeError(_NOT_PROBABILITIES)
    if bool(empty.any()):
        raise RuntimeError(_ZERO_SUM)
    categories = (rows > 0).sum(dim=1)
    if not replacement and int(categories.min()) < count:
        row = int(categories.argmin())
        raise RuntimeError(
            f"invalid multinomial distribution (row {row} has {int(categories[row])} elements > 0, fewer than the "
            f"{count} samples to draw without replacement)"
        )
