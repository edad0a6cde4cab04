"""Every pair of features of `sample_full`, in one call at least on every backend: equal to the reference, which equals
the same done step by step.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from emulated import emulated_ops
from fastsample import BadWords, History, LogitBias, TokenLists, full_sampling, transforms
from fastsample.backends import select
from request_backends import backend_of, kernels, name
from strategies import one_thread, same_bits, ulp_distance

__all__ = ["name"]

ROWS, VOCAB = 4, 67
Choices = dict[str, dict[str, Any]]


def _features() -> dict[str, Choices]:
    """The choices of each feature, the first of which is without it, as arguments of `run`."""
    random = torch.Generator().manual_seed(8)

    def ids(columns: int) -> Tensor:
        return torch.randint(VOCAB, (ROWS, columns), generator=random)

    def words(columns: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, (ROWS, columns), generator=random).to(torch.int32)

    def parameter(name: str, number: float, rows: list[float]) -> Choices:
        return {"off": {}, "number": {name: number}, "rows": {name: torch.tensor(rows)}}

    output = ids(6)
    tails = [[[*output[row, 4:].tolist(), token] for token in range(0, VOCAB, 3)] for row in range(ROWS)]
    of_output = {"output_tokens": output, "output_lengths": torch.tensor([6, 6, 0, 3])}
    counts = {"output_counts": torch.randint(0, 3, (ROWS, VOCAB), generator=random).int()}
    bias = LogitBias.of([{3: 2.0, 5: -math.inf}, None, {9: 4.0, 60: -1.0}, {0: 1.0}])
    stops = {"stop_tokens": TokenLists.of([list(range(row, VOCAB, 5)) for row in range(ROWS)])}
    allowed = TokenLists.of([list(range(0, VOCAB, 2)), None, [1], list(range(40))])
    return {
        "repetition": parameter("repetition_penalty", 1.4, [1.0, 1.2, 0.7, -1.0]),
        "presence": parameter("presence_penalty", 0.8, [0.0, 1.0, -1.0, 0.5]),
        "frequency": parameter("frequency_penalty", 0.6, [0.0, 0.3, 0.0, 0.9]),
        "prompt": {
            "off": {},
            "list": {"prompt_tokens": ids(5), "prompt_lengths": torch.tensor([0, 5, 3, 9])},
            "mask": {"prompt_mask": words(3)},
        },
        "output": {"off": {}, "list": of_output, "counts": counts, "both": of_output | counts},
        "bias": {"off": {}, "on": {"logit_bias": bias}},
        "bad words": {
            "off": {},
            "on": {"bad_words": BadWords.of(tails)},
            "in the prompt": {"bad_words": BadWords.of(tails, in_prompt=True)},
        },
        "least": {
            "off": {},
            "number": {"min_tokens": 4} | stops,
            "rows": {"min_tokens": torch.tensor([0, 9, 1, 4])} | stops,
        },
        "allowed": {"off": {}, "on": {"allowed_tokens": allowed}},
        "bitmask": {
            "off": {},
            "rows": {"bitmask": words(4)},
            "one": {"bitmask": torch.full((1, 3), 0x7FFF00FF, dtype=torch.int32)},
        },
        "temperature": parameter("temperature", 0.7, [0.0, 1.0, math.inf, 2.0]) | {"greedy": {"temperature": 0.0}},
        "top_k": parameter("top_k", 9, [0, 3, 66, 1]),
        "top_p": parameter("top_p", 0.8, [1.0, 0.5, 0.0, 0.99]),
        "min_p": parameter("min_p", 0.05, [0.0, 0.5, 1.0, 0.01]),
        "order": {"top_k": {}, "min_p": {"order": "min_p_first"}, "joint": {"order": "joint"}},
        "seed": {"number": {"seed": 5}, "rows": {"seed": torch.tensor([3, 4, 5, 6]), "stream": 2}},
        "offset": {"off": {}, "on": {"offset": torch.tensor([0, 1, 2**40, -1])}},
        "draws": {"one": {}, "several": {"num_samples": 3}, "different": {"num_samples": 3, "replacement": False}},
        "indices": {"off": {}, "on": {"indices": torch.tensor([2, 2, 0, 7])}},
        "raw": {"off": {}, "on": {"raw_logprobs": True}},
        "top": {"off": {}, "few": {"top_logprobs": 5}, "many": {"top_logprobs": 40}},
        "top of": {"raw": {}, "processed": {"top_logprobs_of": "processed"}},
        "distribution": {"off": {}, "on": {"distribution": True}},
        "kept set": {"off": {}, "on": {"kept_set": True}},
        "history": {"off": {}, "on": {"recorded": True}},
        "dtype": {"float32": {}, "float16": {"dtype": torch.float16}, "bfloat16": {"dtype": torch.bfloat16}},
        "layout": {"contiguous": {}, "transposed": {"transposed": True}},
        "logits": {"valid": {}, "a NaN": {"spoiled": math.nan}, "infinite": {"spoiled": math.inf}},
    }


FEATURES = _features()
Call = dict[str, str]  # a choice of each feature
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs_of(call: Call) -> set[Pair]:
    """The pairs of choices in a call, features in the order of `FEATURES`."""
    return set(combinations([(feature, call[feature]) for feature in FEATURES if feature in call], 2))


def all_pairs() -> set[Pair]:
    return {
        ((first, choice), (second, other))
        for first, second in combinations(FEATURES, 2)
        for choice in FEATURES[first]
        for other in FEATURES[second]
    }


def covering_calls() -> list[Call]:
    """Calls of which each pair of choices is in one: each begins with a pair that is missing and takes, feature by
    feature, the choice that adds most pairs.
    """
    absent, calls = all_pairs(), []
    while absent:
        call = dict(min(absent))
        for feature, choices in FEATURES.items():
            if feature not in call:
                call = max(({**call, feature: choice} for choice in choices), key=lambda it: len(pairs_of(it) & absent))
        absent -= pairs_of(call)
        calls.append(call)
    return calls


def merged(call: Call) -> dict[str, Any]:
    given = {key: value for feature, choice in call.items() for key, value in FEATURES[feature][choice].items()}
    if "stop_tokens" in given and "output_tokens" not in given:
        given["output_lengths"] = torch.tensor([6, 2, 0, 5])
    if any(f"{feature}_penalty" in given for feature in ("repetition", "presence", "frequency")) and not (
        "output_tokens" in given or "output_counts" in given
    ):
        given["output_counts"] = torch.zeros(ROWS, VOCAB, dtype=torch.int32)  # which penalties insist on
    return given


def logits_of(given: dict[str, Any]) -> Tensor:
    """Takes what is said of the logits out of the arguments, and makes them."""
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(9)) * 3
    logits[1, 7] = given.pop("spoiled", 0.0)
    logits = logits.to(given.pop("dtype", torch.float32))
    return logits.t().contiguous().t() if given.pop("transposed", False) else logits


def run(given: dict[str, Any], backend: str) -> tuple[fastsample.SampleOutput, History | None]:
    given = dict(given)
    logits, history = logits_of(given), None
    if given.pop("recorded", False):
        lengths = torch.tensor([0, 2, 3, 1])
        history = History(torch.full((ROWS, 3), -5), lengths, torch.ones(ROWS, VOCAB, dtype=torch.int32))
    return fastsample.sample_full(logits, **given, history=history, backend=backend), history


def check(given: dict[str, Any], backend: str) -> None:
    full, history = run(given, backend)
    if backend == "reference":
        check_step_by_step(given, full)
        return
    expected, expected_history = run(given, "reference")
    for field in ("tokens", "ranks", "top_tokens", "numbers", "status"):
        found, other = getattr(full, field), getattr(expected, field)
        assert found is other is None or torch.equal(found, other), field
    for field in ("logprobs", "raw_logprobs", "top_logprobs"):
        found, other = getattr(full, field), getattr(expected, field)
        assert found is other is None or (ulp_distance(found, other) <= 4).all(), field
    for lists, others in ((full.kept, expected.kept), (history, expected_history)):
        assert lists is others is None or all(torch.equal(one, other) for one, other in zip(lists, others, strict=True))


def check_step_by_step(given: dict[str, Any], full: fastsample.SampleOutput) -> None:
    """`process_logits`, then `sample`, `log_probs` and `filter_logits`, give what `sample_full` gives."""
    given = dict(given)
    logits = logits_of(given).float()
    indices = given.pop("indices", torch.arange(ROWS))
    exists = (indices < ROWS)[:, None]
    logits = logits[indices.clamp(max=ROWS - 1)]

    def taken(*names: str) -> dict[str, Any]:
        return {name: given.pop(name) for name in names if name in given}

    filters = taken("temperature", "top_k", "top_p", "min_p", "order")
    draws = taken("seed", "offset", "stream", "num_samples", "replacement")
    taken("raw_logprobs", "top_logprobs", "top_logprobs_of", "distribution", "kept_set", "recorded")
    processed = fastsample.process_logits(logits, **given, backend="reference")
    processed = torch.where(exists, processed, math.nan)
    assert torch.equal(full.tokens, fastsample.sample(processed, **filters, **draws, backend="reference"))
    assert same_bits(full.logprobs, fastsample.log_probs(processed, full.tokens, **filters, backend="reference"))
    if full.kept is not None:
        filtered = fastsample.filter_logits(processed, **filters, backend="reference")
        assert full.kept.tokens.tolist() == (filtered > -math.inf).nonzero()[:, 1].tolist()


@pytest.fixture
def backend(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What `backend=` takes for a backend, "cuda" for the emulator included."""
    for operator in ("find_edits", "sample_full"):
        kernels(name, operator)
    if name == "cuda":
        emulated = emulated_ops()
        for module in (full_sampling, transforms):
            monkeypatch.setattr(
                module, "select", lambda wanted, device: emulated if wanted == "cuda" else select(wanted, device)
            )
    with one_thread():
        yield backend_of(name)


# Triton's interpreter takes a minute and a half for them.
IN_TIME = [
    pytest.param(name, marks=pytest.mark.slow) if name == "triton" else name
    for name in ("reference", "cpu-scalar", "cpu-avx2", "cpu-avx512", "triton", "cuda")
]


@pytest.mark.parametrize("name", IN_TIME, indirect=True)
def test_every_pair_of_features(backend: str) -> None:
    calls = covering_calls()
    assert set.union(*map(pairs_of, calls)) == all_pairs()
    for call in calls:
        check(merged(call), backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "cpu-scalar", "cpu-avx2", "cpu-avx512"], indirect=True)
def test_every_pair_of_features_and_nothing_else(backend: str) -> None:
    off = {feature: next(iter(choices)) for feature, choices in FEATURES.items()}
    for pair in sorted(all_pairs()):
        check(merged(off | dict(pair)), backend)
