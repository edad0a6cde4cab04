"""What follows from the law for the public functions that take requests, on the reference and on the CPU."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import LogitBias, TokenLists
from fastsample.distribution import distribution
from request_backends import backend_of, name, public
from request_examples import LOGITS, ROWS, SEEDS, VOCAB, each_filters, everything
from strategies import same_bits, ulp_distance

__all__ = ["name"]


@public
@each_filters
def test_draws_are_those_of_sample_from_the_processed_logits(name: str, filters: dict[str, Any]) -> None:
    backend, given, order = backend_of(name), everything(), {k: v for k, v in filters.items() if k == "order"}
    processed = fastsample.process_logits(LOGITS, backend=backend, **given)
    common = {"seed": SEEDS, "num_samples": 3, "backend": backend, **filters}
    expected = fastsample.sample(processed, **common)
    assert torch.equal(fastsample.sample(LOGITS, **common, **given), expected)
    full = fastsample.sample_full(LOGITS, **common, **given, distribution=True, kept_set=True)
    assert torch.equal(full.tokens, expected)
    assert torch.equal(full.first_tokens, expected[:, 0])
    expected_logprobs = fastsample.log_probs(processed, expected, backend=backend, **filters)
    assert (ulp_distance(full.logprobs, expected_logprobs) <= 4).all()
    assert not full.status.any()

    filtered = fastsample.filter_logits(processed, backend=backend, **filters)
    assert full.kept is not None
    assert full.kept.tokens.tolist() == (filtered > -math.inf).nonzero()[:, 1].tolist()
    assert full.kept.offsets.tolist() == [0, *(filtered > -math.inf).sum(dim=1).cumsum(0).tolist()]
    assert full.kept_size.tolist() == (filtered > -math.inf).sum(dim=1).tolist()

    exact = distribution(processed, **filters)
    assert (torch.where(filtered > -math.inf, exact, 0.0).sum(dim=1) - 1).abs().max() < 1e-9
    entropy = -torch.xlogy(exact, exact).sum(dim=1)
    assert ((full.entropy - entropy).abs() <= 1e-6 * entropy + 1e-6).all()
    kept_mass = (distribution(processed, filters.get("temperature", 1.0), **order) * (exact > 0)).sum(dim=1)
    assert (full.kept_mass - kept_mass).abs().max() < 1e-6


@public
@each_filters
def test_what_is_said_of_the_raw_logits(name: str, filters: dict[str, Any]) -> None:
    """It knows nothing of adjustments, temperature and filters. 100 tokens, by a second pass, begin with the 20."""
    backend = backend_of(name)
    common = {"seed": SEEDS, "backend": backend, "raw_logprobs": True, **filters, **everything()}
    exact = torch.log_softmax(LOGITS.double(), dim=1)
    few, many = (fastsample.sample_full(LOGITS, **common, top_logprobs=count) for count in (20, 100))
    ranked = LOGITS.sort(dim=1, descending=True, stable=True).indices
    for full, count in ((few, 20), (many, 100)):
        assert torch.equal(full.top_tokens, ranked[:, :count])
        assert (full.top_logprobs - exact.gather(1, ranked[:, :count])).abs().max() < 2e-6
        tokens = full.tokens[:, None]
        assert (full.raw_logprobs - exact.gather(1, tokens)[:, 0]).abs().max() < 2e-6
        assert torch.equal(full.ranks, (ranked == tokens).nonzero()[:, 1] + 1)
    assert torch.equal(few.tokens, many.tokens)
    assert (ulp_distance(few.top_logprobs, many.top_logprobs[:, :20].contiguous()) <= 4).all()
    in_the_list = few.ranks <= 20
    assert in_the_list.any()
    at_rank = few.top_logprobs.gather(1, few.ranks.clamp(max=20)[:, None] - 1)[:, 0]
    assert (ulp_distance(at_rank, few.raw_logprobs)[in_the_list] == 0).all()


@public
@each_filters
def test_the_top_of_what_was_drawn_from(name: str, filters: dict[str, Any]) -> None:
    """The first kept tokens in rank with the log-probabilities that a draw of them has; both passes say the same."""
    backend = backend_of(name)
    common = {"seed": SEEDS, "backend": backend, "top_logprobs_of": "processed", **filters, **everything()}
    few, many = (fastsample.sample_full(LOGITS, **common, top_logprobs=count) for count in (20, 100))
    processed = fastsample.process_logits(LOGITS, **everything())
    kept = fastsample.filter_logits(processed, **filters)
    logprobs = fastsample.log_probs(processed, torch.arange(LOGITS.shape[1]).expand(LOGITS.shape), **filters)
    ranked = kept.sort(dim=1, descending=True, stable=True).indices
    is_kept = kept.gather(1, ranked) > -math.inf
    for full, count in ((few, 20), (many, 100)):
        listed = ranked[:, :count]
        assert torch.equal(full.top_tokens, torch.where(is_kept[:, :count], listed, -1))
        expected = torch.where(is_kept[:, :count], logprobs.gather(1, listed), -math.inf)
        assert (ulp_distance(full.top_logprobs, expected) <= 4).all()
    assert torch.equal(few.tokens, fastsample.sample(LOGITS, seed=SEEDS, backend=backend, **filters, **everything()))
    assert few.numbers is many.numbers is None


@public
@pytest.mark.parametrize("count", [3, 40])
def test_the_processed_top_of_few_tokens_and_of_invalid_rows(name: str, count: int) -> None:
    logits = torch.zeros(5, 6)
    logits[1, 4] = math.nan
    logits[2, 2] = math.inf
    logits[3] = torch.tensor([-2e38, 2e38, -math.inf, 1.0, -math.inf, -math.inf])
    logits[4] = torch.tensor([0.0, -0.0, 1e-45, 1.0, -1.0, 1.0])
    given = {"seed": 1, "top_logprobs": count, "top_logprobs_of": "processed", "backend": backend_of(name)}
    rest = [-1] * (count - 1)
    greedy = fastsample.sample_full(logits, 0.0, **given)
    assert greedy.top_tokens.tolist() == [[0, *rest], [-1, *rest], [2, *rest], [1, *rest], [3, *rest]]
    assert greedy.top_logprobs[[0, 2, 3, 4], 0].tolist() == [0, 0, 0, 0]
    assert greedy.top_logprobs[1].isnan().all()
    two = fastsample.sample_full(logits, top_k=2, num_samples=2, replacement=False, **given)
    pad = rest[1:]
    assert two.top_tokens.tolist() == [[0, 1, *pad], [-1, -1, *pad], [2, 0, *pad], [1, 3, *pad], [3, 5, *pad]]
    assert two.top_logprobs.isnan().all(dim=1).tolist() == [False, True, False, False, False]
    assert two.top_logprobs[2:4, 1].tolist() == [-math.inf, torch.tensor(-2e38)]
    nowhere = fastsample.sample_full(logits, indices=torch.tensor([0, 9]), **given)
    assert nowhere.top_tokens[1].tolist() == [-1] * count
    assert nowhere.top_logprobs[1].isnan().all()


@public
@pytest.mark.parametrize("count", [5, 33, 40])
def test_fewer_tokens_than_top_logprobs_asks_for(name: str, count: int) -> None:
    """-1 and -inf beyond what is above -inf; a token too far below the maximum has -inf too, but is named."""
    logits = torch.full((3, 38), -math.inf)
    logits[0, [3, 30]] = torch.tensor([1.0, 2.0])
    logits[1, :4] = torch.tensor([-2e38, 2e38, -math.inf, 1.0])
    logits[2, 5] = math.nan
    full = fastsample.sample_full(logits, seed=1, top_logprobs=count, raw_logprobs=True, backend=backend_of(name))
    assert full.top_tokens.tolist() == [[30, 3, *[-1] * (count - 2)], [1, 3, 0, *[-1] * (count - 3)], [-1] * count]
    assert full.top_logprobs.isnan().tolist() == [[False] * count, [False] * count, [True] * count]
    assert (full.top_logprobs[0, 2:] == -math.inf).all()
    assert (full.top_logprobs[1, 1:] == torch.tensor([-2e38, *[-math.inf] * (count - 2)])).all()
    assert full.ranks.tolist() == [1 if full.tokens[0] == 30 else 2, 1, 0]
    assert full.raw_logprobs.isnan().tolist() == [False, False, True]


@public
def test_a_row_whose_raw_logits_are_invalid_may_still_be_drawn_from(name: str) -> None:
    logits = torch.tensor([[1.0, math.nan, 2.0]])
    given = {"allowed_tokens": TokenLists.of([[0, 2]]), "top_k": 1}
    full = fastsample.sample_full(
        logits, seed=1, raw_logprobs=True, top_logprobs=2, distribution=True, backend=backend_of(name), **given
    )
    assert full.tokens.tolist() == [2]
    assert full.status.tolist() == [0]
    assert full.logprobs.tolist() == [0]
    assert full.raw_logprobs.isnan().all()
    assert full.ranks.tolist() == [0]
    assert full.top_tokens.tolist() == [[-1, -1]]
    assert full.top_logprobs.isnan().all()


@public
def test_ties(name: str) -> None:
    """Equal logits rank by index, in filters, ranks and lists, also where adjustments made them equal."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, -0.0, 0.0, 1.0]])
    given = {"logit_bias": LogitBias.of([{1: -2.0, 3: -2.0}]), "top_k": 3, "temperature": 0.5}
    full = fastsample.sample_full(
        logits, **given, seed=5, num_samples=3, replacement=False, kept_set=True, raw_logprobs=True, top_logprobs=7,
        backend=backend_of(name),
    )  # fmt: skip
    assert sorted(full.tokens[0].tolist()) == [0, 1, 2]
    assert full.kept.tokens.tolist() == [0, 1, 2]
    assert full.top_tokens.tolist() == [[1, 3, 0, 2, 6, 4, 5]]
    assert {int(token): int(rank) for token, rank in zip(full.tokens[0], full.ranks[0], strict=True)} == {
        0: 3,
        1: 1,
        2: 4,
    }
    assert (full.logprobs == full.logprobs[0, 0]).all()
    assert (full.logprobs.double() + math.log(3)).abs().max() < 2e-7


@public
def test_several_draws(name: str) -> None:
    """The first of several is the only one of one; without replacement no token twice, and -1 once nothing is left."""
    backend, given = backend_of(name), {"top_k": 4, "seed": SEEDS, "raw_logprobs": True, **everything()}
    one = fastsample.sample_full(LOGITS, backend=backend, **given)
    for replacement in (True, False):
        many = fastsample.sample_full(LOGITS, backend=backend, num_samples=9, replacement=replacement, **given)
        for field in ("tokens", "logprobs", "raw_logprobs", "ranks"):
            assert torch.equal(getattr(many, field)[:, 0], getattr(one, field))
        for row in range(ROWS):
            by_token = dict(zip(many.tokens[row].tolist(), many.logprobs[row].tolist(), strict=True))
            drawn = [token for token in many.tokens[row].tolist() if token >= 0]
            assert all(
                by_token[token] == logprob
                for token, logprob in zip(many.tokens[row].tolist(), many.logprobs[row].tolist(), strict=True)
                if token >= 0
            )
            if not replacement:
                assert len(drawn) == len(set(drawn)) == 4
                assert many.tokens[row, 4:].tolist() == [-1] * 5
                assert many.logprobs[row, 4:].isnan().all()
                assert many.raw_logprobs[row, 4:].isnan().all()
                assert many.ranks[row, 4:].tolist() == [0] * 5
                assert abs(sum(math.exp(by_token[token]) for token in drawn) - 1) < 1e-6


@public
@pytest.mark.parametrize("num_samples", [None, 2])
def test_one_row_without_a_batch(name: str, num_samples: int | None) -> None:
    given = {
        "presence_penalty": 0.5, "output_tokens": torch.tensor([[5, 6]]), "seed": 3, "num_samples": num_samples,
        "raw_logprobs": True, "top_logprobs": 3, "distribution": True, "kept_set": True, "top_p": 0.7,
        "backend": backend_of(name),
    }  # fmt: skip
    alone, batch = fastsample.sample_full(LOGITS[0], **given), fastsample.sample_full(LOGITS[:1], **given)
    for field in (
        "tokens",
        "logprobs",
        "raw_logprobs",
        "ranks",
        "top_tokens",
        "top_logprobs",
        "numbers",
        "first_tokens",
    ):
        assert torch.equal(getattr(alone, field), getattr(batch, field)[0]), field
    for field in ("status", "kept_size", "kept_mass", "entropy"):
        assert torch.equal(getattr(alone, field), getattr(batch, field)[0]), field
    assert torch.equal(alone.kept.tokens, batch.kept.tokens)
    assert torch.equal(alone.kept.offsets, batch.kept.offsets)
    assert torch.equal(
        fastsample.process_logits(LOGITS[0], presence_penalty=0.5, output_tokens=torch.tensor([[5, 6]])),
        fastsample.process_logits(LOGITS[:1], presence_penalty=0.5, output_tokens=torch.tensor([[5, 6]]))[0],
    )


@public
def test_adjustments_belong_to_output_rows(name: str) -> None:
    """`indices` choose the logits; everything else is of the output row, whose logits may not exist."""
    backend, indices = backend_of(name), torch.tensor([4, 4, 9, 0, -1, 2])
    given = {"seed": SEEDS, "top_p": 0.9, "raw_logprobs": True, "top_logprobs": 40, "kept_set": True, **everything()}
    found = fastsample.sample_full(LOGITS, indices=indices, backend=backend, **given)
    exists = (indices >= 0) & (indices < ROWS)
    gathered = LOGITS[indices.clamp(0, ROWS - 1)]
    expected = fastsample.sample_full(torch.where(exists[:, None], gathered, math.nan), backend=backend, **given)
    for field in ("tokens", "ranks", "top_tokens", "numbers", "status"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field
    for field in ("logprobs", "raw_logprobs", "top_logprobs"):
        assert same_bits(getattr(found, field), getattr(expected, field)), field
    assert torch.equal(found.kept.tokens, expected.kept.tokens)
    assert torch.equal(found.kept.offsets, expected.kept.offsets)
    assert (found.tokens < 0).tolist() == (~exists).tolist()


@public
def test_a_row_does_not_feel_its_neighbours(name: str) -> None:
    """Neither bad logits nor bad adjustments of another row change a row."""
    backend, good = backend_of(name), everything()
    common = {"seed": SEEDS, "top_p": 0.8, "raw_logprobs": True, "top_logprobs": 5, "kept_set": True}
    expected = fastsample.sample_full(LOGITS, backend=backend, **common, **good)
    bad = {name: value.clone() if isinstance(value, Tensor) else value for name, value in good.items()}
    logits = LOGITS.clone()
    logits[0, 5] = math.nan
    bad["repetition_penalty"][2] = -1
    bad["output_tokens"][3] = 2**40
    bad["prompt_lengths"][3] = -7
    bad["bitmask"][4] = 0
    found = fastsample.sample_full(logits, backend=backend, **common, **bad)
    assert found.status.tolist() == [1, 0, 1, 2, 1, 0]
    untouched = [1, 5]
    for field in ("tokens", "logprobs", "raw_logprobs", "ranks", "top_tokens", "top_logprobs", "numbers"):
        assert torch.equal(getattr(found, field)[untouched], getattr(expected, field)[untouched]), field
    assert found.tokens[[0, 2, 4]].tolist() == [-1, -1, -1]
    assert found.kept_size[[0, 2, 4]].tolist() == [0, 0, 0]
    assert found.entropy[[0, 2, 4]].isnan().all()
    assert found.kept_mass[[0, 2, 4]].isnan().all()
    assert found.numbers[[0, 2, 4]].tolist() == [[1, *[0] * 7]] * 3


@public
def test_threads_change_nothing(name: str) -> None:
    backend, results = backend_of(name), []
    before = torch.get_num_threads()
    wide = torch.randn(1, 70_001, generator=torch.Generator().manual_seed(5)) * 3
    history = wide.topk(30).indices
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for logits, given in (
                (LOGITS, everything()),
                (wide, {"repetition_penalty": 1.2, "frequency_penalty": 0.2, "output_tokens": history}),
            ):
                full = fastsample.sample_full(
                    logits, seed=5, top_p=0.9, raw_logprobs=True, top_logprobs=9, kept_set=True, num_samples=4,
                    backend=backend, **given,
                )  # fmt: skip
                results.append((full.tokens, full.ranks, full.top_tokens, full.numbers, full.kept.tokens))
    finally:
        torch.set_num_threads(before)
    for number, found in enumerate(results[2:]):
        assert all(torch.equal(one, other) for one, other in zip(found, results[number % 2], strict=True))


@public
def test_flushing_denormals_changes_nothing(name: str) -> None:
    """Torch's own arithmetic flushes then; the law's keeps them."""
    bits = torch.randint(0, 2**24, (ROWS, VOCAB), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    logits, ids = bits.view(torch.float32), torch.arange(2 * ROWS).view(ROWS, 2)
    given = {
        "repetition_penalty": torch.tensor([1.5, 1e-38, 2e-38, 1e38, 0.7, 1.0]),
        "presence_penalty": 1e-39,
        "frequency_penalty": torch.tensor(1.2e-38),
        "output_tokens": ids,
        "logit_bias": LogitBias.of([{int(row[0]): 3e-39, 50: -1e-45} for row in ids]),
    }
    common = {"temperature": 1e-38, "top_p": 0.9, "seed": 3, "num_samples": 3, "backend": backend_of(name)}

    def results() -> list[Tensor]:
        full = fastsample.sample_full(logits, **common, **given, raw_logprobs=True, top_logprobs=40, kept_set=True)
        processed = fastsample.process_logits(logits, **given, backend=backend_of(name))
        found = (full.tokens, full.ranks, full.top_tokens, full.numbers, full.kept.tokens, processed.view(torch.int32))
        return [*found, full.logprobs.view(torch.int32), full.raw_logprobs.view(torch.int32)]

    before = results()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        flushed = results()
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(one, other) for one, other in zip(before, flushed, strict=True))
    assert len(set(before[0].flatten().tolist())) > 1


@public
def test_the_default_generator_gives_what_sample_gives(name: str) -> None:
    torch.manual_seed(9)
    expected = fastsample.sample(LOGITS, top_k=9, presence_penalty=1.0, output_counts=torch.ones(ROWS, VOCAB).int())
    torch.manual_seed(9)
    full = fastsample.sample_full(
        LOGITS, top_k=9, presence_penalty=1.0, output_counts=torch.ones(ROWS, VOCAB).int(), backend=backend_of(name)
    )
    assert torch.equal(full.tokens, expected)
