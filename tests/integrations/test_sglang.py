"""SGLang's own sampler, with and without fastsample, on batches that SGLang's own classes make."""

import ast
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sglang_host
import torch
from torch import Tensor

import fastsample
from fastsample.integrations import flashinfer
from fastsample.integrations import plugin as shared
from fastsample.integrations import sglang as integration
from missing import missing

try:
    sglang_host.load()
except PackageNotFoundError:
    missing("SGLang is not installed; `make install` installs it from requirements-hosts.txt")

import sglang.srt.plugins as host_plugins
from sglang.srt.constrained.base_grammar_backend import GrammarMask
from sglang.srt.layers import sampler as host
from sglang.srt.layers.logits_processor import LogitsProcessorOutput, SamplingMaskStatus
from sglang.srt.layers.sampler import Sampler
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor, DisallowedTokensLogitsProcessor
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang_batches import STOP, VOCABULARY, Batch, Request, batch_of, output_of

# Of float32 sums of a row, in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SGLANG = Path(str(distribution("sglang").locate_file("sglang")))


def load_plugins() -> None:
    """What SGLang does in each of its processes, finding our entry point whether or not we are installed."""
    ours = EntryPoint("fastsample", "fastsample.integrations.sglang:register", "sglang.srt.plugins")
    with mock.patch.object(host_plugins, "entry_points", lambda group: [ours] if group == ours.group else []):
        host_plugins.load_plugins()


load_plugins()


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    """A server's settings, and SGLang's compiled functions as they are written, which takes no compiler."""
    torch.compiler.set_stance("force_eager")
    try:
        with sglang_host.server():
            yield
    finally:
        torch.compiler.set_stance("default")


@pytest.fixture
def sglang_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows SGLang's own filters or greedy draw were given, at each call."""
    calls: list[int] = []

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Sampler, values: Tensor, *arguments: Any, **named: Any) -> Any:
            calls.append(values.shape[0])
            return original(self, values, *arguments, **named)

        return call

    monkeypatch.setattr(Sampler, "_sample_from_probs", counted(Sampler._sample_from_probs))
    monkeypatch.setattr(Sampler, "_sample_from_logprobs", counted(Sampler._sample_from_logprobs))
    return calls


@pytest.fixture
def sglang_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of SGLang's draw by seeds, which needs its compiled kernels also on a CPU, the most probable token."""
    monkeypatch.setattr(host, "multinomial_with_seed", lambda scores, seed, positions: scores.argmax(1, keepdim=True))


def logits_of(rows: int, seed: int = 0, spread: float = 3.0, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


class Drawn:
    """Tokens, and the output that they were drawn into."""

    def __init__(self, tokens: Tensor, output: LogitsProcessorOutput) -> None:
        self.tensor = tokens
        self.output = output

    @property
    def tokens(self) -> list[int]:
        return self.tensor.tolist()


def draw(
    forward: Callable[..., Tensor],
    logits: Tensor,
    batch: Batch,
    top: Sequence[int] | None = None,
    listed: Sequence[Sequence[int] | None] | None = None,
    **named: Any,
) -> Drawn:
    """A step of SGLang's model runner: what changes logits, then the sampler. `top` asks for log-probabilities."""
    info, output = batch.for_step(), output_of(logits)
    info.grammar_mask = getattr(batch, "grammar_mask", None)
    info.apply_logits_bias(output.next_token_logits)
    none = [None] * len(batch.reqs)
    tokens = forward(
        Sampler(), output, info, top is not None, top or [0] * len(none), listed or none, batch.positions(), **named
    )
    return Drawn(tokens, output)


def ours(logits: Tensor, batch: Batch, *arguments: Any, **named: Any) -> Drawn:
    return draw(Sampler.forward, logits, batch, *arguments, **named)


def theirs(logits: Tensor, batch: Batch, *arguments: Any, **named: Any) -> Drawn:
    """By SGLang's own code."""
    return draw(Sampler.forward.__wrapped__, logits, batch, *arguments, **named)


OUTPUTS = [[], [5], [5, 5, 9], [20, 21, 22, 21], list(range(40)), [1]]
ADJUSTMENTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": -0.75},
    "bias": {"logit_bias": {"3": 12.0, "5": -100.0, "999": 12.5, "0": 0.5}},
    "minimum": {"min_new_tokens": 3, "stop_token_ids": [11, 12]},
    "all": {
        "repetition_penalty": 0.6,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": 4.0, "21": 4.0},
        "min_new_tokens": 2,
    },
}


def requests(adjustments: dict[str, Any], **parameters: Any) -> list[Request]:
    """Six requests, of which every second has the adjustments."""
    return [
        Request(output=output, **parameters, **(adjustments if row % 2 else {})) for row, output in enumerate(OUTPUTS)
    ]


@pytest.mark.parametrize("adjusted", ADJUSTMENTS)
def test_greedy_tokens_are_sglangs(adjusted: str, sglang_calls: list[int]) -> None:
    for sampled in ({}, {"top_k": 1, "temperature": 0.7}):
        parameters = {"temperature": 0.0} | sampled
        for seed in range(10):
            batch = batch_of(requests(ADJUSTMENTS[adjusted], **parameters))
            # A neighbour that is not greedy sends the others by another path.
            mixed = batch_of([*requests(ADJUSTMENTS[adjusted], **parameters), Request(temperature=1.0)])
            logits = logits_of(len(OUTPUTS) + 1, seed)
            logits[:, [STOP, 11]] += 12.0
            expected = theirs(logits[:-1], batch)
            assert sglang_calls == []
            mine = ours(logits[:-1], batch)
            assert mine.tokens == expected.tokens
            assert mine.tensor.dtype == expected.tensor.dtype == torch.int64
            of_mixed = ours(logits, mixed)
            assert sglang_calls == []
            assert of_mixed.tokens[:-1] == expected.tokens
            assert of_mixed.tensor.dtype == theirs(logits, mixed).tensor.dtype == torch.int32
            sglang_calls.clear()


def test_a_grammar_decides() -> None:
    """SGLang masks the logits, fastsample draws from what is left."""

    class Grammar:
        @staticmethod
        def apply_vocab_mask(logits: Tensor, vocab_mask: Tensor) -> None:
            logits.masked_fill_(~vocab_mask, -math.inf)

    batch = batch_of([Request(temperature=0.0), Request(temperature=1.3)])
    allowed = torch.zeros(2, VOCABULARY, dtype=torch.bool)
    allowed[:, [4, 9]] = True
    batch.grammar_mask = GrammarMask(Grammar(), allowed)  # type: ignore[attr-defined]
    drawn = [ours(logits_of(2, seed), batch).tokens for seed in range(40)]
    assert {token for tokens in drawn for token in tokens} == {4, 9}


FILTERS: list[dict[str, Any]] = [
    {"top_k": 20},
    {"top_p": 0.9},
    {"top_p": 0.1},
    {"min_p": 0.05},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"top_p": 0.95, "min_p": 0.1},
]


def kept_sets(drawn: Drawn) -> list[dict[int, float]]:
    """The log-probability of each kept token, by row."""
    masks = drawn.output.sampling_mask_output
    assert masks is not None
    assert masks.statuses.tolist() == [SamplingMaskStatus.OK] * len(masks.lengths)
    return [
        dict(zip(ids[:length], values[:length], strict=True))
        for ids, values, length in zip(
            masks.token_ids.tolist(), masks.support_logprobs.tolist(), masks.lengths.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_kept_sets_are_sglangs(filters: dict[str, Any], temperature: float) -> None:
    """As SGLang returns them to requests that ask for their sampling masks."""
    batch = batch_of(
        [Request(temperature=temperature, mask=True, support=True, **(filters if row != 3 else {})) for row in range(8)]
    )
    logits = logits_of(8)
    mine, expected = (kept_sets(each(logits, batch)) for each in (ours, theirs))
    # Row 3 keeps all. Of it SGLang loses what comes after a float32 sum that has passed 1.
    assert mine[3].keys() == set(range(VOCABULARY)) >= expected[3].keys()
    for row in (0, 1, 2, 4, 5, 6, 7):
        assert mine[row].keys() == expected[row].keys()
        assert mine[row] == pytest.approx(expected[row], rel=1e-4, abs=1e-4)
    assert all(1 <= len(kept) < 500 for row, kept in enumerate(mine) if row != 3)
    for _ in range(50):
        drawn = ours(logits, batch)
        chosen = [kept[token] for kept, token in zip(mine, drawn.tokens, strict=True)]
        assert drawn.output.sampling_mask_output.selected_logprobs.tolist() == pytest.approx(chosen, abs=1e-5)


def test_a_neighbours_min_p_changes_no_kept_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's FlashInfer path measures top-p within top-k for all rows of a batch as soon as one of them has a min-p.

    Driven here with our functions of FlashInfer's names, since FlashInfer's own need a GPU.
    """
    for name in ("top_k_renorm_prob", "top_p_renorm_prob", "min_p_sampling_from_probs"):
        monkeypatch.setattr(host, name, getattr(flashinfer, name), raising=False)
    monkeypatch.setattr(
        host, "top_k_top_p_sampling_from_probs", flashinfer.top_k_top_p_sampling_from_probs, raising=False
    )
    logits = logits_of(2, spread=1.0)
    filters: dict[str, Any] = {"top_k": 50, "top_p": 0.1, "mask": True, "support": True}
    with sglang_host.server(backend="flashinfer"):
        alone = batch_of([Request(**filters), Request(top_k=9)])
        beside = batch_of([Request(**filters), Request(min_p=0.1)])
        mine = [kept_sets(ours(logits, batch))[0].keys() for batch in (alone, beside)]
        of_sglang = [kept_sets(theirs(logits, batch))[0].keys() for batch in (alone, beside)]
    assert mine[0] == mine[1] == of_sglang[0]
    assert of_sglang[1] < of_sglang[0]


def test_sampling_masks_of_some_rows() -> None:
    """A request that asks for its kept tokens gets them, and changes nothing for the others."""
    parameters: list[dict[str, Any]] = [
        {"top_k": 4},
        {"top_k": 5, "mask": True},
        {"temperature": 0.0, "mask": True, "support": True},
        {"top_p": 0.7},
        {"top_k": 6, "top_p": 0.9, "mask": True, "support": True},
    ]
    logits = logits_of(5)
    drawn = ours(logits, batch_of([Request(sampling_seed=row, **each) for row, each in enumerate(parameters)]))
    expected = theirs(logits, batch_of([Request(**each) for each in parameters]))
    plain = [{name: value for name, value in each.items() if name not in ("mask", "support")} for each in parameters]
    alone = ours(logits, batch_of([Request(sampling_seed=row, **each) for row, each in enumerate(plain)]))
    assert drawn.tokens == alone.tokens
    assert alone.output.sampling_mask_output is None
    mine, others = drawn.output.sampling_mask_output, expected.output.sampling_mask_output
    assert mine.lengths.tolist() == others.lengths.tolist()
    assert mine.lengths[1] == 1
    for row in range(3):
        length = int(mine.lengths[row])
        assert set(mine.token_ids[row, :length].tolist()) == set(others.token_ids[row, :length].tolist())
        assert drawn.tokens[[1, 2, 4][row]] in mine.token_ids[row, :length].tolist()
    for name in ("token_ids", "lengths", "selected_logprobs", "support_logprobs", "statuses"):
        assert getattr(mine, name).dtype == getattr(others, name).dtype
        assert getattr(mine, name).shape == getattr(others, name).shape
    # All greedy.
    greedy = batch_of([Request(temperature=0.0, mask=row == 1, support=row == 1) for row in range(3)])
    mine, others = (each(logits[:3], greedy).output.sampling_mask_output for each in (ours, theirs))
    assert all(torch.equal(getattr(mine, name), getattr(others, name)) for name in ("token_ids", "lengths", "statuses"))


def test_more_kept_tokens_than_the_server_returns() -> None:
    with sglang_host.server(mask_tokens=3):
        drawn = ours(logits_of(2), batch_of([Request(top_k=3, mask=True), Request(top_k=4, mask=True)]))
    assert drawn.output.sampling_mask_output.statuses.tolist() == [SamplingMaskStatus.OK, SamplingMaskStatus.OVERFLOW]


def test_ties_at_the_kth_logit() -> None:
    """Of equal logits the first are kept; SGLang's sort leaves open which."""
    kept = kept_sets(ours(torch.zeros(1, VOCABULARY), batch_of([Request(top_k=4, mask=True, support=True)])))
    assert kept[0].keys() == {0, 1, 2, 3}


PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 30, "sampling_seed": 11},
    {"temperature": 1.3, "top_p": 0.7, "min_p": 0.03, "sampling_seed": 12},
    {"temperature": 0.0, "sampling_seed": 13},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.8, "sampling_seed": -(2**63)},
]


@pytest.mark.parametrize("deterministic", [False, True])
def test_tokens_are_those_of_sample(deterministic: bool) -> None:
    """Seeds count with and without --enable-deterministic-inference; SGLang's own sampler fails here for the min-p."""
    logits = logits_of(4)
    with sglang_host.server(deterministic=deterministic):
        batch = batch_of([Request(output=OUTPUTS[row], prompt=3 + row, **each) for row, each in enumerate(PARAMETERS)])
        assert (batch.sampling_info.sampling_seed is not None) is deterministic
        drawn = ours(logits, batch)
        if deterministic:
            with pytest.raises(AssertionError, match="sampling seed"):
                theirs(logits, batch)
    expected = fastsample.sample(
        logits,
        torch.tensor([0.7, 1.3, 0.0, 1.0]),
        torch.tensor([30, 0, 0, 40]),
        torch.tensor([1.0, 0.7, 1.0, 0.8]),
        torch.tensor([0.0, 0.03, 0.0, 0.0]),
        order="joint",
        seed=torch.tensor([11, 12, 13, -(2**63)]),
        offset=torch.tensor([2, 4, 7, 9]),
    )
    assert drawn.tokens == expected.tolist()


def test_sglang_gives_a_request_without_a_seed_one_under_deterministic_inference() -> None:
    logits = logits_of(2)
    with sglang_host.server(deterministic=True):
        first, second = (ours(logits, batch_of([Request(), Request(sampling_seed=42)])).tokens for _ in range(2))
    assert first == second
    expected = fastsample.sample(logits, seed=torch.tensor([42, 42]), offset=torch.tensor([2, 2]))
    assert first == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_any_type_and_stride(dtype: torch.dtype) -> None:
    wide = logits_of(4).to(dtype).repeat(1, 2)
    logits = wide[:, 500 : 500 + VOCABULARY]
    batch = batch_of([Request(temperature=0.9, top_k=10, sampling_seed=row) for row in range(4)])
    output = LogitsProcessorOutput(next_token_logits=logits)
    before = logits.clone()
    tokens = Sampler().forward(output, batch.for_step(), True, [2] * 4, [None] * 4, batch.positions())
    assert output.next_token_logits is logits
    assert torch.equal(logits, before)
    assert tokens.tolist() == ours(logits.float(), batch).tokens


class Steps:
    """Requests that draw from logits which depend on the request and its step alone."""

    def __init__(self, *names: int, **changes: Any) -> None:
        self.of: dict[int, int] = {}
        self.batch = self._joined(names, changes)

    def _joined(self, names: Sequence[int], changes: dict[str, Any]) -> Batch:
        made = []
        for name in names:
            parameters = {"temperature": 1.0, "top_p": 0.95, "sampling_seed": name} | changes
            made.append(Request(**parameters))
            self.of[id(made[-1])] = name
        return batch_of(made)

    def add(self, *names: int, **changes: Any) -> None:
        self.batch.merge(self._joined(names, changes))

    def run(self, count: int) -> None:
        for _ in range(count):
            rows = [logits_of(1, 1000 * self.of[id(each)] + len(each.output)) for each in self.batch.reqs]
            self.batch.record(ours(torch.cat(rows), self.batch).tensor)

    def output(self, name: int) -> list[int]:
        return next(each.output for each in self.batch.reqs if self.of[id(each)] == name)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_seeded_request_is_independent_of_its_batch_and_row(deterministic: bool) -> None:
    with sglang_host.server(deterministic=deterministic):
        alone = Steps(1)
        alone.run(15)

        crowd = Steps(2, 3, 4)
        crowd.run(3)
        crowd.add(5, sampling_seed=None)
        crowd.add(1)
        crowd.run(4)
        crowd.batch.filter([1, 4, 3])
        crowd.run(4)
        crowd.add(6, sampling_seed=None, temperature=0.0)
        crowd.batch.filter([1, 3])
        crowd.run(4)
        crowd.batch.filter([0])
        crowd.run(3)
    assert crowd.output(1) == [*alone.output(1)]
    assert len(set(alone.output(1))) > 6


def test_a_batch_without_seeds_joins_one_with_seeds_and_the_other_way_round() -> None:
    for names, changes, joining, theirs_ in (
        ((2,), {"sampling_seed": None}, (1,), {}),
        ((1,), {}, (2, 3), {"sampling_seed": None}),
    ):
        steps = Steps(*names, **changes)
        steps.add(*joining, **theirs_)
        steps.run(5)
        alone = Steps(1)
        alone.run(5)
        assert steps.output(1) == alone.output(1)


def test_a_request_that_is_begun_again_goes_on_where_it_was() -> None:
    through = Steps(1)
    through.run(8)
    resumed = Request(temperature=1.0, top_p=0.95, sampling_seed=1, output=through.output(1)[:5])
    batch = batch_of([resumed])
    for step in range(5, 8):
        batch.record(ours(logits_of(1, 1000 + step), batch).tensor)
    assert resumed.output == through.output(1)


def test_requests_without_a_seed_draw_from_torchs_generator() -> None:
    row = logits_of(1)
    logits = row.expand(3, -1)
    for seeds in ((None, None, None), (None, 4, None)):
        batch = batch_of([Request(sampling_seed=seed) for seed in seeds])
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append([ours(logits, batch).tokens for _ in range(4)])
        assert runs[0] == runs[1] != runs[2]
        # Equal logits, other words: neither do the steps repeat each other, nor the rows.
        assert len({step[0] for step in runs[0]}) > 1
        assert any(step[0] != step[2] for step in runs[0])


def test_the_samples_of_one_request_differ(fresh_log: pytest.LogCaptureFixture) -> None:
    """SGLang makes n requests of one with n > 1, which share its seed and its positions."""
    logits = logits_of(1).expand(3, -1)

    def runs(**parameters: Any) -> list[list[list[int]]]:
        batch = batch_of([Request(sampling_seed=7, **parameters) for _ in range(3)])
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append([ours(logits, batch).tokens for _ in range(4)])
        return drawn

    three = runs(n=3)
    assert three[0] == three[1] != three[2]
    assert all(len(set(step)) > 1 for step in three[0])
    warned = (
        "fastsample passes over the seed of requests with n > 1, whose n samples SGLang gives one seed: "
        "send n requests with a seed each"
    )
    assert lines(fresh_log).count(("WARNING", warned)) == 1
    fresh_log.clear()
    expected = fastsample.sample(logits, order="joint", seed=torch.tensor([7] * 3), offset=torch.tensor([2] * 3))
    assert runs(n=1) == [[expected.tolist()] * 4] * 3
    assert lines(fresh_log) == []


def test_under_deterministic_inference_they_are_as_equal_as_sglangs(fresh_log: pytest.LogCaptureFixture) -> None:
    """The seeds on the device are SGLang's, which do not say of which request they are."""
    with sglang_host.server(deterministic=True):
        batch = batch_of([Request(sampling_seed=7, n=3) for _ in range(3)])
        tokens = ours(logits_of(1).expand(3, -1), batch).tokens
    assert tokens == tokens[:1] * 3
    assert [level for level, _ in lines(fresh_log)] == ["INFO"]


def test_frequencies_of_unseeded_rows() -> None:
    batch = batch_of([Request(top_k=3, sampling_seed=1 if row == 9 else None) for row in range(10)])
    logits = torch.full((10, VOCABULARY), -10.0)
    logits[:, [10, 20, 30]] = torch.tensor([1.0, 2.0, 3.0]).log()
    torch.manual_seed(0)
    drawn = torch.cat([ours(logits, batch).tensor[:9] for _ in range(667)])[:6000]
    counts = torch.tensor([int((drawn == token).sum()) for token in (10, 20, 30)])
    assert int(counts.sum()) == 6000
    expected = torch.tensor([1000.0, 2000.0, 3000.0])
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.8  # chi-squared, 2 degrees of freedom, p = 0.001


LOGPROB_FIELDS = (
    "next_token_logprobs",
    "next_token_top_logprobs_val",
    "next_token_top_logprobs_idx",
    "next_token_token_ids_logprobs_val",
    "next_token_token_ids_logprobs_idx",
)


@pytest.mark.usefixtures("sglang_seeded")
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("watermarked", [False, True])
@pytest.mark.parametrize("temperatures", [(0.0, 0.0, 0.0), (0.8, 0.0, 1.5)], ids=str)
def test_log_probabilities_are_sglangs(
    original: bool,
    deterministic: bool,
    watermarked: bool,
    temperatures: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every field; top_k = 1 makes SGLang's token the same, so that those of the token can be compared."""
    monkeypatch.setattr(host, "SGLANG_RETURN_ORIGINAL_LOGPROB", original)
    logits, top, listed = logits_of(3), [2, 0, 7], [[3, 4, 5], None, [9]]
    changes = {"logprob_logits": logits_of(3, seed=1)} if watermarked else {}
    with sglang_host.server(deterministic=deterministic):
        batch = batch_of(
            [Request(temperature=each, top_k=1, presence_penalty=0.5, output=[4]) for each in temperatures]
        )
        batch.sampling_info.is_all_greedy = not any(temperatures)
        mine, expected = (
            each(logits, batch, top, listed, **{name: value.clone() for name, value in changes.items()})
            for each in (ours, theirs)
        )
    assert mine.tokens == expected.tokens
    for name in LOGPROB_FIELDS:
        torch.testing.assert_close(getattr(mine.output, name), getattr(expected.output, name), **TOLERANCE)
        if deterministic and not name.endswith("idx"):
            # What SGLang promises of prefill's log-probabilities holds with fastsample too.
            torch.testing.assert_close(getattr(mine.output, name), getattr(expected.output, name), rtol=0, atol=0)
    assert [len(values) for values in mine.output.next_token_top_logprobs_val] == top
    assert [len(values) for values in mine.output.next_token_token_ids_logprobs_val] == [3, 0, 1]


def test_log_probabilities_of_unmarked_logits_without_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's preparation is for them as well."""
    monkeypatch.setenv("SGLANG_SANITIZE_NAN_LOGITS", "1")
    unmarked = logits_of(2, seed=1)
    unmarked[0, 3] = math.nan
    batch = batch_of([Request(temperature=0.0), Request(temperature=0.7, top_k=1)])
    mine, expected = (each(logits_of(2), batch, [4, 4], logprob_logits=unmarked.clone()) for each in (ours, theirs))
    assert bool(mine.output.next_token_logprobs.isfinite().all())
    for name in LOGPROB_FIELDS[:3]:
        torch.testing.assert_close(getattr(mine.output, name), getattr(expected.output, name), **TOLERANCE)


def test_log_probabilities_are_of_the_token_drawn() -> None:
    batch = batch_of([Request(temperature=0.7, top_k=50, sampling_seed=row) for row in range(6)])
    logits = logits_of(6)
    drawn = ours(logits, batch, [0] * 6)
    expected = torch.log_softmax(logits / 0.7, dim=-1).gather(1, drawn.tensor.long().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(drawn.output.next_token_logprobs, expected, **TOLERANCE)
    assert drawn.output.next_token_top_logprobs_val is None
    assert ours(logits, batch).output.next_token_logprobs is None
    assert ours(logits, batch).tokens == drawn.tokens


class Forced(CustomLogitProcessor):
    """A user's processor: the token in the request's custom_params gets 1000 more."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        assert custom_param_list is not None
        for row, parameters in enumerate(custom_param_list):
            logits[row, parameters["forced"]] += 1000.0
        return logits


def test_custom_logit_processors_change_their_rows_alone() -> None:
    logits = logits_of(4)
    plain = [Request(sampling_seed=row, top_k=9) for row in range(4)]
    banned = ours(logits, batch_of(plain)).tokens[3]
    changed = [
        Request(sampling_seed=0, top_k=9),
        Request(sampling_seed=1, top_k=9, processor=Forced.to_str(), custom_params={"forced": 77}),
        Request(sampling_seed=2, top_k=9),
        Request(
            sampling_seed=3,
            top_k=9,
            processor=DisallowedTokensLogitsProcessor.to_str(),
            custom_params={"token_ids": [banned]},
        ),
    ]
    before, after = (ours(logits, batch_of(each)).tokens for each in (plain, changed))
    assert after[0] == before[0]
    assert after[1] == 77 != before[1]
    assert after[2] == before[2]
    assert after[3] != banned


@pytest.mark.parametrize("greedy", [False, True])
def test_rows_that_nothing_can_be_drawn_from(greedy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(4)
    logits[1] = -math.inf
    logits[2, 5] = math.nan
    parameters = {"temperature": 0.0} if greedy else {}
    batch = batch_of([Request(sampling_seed=row, **parameters) for row in range(4)])
    healthy = ours(logits_of(4), batch).tokens
    assert ours(logits, batch).tokens == [healthy[0], 0, 0, healthy[3]]
    # SGLang makes numbers of them where it is asked to.
    monkeypatch.setenv("SGLANG_SANITIZE_NAN_LOGITS", "1")
    tokens = ours(logits, batch).tokens
    assert (tokens[0], tokens[2], tokens[3]) == (healthy[0], healthy[2], healthy[3])


class WithoutNan(CustomLogitProcessor):
    """A user's processor that takes each NaN out."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        return logits.nan_to_num_(nan=-1.0)


@pytest.mark.parametrize("each", [ours, theirs])
def test_a_nan_is_noticed_before_a_processor_takes_it_out(
    each: Callable[..., Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of([Request(top_k=1, processor=WithoutNan.to_str(), custom_params={})])
    logits = logits_of(1)
    logits[0, 3] = math.nan
    assert each(logits, batch).tokens == [logits.nan_to_num(nan=-1.0).argmax().item()]
    monkeypatch.setenv("SGLANG_ENABLE_NAN_LOGITS_CHECK", "1")
    with pytest.raises(RuntimeError, match="NaN detected! sampler: next_token_logits"):
        each(logits, batch)


def test_tokens_are_agreed_on_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a grammar SGLang takes the smallest token of all ranks; the kept tokens then say so."""

    def another_rank_drew_token_0(tokens: Tensor, op: Any, group: Any) -> None:
        tokens.clamp_(max=0)

    monkeypatch.setattr(torch.distributed, "all_reduce", another_rank_drew_token_0)
    logits = torch.zeros(8, VOCABULARY)
    logits[:, 0] = 9.0
    logits[:, 1] = 9.5
    batch = batch_of([Request(top_k=2, mask=True, sampling_seed=row) for row in range(8)])
    assert set(ours(logits, batch).tokens) == {0, 1}
    batch.sampling_info.grammars = [None] * 8
    agreed = ours(logits, batch)
    assert agreed.tokens == [0] * 8
    expected = torch.log_softmax(torch.tensor([9.0, 9.5]), dim=0)[0].expand(8)
    torch.testing.assert_close(agreed.output.sampling_mask_output.selected_logprobs, expected, **TOLERANCE)


@pytest.fixture
def fresh_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, as if nothing had been said in this process yet."""
    monkeypatch.setattr(shared, "_warned", set())
    integration.say_on.cache_clear()
    with caplog.at_level(logging.INFO, logger=integration.plugin.logger.name):
        yield caplog
    integration.say_on.cache_clear()


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    of_ours = [record for record in log.records if record.name == integration.plugin.logger.name]
    return [(record.levelname, record.getMessage()) for record in of_ours]


def test_the_first_draw_says_so_once(fresh_log: pytest.LogCaptureFixture) -> None:
    batch = batch_of([Request()])
    assert lines(fresh_log) == []
    for _ in range(3):
        ours(logits_of(1), batch)
    version = distribution("sglang").version
    line = f"fastsample draws the tokens of SGLang {version} (FASTSAMPLE_SGLANG=0 turns it off)"
    assert lines(fresh_log) == [("INFO", line)]


@pytest.mark.usefixtures("sglang_seeded")
def test_on_policy_batches_are_left_to_sglang(sglang_calls: list[int], fresh_log: pytest.LogCaptureFixture) -> None:
    with sglang_host.server(on_policy="fsdp", deterministic=True):
        batch = batch_of([Request(), Request(top_k=5)])
        drawn = [each(logits_of(2), batch, [1, 1]) for each in (ours, ours, theirs)]
    assert sglang_calls == [2, 2, 2]
    assert drawn[0].tokens == drawn[1].tokens == drawn[2].tokens
    assert torch.equal(drawn[0].output.next_token_logprobs, drawn[2].output.next_token_logprobs)
    assert lines(fresh_log) == [("WARNING", "fastsample leaves every batch to SGLang under --rl-on-policy-target")]


class AlwaysFive(Sampler):
    """A user's, as `register_sampler_backend` takes it: SGLang's `forward` around a draw of its own."""

    def _sample_from_probs(self, probs: Tensor, *arguments: Any) -> tuple[Tensor, None]:
        return torch.full((probs.shape[0],), 5, dtype=torch.int32), None


def test_a_sampler_of_another_class_is_left_alone(fresh_log: pytest.LogCaptureFixture) -> None:
    batch = batch_of([Request(top_k=20) for _ in range(3)])
    for _ in range(2):
        output = output_of(logits_of(3))
        tokens = AlwaysFive().forward(output, batch.for_step(), False, [0] * 3, [None] * 3, batch.positions())
        assert tokens.tolist() == [5, 5, 5]
    warned = "fastsample leaves every batch to AlwaysFive, which is not SGLang's own sampler"
    assert lines(fresh_log) == [("WARNING", warned)]


def test_batches_that_no_kernel_takes_are_left_to_sglang(
    sglang_calls: list[int], fresh_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of([Request(), Request(temperature=0.0)])
    ours(logits_of(2).double(), batch)
    assert sglang_calls == [2]
    monkeypatch.setattr(shared, "_kernels", lambda device: (False, f"none for {device}"))
    for _ in range(2):
        ours(logits_of(2), batch, logprob_logits=logits_of(2))
    assert sglang_calls == [2, 2, 2]
    warned = "fastsample leaves SGLang's sampling on cpu alone, for want of kernels (none for cpu)"
    assert lines(fresh_log) == [("WARNING", warned)]


def test_an_idle_step() -> None:
    """SGLang's ranks take part in steps that have no request of theirs."""
    batch = batch_of([Request(sampling_seed=1)])
    batch.sampling_info.is_all_greedy = True
    info, output = batch.for_step(), LogitsProcessorOutput(next_token_logits=torch.empty(0, VOCABULARY))
    tokens = Sampler().forward(output, info, False, [], [], torch.empty(0, dtype=torch.int64))
    assert tokens.tolist() == []


def test_every_method_hooked_is_hooked_once() -> None:
    hooked = {target: [source.plugin_name for _, _, source in hooks] for target, hooks in HookRegistry._hooks.items()}
    batch = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"
    methods = ("adjusted_filter_batch", "adjusted_from_schedule_batch", "adjusted_merge_batch", "copy_for_forward")
    assert hooked == {
        "sglang.srt.layers.sampler.Sampler.forward": ["fastsample"],
        **{f"{batch}.{method}": ["fastsample"] for method in methods},
    }
    assert HookRegistry._patched == hooked.keys()
    before = Sampler.forward, SamplingBatchInfo.copy_for_forward
    load_plugins()
    assert (Sampler.forward, SamplingBatchInfo.copy_for_forward) == before


def test_switched_off_it_hooks_nothing(monkeypatch: pytest.MonkeyPatch, fresh_log: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(host_plugins, "_plugins_loaded", False)
    monkeypatch.setattr(HookRegistry, "_hooks", {})
    monkeypatch.setattr(HookRegistry, "_patched", set())
    monkeypatch.setenv("FASTSAMPLE_SGLANG", "0")
    load_plugins()
    assert HookRegistry._hooks == {}
    assert lines(fresh_log) == []


def test_the_process_that_draws_loads_plugins_before_anything_else() -> None:
    """It is spawned, so that what its parent hooked is not there."""
    tree = ast.parse((SGLANG / "srt/managers/scheduler.py").read_text())
    (function,) = (node for node in tree.body if getattr(node, "name", None) == "run_scheduler_process")
    assert isinstance(function, ast.FunctionDef)
    assert ast.unparse(function.body[0]) == "load_plugins()"
