"""`fastsample.integrations.flashinfer`: FlashInfer's signatures and contracts, drawn by the law, and `install`."""

import importlib
import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import doctor, reference
from fastsample.integrations import flashinfer as fi
from fastsample.integrations import renormalised
from fastsample.integrations.stand_in import StandIn, parameters_of
from fastsample.integrations.status import IntegrationStatus, integration_statuses
from law_oracle import Case, answer
from missing import missing

BATCH, VOCAB = 6, 211
# FlashInfer's own: they compile and return its kernels.
NOT_SERVED = {"get_sampling_module", "get_blackwell_softmax_module", "get_blackwell_softmax_op"}

FROM_PROBS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sampling_from_probs": (fi.sampling_from_probs, {}),
    "top_p_sampling_from_probs": (fi.top_p_sampling_from_probs, {"top_p": 0.6}),
    "top_k_sampling_from_probs": (fi.top_k_sampling_from_probs, {"top_k": 7}),
    "min_p_sampling_from_probs": (fi.min_p_sampling_from_probs, {"min_p": 0.2}),
    "top_k_top_p_sampling_from_probs": (fi.top_k_top_p_sampling_from_probs, {"top_k": 20, "top_p": 0.6}),
    "joint": (fi.top_k_top_p_sampling_from_probs, {"top_k": 20, "top_p": 0.3, "filter_apply_order": "joint"}),
}
FROM_LOGITS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sampling_from_logits": (fi.sampling_from_logits, {}),
    "top_k_top_p_sampling_from_logits": (fi.top_k_top_p_sampling_from_logits, {"top_k": 20, "top_p": 0.6}),
    "joint": (fi.top_k_top_p_sampling_from_logits, {"top_k": 20, "top_p": 0.3, "filter_apply_order": "joint"}),
}
from_probs = pytest.mark.parametrize("name", FROM_PROBS)
each_function = pytest.mark.parametrize(
    ("function", "parameters"), [*FROM_PROBS.values(), *FROM_LOGITS.values()], ids=[*FROM_PROBS, *FROM_LOGITS]
)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(BATCH, VOCAB, generator=torch.Generator().manual_seed(3)) * 2


@pytest.fixture
def probs(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def per_row(parameters: dict[str, Any], rows: int = BATCH) -> dict[str, Any]:
    """The parameters as tensors, another value in each row."""
    spread = {
        "top_k": lambda k: torch.arange(rows) + k,
        "top_p": lambda p: torch.linspace(p / 2, 1.0, rows),
        "min_p": lambda p: torch.linspace(0.0, p, rows),
    }
    return {name: spread[name](value) if name in spread else value for name, value in parameters.items()}


def by_oracle(probs: Tensor, parameters: dict[str, Any], seed: int, offset: int, stream: int = 0) -> int:
    """The token that the law draws from one row of probabilities, found in plain Python."""
    at = {name: value.item() if isinstance(value, Tensor) else value for name, value in parameters.items()}
    order = at.get("filter_apply_order", "top_k_first")
    floats = (np.float32(at.get("top_p", 1.0)), np.float32(at.get("min_p", 0.0)))
    row = [np.float32(p) for p in probs.tolist()]
    return answer(Case(row, np.float32(1), at.get("top_k", 0), *floats, order, True, seed, offset, stream, 1)).tokens[0]


def row_of(parameters: dict[str, Any], row: int) -> dict[str, Any]:
    return {name: value[row] if isinstance(value, Tensor) else value for name, value in parameters.items()}


# --- the signatures


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Any]]]:
    """The parameters of the real functions, from flashinfer_host.py, which tries `install` on the real package."""
    if importlib.util.find_spec("flashinfer") is None:
        missing("FlashInfer is not installed: run `make install`")
    folder = str(tmp_path_factory.mktemp("flashinfer"))  # it makes folders at its import
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("flashinfer_host.py"))],
        env={**os.environ, "FLASHINFER_WORKSPACE_BASE": folder},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_signatures_are_those_of_the_real_package(host: dict[str, list[list[Any]]]) -> None:
    assert len(host) >= 15
    for name, parameters in host.items():
        if name in NOT_SERVED:
            assert not hasattr(fi, name)
            continue
        mine = [[parameter, int(kind), repr(default)] for parameter, kind, default in parameters_of(getattr(fi, name))]
        assert mine == parameters, name


# --- the tokens


@from_probs
def test_tokens_from_probabilities_are_the_laws(name: str, probs: Tensor) -> None:
    function, parameters = FROM_PROBS[name]
    seeds, offsets = torch.arange(BATCH) * 7919 + 1, torch.arange(BATCH) * 3
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rows = probs.to(dtype)
        for named in (parameters, per_row(parameters)):
            tokens = function(rows, **named, seed=seeds, offset=offsets)
            assert tokens.dtype is torch.int32
            expected = [
                by_oracle(rows[row].float(), row_of(named, row), int(seeds[row]), int(offsets[row]))
                for row in range(BATCH)
            ]
            assert tokens.tolist() == expected
            shared = function(rows, **named, seed=5, offset=9)
            assert shared.tolist() == [by_oracle(rows[b].float(), row_of(named, b), 5, 9, b) for b in range(BATCH)]


@pytest.mark.parametrize("name", FROM_LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_tokens_from_logits_are_those_of_sample(name: str, logits: Tensor, dtype: torch.dtype) -> None:
    function, parameters = FROM_LOGITS[name]
    rows = logits.to(dtype)
    of_sample = rows.float() if dtype is torch.float64 else rows
    seeds, offsets = torch.arange(BATCH) * 7919, torch.arange(BATCH) * 3
    for given in (parameters, per_row(parameters)):
        named = dict(given)
        order = named.pop("filter_apply_order", "top_k_first")
        for seed, offset in ((seeds, offsets), (4, 2), (2**64 - 1, 0), (seeds, 3), (5, offsets)):
            tokens = function(rows, **given, seed=seed, offset=offset)
            expected = fastsample.sample(of_sample, **named, order=order, seed=seed, offset=offset)
            assert tokens.dtype is torch.int32
            assert torch.equal(tokens.long(), expected)


@from_probs
def test_the_distribution(name: str, probs: Tensor) -> None:
    """Of 40000 draws of one row, chosen by `indices`: what the formulas of the filters in float64 say."""
    function, parameters = FROM_PROBS[name]
    count = 40000
    tokens = function(probs, **parameters, indices=torch.full((count,), 2), seed=1, offset=0)
    p = probs[2].double()
    ranked = p.sort(descending=True, stable=True).indices
    sorted_p = p[ranked]
    k = parameters.get("top_k", VOCAB)
    base = sorted_p if name == "joint" else torch.where(torch.arange(VOCAB) < k, sorted_p, 0.0)
    within_p = base.cumsum(0) - base < parameters.get("top_p", 1.0) * base.sum()
    kept = ranked[(torch.arange(VOCAB) < k) & within_p & (sorted_p >= parameters.get("min_p", 0.0) * sorted_p[0])]
    expected = torch.zeros(VOCAB, dtype=torch.float64)
    expected[kept] = p[kept] / p[kept].sum()
    found = torch.bincount(tokens, minlength=VOCAB)
    assert not bool(found[expected == 0].any())
    deviation = (found - count * expected).abs() / (count * expected * (1 - expected)).sqrt().clamp(min=1.0)
    assert float(deviation.max()) < 5


@each_function
def test_a_request_has_its_tokens_wherever_it_stands(
    function: Callable[..., Tensor], parameters: dict[str, Any], probs: Tensor, logits: Tensor
) -> None:
    rows = logits if "logits" in function.__name__ else probs
    seeds, offsets = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([2, 7, 1, 8, 2, 8])
    named = per_row(parameters)
    tokens = function(rows, **named, seed=seeds, offset=offsets)
    shuffled = torch.tensor([4, 2, 0, 5, 1, 3])
    moved = function(rows[shuffled], **row_of(named, shuffled), seed=seeds[shuffled], offset=offsets[shuffled])
    assert torch.equal(moved, tokens[shuffled])
    for row in range(BATCH):
        part = slice(row, row + 1)
        alone = function(rows[part], **row_of(named, part), seed=seeds[part], offset=offsets[part])
        assert torch.equal(alone, tokens[part])
    unsigned = function(rows, **named, seed=seeds.to(torch.uint64), offset=offsets.to(torch.uint64))
    assert torch.equal(unsigned, tokens)
    # Equal seeds and offsets of equal rows draw alike, and a shared seed does not.
    alike = rows[:1].expand(50, -1)
    assert len(function(alike, **parameters, seed=torch.full((50,), 8), offset=torch.zeros(50).long()).unique()) == 1
    assert len(function(alike, **parameters, seed=torch.tensor([8]), offset=torch.tensor([0])).unique()) > 1


@each_function
def test_where_random_numbers_come_from(
    function: Callable[..., Tensor], parameters: dict[str, Any], probs: Tensor, logits: Tensor
) -> None:
    rows = (logits if "logits" in function.__name__ else probs).repeat(20, 1)
    tokens = function(rows, **parameters, seed=11, offset=5)
    in_tensors = {"seed": torch.tensor([11]), "offset": torch.tensor([5])}
    assert torch.equal(function(rows, **parameters, **in_tensors), tokens)
    assert not torch.equal(function(rows, **parameters, seed=11, offset=6), tokens)
    assert not torch.equal(function(rows, **parameters, seed=12, offset=5), tokens)
    assert torch.equal(function(rows, **parameters, seed=11), function(rows, **parameters, seed=11, offset=0))

    # A seed is used in place of a generator, which does not move on.
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(function(rows, **parameters, seed=11, offset=5, generator=generator), tokens)
    drawn = [function(rows, **parameters, generator=generator) for _ in range(2)]
    assert not torch.equal(*drawn)
    again = torch.Generator().manual_seed(2)
    assert torch.equal(function(rows, **parameters, generator=again), drawn[0])
    torch.manual_seed(2)
    assert torch.equal(function(rows, **parameters), drawn[0])
    assert torch.equal(function(rows, **parameters, deterministic=False), drawn[1])
    with pytest.raises(ValueError, match="offset: got 5"):
        function(rows, **parameters, offset=5)


def test_sampling_from_probs_is_multinomial(probs: Tensor) -> None:
    torch.manual_seed(7)
    tokens = fi.sampling_from_probs(probs)
    torch.manual_seed(7)
    assert torch.equal(tokens.long(), fastsample.multinomial(probs, 1)[:, 0])


@each_function
def test_indices(function: Callable[..., Tensor], parameters: dict[str, Any], probs: Tensor, logits: Tensor) -> None:
    """Outputs have the seeds, rows have the parameters, and the tokens the dtype of the indices."""
    rows = logits if "logits" in function.__name__ else probs
    named = per_row(parameters)
    for dtype in (torch.int32, torch.int64):
        indices = torch.tensor([5, 5, 0, 3, 1, 1, 1, 2], dtype=dtype)
        source = indices.long()
        seeds = torch.arange(len(indices)) + 70
        tokens = function(rows, **named, indices=indices, seed=seeds, offset=seeds)
        assert tokens.dtype is dtype
        chosen = function(rows[source], **row_of(named, source), seed=seeds, offset=seeds)
        assert torch.equal(tokens.int(), chosen)
        shared = function(rows, **named, indices=indices, seed=3, offset=1)
        assert torch.equal(shared.int(), function(rows[source], **row_of(named, source), seed=3, offset=1))
    for name, value in named.items():
        if isinstance(value, Tensor):
            # As long as the indices, which FlashInfer refuses too: it would mean another row's value.
            other = {**named, name: value[source]}
            with pytest.raises(ValueError, match=rf"{name}: got a tensor of shape \[8\].*shape \[6\]"):
                function(rows, **other, indices=indices)


@from_probs
def test_invalid_rows(name: str, probs: Tensor) -> None:
    function, parameters = FROM_PROBS[name]
    named = {**parameters, "seed": torch.arange(BATCH), "offset": torch.arange(BATCH)}
    healthy = function(probs, **named)
    broken = probs.clone()
    broken[1, 5], broken[2], broken[3, 4], broken[4, 0] = math.nan, 0.0, -0.1, math.inf
    tokens, valid = function(broken, **named, return_valid=True)
    assert valid.dtype is torch.bool
    assert valid.tolist() == [True, False, False, False, False, True]
    assert tokens.tolist() == [int(healthy[0]), 0, 0, 0, 0, int(healthy[5])]
    assert torch.equal(function(broken, **named), tokens)
    everywhere = torch.tensor([0, -1, 5, BATCH])
    _, valid = function(probs, **parameters, indices=everywhere, return_valid=True)
    assert valid.tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"Input probs contains NaN\. In 1 of 6 rows, the first is 1\."):
        function(broken, **named, check_nan=True)
    assert torch.equal(function(probs, **named, check_nan=True), healthy)


@pytest.mark.parametrize("name", FROM_LOGITS)
def test_invalid_rows_of_logits(name: str, logits: Tensor) -> None:
    function, parameters = FROM_LOGITS[name]
    named = {**parameters, "seed": torch.arange(BATCH), "offset": torch.arange(BATCH)}
    healthy = function(logits, **named)
    assert torch.equal(function(logits, **named, check_nan=True), healthy)
    broken = logits.clone()
    broken[1, 5] = math.nan
    with pytest.raises(ValueError, match=r"Input \w+ contains NaN\. In 1 of 6 rows, the first is 1\."):
        function(broken, **named, check_nan=True)
    broken[4] = -math.inf
    tokens = function(broken, **named)
    assert tokens.tolist() == [int(healthy[0]), 0, int(healthy[2]), int(healthy[3]), 0, int(healthy[5])]
    # FlashInfer looks for a NaN in the logits here, and in their softmax there.
    broken[1] = logits[1]
    if function is fi.sampling_from_logits:
        function(broken, **named, check_nan=True)
    else:
        with pytest.raises(ValueError, match="the first is 4"):
            function(broken, **named, check_nan=True)


def test_bad_values_in_tensors_make_their_rows_invalid(probs: Tensor) -> None:
    bad = torch.tensor([0.5, 1.5, -0.1, math.nan, 1.0, 0.0])
    expected = [True, False, False, False, True, True]
    for function in (fi.top_p_sampling_from_probs, fi.min_p_sampling_from_probs):
        assert function(probs, bad, seed=1, return_valid=True)[1].tolist() == expected
    assert fi.top_p_renorm_probs(probs, bad).isnan().all(dim=1).tolist() == [not valid for valid in expected]


def test_a_top_k_of_floats_that_is_no_number_makes_its_row_invalid(probs: Tensor, logits: Tensor) -> None:
    """FlashInfer converts a top_k of floats, and so a NaN to whatever number its processor makes of it."""
    top_k = torch.tensor([1.0, math.nan, 3.0, math.inf, -math.inf, 6.9])
    integers = torch.tensor([1, 2, 3, 0, 0, 6])
    expected = [True, False, True, True, True, True]
    chosen = torch.tensor([5, 1, 0, 1])
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (fi.top_k_sampling_from_probs, {}),
        (fi.top_k_top_p_sampling_from_probs, {"top_p": 0.7}),
        (fi.top_k_top_p_sampling_from_probs, {"top_p": torch.linspace(0.2, 1.0, BATCH), "filter_apply_order": "joint"}),
    ]
    for function, named in calls:
        tokens, valid = function(probs, top_k, **named, seed=1, return_valid=True)
        assert valid.tolist() == expected
        assert torch.equal(tokens[valid], function(probs, integers, **named, seed=1)[valid])
        assert function(probs, top_k, **named, indices=chosen, return_valid=True)[1].tolist() == [True, False] * 2
        assert not function(probs, top_k[1], **named, return_valid=True)[1].any()
        with pytest.raises(ValueError, match=r"top_k: got a tensor of shape \[4\].*shape \[6\]"):
            function(probs, top_k[:4], **named)
        with pytest.raises(ValueError, match=r"top_p: got 1\.5"):
            fi.top_k_top_p_sampling_from_probs(probs, top_k, 1.5)
    found = fi.top_k_renorm_probs(probs, top_k)
    assert found.isnan().all(dim=1).tolist() == [not valid for valid in expected]
    assert torch.equal(found[2:], fi.top_k_renorm_probs(probs, integers)[2:])
    masked = fi.top_k_mask_logits(logits, top_k)
    assert masked.isnan().all(dim=1).tolist() == [not valid for valid in expected]
    assert torch.equal(masked[2:], fi.top_k_mask_logits(logits, integers)[2:])


def test_parameters_that_keep_all(probs: Tensor) -> None:
    expected = fi.sampling_from_probs(probs, seed=1, offset=1)
    for k in (0, -1, VOCAB, 1 << 30, torch.full((BATCH,), 1 << 30, dtype=torch.int32), torch.tensor(0)):
        assert torch.equal(fi.top_k_sampling_from_probs(probs, k, seed=1, offset=1), expected)
    for p in (1, 1.0, torch.ones(BATCH), torch.ones(BATCH, dtype=torch.float64), torch.ones(BATCH, dtype=torch.int32)):
        assert torch.equal(fi.top_p_sampling_from_probs(probs, p, seed=1, offset=1), expected)
    assert torch.equal(fi.min_p_sampling_from_probs(probs, 0.0, seed=1, offset=1), expected)
    # FlashInfer converts a top_k of floats.
    floats, integers = torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.arange(1, 7)
    assert torch.equal(
        fi.top_k_sampling_from_probs(probs, floats, seed=1), fi.top_k_sampling_from_probs(probs, integers, seed=1)
    )


@each_function
def test_strides_an_empty_batch_and_a_compiler(
    function: Callable[..., Tensor], parameters: dict[str, Any], probs: Tensor, logits: Tensor
) -> None:
    rows = logits if "logits" in function.__name__ else probs
    tokens = function(rows, **parameters, seed=1, offset=2)
    strided = torch.stack([rows, rows], dim=2)[:, :, 0]
    assert not strided.is_contiguous()
    assert torch.equal(function(strided, **parameters, seed=1, offset=2), tokens)
    assert function(rows[:0], **parameters, seed=1, offset=2).shape == (0,)
    nothing = function(rows[:0], **per_row(parameters, 0), indices=torch.tensor([0, 1]), seed=1)
    assert nothing.tolist() == [0, 0]
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(rows, **parameters, seed=torch.tensor([1]), offset=torch.tensor([2])), tokens)


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rows": [0.5]}, TypeError, r"(logits|probs): got \[0.5\]"),
    ({"rows": torch.ones(3, dtype=torch.int32)}, TypeError, "(logits|probs): got a tensor.*int32"),
    ({"rows": torch.ones(3)}, ValueError, r"(logits|probs): got a tensor of shape \[3\].*\[rows, vocab\]"),
    ({"rows": torch.ones(3, 0)}, ValueError, r"(logits|probs): .*vocab from 1"),
    ({"rows": torch.ones(3, 4, device="meta")}, ValueError, "(logits|probs): got a tensor on meta"),
    ({"indices": torch.zeros(2)}, TypeError, "indices: got dtype torch.float32; accepted: int32 or int64"),
    ({"indices": torch.zeros(2, dtype=torch.int8)}, TypeError, "indices: got dtype torch.int8"),
    ({"indices": torch.zeros(2, 2, dtype=torch.int32)}, ValueError, "indices: got a tensor of shape"),
    ({"indices": [0]}, TypeError, r"indices: got \[0\]"),
    ({"seed": torch.zeros(4).long()}, ValueError, r"seed: got a tensor of shape \[4\].*shape \[6\]"),
    ({"seed": 1, "offset": torch.zeros(4).long()}, ValueError, r"offset: got a tensor of shape \[4\].*\[6\]"),
    ({"seed": 1.5}, TypeError, "seed: got 1.5"),
    ({"generator": 3}, TypeError, "generator: got 3"),
    ({"seed": 1, "generator": "x"}, TypeError, "generator: got 'x'"),
    ({"top_k": 2.5}, TypeError, "top_k: got 2.5"),
    ({"top_p": 1.5}, ValueError, "top_p: got 1.5"),
    ({"min_p": -0.5}, ValueError, "min_p: got -0.5"),
    ({"top_k": torch.ones(4).long()}, ValueError, r"top_k: got a tensor of shape \[4\].*shape \[6\]"),
    ({"filter_apply_order": "min_p_first"}, ValueError, "filter_apply_order: got 'min_p_first'; accepted: 'top_k"),
]


@each_function
def test_bad_arguments(function: Callable[..., Tensor], parameters: dict[str, Any], probs: Tensor) -> None:
    taken = {name for name, _, _ in parameters_of(function)}
    for changed, error, message in BAD_ARGUMENTS:
        named = {name: value for name, value in changed.items() if name != "rows"}
        if named.keys() <= taken:
            with pytest.raises(error, match=message):
                function(changed.get("rows", probs), **(parameters | named))


# --- probabilities and logits out


def test_softmax(logits: Tensor) -> None:
    column = torch.tensor([0.3, 0.5, 1.0, 2.0, 0.7, 9.0])
    for temperature in (None, 1.0, 2, 0.4, column, column.double(), column.half()):
        probs = fi.softmax(logits, temperature)
        named = 1.0 if temperature is None else temperature
        assert torch.equal(probs, fastsample.softmax(logits, named))
        divisor = named.double()[:, None] if isinstance(named, Tensor) else named
        torch.testing.assert_close(probs, (logits.double() / divisor).softmax(-1).float(), rtol=1e-5, atol=0.0)
    assert fi.softmax(logits.bfloat16(), enable_pdl=True).dtype is torch.float32
    assert torch.equal(fi.softmax(logits.double()), fi.softmax(logits))
    assert torch.equal(fi.softmax(logits, 0.0).argmax(-1), logits.argmax(-1))
    assert torch.equal(fi.softmax(logits, 0.0).sum(-1), torch.ones(BATCH))
    for bad, error in ((True, TypeError), (-1.0, ValueError), (torch.ones(4), ValueError), ("1", TypeError)):
        with pytest.raises(error, match="temperature: got"):
            fi.softmax(logits, bad)


def kept_by_formula(p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The first k of a stable sort, and the smallest prefix whose mass reaches top_p of the sum; p in float64."""
    ranked = p.sort(dim=1, descending=True, stable=True).indices
    ordered = p.gather(1, ranked)
    before = ordered.cumsum(1) - ordered
    kept = (torch.arange(p.shape[1]) < top_k[:, None]) & (before < top_p[:, None] * ordered.sum(1, keepdim=True))
    return torch.zeros_like(kept).scatter(1, ranked, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0**-100])
def test_renormalised_probabilities(probs: Tensor, dtype: torch.dtype, scale: float) -> None:
    """The kept set by ==, also of the ties of 16-bit probabilities; the values to within the law's integers."""
    p = probs.to(dtype) * (1.0 if dtype is torch.float16 else scale)
    rows = p.float()
    exact = rows.double()
    all_k, all_p = torch.full((BATCH,), VOCAB), torch.full((BATCH,), 2.0)
    top_k, top_p = torch.tensor([1, 2, 10, 50, 210, 500]), torch.tensor([0.05, 0.3, 0.5, 0.9, 0.99, 1.0])
    cases = [
        (fi.top_k_renorm_probs, top_k, kept_by_formula(exact, top_k, all_p)),
        (fi.top_k_renorm_probs, 17, kept_by_formula(exact, all_k.clamp(max=17), all_p)),
        (fi.top_p_renorm_probs, top_p, kept_by_formula(exact, all_k, top_p.double())),
        (fi.top_p_renorm_probs, 0.7, kept_by_formula(exact, all_k, all_p.clamp(max=float(torch.tensor(0.7))))),
        (fi.top_p_renorm_probs, 1.0, kept_by_formula(exact, all_k, all_p)),
    ]
    for function, parameter, kept in cases:
        found = function(p, parameter)
        same_dtype = function is fi.top_k_renorm_probs and dtype is not torch.float64
        assert found.dtype is (dtype if same_dtype else torch.float32)
        assert torch.equal(found > 0, kept)  # each of these p is above 0, and so is its share in its dtype
        share = torch.where(kept, exact, 0.0)
        share = share / share.sum(1, keepdim=True)
        rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(found.dtype, 1e-6)
        smallest = 2.0**-24 if found.dtype is torch.float16 else 0.0
        torch.testing.assert_close(found.double(), share, rtol=rounding, atol=smallest)
        assert torch.equal(function(p, parameter, is_deterministic=True), found)
        for row in range(BATCH):  # the batch plays no part
            at = parameter[row : row + 1] if isinstance(parameter, Tensor) else parameter
            assert torch.equal(function(p[row : row + 1], at), found[row : row + 1])
    assert fi.top_k_renorm_prob is fi.top_k_renorm_probs
    assert fi.top_p_renorm_prob is fi.top_p_renorm_probs


def awkward_rows() -> Tensor:
    """Rows of the kinds that the steps of renormalising tell apart, each valid unless it says otherwise."""
    vocab = 3000
    spread = torch.randn(8, vocab, generator=torch.Generator().manual_seed(6))
    rows = (spread * torch.tensor([0.0, 0.1, 1, 2, 4, 8, 20, 3])[:, None]).softmax(-1)
    rows[5] = rows[5].bfloat16().float()  # ties
    few = torch.zeros(7, vocab)
    few[0, 17] = 1.0
    few[1, [5, 900, 2999]] = 0.25
    few[2] = rows[3] * 2.0**-120  # denormals among them
    few[3] = 2.0**-149
    few[4] = rows[4].where(rows[4] > 1e-4, -0.0)
    few[5] = rows[4].where(rows[4] > 1e-4, -(2.0**-149))  # invalid
    few[6, 1] = math.nan  # invalid
    return torch.cat([rows, few])


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_renormalised_one_by_one_are_those_of_the_batch(
    dtype: torch.dtype, flushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU takes long rows one by one, a GPU the batch at once: equal bits, and the kept set of the reference."""
    rows = awkward_rows().to(dtype)
    assert rows.shape[1] >= renormalised._LONG_ROW
    strided = torch.stack([rows, rows], dim=2)[:, :, 1]
    top_p = torch.linspace(0.0, 1.0, len(rows))
    top_p[:6] = torch.tensor([0.5, 0.9, 0.99, 1.0, 0.0, 2.0**-149])
    top_k = torch.arange(len(rows)) * 230
    calls: list[tuple[Callable[..., Tensor], Any]] = [
        *((fi.top_p_renorm_probs, p) for p in (0.0, 0.3, 0.9, 0.9999, 1.0, top_p, top_p.flip(0))),
        *((fi.top_k_renorm_probs, k) for k in (1, 2, 40, rows.shape[1], top_k)),
    ]
    torch.set_flush_denormal(flushed)
    try:
        for function, parameter in calls:
            alone = function(rows, parameter)
            assert torch.equal(function(strided, parameter).nan_to_num(-1.0), alone.nan_to_num(-1.0))
            with monkeypatch.context() as patch:
                patch.setattr(renormalised, "_LONG_ROW", 10**6)
                together = function(rows, parameter)
            assert torch.equal(bits_of(alone), bits_of(together))
    finally:
        torch.set_flush_denormal(False)
    for p in (0.3, 0.9, 0.9999):
        kept = reference.kept_set(rows, fastsample.arguments.NO_FILTERS._replace(top_p=p), probabilities=True)
        assert torch.equal(fi.top_p_renorm_probs(rows, p).nan_to_num(0.0) > 0, kept & (rows > 0))


def bits_of(values: Tensor) -> Tensor:
    """The bits of floats, so that denormals are told apart also where the processor flushes them; any NaN is one."""
    return values.where(~values.isnan(), math.nan).view(torch.int32 if values.dtype is torch.float32 else torch.int16)


def test_renormalised_rows_keep_what_is_drawn_from(probs: Tensor) -> None:
    rows = probs.bfloat16().float()
    for k in (1, 3, 40):
        kept = fi.top_k_renorm_probs(rows, k) > 0
        assert kept.sum(1).tolist() == [k] * BATCH
        assert torch.equal(kept, reference.kept_set(rows, fastsample.arguments.NO_FILTERS._replace(top_k=k), True))
    drawn = fi.top_p_sampling_from_probs(rows, 0.4, torch.arange(BATCH).repeat(500), seed=1)
    assert bool((fi.top_p_renorm_probs(rows, 0.4).repeat(500, 1).gather(1, drawn[:, None]) > 0).all())


def test_renormalised_rows_that_are_none(probs: Tensor) -> None:
    broken = probs.clone()
    broken[1, 5], broken[2], broken[3, 4], broken[4, 0] = math.nan, 0.0, -0.1, math.inf
    for found in (fi.top_k_renorm_probs(broken, 9), fi.top_p_renorm_probs(broken, 0.9)):
        assert found.isnan().any(dim=1).tolist() == [False, True, True, True, True, False]
        assert found[1:5].isnan().all()
    assert torch.equal(fi.top_k_renorm_probs(broken, 9)[5], fi.top_k_renorm_probs(probs, 9)[5])
    assert fi.top_p_renorm_probs(probs[:0], 0.9).shape == fi.top_k_renorm_probs(probs[:0], 9).shape == (0, VOCAB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_top_k_mask_logits(logits: Tensor, dtype: torch.dtype) -> None:
    rows = logits.to(dtype)
    for k in (1, 20, torch.tensor([1, 2, 0, 40, 7, 500])):
        masked = fi.top_k_mask_logits(rows, k)
        assert masked.dtype is dtype
        column = k if isinstance(k, Tensor) else torch.full((BATCH,), k)
        ranked = rows.float().sort(dim=1, descending=True, stable=True).indices
        within = torch.arange(VOCAB) < torch.where(column <= 0, VOCAB, column)[:, None]
        kept = torch.zeros_like(within).scatter(1, ranked, within)
        assert torch.equal(masked, torch.where(kept, rows, -math.inf))
    assert torch.equal(fi.top_k_mask_logits(logits.double(), 3), fi.top_k_mask_logits(logits, 3))


def test_the_examples_of_flashinfers_documentation() -> None:
    """Those with one possible outcome: the numbers printed there, to their four digits."""
    probs = torch.tensor(
        [
            [0.2499, 0.2592, 0.1085, 0.2718, 0.1106],
            [0.2205, 0.0942, 0.2912, 0.3452, 0.0489],
            [0.2522, 0.1602, 0.2346, 0.1532, 0.2000],
            [0.1543, 0.3182, 0.2062, 0.0958, 0.2255],
        ]
    )
    top_k = [
        [0.3201, 0.3319, 0.0000, 0.3480, 0.0000],
        [0.2573, 0.0000, 0.3398, 0.4028, 0.0000],
        [0.3672, 0.0000, 0.3416, 0.0000, 0.2912],
        [0.0000, 0.4243, 0.2750, 0.0000, 0.3007],
    ]
    torch.testing.assert_close(fi.top_k_renorm_probs(probs, 3), torch.tensor(top_k), rtol=0.0, atol=2e-4)
    top_p = [
        [0.0000, 0.4882, 0.0000, 0.5118, 0.0000],
        [0.0000, 0.0000, 0.0000, 1.0000, 0.0000],
        [0.5181, 0.0000, 0.4819, 0.0000, 0.0000],
        [0.0000, 1.0000, 0.0000, 0.0000, 0.0000],
    ]
    torch.testing.assert_close(fi.top_p_renorm_probs(probs, 0.3), torch.tensor(top_p), rtol=0.0, atol=2e-4)
    assert fi.top_k_top_p_sampling_from_probs(probs, torch.full((4,), 2), torch.full((4,), 0.2)).tolist() == [
        3,
        3,
        0,
        1,
    ]
    assert fi.top_k_sampling_from_probs(probs, 1).tolist() == [3, 3, 0, 1]
    logits = torch.tensor([[1.9269, 1.4873, 0.9007, -2.1055, -0.7581], [-0.4934, 0.2415, -0.2316, 0.0418, -0.2516]])
    masked = [[1.9269, 1.4873, 0.9007, -math.inf, -math.inf], [-math.inf, 0.2415, -0.2316, 0.0418, -math.inf]]
    assert torch.equal(fi.top_k_mask_logits(logits, 3), torch.tensor(masked))


# --- chains and seeds


def test_chain_speculative_sampling_takes_seeds_as_the_others_do() -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(40, 4, 9, generator=generator).softmax(-1)
    draft = torch.rand(40, 3, 9, generator=generator).softmax(-1)
    drafted = torch.randint(9, (40, 3), generator=generator, dtype=torch.int32)
    chain = fi.chain_speculative_sampling
    assert fastsample.chain_speculative_sampling is chain
    tokens, accepted, emitted = chain(draft, drafted, target, seed=1, offset=2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            chain(draft, drafted, target, seed=torch.tensor([1]), offset=torch.tensor([2]), generator=generator),
            (tokens, accepted, emitted),
            strict=True,
        )
    )
    seeds = torch.arange(40)
    rows = chain(draft, drafted, target, seed=seeds, offset=seeds * 4)[0]
    assert torch.equal(
        chain(draft[5:9], drafted[5:9], target[5:9], seed=seeds[5:9], offset=seeds[5:9] * 4)[0], rows[5:9]
    )
    invalid = target.clone()
    invalid[0, 0, 0] = math.nan
    assert chain(draft, drafted, invalid, seed=1, offset=2)[0][0].tolist() == [-1, -1, -1, -1]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"draft_probs": None}, TypeError, "^draft_probs: got None"),
        ({"draft_probs": torch.ones(2, 3, 5).long()}, TypeError, r"^draft_probs: got .*int64.*\[batch, n, vocab\]"),
        ({"draft_probs": torch.ones(2, 5)}, ValueError, r"^draft_probs: got a tensor of shape \[2, 5\]"),
        ({"draft_probs": torch.ones(2, 4, 5)}, ValueError, r"^draft_probs: got shape \[2, 4, 5\]; .* \[2, 3, 5\]"),
        ({"draft_probs": torch.ones(2, 3, 6)}, ValueError, r"^draft_probs: got shape \[2, 3, 6\]; .* \[2, 3, 5\]"),
        ({"draft_token_ids": torch.zeros(2, 3)}, TypeError, "^draft_token_ids: got dtype torch.float32"),
        ({"draft_token_ids": torch.zeros(1, 3).int()}, ValueError, r"^draft_token_ids: got .*\[1, 3\].* \[2, any\]"),
        (
            {"draft_token_ids": torch.zeros(2, 4).int()},
            ValueError,
            r"^draft_token_ids: got shape \[2, 4\]; .* \[2, 3\]",
        ),
        ({"target_probs": [0.5]}, TypeError, r"^target_probs: got \[0.5\]"),
        ({"target_probs": torch.ones(2, 4)}, ValueError, r"^target_probs: got .*\[batch, n \+ 1, vocab\]"),
        ({"target_probs": torch.ones(2, 0, 5)}, ValueError, r"^target_probs: got shape \[2, 0, 5\].*n at least 0"),
        ({"target_probs": torch.ones(2, 4, 5, device="meta")}, ValueError, "^target_probs: got a tensor on meta"),
        ({"generator": "x"}, TypeError, "^generator: got 'x'"),
        ({"generator": "x", "seed": 1}, TypeError, "^generator: got 'x'"),
    ],
    ids=str,
)
def test_bad_chains(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    """Errors have the names of this function's arguments, which are not those of `verify_chain`."""
    given = {
        "draft_probs": torch.ones(2, 3, 5),
        "draft_token_ids": torch.zeros(2, 3, dtype=torch.int32),
        "target_probs": torch.ones(2, 4, 5),
    }
    fi.chain_speculative_sampling(**given, seed=1)
    with pytest.raises(error, match=message):
        fi.chain_speculative_sampling(**(given | changed))


def test_get_seed_and_offset() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (fi.get_seed_and_offset(4, generator) for _ in range(2))
    assert first != second
    assert fi.get_seed_and_offset(9, torch.Generator().manual_seed(3)) == first
    torch.manual_seed(3)
    assert fi.get_seed_and_offset(4) == first
    assert fi.get_seed_and_offset(4, device=torch.device("cpu")) == second
    assert all(0 <= number < 2**63 for number in (*first, *second))
    with pytest.raises(TypeError, match="generator: got 'x'"):
        fi.get_seed_and_offset(4, "x")  # type: ignore[arg-type]


# --- install


def test_install_without_flashinfer() -> None:
    """In a process whose imports find no flashinfer: `install` makes the package, `uninstall` takes it away."""
    code = """
import importlib.util, sys
from importlib.machinery import PathFinder

class WithoutFlashInfer(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "flashinfer" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutFlashInfer
import fastsample.integrations.flashinfer as ours
from fastsample.integrations.status import integration_statuses

assert importlib.util.find_spec("flashinfer") is None
ours.uninstall()
ours.install()
import flashinfer.sampling
from flashinfer.sampling import top_k_mask_logits
assert flashinfer.sampling.softmax is flashinfer.softmax is ours.softmax
assert top_k_mask_logits is ours.top_k_mask_logits
assert flashinfer.__version__ == ours.API_VERSION
assert importlib.util.find_spec("flashinfer") is not None
assert importlib.util.find_spec("flashinfer.sampling") is not None
assert importlib.util.find_spec("flashinfer.comm") is None
assert integration_statuses()["flashinfer"].on
try:
    flashinfer.sampling.get_sampling_module
except AttributeError as error:
    assert "fastsample's, and has no 'get_sampling_module'" in str(error)
else:
    raise AssertionError("there is no such function")
ours.uninstall()
assert not integration_statuses()["flashinfer"].on
try:
    import flashinfer.sampling
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("flashinfer is still there")
ours.install()
assert ours.is_installed()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_install_with_flashinfer(host: dict[str, list[list[Any]]]) -> None:
    """flashinfer_host.py has the assertions; it ran to its end."""
    assert "softmax" in host


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package on disk whose module `sampling` is to be replaced."""
    folder = tmp_path / "some_host"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .sampling import draw as draw\nfrom .sampling import draw as other\n")
    (folder / "sampling.py").write_text("def draw(): return 1\ndef left(): return 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("some_host", "some_host.sampling"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "some_host"


def test_a_stand_in_leaves_alone_what_others_put_there(package: str) -> None:
    def draw() -> int:
        return 3

    stand_in = StandIn(f"{package}.sampling", {"draw": draw}, "1")
    assert stand_in.install()
    host = importlib.import_module(package)
    assert (host.draw(), host.other(), host.sampling.draw(), host.sampling.left()) == (3, 1, 3, 2)
    assert stand_in.replaced_version() == "unknown"
    assert stand_in.different_signatures() == []
    host.draw = lambda: 4  # as another library would that patches after us
    assert stand_in.is_installed()
    assert not stand_in.install()
    assert host.draw() == 4
    assert stand_in.uninstall()
    assert (host.draw(), host.sampling.draw()) == (4, 1)
    assert not stand_in.uninstall()


def test_a_module_held_before_has_the_functions_too(package: str) -> None:
    held = importlib.import_module(f"{package}.sampling")
    function, names = held.draw, set(vars(held))
    stand_in = StandIn(f"{package}.sampling", {"draw": lambda: 3, "added": lambda: 5}, "1")
    assert stand_in.install()
    assert (held.draw(), held.added(), held.left(), function()) == (3, 5, 2, 1)
    assert stand_in.different_signatures() == []
    assert stand_in.uninstall()
    assert held.draw is function
    assert set(vars(held)) == names


def test_a_module_that_was_reloaded_is_replaced_again(package: str) -> None:
    stand_in = StandIn(f"{package}.sampling", {"draw": lambda: 3}, "1")
    assert stand_in.install()
    module = importlib.reload(sys.modules[f"{package}.sampling"])
    assert module.draw() == 1
    assert not stand_in.is_installed()
    assert stand_in.install()
    assert module.draw() == 3
    assert stand_in.uninstall()
    assert module.draw() == 1


def test_a_package_that_cannot_be_imported_says_so(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "sampling.py").write_text("raise ImportError('no driver')\n")
    stand_in = StandIn(f"{package}.sampling", {}, "1")
    with pytest.raises(ImportError, match="no driver"):
        stand_in.install()
    assert not stand_in.is_installed()
    assert f"{package}.sampling" not in sys.modules


def test_the_log_line_and_the_doctor(
    package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fi, "_stand_in", StandIn(f"{package}.sampling", {"draw": lambda: 3}, "1"))
    with caplog.at_level(logging.INFO, logger=fi.__name__):
        assert not integration_statuses()["flashinfer"].on
        fi.install()
        fi.install()
        assert [record.getMessage() for record in caplog.records] == [
            "fastsample stands in for flashinfer.sampling (of FlashInfer unknown)"
        ]
        status = integration_statuses()["flashinfer"]
        assert status.on
        assert "on in this process" in doctor.render(doctor.Report({}, {}, {}, {}, [], {"flashinfer": status}))
        fi.uninstall()
    assert "off in this process" in integration_statuses()["flashinfer"].summary
    assert integration_statuses()["transformers"].on is None
    assert IntegrationStatus("x", None, True, None, "").summary == "not installed"


# --- what stands in, with a package of which only the name is there


def _ours() -> int:
    return 7


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    made = StandIn("fastsample_no_package.module", {"function": _ours}, "1")
    yield made
    made.uninstall()
    assert "fastsample_no_package.module" not in sys.modules


def test_a_stub_and_a_folder_of_the_name_are_no_package(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fastsample_no_package").mkdir()
    for stubbed in (False, True):
        monkeypatch.syspath_prepend(str(tmp_path))
        if stubbed:
            monkeypatch.setitem(sys.modules, "fastsample_no_package", types.ModuleType("fastsample_no_package"))
        assert stand_in.install()
        assert importlib.import_module("fastsample_no_package.module").function() == 7
        assert stand_in.uninstall()


def test_threads_install_once(stand_in: StandIn) -> None:
    for _ in range(100):
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: stand_in.install(), range(8)))
        assert done.count(True) == 1
        assert stand_in.is_installed()
        assert stand_in.uninstall()


def test_the_pinned_package_is_the_one_whose_api_this_is() -> None:
    pinned = (Path(__file__).parents[1] / "requirements-hosts.txt").read_text()
    assert f"flashinfer-python=={fi.API_VERSION}" in pinned
