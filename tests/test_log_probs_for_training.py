"""`filtered_log_probs` for a trainer: over the sampler's kept set it gives the sampler's log-probabilities, so that the
importance ratio of an unchanged policy is 1, and the gradient of a softmax over that set; it saves the logits alone.
"""

import functools
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import fastsample
from conftest import BACKENDS
from fastsample import LogitBias, TokenLists
from fastsample.distribution import distribution
from fastsample.ops import Ops
from request_backends import REFERENCE, backend_of, name, run_examples
from strategies import DTYPES, TEMPERATURES, layouts, rows, same_bits, ulp_distance

__all__ = ["name"]

public = pytest.mark.parametrize("name", BACKENDS, indirect=True)

ROWS, VOCAB = 5, 203
TRUNCATIONS: dict[str, dict[str, Any]] = {
    "p .9": {"top_p": 0.9},
    "k 20": {"top_k": 20},
    "T .7, k 50, p .8": {"temperature": 0.7, "top_k": 50, "top_p": 0.8},
    "T 1.5, min_p .05": {"temperature": 1.5, "min_p": 0.05},
    "a T for each row": {"temperature": torch.tensor([0.3, 1.0, 2.0, 0.9, 4.0]), "top_p": 0.95},
}
each_truncation = pytest.mark.parametrize("truncation", TRUNCATIONS.values(), ids=TRUNCATIONS)


def random_logits(rows: int = ROWS, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


@functools.cache
def real_logits() -> Tensor:
    return torch.from_numpy(np.load(Path(__file__).parent / "data/real_logits.npz")["logits"])


def rows_of(kept: TokenLists) -> list[list[int]]:
    begins = kept.offsets.tolist()
    return [kept.tokens[begin:end].tolist() for begin, end in pairwise(begins)]


def support(kept: TokenLists, vocab: int) -> Tensor:
    """A kept set as bool [rows, vocab]."""
    inside = torch.zeros(len(kept.offsets) - 1, vocab, dtype=torch.bool)
    for row, tokens in enumerate(rows_of(kept)):
        inside[row, tokens] = True
    return inside


def plain(logits: Tensor, tokens: Tensor, temperature: Any, inside: Tensor) -> Tensor:
    """The same in the plainest float64: divide, mask, log_softmax, gather."""
    scale = torch.as_tensor(temperature, dtype=torch.float32).double()
    scaled = logits.double() / (scale if scale.dim() == 0 else scale[:, None])
    return scaled.masked_fill(~inside, -math.inf).log_softmax(dim=1).gather(1, tokens)


def with_gradient(function: Any, logits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What `function` makes of the logits, and the gradient of its sum, weighted, with respect to them."""
    leaf = logits.clone().requires_grad_()
    value = function(leaf)
    (value * weight).sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


# --- value and gradient


@public
@each_truncation
def test_value_and_gradient_are_those_of_a_softmax_over_the_kept_set(name: str, truncation: dict[str, Any]) -> None:
    logits, backend = random_logits(), backend_of(name)
    full = fastsample.sample_full(logits, **truncation, seed=2, num_samples=3, kept_set=True, backend=backend)
    temperature = truncation.get("temperature", 1.0)
    weight = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))
    inside = support(full.kept, VOCAB)
    # A trainer that has moved on: the support is still the sampler's.
    for policy in (logits, logits + 0.5 * random_logits(seed=9)):
        found, gradient = with_gradient(
            lambda leaf: fastsample.filtered_log_probs(leaf, full.tokens, temperature, kept=full.kept, backend=backend),
            policy,
            weight,
        )
        expected, expected_gradient = with_gradient(
            lambda leaf: plain(leaf, full.tokens, temperature, inside), policy.double(), weight.double()
        )
        assert ((found - expected).abs() <= 2e-6 + 1e-6 * expected.abs()).all()
        steepest = 1 / float(torch.as_tensor(temperature).min())
        assert (gradient - expected_gradient).abs().max() < 2e-6 * steepest * weight.abs().sum(dim=1).max()
        assert (gradient[~inside] == 0).all()


@public
@each_truncation
def test_without_a_kept_set_the_filters_are_applied_anew(name: str, truncation: dict[str, Any]) -> None:
    logits, backend = random_logits(), backend_of(name)
    tokens = torch.cat((logits.topk(2).indices, logits.topk(VOCAB).indices[:, -1:]), dim=1)
    weight = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))
    inside = distribution(logits, **truncation) > 0
    temperature = truncation.get("temperature", 1.0)
    found = fastsample.filtered_log_probs(logits, tokens, **truncation, backend=backend)
    assert same_bits(found, fastsample.log_probs(logits, tokens, **truncation, backend=backend))
    kept = torch.where(found > -math.inf, 1.0, 0.0)
    assert torch.equal(kept > 0, inside.gather(1, tokens))
    _, gradient = with_gradient(
        lambda leaf: torch.where(
            kept > 0, fastsample.filtered_log_probs(leaf, tokens, **truncation, backend=backend), 0.0
        ),
        logits,
        weight,
    )
    expected, expected_gradient = with_gradient(
        lambda leaf: torch.where(
            kept > 0, plain(leaf, tokens.where(kept > 0, tokens[:, :1]), temperature, inside), 0.0
        ),
        logits.double(),
        weight.double(),
    )
    found_there = torch.where(kept > 0, found, 0.0)
    assert ((found_there - expected).abs() <= 2e-6 + 1e-6 * expected.abs()).all()
    assert (gradient - expected_gradient).abs().max() < 1e-5 / float(torch.as_tensor(temperature).min())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(dtype: torch.dtype) -> None:
    logits = random_logits().to(dtype)
    full = fastsample.sample_full(logits, top_k=7, seed=3, kept_set=True)
    found, gradient = with_gradient(
        lambda leaf: fastsample.filtered_log_probs(leaf, full.tokens, kept=full.kept), logits, torch.ones(ROWS)
    )
    assert found.dtype is torch.float32
    assert gradient.dtype is dtype
    exact, exact_gradient = with_gradient(
        lambda leaf: fastsample.filtered_log_probs(leaf, full.tokens, kept=full.kept), logits.float(), torch.ones(ROWS)
    )
    assert torch.equal(found, exact)
    assert torch.equal(gradient, exact_gradient.to(dtype))
    transposed = logits.t().contiguous().t()
    assert torch.equal(fastsample.filtered_log_probs(transposed, full.tokens, kept=full.kept), found)
    alone = TokenLists(full.kept.tokens[:7], full.kept.offsets[:2])
    one = fastsample.filtered_log_probs(logits[0], full.tokens[0], kept=alone)
    assert one.shape == ()
    assert one == found[0]


# --- what a kept set may look like


@public
def test_the_order_of_a_kept_set_does_not_matter(name: str) -> None:
    logits, backend = random_logits(), backend_of(name)
    full = fastsample.sample_full(logits, top_p=0.9, seed=4, kept_set=True, backend=backend)
    random = torch.Generator().manual_seed(5)
    lists = [[row[i] for i in torch.randperm(len(row), generator=random)] for row in rows_of(full.kept)]
    for kept in (TokenLists.of(lists), TokenLists.of([row[::-1] for row in lists])):
        found, gradient = with_gradient(
            lambda leaf, kept=kept: fastsample.filtered_log_probs(leaf, full.tokens, kept=kept, backend=backend),
            logits,
            torch.ones(ROWS),
        )
        expected, expected_gradient = with_gradient(
            lambda leaf: fastsample.filtered_log_probs(leaf, full.tokens, kept=full.kept, backend=backend),
            logits,
            torch.ones(ROWS),
        )
        assert torch.equal(found, expected)
        assert torch.equal(gradient, expected_gradient)


@public
def test_rows_without_a_distribution(name: str) -> None:
    """An empty kept set and a NaN in one give NaN, one elsewhere in the row nothing; neighbours do not feel it."""
    backend, logits = backend_of(name), random_logits(6)
    logits[2, 9] = logits[3, 10] = math.nan
    logits[4, [1, 2]] = -math.inf
    kept = TokenLists.of([[1, 2, 9], [], [1, 9], [1, 9], [1, 2], [1, 2, 9]])
    tokens = torch.full((6, 2), 9)
    tokens[:, 1] = 1
    leaf = logits.clone().requires_grad_()
    found = fastsample.filtered_log_probs(leaf, tokens, kept=kept, backend=backend)
    assert found.isnan().all(dim=1).tolist() == [False, True, True, False, True, False]
    assert found.isnan().any(dim=1).tolist() == [False, True, True, False, True, False]
    found[[0, 3, 5]].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[[0, 3, 5]].isfinite().all()
    untouched = fastsample.filtered_log_probs(
        logits[[0, 3, 5]], tokens[:3], kept=TokenLists.of([[1, 2, 9], [1, 9], [1, 2, 9]]), backend=backend
    )
    assert torch.equal(found[[0, 3, 5]], untouched)


@public
def test_tokens_outside_the_support_and_twice(name: str) -> None:
    logits, backend = random_logits(1, 10), backend_of(name)
    kept = TokenLists.of([[7, 2, 4]])
    tokens = torch.tensor([[2, 3, 7, 2, -1, 10, 2**40]])
    leaf = logits.clone().requires_grad_()
    found = fastsample.filtered_log_probs(leaf, tokens, 0.5, kept=kept, backend=backend)
    assert (found == -math.inf).tolist() == [[False, True, False, False, True, True, True]]
    found[found > -math.inf].sum().backward()
    expected = logits.double().requires_grad_()
    plain(expected, torch.tensor([[2, 7, 2]]), 0.5, support(kept, 10)).sum().backward()
    assert (leaf.grad - expected.grad).abs().max() < 1e-5
    # What lies outside of the offsets is nobody's, and what lies outside of the vocabulary is no token.
    nonsense = TokenLists(torch.tensor([3, 7, 2, -1, 4, 10, 2**40, 5]), torch.tensor([1, 7]))
    again = fastsample.filtered_log_probs(logits, tokens, 0.5, kept=nonsense, backend=backend)
    assert torch.equal(again, found.detach())


@public
def test_greedy_rows_have_no_gradient(name: str) -> None:
    logits, backend = random_logits(2), backend_of(name)
    temperature = torch.tensor([0.0, 1.0])
    full = fastsample.sample_full(logits, temperature, seed=1, kept_set=True, backend=backend)
    found, gradient = with_gradient(
        lambda leaf: fastsample.filtered_log_probs(leaf, full.tokens, temperature, kept=full.kept, backend=backend),
        logits,
        torch.ones(2),
    )
    assert found[0] == 0
    assert (gradient[0] == 0).all()
    assert gradient[1].any()


# --- the importance ratio


@public
def test_a_trainers_log_probability_is_the_samplers(name: str) -> None:
    """By `==` here, where both take the logarithm in float64: one of float32 differed in 1 of 150 rows."""
    logits = torch.randn(4000, 300, generator=torch.Generator().manual_seed(0)) * 2
    full = fastsample.sample_full(logits, 0.8, top_p=0.9, seed=3, kept_set=True, backend=backend_of(name))
    trainer = fastsample.filtered_log_probs(logits, full.tokens, 0.8, kept=full.kept)
    assert torch.equal(trainer, full.logprobs)


def kept_mass(full: fastsample.SampleOutput) -> Tensor:
    return full.kept_mass[:, None]


@public
@each_truncation
@pytest.mark.parametrize("kind", ["real", "random", "random bfloat16"])
def test_an_unchanged_policy_has_a_ratio_of_1(name: str, truncation: dict[str, Any], kind: str) -> None:
    """exp(trainer - sampler), the trainer's side from its logits and the kept set alone, is within 4 float32 units of
    1; the full vocabulary's log-softmax in its place is off by the mass that the filters left (trl issue 6789).
    """
    backend = backend_of(name)
    logits = real_logits()[: 5 if kind == "real" else 0] if kind == "real" else random_logits(vocab=3001)
    logits = logits.bfloat16() if "bfloat16" in kind else logits
    temperature = truncation.get("temperature", 1.0)
    full = fastsample.sample_full(
        logits, **truncation, seed=7, num_samples=16, distribution=True, kept_set=True, backend=backend
    )
    trainer = fastsample.filtered_log_probs(logits, full.tokens, temperature, kept=full.kept, backend=backend)
    ratio = (trainer - full.logprobs).exp()
    assert ((ratio - 1).abs() <= 4 * 2.0**-23).all(), (ratio - 1).abs().max() * 2.0**23
    other = fastsample.filtered_log_probs(logits, full.tokens, temperature, kept=full.kept, backend="reference")
    assert (ulp_distance(other, trainer) <= 4).all()

    everything = plain(logits.float(), full.tokens, temperature, torch.ones_like(logits, dtype=torch.bool))
    biased = (everything - full.logprobs).exp()
    assert ((biased - kept_mass(full)).abs() < 1e-5).all()


def test_how_far_off_the_ratio_is_without_the_kept_set() -> None:
    """Over the rows of a real model: what the trainer of trl issue 6789 takes for a change of its policy."""
    logits = real_logits()
    measured = {}
    for label, truncation in TRUNCATIONS.items():
        if torch.is_tensor(truncation.get("temperature")):
            continue
        full = fastsample.sample_full(logits, **truncation, seed=8, num_samples=32, distribution=True, kept_set=True)
        temperature = truncation.get("temperature", 1.0)
        everything = plain(logits, full.tokens, temperature, torch.ones_like(logits, dtype=torch.bool))
        trainer = fastsample.filtered_log_probs(logits, full.tokens, temperature, kept=full.kept)
        ratios = ((everything - full.logprobs).exp(), (trainer.double() - full.logprobs.double()).exp())
        measured[label] = [float((ratio - 1).abs().mean()) for ratio in ratios]
        print(f"{label}: mean |ratio - 1| {measured[label][0]:.4f} without, {measured[label][1]:.1e} with the kept set")
    assert min(without for without, _ in measured.values()) > 0.02
    assert max(with_it for _, with_it in measured.values()) < 1e-7


def test_a_policy_that_has_moved_keeps_its_support() -> None:
    """With the trainer's own filters a token at the edge of the sampler's may have -inf; with the kept set none has."""
    logits = real_logits()
    full = fastsample.sample_full(logits, top_p=0.9, seed=8, num_samples=64, kept_set=True)
    moved = logits.bfloat16() + 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    anew = fastsample.filtered_log_probs(moved, full.tokens, top_p=0.9)
    with_kept = fastsample.filtered_log_probs(moved, full.tokens, kept=full.kept)
    assert (anew == -math.inf).any()
    assert with_kept.isfinite().all()


def test_adjusted_logits_have_a_kept_set_too() -> None:
    """A trainer that adjusts its logits as the sampler did has the sampler's log-probabilities."""
    logits = random_logits()
    given = {"logit_bias": LogitBias.of([{3: 4.0, 5: -math.inf}] * ROWS), "temperature": 0.8, "top_p": 0.9}
    full = fastsample.sample_full(logits, **given, seed=3, kept_set=True)
    processed = fastsample.process_logits(logits, logit_bias=given["logit_bias"])
    trainer = fastsample.filtered_log_probs(processed, full.tokens, 0.8, kept=full.kept)
    assert ((trainer - full.logprobs).exp() - 1).abs().max() <= 4 * 2.0**-23


# --- memory


def test_nothing_of_the_size_of_the_logits_is_saved_beside_them() -> None:
    logits = random_logits().requires_grad_()
    full = fastsample.sample_full(logits, top_p=0.9, seed=4, kept_set=True)
    assert full.tokens.grad_fn is None
    for kept in (full.kept, None):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, saved=saved: saved.append(tensor) or tensor, id):
            filters = {} if kept else {"top_p": 0.9}
            value = fastsample.filtered_log_probs(logits, full.tokens, 0.7, kept=kept, **filters)
        assert value.requires_grad
        others = [tensor for tensor in saved if tensor.data_ptr() != logits.data_ptr()]
        assert len(others) < len(saved)
        assert all(tensor.numel() <= max(ROWS + 1, len(full.kept.tokens)) < logits.numel() for tensor in others)


# --- bad arguments


@pytest.mark.parametrize(
    ("given", "exception", "words"),
    [
        ({"top_p": 0.9}, ValueError, "kept: given together with top_k, top_p or min_p"),
        ({"top_k": torch.tensor(3)}, ValueError, "kept: given together with top_k, top_p or min_p"),
        ({"kept": [[1, 2]]}, TypeError, "kept: got .*list.*TokenLists.of"),
        ({"kept": TokenLists.of([[1]])}, ValueError, r"kept.offsets: got .*\[2\].*\[6\]"),
        ({"kept": TokenLists(torch.ones(3), torch.zeros(6).long())}, TypeError, "kept.tokens: got dtype torch.float32"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1.0"),
        ({"tokens": torch.zeros(4, dtype=torch.int64)}, ValueError, r"tokens: got .*\[4\].*\[5\]"),
    ],
)
def test_bad_arguments(given: dict[str, Any], exception: type[Exception], words: str) -> None:
    arguments = {"tokens": torch.zeros(ROWS, dtype=torch.int64), "kept": TokenLists.of([[1]] * ROWS)} | given
    with pytest.raises(exception, match=words):
        fastsample.filtered_log_probs(random_logits(), **arguments)


# --- every backend, whatever hypothesis thinks of


@st.composite
def kept_calls(draw: st.DrawFn, vocabularies: tuple[int, ...] = (1, 2, 31, 65, 300)) -> tuple[Any, ...]:
    """Arguments of the operator `kept_log_probs`."""
    vocab, count = draw(st.sampled_from(vocabularies)), draw(st.integers(0, 4))
    matrix = np.stack([draw(rows(vocab)) for _ in range(count)]) if count else np.zeros((0, vocab))
    with np.errstate(over="ignore"):
        logits = draw(layouts(torch.from_numpy(matrix.astype(np.float32)).to(draw(st.sampled_from(DTYPES)))))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lists = [random.permutation(vocab)[: random.integers(0, vocab + 1)].tolist() for _ in range(count)]
    kept = TokenLists.of(lists)
    ids = random.choice([*range(vocab), -1, vocab, 2**40], (count, draw(st.sampled_from((1, 2, 7)))))
    for row, tokens in enumerate(lists):
        if tokens:
            ids[row, 0] = tokens[random.integers(len(tokens))]
    tokens = draw(layouts(torch.from_numpy(ids.astype(np.int64))))
    temperatures = np.array([*TEMPERATURES, -1.0, math.nan])
    with np.errstate(over="ignore"):
        by_row = torch.from_numpy(random.choice(temperatures, count).astype(np.float32))
    temperature = draw(st.sampled_from(TEMPERATURES))
    return logits, tokens, kept.tokens, kept.offsets, temperature, draw(st.sampled_from((None, by_row)))


def check_kept_log_probs_with_masked_logits(backend: Ops, call: tuple[Any, ...]) -> None:
    """As `log_probs` of logits that are -inf outside of the kept set, but for ids that are no tokens."""
    logits, tokens, kept_tokens, kept_offsets, temperature, temperature_rows = call
    if logits.shape[0] == 0:
        return
    inside = support(TokenLists(kept_tokens, kept_offsets), logits.shape[1])
    masked = torch.where(inside, logits, -math.inf)
    known = (tokens >= 0) & (tokens < logits.shape[1])
    with_first = torch.nn.functional.pad(tokens.where(known, 0), (1, 0))
    plain_filters = (temperature, temperature_rows, 0, None, 1.0, None, 0.0, None, 0)
    first, *rest = REFERENCE.log_probs(masked, with_first, *plain_filters).split((1, tokens.shape[1]), dim=1)
    expected = torch.where(known, rest[0], -math.inf).where(~first.isnan(), math.nan)
    assert (ulp_distance(backend.kept_log_probs(*call), expected) <= 4).all()


def test_kept_log_probs_of_the_reference_is_log_probs_of_masked_logits() -> None:
    run_examples("reference", "kept_log_probs", kept_calls, check_kept_log_probs_with_masked_logits)
