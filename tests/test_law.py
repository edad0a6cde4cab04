"""The pieces of the law in the reference: Philox, the polynomial, exact products, float32 held in float64; and whole
rows against tests/law_oracle.py."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import law_oracle
from fastsample import reference
from fastsample.arguments import ORDERS, Filters
from strategies import Call, calls, calls_without_indices, one_thread, same_bits, ulp_distance

EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True)
MANY_EXAMPLES = settings(EXAMPLES, max_examples=400)
SMALL_VOCABULARIES = (1, 2, 17, 64, 100, 257)  # the oracle takes tens of microseconds for a token

WORD = st.integers(0, 2**64 - 1)
HALF_WORD = st.integers(0, 2**32 - 1)
SUM_OF_WEIGHTS = st.one_of(st.integers(0, 2**62), st.integers(0, 62).map(lambda exponent: 2**exponent))
# float32 values in [0, 1]: any bits up to those of 1.0, so that every binade down to the denormals is as likely.
SHARE = st.one_of(
    st.integers(0, 0x3F800000), st.integers(0x3F800000 - 2**24, 0x3F800000), st.integers(0x20000000, 0x21000000)
).map(lambda bits: np.uint32(bits).view(np.float32))


@pytest.fixture(autouse=True)
def _on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def int64(number: int) -> Tensor:
    """The int64 of the same 64 bits."""
    return torch.tensor(number - 2**64 if number >= 2**63 else number)


def unsigned(value: Tensor) -> int:
    return value.item() % 2**64


# --- Philox


# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter: str, key: str, output: str) -> None:
    counter_words, key_words, expected = ([int(word, 16) for word in words.split()] for words in (counter, key, output))
    key_tensors = tuple(torch.tensor([word]) for word in key_words)
    counter_tensors = tuple(torch.tensor([word]) for word in counter_words)
    found = reference.philox4x32_10(key_tensors, counter_tensors)
    assert [word.item() for word in found] == expected
    assert law_oracle.philox4x32_10(counter_words, key_words) == expected


@EXAMPLES
@given(seed=WORD, offset=WORD, stream=HALF_WORD, draw=HALF_WORD)
def test_words_are_laid_out_by_the_law(seed: int, offset: int, stream: int, draw: int) -> None:
    found = reference.random_words(int64(seed), int64(offset), torch.tensor(stream), torch.tensor(draw))
    assert unsigned(found) == law_oracle.word(seed, offset, stream, draw)


# --- the polynomial


def test_polynomial_at_every_argument() -> None:
    """All 2^24 + 1 multiples of 2^-24 in [0, 1]: exact ends, never decreasing, relative error at most 1.8e-7."""
    worst, previous = 0.0, torch.tensor([1.0])
    for start in range(0, 2**24, 2**20):
        f = torch.arange(start, start + 2**20 + 1, dtype=torch.int64).double() * 2.0**-24
        q = reference.polynomial(f.float())
        assert (q >= torch.cat((previous, q[:-1]))).all()
        worst = max(worst, ((q.double() - torch.exp2(f)) / torch.exp2(f)).abs().max().item())
        previous = q[-1:]
        if start == 0:
            assert q[0].item() == 1.0
    assert previous.item() == 2.0
    assert worst <= 1.8e-7


def test_polynomial_rounds_each_operation_on_its_own() -> None:
    """numpy has no fused multiply-add; one of them anywhere would change about a sixth of these."""
    f = np.random.default_rng(0).integers(0, 2**24, 100_000).astype(np.float32) * np.float32(2.0**-24)
    q = np.full_like(f, law_oracle.COEFFICIENTS[5])
    for coefficient in law_oracle.COEFFICIENTS[4::-1]:
        q = q * f
        q = q + coefficient
    assert torch.equal(reference.polynomial(torch.from_numpy(f)), torch.from_numpy(q))


# --- exact products


@EXAMPLES
@given(a=HALF_WORD, b=HALF_WORD)
def test_multiply_32x32(a: int, b: int) -> None:
    high, low = reference.multiply_32x32(torch.tensor(a), torch.tensor(b))
    assert (high.item(), low.item()) == (a * b >> 32, a * b % 2**32)


@EXAMPLES
@given(r=st.one_of(WORD, st.sampled_from([2**64 - 1, 2**63, 2**32 - 1])), z=SUM_OF_WEIGHTS)
def test_multiply_high(r: int, z: int) -> None:
    assert reference.multiply_high(int64(r), torch.tensor(z)).item() == r * z >> 64


@MANY_EXAMPLES
@given(p=SHARE, z=SUM_OF_WEIGHTS)
def test_ceil_product(p: np.float32, z: int) -> None:
    found = reference.ceil_product(reference.widen(torch.tensor([p])), torch.tensor([z]))
    assert found.item() == law_oracle.ceil_product(p, z)


# --- float32 held in float64


def bit_patterns() -> np.ndarray:
    """Finite float32 numbers of every size, a third of them denormal or next to it."""
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**32, 90_000, dtype=np.uint32)
    bits[::3] = random.integers(0, 2**24, 30_000) | (random.integers(0, 2, 30_000) << 31)
    values = bits.view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(1.5))


@pytest.mark.parametrize("operation", [np.add, np.subtract, np.multiply, np.divide])
def test_one_operation_in_float64_rounds_as_in_float32(operation: np.ufunc) -> None:
    a = bit_patterns()
    b = np.roll(a, 7)
    b = np.where(b == 0, np.float32(1), b)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(operation(a, b)) + 0.0  # no -0.0: the law does not tell zeros apart
    wide_a, wide_b = (reference.widen(torch.from_numpy(values)) for values in (a, b))
    wide = {np.add: torch.add, np.subtract: torch.sub, np.multiply: torch.mul, np.divide: torch.div}[operation]
    assert same_bits(reference.narrow(reference.fl(wide(wide_a, wide_b))) + 0.0, expected)


@pytest.fixture
def flushed_denormals() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_widening_is_exact_where_denormals_are_flushed(dtype: torch.dtype, flushed_denormals: None) -> None:
    small = torch.arange(-130, 130)
    bits = torch.where(small < 0, -small | (-0x80000000 if dtype == torch.float32 else -0x8000), small)
    values = bits.to(torch.int32 if dtype == torch.float32 else torch.int16).view(dtype)
    unit = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}[dtype]
    # bfloat16 has 7 bits, so its last three numbers here are normal ones of the same spacing
    assert reference.widen(values).tolist() == [number * unit for number in small.tolist()]
    if dtype == torch.float32:
        assert same_bits(reference.narrow(reference.widen(values)), torch.where(small == 0, 0, bits.int()).view(dtype))


# --- the draw


def test_draws_at_the_borders_of_the_tokens() -> None:
    """The word that first reaches a token and the last one before it, which random words would hit once in 2^40."""
    weights = [0, 2**40, 0, 5, 1, 2**40 - 3, 0, 2**22, 0]
    z = sum(weights)
    borders = [-(-sum(weights[:index]) * 2**64 // z) for index in range(len(weights) + 1)]
    words = [word for border in borders for word in (border - 1, border, border + 1) if 0 <= word < 2**64]
    rows = torch.tensor([weights])
    found = reference.draw(rows, torch.stack([int64(word) for word in words])[None], replacement=True)
    assert found[0].tolist() == [law_oracle.draw(weights, word) for word in words]
    assert set(found[0].tolist()) == {index for index, weight in enumerate(weights) if weight > 0}


# --- whole rows against the oracle


def entry(number: Any, rows: Tensor | None, row: int) -> Any:
    """A parameter of one row, out of the number and the tensor that an operator takes."""
    if rows is None:
        return number
    return rows.item() if rows.dim() == 0 else rows[row].item()


def case_of(call: Call, row: int, probabilities: bool) -> law_oracle.Case | None:
    """What the oracle takes for one output row of a call; None where its index is out of range."""
    source = row if call.indices is None else call.indices[row].item()
    if not 0 <= source < call.logits.shape[0]:
        return None
    filters, randomness = call.filters, call.randomness
    with np.errstate(over="ignore"):
        temperature, top_p, min_p = (np.float32(entry(*filters[number : number + 2], row)) for number in (0, 4, 6))
        logits = [np.float32(value) for value in call.logits[source].tolist()]
    stream = entry(randomness.stream, randomness.stream_rows, row) + (row if randomness.stream_per_row else 0)
    return law_oracle.Case(
        logits,
        temperature,
        entry(filters.top_k, filters.top_k_rows, row),
        top_p,
        min_p,
        ORDERS[filters.order],
        probabilities,
        entry(randomness.seed, randomness.seed_rows, row) % 2**64,
        entry(randomness.offset, randomness.offset_rows, row) % 2**64,
        stream % 2**32,
        call.num_samples,
    )


def check_tokens(call: Call, probabilities: bool) -> None:
    batch = call.logits.shape[0] if call.indices is None else call.indices.shape[0]
    out = torch.empty((2, batch, call.num_samples), dtype=torch.int64)
    for replacement in (True, False):
        arguments = (*call.filters, *call.randomness, replacement, probabilities)
        reference.sample(out[int(replacement)], call.logits, call.indices, *arguments)
    for row in range(batch):
        case = case_of(call, row, probabilities)
        if case is None:
            assert (out[:, row] == -1).all()
            continue
        answer = law_oracle.answer(case)
        assert out[1, row].tolist() == answer.tokens
        assert out[0, row].tolist() == answer.tokens_without_replacement


@MANY_EXAMPLES
@given(call=calls(vocabularies=SMALL_VOCABULARIES))
def test_tokens_from_logits_are_the_oracles(call: Call) -> None:
    check_tokens(call, probabilities=False)


@EXAMPLES
@given(call=calls(probabilities=True, vocabularies=SMALL_VOCABULARIES))
def test_tokens_from_probabilities_are_the_oracles(call: Call) -> None:
    check_tokens(call, probabilities=True)


@EXAMPLES
@given(call=calls_without_indices(vocabularies=SMALL_VOCABULARIES))
def test_kept_sets_and_probabilities_are_the_oracles(call: Call) -> None:
    rows, vocab = call.logits.shape
    tokens = torch.arange(vocab).expand(rows, vocab)
    filtered = reference.filter_logits(call.logits, *call.filters)
    probs = reference.filtered_probs(call.logits, *call.filters)
    log_probs = reference.log_probs(call.logits, tokens, *call.filters)
    weights = reference.rows_of_logits(call.logits, reference.row_filters(call.filters, rows, call.logits)).weight
    for row in range(rows):
        answer = law_oracle.answer(case_of(call, row, probabilities=False))
        if not answer.valid:
            assert torch.stack((filtered[row].float(), probs[row], log_probs[row])).isnan().all()
            continue
        assert (filtered[row] > -torch.inf).nonzero()[:, 0].tolist() == answer.kept
        assert weights[row].sum().item() == answer.z
        assert same_bits(probs[row], torch.from_numpy(np.array(answer.probs)))
        assert (ulp_distance(log_probs[row], torch.from_numpy(np.array(answer.log_probs))) <= 1).all()


# --- what the law says in so many words


PLAIN = Filters(1.0, None, 0, None, 1.0, None, 0.0, None, 0)


def kept(logits: list[float], **filters: float) -> list[int]:
    """The kept set of one row, as indices."""
    return reference.kept_set(torch.tensor([logits]), PLAIN._replace(**filters))[0].nonzero()[:, 0].tolist()


def test_greedy_keeps_the_lowest_index_among_the_maxima() -> None:
    assert kept([1.0, 3.0, 3.0, 2.0], temperature=0.0) == [1]
    assert kept([-0.0, 0.0], temperature=0.0) == [0]
    assert kept([0.0, torch.inf, torch.inf], temperature=0.0) == [1]
    assert reference.weights(torch.tensor([[1.0, 3.0, 3.0]]), 0.0).tolist() == [[0, 2**40, 0]]


def test_top_k_keeps_exactly_k_among_ties() -> None:
    for k in range(1, 8):
        assert len(kept([2.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0], top_k=k)) == k
    assert kept([-0.0, 0.0, -0.0, 0.0], top_k=2) == [0, 1]


def test_top_p_of_1_keeps_tokens_without_weight() -> None:
    row = [0.0, -50.0, -100.0, -torch.inf]
    assert reference.weights(torch.tensor([row]), 1.0).tolist() == [[2**40, 0, 0, 0]]
    assert kept(row) == kept(row, top_p=1.0, top_k=4) == [0, 1, 2]
    assert kept(row, top_p=1 - 2.0**-24) == [0]
    assert kept(row, top_p=0.0) == kept(row, top_p=1e-45) == [0]


def test_infinite_temperature_weighs_all_finite_tokens_alike() -> None:
    weights = reference.weights(torch.tensor([[-1e30, 0.0, 5.0, -torch.inf]]), torch.inf)
    assert weights.tolist() == [[2**40, 2**40, 2**40, 0]]
    assert reference.weights(torch.tensor([[3e38, -3e38]]), torch.inf).tolist() == [[2**40, 0]]


def test_log_probabilities_are_finite_for_kept_tokens_without_weight() -> None:
    row = torch.tensor([[0.0, -50.0, -1000.0]])
    log_probs = reference.log_probs(row, torch.arange(3)[None], *PLAIN)
    assert reference.weights(row, 1.0)[0, 1:].tolist() == [0, 0]
    assert torch.allclose(log_probs, row)


def test_the_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(2))
    filters = PLAIN._replace(top_k=20, top_p=0.9, temperature_rows=torch.linspace(0.1, 2, 7))
    tokens = torch.arange(50).expand(7, 50)

    def everything() -> list[Tensor]:
        out = torch.empty((7, 3), dtype=torch.int64)
        reference.sample(out, logits, torch.arange(7).flip(0), *filters, 5, None, 0, None, 0, None, True, True, False)
        return [out] + [
            operator(*arguments)
            for operator, arguments in (
                (reference.filter_logits, (logits, *filters)),
                (reference.filtered_probs, (logits, *filters)),
                (reference.log_probs, (logits, tokens, *filters)),
                (reference.kept_set, (logits, filters)),
            )
        ]

    whole = everything()
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", 120)
    assert all(torch.equal(a, b) for a, b in zip(whole, everything(), strict=True))


def test_weights_of_probabilities_shrink_for_vocabularies_beyond_2_to_the_22() -> None:
    """Their sum has to stay within 2^62 (law section 5)."""
    vocab = 2**22 + 1
    probabilities = torch.ones(1, vocab)
    probabilities[0, ::3] = 0.4
    weights = reference.weigh_probabilities(probabilities.double())
    assert weights[0, :2].tolist() == [int(float(np.float32(0.4)) * 2**38), 2**38]
    assert weights.sum().item() <= 2**62
