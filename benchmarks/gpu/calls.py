"""Calls of fastsample that take every path of the kernels once, and whether each gives what the CPU gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fastsample
from fastsample.benchmarks.features import CPU, FEATURES, FeatureSession, Inputs
from fastsample.benchmarks.peers.base import Work

_WORKS = ("greedy", "plain", "k50", "t0.8-k50-p0.9", "p0.9", "k1000", "m0.05", "t0.7-k3000-p0.95-m0.01", "mixed")
# One token; a few; not a multiple of a vector; more than a block holds in registers; several blocks.
_VOCABULARIES = (1, 33, 1003, 4099, 40009)
# Longer than a cluster holds, so that it is read again. Few calls: a tool that follows every access takes its time.
_LONG_VOCABULARY = 2**20 + 3
_LONG_WORKS = ("t0.8-k50-p0.9", "p0.9")
# Of the Triton kernels fewer, since each dtype and size class of the vocabulary is compiled anew: rows that a program
# holds, and rows that it reads again.
_TRITON_VOCABULARIES = (33, 1003, 40009)
_TRITON_WORKS = ("greedy", "plain", "t0.8-k50-p0.9", "p0.9", "k1000", "mixed")


def mismatches(device: str, backend: str) -> Iterator[str]:
    """Make every call on a device by a backend, and name those whose result is not the CPU's."""
    generator = torch.Generator().manual_seed(11)
    for vocab in (*_VOCABULARIES, _LONG_VOCABULARY):
        logits = torch.randn(3, vocab, generator=generator) * 3
        logits[1, vocab // 2] = float("nan")
        logits[2] = (logits[2] * 2).round() / 2  # ties
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            typed = logits.to(dtype)
            for key in _LONG_WORKS if vocab == _LONG_VOCABULARY else _WORKS:
                parameters = Work.parse(key).parameters(3)
                yield from _differing(f"sample {key}", typed, device, backend, parameters)
    for order in ("min_p_first", "joint"):
        parameters = {**Work.parse("k40-p0.9-m0.02").parameters(3), "order": order}
        yield from _differing(f"sample {order}", logits[:, :9001], device, backend, parameters)
    for replacement in (True, False):
        parameters = {"top_k": 5, "num_samples": 9, "replacement": replacement}
        yield from _differing(f"sample, replacement {replacement}", logits[:, :3001], device, backend, parameters)
    indices = torch.tensor([2, 0, 7, 0])
    yield from _differing("sample, indices", logits[:, :2001], device, backend, {"top_p": 0.8, "indices": indices})
    yield from _differing("sample, every second", logits[:, 1:5001:2], device, backend, {"top_k": 20})
    yield from _differing_requests(logits[:, :5003].contiguous(), device, backend)
    for name in ("softmax", "filter_logits", "filtered_probs"):
        parameters = {} if name == "softmax" else {"top_k": 300, "top_p": 0.9}
        found = getattr(fastsample, name)(_placed(logits[:, :5003], device), backend=backend, **parameters)
        expected = getattr(fastsample, name)(logits[:, :5003].contiguous(), **parameters)
        if not torch.equal(found.cpu().nan_to_num(7), expected.nan_to_num(7)):
            yield name
    tokens = torch.arange(3) * 100
    fastsample.log_probs(_placed(logits[:, :5003], device), tokens.to(device), 0.8, 50, backend=backend)


def triton_mismatches(device: str, backend: str = "triton") -> Iterator[str]:
    """The same of the Triton kernels, in fewer calls: rows read by one program and by several."""
    from fastsample.triton_kernels import policy

    generator = torch.Generator().manual_seed(12)
    for vocab in _TRITON_VOCABULARIES:
        logits = torch.randn(3, vocab, generator=generator) * 3
        logits[1, vocab // 2] = float("nan")
        for dtype in (torch.float32, torch.bfloat16):
            typed = logits.to(dtype)
            for key in _TRITON_WORKS:
                parameters = Work.parse(key).parameters(3)
                name = f"Triton, sample {key}"
                yield from _differing(name, typed, device, backend, parameters)
                alone = policy.choose(vocab, 3, typed.element_size(), vocab, True, torch.device(device))._replace(
                    parts=1
                )
                if not alone.resident:
                    with policy.forced(alone):
                        yield from _differing(f"{name}, one program a row", typed, device, backend, parameters)
    rows = torch.randn(3, 40009, generator=generator)
    for function in ("filter_logits", "filtered_probs"):
        found = getattr(fastsample, function)(_placed(rows, device), 0.8, 300, 0.9, backend=backend)
        if not torch.equal(found.cpu(), getattr(fastsample, function)(rows, 0.8, 300, 0.9)):
            yield f"Triton, {function}"
    tokens = torch.arange(3, device=device) * 100
    fastsample.log_probs(_placed(rows, device), tokens, 0.8, 50, backend=backend)


def _differing_requests(logits: Tensor, device: str, backend: str) -> Iterator[str]:
    """Every feature of a request, and drafts verified."""
    inputs = Inputs.make(*logits.shape)
    place = torch.device(device)
    for feature in FEATURES:
        drawn = []
        for where, who in ((CPU, "auto"), (place, backend)):
            session = FeatureSession(feature, inputs, Work.parse("t0.8-k50-p0.9"), who, where)
            session.arguments["seed"] = 5
            session.load(logits.to(where))
            result = session.draw()
            drawn.append((result if isinstance(result, Tensor) else result.tokens).cpu())
        if not torch.equal(*drawn):
            yield f"{feature.label}: {drawn[1].tolist()}, expected {drawn[0].tolist()}"
    target, draft, tokens = logits[None], logits[None, :2].flip(2), torch.tensor([[1, 2]])
    verified = fastsample.verify_chain(
        _placed(target, device), tokens.to(place), _placed(draft.contiguous(), device), seed=5, backend=backend
    )
    expected = fastsample.verify_chain(target, tokens, draft.contiguous(), seed=5)
    if not torch.equal(verified.tokens.cpu(), expected.tokens):
        yield f"verify_chain: {verified.tokens.tolist()}, expected {expected.tokens.tolist()}"


def _differing(name: str, logits: Tensor, device: str, backend: str, parameters: dict[str, Any]) -> Iterator[str]:
    expected = fastsample.sample(logits, seed=5, **parameters)
    there: dict[str, Any] = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in parameters.items()
    }
    found = fastsample.sample(_placed(logits, device), seed=5, backend=backend, **there)
    if not torch.equal(found.cpu(), expected):
        yield f"{name}, {list(logits.shape)}, {logits.dtype}: {found.tolist()}, expected {expected.tolist()}"


def _placed(logits: Tensor, device: str) -> Tensor:
    """The logits on the device, with the strides they have."""
    if logits.is_contiguous() or device == "cpu":
        return logits.to(device)
    base = logits.as_strided((logits.untyped_storage().nbytes() // logits.element_size(),), (1,), 0)
    return base.to(device).as_strided(logits.shape, logits.stride(), logits.storage_offset())
