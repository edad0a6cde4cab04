"""Every backend against tests/data/law_vectors.json, which tests/law_oracle.py made and anyone can check another
implementation with (its format is in its head)."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import make_law_vectors
from fastsample import reference
from fastsample.arguments import ORDERS, Filters, Randomness
from strategies import one_thread, ulp_distance

VECTORS: list[dict[str, Any]] = json.loads(make_law_vectors.PATH.read_text())["cases"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def signed(digits: str) -> int:
    """A 64-bit unsigned number as the int64 of the same bits."""
    number = int(digits, 16)
    return number - 2**64 if number >= 2**63 else number


def floats(digits: str, dtype: str = "float32") -> Tensor:
    """A list of floats of the file, 1-D."""
    integers = [int(number, 16) for number in digits.split()]
    if dtype == "float32":
        return torch.tensor(integers, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return torch.tensor(integers, dtype=torch.int32).to(torch.int16).view(DTYPES[dtype])


class Vector(NamedTuple):
    """A case of the file as tensors and operator arguments."""

    name: str
    logits: Tensor  # [1, vocab]
    filters: Filters
    randomness: Randomness
    probabilities: bool
    expected: dict[str, Any]


def vectors(form: str, probabilities: bool | None = None) -> Iterator[Vector]:
    """The cases, their parameters given as numbers or as tensors. Wrong values reach the operators in tensors only."""
    for case in VECTORS:
        if probabilities not in (None, case["probabilities"]):
            continue
        temperature, top_p, min_p = (floats(case[name]) for name in ("temperature", "top_p", "min_p"))
        order, seed, offset = ORDERS.index(case["order"]), signed(case["seed"]), signed(case["offset"])
        if form == "numbers" and case["valid"]:
            numbers = (temperature.item(), None, case["top_k"], None, top_p.item(), None, min_p.item(), None)
            randomness = Randomness(seed, None, offset, None, case["stream"], None, True)
        else:
            top_k = torch.tensor(case["top_k"])
            numbers = (1.0, temperature, 0, top_k, 1.0, top_p, 0.0, min_p)
            tensors = (torch.tensor([number]) for number in (seed, offset, case["stream"]))
            randomness = Randomness(*(entry for tensor in tensors for entry in (0, tensor)), False)
        logits = floats(case["logits"], case["dtype"])[None]
        yield Vector(case["name"], logits, Filters(*numbers, order), randomness, case["probabilities"], case)


FORMS = pytest.mark.parametrize("form", ["numbers", "tensors"])


def test_the_file_is_what_the_oracle_says() -> None:
    assert make_law_vectors.PATH.read_text() == make_law_vectors.text()


@FORMS
@pytest.mark.parametrize("replacement", [True, False])
def test_tokens(backend: Any, form: str, replacement: bool) -> None:
    wrong = []
    for vector in vectors(form):
        expected = vector.expected["tokens" if replacement else "tokens_without_replacement"]
        out = torch.empty((1, len(expected)), dtype=torch.int64)
        backend.sample(out, vector.logits, None, *vector.filters, *vector.randomness, replacement, vector.probabilities)
        if out[0].tolist() != expected:
            wrong.append((vector.name, out[0].tolist(), expected))
    assert wrong == []


@FORMS
def test_kept_sets(backend: Any, form: str) -> None:
    wrong = []
    for vector in vectors(form, probabilities=False):
        result = backend.filter_logits(vector.logits, *vector.filters)
        kept = (result[0] > -torch.inf).nonzero()[:, 0].tolist()
        unchanged = torch.equal(result[0, kept], vector.logits[0, kept])
        nan = bool(result.isnan().all())
        if (kept, unchanged, nan) != (vector.expected["kept"], True, not vector.expected["valid"]):
            wrong.append((vector.name, kept, vector.expected["kept"], nan))
    assert wrong == []


@FORMS
def test_probabilities(backend: Any, form: str) -> None:
    wrong = []
    for vector in vectors(form, probabilities=False):
        result = backend.filtered_probs(vector.logits, *vector.filters)[0]
        if vector.expected["valid"]:
            right = torch.equal(result.view(torch.int32), floats(vector.expected["probs"]).view(torch.int32))
        else:
            right = bool(result.isnan().all())
        if not right:
            wrong.append((vector.name, result.tolist()))
    assert wrong == []


@FORMS
def test_log_probabilities(backend: Any, form: str) -> None:
    wrong = []
    for vector in vectors(form, probabilities=False):
        tokens = torch.arange(vector.logits.shape[1])[None]
        result = backend.log_probs(vector.logits, tokens, *vector.filters)[0]
        if vector.expected["valid"]:
            right = bool((ulp_distance(result, floats(vector.expected["log_probs"])) <= 4).all())
        else:
            right = bool(result.isnan().all())
        if not right:
            wrong.append((vector.name, result.tolist()))
    assert wrong == []


def test_weights_sums_and_words_of_the_reference() -> None:
    """What the operators do not show: w_i, Z and r, and the kept sets of probabilities."""
    wrong = []
    for vector in vectors("tensors"):
        expected = vector.expected
        per_row = reference.row_filters(vector.filters, 1, vector.logits)
        if vector.probabilities:
            row = reference.rows_of_probabilities(vector.logits, per_row)
            unfiltered = vector.filters._replace(top_k_rows=None, top_p_rows=None, min_p_rows=None)
            no_filters = reference.row_filters(unfiltered, 1, vector.logits)
            weights = reference.rows_of_probabilities(vector.logits, no_filters).weight
        else:
            row = reference.rows_of_logits(vector.logits, per_row)
            weights = reference.weights(vector.logits, vector.filters.temperature_rows)
        kept = row.kept[0].nonzero()[:, 0].tolist()
        words = reference.row_words(vector.randomness, 1, len(expected["tokens"]), vector.logits.device)
        found = (bool(row.valid), kept, row.weight.sum().item(), words[0].tolist())
        demanded = (expected["valid"], expected["kept"], expected["z"], [signed(w) for w in expected["words"].split()])
        if found != demanded or (expected["valid"] and weights[0].tolist() != expected["weights"]):
            wrong.append((vector.name, found, demanded, weights[0].tolist(), expected["weights"]))
    assert wrong == []
