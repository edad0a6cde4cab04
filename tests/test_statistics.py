"""Whether the draws follow the distribution that fastsample/distribution.py computes in float64. Every seed is fixed,
so these tests pass or fail for good."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fastsample.arguments import ORDERS, Filters, Randomness
from fastsample.distribution import distribution
from fastsample.ops import Ops
from strategies import one_thread, same_bits

PLAIN = Filters(1.0, None, 0, None, 1.0, None, 0.0, None, 0)
# A true law falls below this once in 10^4 seeds; a wrong weight of one likely token falls below it by far.
LEAST_P_VALUE = 1e-4
LEAST_EXPECTED = 10


@pytest.fixture(autouse=True)
def _on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def randomness(seed: int) -> Randomness:
    return Randomness(seed, None, 0, None, 0, None, True)


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's chi-squared test; bins expecting fewer than 10 hits are grouped into one, none is dropped."""
    draws = counts.sum()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0, "hits outside the kept set"
    rare = possible & (probabilities * draws < LEAST_EXPECTED)
    expected = probabilities[possible & ~rare] * draws
    observed = counts[possible & ~rare]
    if rare.any():
        rest = probabilities[rare].sum() * draws
        if rest >= LEAST_EXPECTED:
            expected, observed = np.append(expected, rest), np.append(observed, counts[rare].sum())
        else:  # still too few for a bin of its own: to the least likely of the others
            least = expected.argmin()
            expected[least] += rest
            observed[least] += counts[rare].sum()
    return float(stats.chisquare(observed, expected * (draws / expected.sum())).pvalue)


def row(vocab: int = 1000, scale: float = 2.5) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(11)) * scale


SETTINGS = {
    "plain": PLAIN,
    "T .7": PLAIN._replace(temperature=0.7),
    "T inf": PLAIN._replace(temperature=math.inf),
    "k 50": PLAIN._replace(top_k=50),
    "p .9": PLAIN._replace(top_p=0.9),
    "min_p .02": PLAIN._replace(min_p=0.02),
    **{
        f"T 1.5, k 200, p .8, min_p .01, {ORDERS[order]}": Filters(1.5, None, 200, None, 0.8, None, 0.01, None, order)
        for order in range(3)
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_probabilities_are_the_distributions(backend: Ops, name: str) -> None:
    """float32 rounds x_i - m and its product with c: a probability e^-10 below the largest is off by about 1e-6."""
    filters = SETTINGS[name]
    arguments = (filters.temperature, filters.top_k, filters.top_p, filters.min_p, ORDERS[filters.order])
    logits = torch.stack((row(), row().round(), row().abs(), torch.where(row() > 2, row(), -math.inf)))
    expected = distribution(logits, *arguments)
    found = backend.filtered_probs(logits, *filters)
    assert torch.equal(found > 0, expected > 0)
    assert torch.allclose(found.double(), expected, rtol=5e-6, atol=0)


def test_the_distribution_of_rows_at_the_edges() -> None:
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[1.0, 3.0, 3.0, -inf], [0.0, inf, -inf, inf], [-inf] * 4, [0.0, nan, 0.0, 0.0]])
    invalid = [nan] * 4
    greedy = distribution(logits, temperature=0.0)
    assert greedy[:2].tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]
    assert greedy[2:].isnan().all()
    flat = distribution(logits, temperature=inf)
    assert flat[:2].tolist() == [[1 / 3, 1 / 3, 1 / 3, 0], [0, 0.5, 0, 0.5]]
    one_row = logits[:1]
    assert distribution(one_row, top_p=0.0).tolist() == [[0, 1, 0, 0]]
    assert distribution(one_row, top_k=2).tolist() == [[0, 0.5, 0.5, 0]]
    for wrong in ({"temperature": -1.0}, {"top_p": 1.5}, {"min_p": nan}):
        assert same_bits(distribution(one_row, **wrong), torch.tensor([invalid], dtype=torch.float64))
    with pytest.raises(ValueError, match="order"):
        distribution(one_row, order="top_p_first")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_draws_of_one_row_follow_the_distribution(backend: Ops, name: str, dtype: torch.dtype) -> None:
    filters = SETTINGS[name]
    logits = row().to(dtype)[None]
    expected = distribution(
        logits, filters.temperature, filters.top_k, filters.top_p, filters.min_p, ORDERS[filters.order]
    )
    # The kept sets may differ by a token on the boundary; for these rows they do not, so "no hit outside" is exact.
    assert torch.equal(backend.filter_logits(logits, *filters) > -math.inf, expected > 0)
    tokens = torch.empty((1, 100_000), dtype=torch.int64)
    backend.sample(tokens, logits, None, *filters, *randomness(3), True, False)
    counts = torch.bincount(tokens[0], minlength=logits.shape[1]).numpy()
    assert p_value(counts, expected[0].numpy()) > LEAST_P_VALUE


def test_draws_of_many_rows_follow_the_distribution(backend: Ops) -> None:
    """One draw from each of many equal rows: this tries the streams, not the draws within one."""
    filters = PLAIN._replace(top_k=40, temperature=0.9)
    logits = row(100, 1.5)
    tokens = torch.empty((50_000, 1), dtype=torch.int64)
    backend.sample(tokens, logits.expand(50_000, 100), None, *filters, *randomness(4), True, False)
    counts = torch.bincount(tokens[:, 0], minlength=100).numpy()
    assert p_value(counts, distribution(logits[None], 0.9, 40)[0].numpy()) > LEAST_P_VALUE


def test_draws_from_probabilities_follow_them(backend: Ops) -> None:
    probabilities = row().softmax(0)
    probabilities[::10] = 0.0
    tokens = torch.empty((1, 100_000), dtype=torch.int64)
    backend.sample(tokens, probabilities[None] * 7.0, None, *PLAIN, *randomness(5), True, True)
    counts = torch.bincount(tokens[0], minlength=1000).numpy()
    wide = probabilities.double()
    assert p_value(counts, (wide / wide.sum()).numpy()) > LEAST_P_VALUE


def test_draws_without_replacement_follow_the_law_of_successive_sampling(backend: Ops) -> None:
    """Every ordered triple out of five tokens: p_a * p_b / (1 - p_a) * p_c / (1 - p_a - p_b)."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    p = distribution(logits[None])[0].tolist()
    tokens = torch.empty((60_000, 3), dtype=torch.int64)
    backend.sample(tokens, logits.expand(60_000, 5), None, *PLAIN, *randomness(6), False, False)
    counts = torch.bincount(tokens @ torch.tensor([25, 5, 1]), minlength=125).numpy()
    expected = np.zeros(125)
    for a, b, c in itertools.permutations(range(5), 3):
        expected[25 * a + 5 * b + c] = p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b])
    assert p_value(counts, expected) > LEAST_P_VALUE


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
def test_the_tail_has_its_mass(backend: Ops, probabilities: bool) -> None:
    """2^18 tokens 18 nats below the maximum share 0.4 % of the mass: they get it, within 5 sigma, and evenly.

    A Gumbel draw from 24-bit uniform numbers never reaches them, since its largest noise is 16.6; nor does a cumulative
    sum in float32 past the first large term. 200000 draws expect about 800 hits, so 5 sigma are 18 % of them.
    """
    vocab, draws = 2**18, 200_000
    logits = torch.full((1, vocab), -18.0)
    head = vocab // 2
    logits[0, head] = 0.0
    expected = distribution(logits)[0]
    tail = 1.0 - expected[head].item()
    tokens = torch.empty((1, draws), dtype=torch.int64)
    values = expected[None].float() if probabilities else logits
    backend.sample(tokens, values, None, *PLAIN, *randomness(7), True, probabilities)
    hits = tokens[tokens != head]
    assert abs(len(hits) - draws * tail) < 5 * math.sqrt(draws * tail * (1 - tail))
    eighths = torch.bincount(hits * 8 // vocab, minlength=8).numpy()
    assert stats.chisquare(eighths).pvalue > LEAST_P_VALUE


def test_the_statistics_notice_a_wrong_law() -> None:
    """The test of the test: probabilities off by 10 % for half of the tokens are told apart."""
    right = distribution(row()[None])[0].numpy()
    wrong = right * np.where(np.arange(1000) % 2 == 0, 1.1, 1.0)
    counts = np.random.default_rng(1).multinomial(100_000, right / right.sum())
    assert p_value(counts, right) > LEAST_P_VALUE
    assert p_value(counts, wrong / wrong.sum()) < LEAST_P_VALUE
