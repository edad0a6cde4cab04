"""A backend on its device, and the comparison with the CPU by `==`: every test of tokens here goes through it."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import ops
from fastsample.backends import select
from strategies import Call, same_bits, ulp_distance

if importlib.util.find_spec("fastsample.benchmarks") is None:  # a checkout that is not installed
    fastsample.__path__.append(str(Path(__file__).resolve().parents[2]))

MODE = os.environ.get("FASTSAMPLE_GPU_TESTS", "")
REHEARSAL = MODE in ("rehearse", "spoilt")
# Triton's kernels are compiled and not launched, so that there is nothing to compare.
COMPILING = MODE == "compile"
# Exact and fast, which the reference is not: it is what a million rows are compared with.
ORACLE = "cpu" if ops.cpu_status == "ok" else "reference"

needs_gpu = pytest.mark.skipif(REHEARSAL, reason="about what only a GPU has")


def of_full_size(count: int) -> int:
    """A number of rows, or a small part of it in a rehearsal."""
    return max(2, count // 1000) if REHEARSAL else count


class Target(NamedTuple):
    """What is tested.

    Attributes:
        device: where its tensors are.
        backend: its name in `backend=`.
        spoilt: whether to put an error into every result, to see that it is noticed.
    """

    device: torch.device
    backend: str
    spoilt: bool

    @property
    def operators(self) -> ops.Ops:
        return select(self.backend, self.device)

    def sample(self, logits: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """`fastsample.sample` of logits that are on the device; tensors among the other arguments are put there."""
        tokens = fastsample.sample(
            logits,
            *(placed(argument, self.device) for argument in arguments),
            backend=self.backend,
            **{name: placed(argument, self.device) for name, argument in keywords.items()},
        )
        return self.maybe_spoilt(tokens)

    def check_sample(self, logits: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """Sample, and compare with the CPU. Returns the tokens, on the CPU."""
        tokens = self.sample(logits, *arguments, **keywords).cpu()
        if COMPILING:
            return tokens
        expected = fastsample.sample(
            logits.cpu(),
            *(on_host(argument) for argument in arguments),
            backend=ORACLE,
            **{name: on_host(argument) for name, argument in keywords.items()},
        )
        assert_same_tokens(tokens, expected)
        return tokens

    def check_transforms(self, logits: Tensor, *arguments: Any, **keywords: Any) -> None:
        """Compare filter_logits and filtered_probs bit by bit with the CPU's, log_probs within the law's 4 units."""
        there = [placed(argument, self.device) for argument in arguments]
        here = [on_host(argument) for argument in arguments]
        on_cpu = logits.cpu()
        for function in (fastsample.filter_logits, fastsample.filtered_probs):
            found = self.maybe_spoilt(function(logits, *there, backend=self.backend, **keywords)).cpu()
            if COMPILING:
                continue
            expected = function(on_cpu, *here, backend=ORACLE, **keywords)
            assert same_bits(found, expected), (function.__name__, _first_difference(found, expected))
        tokens = torch.randint(-1, on_cpu.shape[1] + 1, (len(on_cpu), 5), generator=torch.Generator().manual_seed(1))
        found = fastsample.log_probs(logits, tokens.to(self.device), *there, backend=self.backend, **keywords)
        if COMPILING:
            return
        expected = fastsample.log_probs(on_cpu, tokens, *here, backend=ORACLE, **keywords)
        assert (ulp_distance(self.maybe_spoilt(found).cpu(), expected) <= 4).all()

    def check_call(self, call: Call, replacement: bool, probabilities: bool = False) -> None:
        """Compare the operator on a call of tests/strategies.py, written over poison into every second column."""
        moved = Call(*(_moved(part, self.device) for part in call))
        batch = len(call.logits) if call.indices is None else len(call.indices)
        found = torch.full((batch, 2 * call.num_samples), -77777, device=self.device)
        expected = torch.full((batch, 2 * call.num_samples), -77777)
        for buffer, one, operators in (
            (found, moved, self.operators),
            (expected, call, select(ORACLE, torch.device("cpu"))),
        )[: 1 if COMPILING else 2]:
            operators.sample(
                buffer[:, ::2], one.logits, one.indices, *one.filters, *one.randomness, replacement, probabilities
            )
        if not COMPILING:
            assert_same_tokens(self.maybe_spoilt(found).cpu(), expected)

    def maybe_spoilt(self, result: Tensor) -> Tensor:
        """The result, or in a "spoilt" rehearsal one that differs from it in its last element."""
        if not self.spoilt or result.numel() == 0:
            return result
        last = result.flatten()[-1]
        wrong = last + 1 if not result.is_floating_point() else torch.where(last == 1, 2.0, 1.0).to(result.dtype)
        return torch.cat((result.flatten()[:-1], wrong[None])).view(result.shape)


def assert_same_tokens(tokens: Tensor, expected: Tensor) -> None:
    """Fails with the first rows that differ."""
    assert tokens.dtype == expected.dtype
    assert tokens.shape == expected.shape
    if not torch.equal(tokens, expected):
        differ = (tokens != expected).nonzero()
        shown = [(place, int(tokens[tuple(place)]), int(expected[tuple(place)])) for place in differ[:5].tolist()]
        pytest.fail(f"{len(differ)} of {tokens.numel()} tokens differ; place, found, expected: {shown}")


def placed(value: Any, device: torch.device) -> Any:
    """A tensor on the device, with the strides and the storage offset that it has; anything else as it is."""
    if not isinstance(value, Tensor) or value.device.type == device.type:
        return value
    if value.is_contiguous() and value.storage_offset() == 0:
        return value.to(device)
    elements = value.untyped_storage().nbytes() // value.element_size()
    whole = value.as_strided((elements,), (1,), 0).to(device)
    return whole.as_strided(value.shape, value.stride(), value.storage_offset())


def on_host(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _moved(part: Any, device: torch.device) -> Any:
    if isinstance(part, tuple):
        return type(part)(*(placed(value, device) for value in part))
    return placed(part, device)


def _first_difference(found: Tensor, expected: Tensor) -> object:
    place = ((found != expected) & ~(found.isnan() & expected.isnan())).nonzero()[:1].tolist()
    return [(one, float(found[tuple(one)]), float(expected[tuple(one)])) for one in place]
