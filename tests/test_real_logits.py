"""The law on logits of a real model (tests/data/make_real_logits.py): backends agree with the reference by ==, and the
kept sets are those of a float64 sort and of Hugging Face's warpers.

Two kinds of difference to the latter belong to the law, and each token of them must be proved to be one. Where the mass
above a token, or its ratio to the maximum, lies within BOUNDARY of top_p or min_p, sums of floats may decide otherwise
than integers. And of equal logits Hugging Face keeps all at the k-th, and the last indices at the end of the nucleus,
where the law keeps the first.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import fastsample

BOUNDARY = 1e-6
DTYPES = (torch.float32, torch.bfloat16)


class Parameters(NamedTuple):
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self._asdict().items())


CASES = [
    Parameters(top_k=1),
    Parameters(top_k=50),
    Parameters(top_k=5000),
    Parameters(top_p=0.1),
    Parameters(top_p=0.9),
    Parameters(top_p=0.999),
    Parameters(temperature=1.5, top_p=0.95),
    Parameters(min_p=0.05),
    Parameters(temperature=0.7, min_p=0.3),
    Parameters(top_k=50, top_p=0.9),
    Parameters(temperature=0.8, top_k=50, top_p=0.9),
    Parameters(temperature=2.0, top_k=1000, top_p=0.99),
    Parameters(top_p=0.9, min_p=0.02),
    Parameters(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Where another process has the second core, two threads wait for each other: these tests took 2.5 times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def logits(dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.load(Path(__file__).parent / "data/real_logits.npz")["logits"]).to(dtype)


# --- backends agree


DRAWS = 40


@functools.cache
def reference_results(case: Parameters, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return results(case, dtype, "reference")


def results(case: Parameters, dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    # Half of the rows in each dtype, since the reference takes 50 ms for a row.
    x = logits(dtype)[0 if dtype == torch.float32 else 1 :: 2]
    tokens = fastsample.sample(x, *case, seed=20, offset=3, num_samples=DRAWS, backend=backend)
    filtered = fastsample.filter_logits(x, *case, backend=backend)
    return tokens, filtered, fastsample.filtered_probs(x, *case, backend=backend)


@each_dtype
@pytest.mark.parametrize("case", [Parameters(), Parameters(temperature=0.0), *CASES[1::4]], ids=str)
@pytest.mark.parametrize("backend", ["cpu-scalar", "cpu-avx2", "cpu-avx512"], indirect=True)
def test_backends_agree(case: Parameters, dtype: torch.dtype, backend_name: str) -> None:
    tokens, filtered, probabilities = results(case, dtype, backend_name)
    expected_tokens, expected_filtered, expected_probabilities = reference_results(case, dtype)
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(filtered, expected_filtered)
    assert torch.equal(probabilities, expected_probabilities)
    assert filtered.gather(1, tokens).isfinite().all(), "a token outside the kept set"


def test_the_rows_are_varied() -> None:
    """Else the tests here would say little: flat and peaked rows, and in bfloat16 ties at the 50th logit."""
    nucleus = kept(Parameters(top_p=0.9), torch.float32).sum(dim=1)
    assert nucleus.min() == 1
    assert nucleus.max() > 500
    fiftieth = logits(torch.bfloat16).topk(51).values[:, 49:]
    tied = fiftieth[:, 0] == fiftieth[:, 1]
    assert tied.sum() >= 5


# --- kept sets


@functools.cache
def kept(case: Parameters, dtype: torch.dtype) -> Tensor:
    return fastsample.filter_logits(logits(dtype), *case) > -math.inf


class Facts(NamedTuple):
    """What float64 says of each token, [rows, vocab]."""

    logit: Tensor
    rank: Tensor  # int64; law section 2
    kept: Tensor  # bool
    on_boundary: Tensor  # bool


@functools.cache
def facts(case: Parameters, dtype: torch.dtype) -> Facts:
    x = logits(dtype).double()
    ranked = torch.sort(x, dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(ranked).scatter(1, ranked, torch.arange(x.shape[1]).expand_as(ranked))
    within = rank < (case.top_k or x.shape[1])
    probability = torch.softmax((x / case.temperature).masked_fill(~within, -math.inf), dim=1)
    in_rank_order = probability.gather(1, ranked)
    above = torch.empty_like(x).scatter(1, ranked, in_rank_order.cumsum(dim=1) - in_rank_order)
    ratio = probability / probability.amax(dim=1, keepdim=True)
    on_boundary = torch.zeros_like(within)
    if case.top_p < 1:
        on_boundary |= within & ((above - case.top_p).abs() < BOUNDARY)
        within = within & (above < case.top_p)
    if case.min_p > 0:
        on_boundary |= within & ((ratio - case.min_p).abs() < BOUNDARY)
        within = within & (ratio >= case.min_p)
    return Facts(x, rank, within, on_boundary)


def unexplained(ours: Tensor, theirs: Tensor, known: Facts) -> Tensor:
    """The tokens, bool [rows, vocab], that one set keeps and the other does not for no reason that the law has."""
    # What theirs would be, had they chosen the first among equal logits; they have as many of each logit.
    first_of_equals = known.rank < theirs.sum(dim=1, keepdim=True)
    kept_logits = [
        known.logit.masked_fill(~chosen, -math.inf).sort(dim=1).values for chosen in (theirs, first_of_equals)
    ]
    same_logits = (kept_logits[0] == kept_logits[1]).all(dim=1, keepdim=True)
    return torch.where(same_logits, (ours != first_of_equals) & ~known.on_boundary, ours != theirs)


def hugging_face(scores: Tensor, case: Parameters) -> Tensor:
    """What transformers' warpers keep, bool [rows, vocab]; `generate` hands them float32 in this order."""
    warpers = LogitsProcessorList()
    if case.temperature != 1:
        warpers.append(TemperatureLogitsWarper(case.temperature))
    if case.top_k:
        warpers.append(TopKLogitsWarper(case.top_k))
    if case.top_p < 1:
        warpers.append(TopPLogitsWarper(case.top_p))
    if case.min_p > 0:
        warpers.append(MinPLogitsWarper(case.min_p))
    return warpers(torch.zeros(len(scores), 1, dtype=torch.int64), scores.float()) > -math.inf


@each_dtype
@each_case
def test_kept_set_is_that_of_a_float64_sort(case: Parameters, dtype: torch.dtype) -> None:
    known = facts(case, dtype)
    differ = kept(case, dtype) != known.kept
    assert not (differ & ~known.on_boundary).any()
    assert differ.sum() <= 2, "a boundary within 1e-6 is a rare thing"


@each_dtype
@pytest.mark.parametrize("top_k", [1, 50, 1000, 5000])
def test_top_k_keeps_the_first_of_those_that_hugging_face_keeps(top_k: int, dtype: torch.dtype) -> None:
    x, case = logits(dtype), Parameters(top_k=top_k)
    ours, theirs = kept(case, dtype), hugging_face(x, case)
    assert (ours.sum(dim=1) == top_k).all()
    assert not (ours & ~theirs).any()
    kth = x.topk(top_k).values[:, -1:]
    surplus = theirs & ~ours
    assert (x.expand_as(surplus)[surplus] == kth.expand_as(surplus)[surplus]).all(), "theirs are more only by ties"
    index = torch.arange(x.shape[1])
    last_kept_tie = torch.where(ours & (x == kth), index, -1).amax(dim=1, keepdim=True)
    assert (index > last_kept_tie).expand_as(surplus)[surplus].all(), "of the ties, ours are the first"


@each_dtype
@each_case
def test_kept_set_is_hugging_faces(case: Parameters, dtype: torch.dtype) -> None:
    exactly_k = logits(dtype).masked_fill(~kept(Parameters(top_k=case.top_k), dtype), -math.inf)
    ours, theirs = kept(case, dtype), hugging_face(exactly_k, case)
    known = facts(case, dtype)
    assert not unexplained(ours, theirs, known).any()
    assert (ours.sum(dim=1) != theirs.sum(dim=1)).sum() <= 1, "a boundary within 1e-6 is a rare thing"
    if dtype == torch.float32:
        assert (ours != theirs).any(dim=1).sum() <= 1, "float32 logits hardly ever tie"


@each_dtype
def test_a_wrong_kept_set_is_noticed(dtype: torch.dtype) -> None:
    case = Parameters(temperature=0.8, top_k=50, top_p=0.9)
    ours, known = kept(case, dtype), facts(case, dtype)
    x = known.logit
    assert not unexplained(ours, ours, known).any()

    without_the_first = ours.scatter(1, x.argmax(dim=1, keepdim=True), False)
    one_too_many = ours.scatter(1, x.masked_fill(ours, -math.inf).argmax(dim=1, keepdim=True), True)
    last = x.masked_fill(~ours, math.inf).argmin(dim=1, keepdim=True)
    last_for_a_worse_one = ours.scatter(1, last, False).scatter(1, x.argmin(dim=1, keepdim=True), True)
    for wrong in (without_the_first, one_too_many, last_for_a_worse_one):
        assert unexplained(ours, wrong, known).any(dim=1).all()
    for nearly in (case._replace(top_k=40), case._replace(top_p=0.91), case._replace(temperature=0.81)):
        assert unexplained(ours, kept(nearly, dtype), known).any()
