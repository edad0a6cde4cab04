"""Every backend gives what the reference gives, by ==: tokens, kept sets and probabilities, bit for bit;
log-probabilities within the 4 units in the last place that the law allows. And a row's tokens depend on nothing but the
row.

The reference itself is checked against tests/law_oracle.py in test_law.py. Where it is cheap it stands here as a
backend too, so that its operators are compared with its functions.
"""

import functools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from conftest import BACKENDS
from fastsample import reference
from fastsample.arguments import Filters, Randomness
from fastsample.ops import Ops
from strategies import (
    MIN_PS,
    TEMPERATURES,
    TOP_KS,
    TOP_PS,
    Call,
    calls,
    calls_without_indices,
    one_thread,
    same_bits,
    ulp_distance,
)

# The fixture switches the instruction set once for all examples, which is what function scope warns about.
EXAMPLES = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# For what takes the reference seconds: it would only be compared with itself.
OTHER_BACKENDS = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"], indirect=True)

PLAIN = Filters(1.0, None, 0, None, 1.0, None, 0.0, None, 0)
SEEDED = Randomness(1234, None, 5, None, 0, None, True)


def tokens_of(sample: Callable[..., None], call: Call, replacement: bool, probabilities: bool = False) -> Tensor:
    """The tokens of a call, written over poison into every second column of a buffer, and nowhere else in it."""
    batch = call.logits.shape[0] if call.indices is None else call.indices.shape[0]
    buffer = torch.full((batch, 2 * call.num_samples), -77777)
    sample(buffer[:, ::2], call.logits, call.indices, *call.filters, *call.randomness, replacement, probabilities)
    assert (buffer[:, 1::2] == -77777).all()
    return buffer[:, ::2]


def check_tokens(backend: Ops, call: Call, probabilities: bool = False) -> None:
    for replacement in (True, False):
        found = tokens_of(backend.sample, call, replacement, probabilities)
        with one_thread():
            expected = tokens_of(reference.sample, call, replacement, probabilities)
        assert torch.equal(found, expected), (replacement, (found != expected).nonzero()[:5].tolist())


def check_transforms(backend: Ops, logits: Tensor, filters: Filters) -> None:
    rows, vocab = logits.shape
    tokens = torch.cat((torch.arange(-1, vocab + 1), torch.tensor([2**62, -(2**63)]))).expand(rows, vocab + 4)
    with one_thread():
        expected_logits = reference.filter_logits(logits, *filters)
        expected_probs = reference.filtered_probs(logits, *filters)
        expected_log_probs = reference.log_probs(logits, tokens, *filters)
    assert same_bits(backend.filter_logits(logits, *filters), expected_logits)
    assert same_bits(backend.filtered_probs(logits, *filters), expected_probs)
    assert (ulp_distance(backend.log_probs(logits, tokens, *filters), expected_log_probs) <= 4).all()


# --- whatever hypothesis thinks of


@OTHER_BACKENDS
@EXAMPLES
@given(call=calls())
def test_tokens_from_logits(backend: Ops, call: Call) -> None:
    check_tokens(backend, call)


@OTHER_BACKENDS
@EXAMPLES
@given(call=calls(probabilities=True))
def test_tokens_from_probabilities(backend: Ops, call: Call) -> None:
    check_tokens(backend, call, probabilities=True)


@OTHER_BACKENDS
@EXAMPLES
@given(call=calls_without_indices())
def test_filtered_logits_probabilities_and_log_probabilities(backend: Ops, call: Call) -> None:
    check_transforms(backend, call.logits, call.filters)


# --- large rows, and rows made to hurt


def normal(vocab: int, scale: float, seed: int = 0) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sawtooth(period: int) -> Callable[[int], Tensor]:
    return lambda vocab: -(torch.arange(vocab) % period).float() * (30.0 / period)


def clustered(vocab: int, first: int) -> Tensor:
    """Nearly all the mass in 300 neighbours, where a sparse sample of the row does not look."""
    row = normal(vocab, 1.0) - 20.0
    row[first : first + 300] += 20.0
    return row


HOSTILE_ROWS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda vocab: normal(vocab, 1.0),
    "wide normal": lambda vocab: normal(vocab, 3.0),
    "ascending": lambda vocab: torch.arange(vocab) * (30.0 / vocab),
    "descending": lambda vocab: torch.arange(vocab, 0, -1) * (30.0 / vocab),
    "steep ascending": lambda vocab: torch.arange(vocab) * 0.01,
    "all equal": lambda vocab: torch.full((vocab,), -1.25),
    "two values": lambda vocab: (torch.arange(vocab) % 7 == 3) * 4.0,
    "sawtooth 2": sawtooth(2),
    "sawtooth 32": sawtooth(32),
    "sawtooth 255": sawtooth(255),
    "sawtooth 256": sawtooth(256),
    "sawtooth 4096": sawtooth(4096),
    "one huge, flat tail": lambda vocab: torch.where(torch.arange(vocab) == vocab // 3, 25.0, 0.0),
    "last huge, noisy tail": lambda vocab: torch.where(torch.arange(vocab) == vocab - 1, 15.0, normal(vocab, 0.1)),
    "cluster at the start": lambda vocab: clustered(vocab, 0),
    "cluster at the end": lambda vocab: clustered(vocab, vocab - 300),
    "mostly -inf": lambda vocab: torch.where(torch.arange(vocab) % 1000 == 999, normal(vocab, 2.0), -math.inf),
}

FILTERS: dict[str, Filters] = {
    "plain": PLAIN,
    "greedy": PLAIN._replace(temperature=0.0),
    "k 50": PLAIN._replace(top_k=50),
    "T .8, k 50, p .9": PLAIN._replace(temperature=0.8, top_k=50, top_p=0.9),
    "p .9": PLAIN._replace(top_p=0.9),
    "p .5, T 2": PLAIN._replace(temperature=2.0, top_p=0.5),
    "p .999999, T inf": PLAIN._replace(temperature=math.inf, top_p=0.999999),
    "p 1e-38": PLAIN._replace(top_p=1e-38),
    "min_p .05": PLAIN._replace(min_p=0.05),
    "k 3000, p .95, min_p .01, min_p first": PLAIN._replace(top_k=3000, top_p=0.95, min_p=0.01, order=1),
    "k 3000, p .95, joint": PLAIN._replace(top_k=3000, top_p=0.95, order=2),
    "k 11000, T .1": PLAIN._replace(temperature=0.1, top_k=11000),
}


@functools.cache
def hostile_row(name: str, vocab: int, dtype: torch.dtype) -> Tensor:
    return HOSTILE_ROWS[name](vocab).to(dtype)[None]


@functools.cache
def what_the_reference_says(
    name: str, vocab: int, dtype: torch.dtype, filter_name: str, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kept set, probabilities, and the tokens of `batch` equal rows with and without replacement."""
    logits, filters = hostile_row(name, vocab, dtype), FILTERS[filter_name]
    with one_thread():
        row = reference.rows_of_logits(logits, reference.row_filters(filters, 1, logits))
        words = reference.row_words(SEEDED, batch, 4, logits.device)
        weight = row.weight.expand(batch, vocab)
        tokens = [reference.draw(weight, words, replacement) for replacement in (True, False)]
        return row.kept, reference.probabilities_of(row), *tokens


def check_hostile_row(
    backend: Ops, name: str, vocab: int, dtype: torch.dtype, filter_name: str, batches: tuple[int, ...] = (1, 3)
) -> None:
    logits, filters = hostile_row(name, vocab, dtype), FILTERS[filter_name]
    kept, probabilities, *tokens = what_the_reference_says(name, vocab, dtype, filter_name, max(batches))
    for replacement, expected in zip((True, False), tokens, strict=True):
        for batch in batches:  # fewer rows than threads, which splits the row, and more
            call = Call(logits.expand(batch, vocab), None, filters, SEEDED, 4)
            assert tokens_of(backend.sample, call, replacement).tolist() == expected[:batch].tolist()
    assert torch.equal(backend.filter_logits(logits, *filters) > -math.inf, kept)
    assert same_bits(backend.filtered_probs(logits, *filters), probabilities)


@OTHER_BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HOSTILE_ROWS)
def test_hostile_rows(backend: Ops, name: str, dtype: torch.dtype) -> None:
    for filter_name in FILTERS:
        check_hostile_row(backend, name, 12289, dtype, filter_name)


@OTHER_BACKENDS
@pytest.mark.parametrize("filter_name", ["plain", "T .8, k 50, p .9", "p .9"])
@pytest.mark.parametrize("name", ["wide normal", "ascending", "descending", "all equal", "sawtooth 256", "two values"])
def test_a_vocabulary_of_2_to_the_18(backend: Ops, name: str, filter_name: str) -> None:
    check_hostile_row(backend, name, 2**18, torch.float32, filter_name)


@pytest.mark.slow
@OTHER_BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HOSTILE_ROWS)
def test_hostile_rows_of_2_to_the_18(backend: Ops, name: str, dtype: torch.dtype) -> None:
    for filter_name in FILTERS:
        check_hostile_row(backend, name, 2**18, dtype, filter_name)


@OTHER_BACKENDS
@pytest.mark.parametrize("filter_name", ["plain", "k 3000, p .95, min_p .01, min_p first"])
def test_the_largest_vocabulary(backend: Ops, filter_name: str) -> None:
    """2^22 tokens of the largest weight sum to the largest Z there can be, 2^62."""
    check_hostile_row(backend, "all equal", 2**22, torch.bfloat16, filter_name, batches=(1,))


@functools.cache
def many_probabilities() -> tuple[Tensor, Tensor]:
    """Probabilities of more tokens than logits may have, and the reference's tokens."""
    probabilities = normal(2**22 + 5, 2.0).exp()[None]
    call = Call(probabilities, None, PLAIN._replace(top_k=100_000), SEEDED, 5)
    with one_thread():
        return probabilities, tokens_of(reference.sample, call, replacement=True, probabilities=True)


@OTHER_BACKENDS
def test_probabilities_of_more_than_2_to_the_22_tokens(backend: Ops) -> None:
    probabilities, expected = many_probabilities()
    call = Call(probabilities, None, PLAIN._replace(top_k=100_000), SEEDED, 5)
    assert torch.equal(tokens_of(backend.sample, call, replacement=True, probabilities=True), expected)


# --- batches of mixed rows, many draws


@functools.cache
def mixed_call(rows: int = 64, vocab: int = 3001) -> Call:
    """Rows of all the kinds above, each with parameters of its own."""
    random = torch.Generator().manual_seed(7)

    def choose(values: tuple[float, ...], dtype: torch.dtype) -> Tensor:
        chosen = [values[number] for number in torch.randint(len(values), (rows,), generator=random).tolist()]
        return torch.tensor(chosen, dtype=torch.float64 if dtype.is_floating_point else dtype).to(dtype)

    kinds = list(HOSTILE_ROWS.values())
    logits = torch.stack([kinds[row % len(kinds)](vocab) for row in range(rows)])
    floats = (choose(values, torch.float32) for values in (TEMPERATURES, TOP_PS, MIN_PS))
    temperature, top_p, min_p = floats
    filters = Filters(1.0, temperature, 0, choose(TOP_KS, torch.int64), 1.0, top_p, 0.0, min_p, 0)
    seeds, offsets = (torch.randint(-(2**62), 2**62, (rows,), generator=random) for _ in range(2))
    return Call(logits, None, filters, Randomness(0, seeds, 0, offsets, 0, None, False), 3)


def of_rows(call: Call, rows: Tensor) -> Call:
    """The call of some of its rows, with their parameters and seeds."""
    filters, randomness = (
        [value[rows] if isinstance(value, Tensor) and value.dim() else value for value in arguments]
        for arguments in (call.filters, call.randomness)
    )
    return Call(call.logits[rows], None, Filters(*filters), Randomness(*randomness), call.num_samples)


@OTHER_BACKENDS
@pytest.mark.parametrize("order", range(3))
def test_batches_of_mixed_rows(backend: Ops, order: int) -> None:
    call = mixed_call()
    filters = call.filters._replace(order=order)
    check_tokens(backend, call._replace(filters=filters))
    check_transforms(backend, call.logits, filters)


@OTHER_BACKENDS
@pytest.mark.parametrize("filter_name", ["plain", "T .8, k 50, p .9", "p .9", "greedy"])
def test_many_draws(backend: Ops, filter_name: str) -> None:
    """More draws than there are tokens to take, of one row (which is split over threads) and of several."""
    for rows, vocab, draws in ((1, 300, 400), (3, 300, 400), (1, 5000, 700)):
        logits = torch.stack([normal(vocab, 2.0, seed) for seed in range(rows)])
        check_tokens(backend, Call(logits, None, FILTERS[filter_name], SEEDED, draws))
        check_tokens(backend, Call(logits.softmax(1), None, FILTERS[filter_name], SEEDED, draws), probabilities=True)


# --- what a row's tokens must not depend on


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_tokens_do_not_depend_on_the_number_of_threads(backend: Ops, threads: Callable[[int], None]) -> None:
    mixed = mixed_call()
    one_row = Call(normal(100_003, 2.0)[None], None, FILTERS["p .9"], SEEDED, 3)
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        found.append([tokens_of(backend.sample, call, True).tolist() for call in (mixed, one_row)])
    assert all(tokens == found[0] for tokens in found)


def test_tokens_do_not_depend_on_the_batch(backend: Ops) -> None:
    """Alone, in any order and among any others, a row with its own seed draws the same."""
    call = mixed_call()
    together = tokens_of(backend.sample, call, True)
    count = call.logits.shape[0]
    for rows in (*torch.arange(0, count, 5).split(1), torch.arange(count).flip(0), torch.arange(1, count, 7)):
        assert torch.equal(tokens_of(backend.sample, of_rows(call, rows), True), together[rows])


def test_indices_are_the_same_as_gathered_rows(backend: Ops) -> None:
    call = mixed_call()
    rows = torch.randint(call.logits.shape[0], (90,), generator=torch.Generator().manual_seed(3))
    gathered = of_rows(call, rows)
    mapped = gathered._replace(logits=call.logits, indices=rows)
    assert torch.equal(tokens_of(backend.sample, mapped, False), tokens_of(backend.sample, gathered, False))


def test_an_invalid_row_leaves_its_neighbours_alone(backend: Ops) -> None:
    call = mixed_call()
    before = tokens_of(backend.sample, call, True)
    spoiled = call.logits.clone()
    spoiled[::3, 5] = math.nan
    spoiled[1::3] = -math.inf
    after = tokens_of(backend.sample, call._replace(logits=spoiled), True)
    assert (after[::3] == -1).all()
    assert (after[1::3] == -1).all()
    assert torch.equal(after[2::3], before[2::3])


def test_flushing_denormals_changes_nothing(backend: Ops) -> None:
    vocab = 600
    bits = torch.randint(0, 2**24, (4, vocab), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    logits = bits.view(torch.float32)
    logits[3] = normal(vocab, 1e38)
    everything = []
    for temperature in (1e-45, 1.1e-38, 1.2e-38, 1.0, 3e38):
        temperature_rows = torch.tensor(temperature, dtype=torch.float64).float()
        filters = PLAIN._replace(temperature_rows=temperature_rows, top_p=0.99)
        everything.append((Call(logits, None, filters, SEEDED, 5), filters))

    def results() -> list[Tensor]:
        found = [tokens_of(backend.sample, call, True) for call, _ in everything]
        return found + [backend.filtered_probs(logits, *filters).view(torch.int32) for _, filters in everything]

    before = results()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        flushed = results()
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(one, other) for one, other in zip(before, flushed, strict=True))
    assert len({tuple(tokens.flatten().tolist()) for tokens in before[:5]}) > 1
