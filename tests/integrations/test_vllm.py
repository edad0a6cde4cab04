"""vLLM's own V1 sampler, with and without fastsample, on batches that vLLM's own model runner code makes.

`make test-vllm` installs the vLLM that these need, in an environment of its own.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment that has it")

from vllm import SamplingParams
from vllm.config.reasoning import ReasoningConfig
from vllm.plugins import load_general_plugins
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.logits_processor import (
    BUILTIN_LOGITS_PROCESSORS,
    AdapterLogitsProcessor,
    LogitsProcessor,
)
from vllm.v1.sample.sampler import Sampler
from vllm_batches import STOP, VOCABULARY, Engine, batch_of

import fastsample
from fastsample.integrations.vllm import row_fallback, v1_sampler
from fastsample.integrations.vllm.requests import SeededOutputs

pytestmark = pytest.mark.integrations

# Of float32 sums of a row, in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

load_general_plugins()


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    """What the entry point did is in force; a test that undoes it leaves no trace."""
    assert Sampler.forward is v1_sampler.forward
    yield
    v1_sampler.install()


def by_vllm(logits: Tensor, metadata: Any, mode: Any = "raw_logprobs") -> SamplerOutput:
    """vLLM's own output."""
    v1_sampler.uninstall()
    try:
        return Sampler(mode)(logits.clone(), metadata)
    finally:
        v1_sampler.install()


def ours(logits: Tensor, metadata: Any, mode: Any = "raw_logprobs") -> SamplerOutput:
    """The output of the same class with fastsample in it, which must not write the logits."""
    given = logits.clone()
    output = Sampler(mode)(given, metadata)
    assert torch.equal(given, logits)
    assert output.sampled_token_ids.dtype == torch.int32
    assert output.sampled_token_ids.shape == (logits.shape[0], 1)
    return output


def tokens_of(output: SamplerOutput) -> list[int]:
    tokens: list[int] = output.sampled_token_ids.flatten().tolist()
    return tokens


def whole_vocabulary(metadata: Any) -> Any:
    """The metadata, asking for a score of every token in the vocabulary's order, as vLLM does for its own use."""
    metadata.max_num_logprobs = -1
    return metadata


def logits_of(rows: int, seed: int = 0, spread: float = 3.0, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.fixture
def vllm_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows vLLM's own code was given, at each call."""
    calls: list[int] = []
    original = v1_sampler.replaced_forward.theirs

    def counted(sampler: Sampler, logits: Tensor, *arguments: Any) -> SamplerOutput:
        calls.append(logits.shape[0])
        return original(sampler, logits, *arguments)

    monkeypatch.setattr(v1_sampler.replaced_forward, "theirs", counted)
    return calls


OUTPUTS = [[], [5], [5, 5, 9], [20, 21, 22, 21], list(range(40)), [1]]
PROMPTS = [[1], [2, 3], [5, 6, 7, 8], [9] * 20, [4, 4], [30, 31]]
ADJUSTMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "repetition": lambda: {"repetition_penalty": 1.7},
    "presence": lambda: {"presence_penalty": 1.5},
    "frequency": lambda: {"frequency_penalty": -0.75},
    "bias": lambda: {"logit_bias": {3: 12.0, 5: -100.0, 999: 12.5, 0: 0.5}},
    "allowed": lambda: {"allowed_token_ids": [3, 64, 65, 998]},
    "minimum": lambda: {"min_tokens": 3, "stop_token_ids": [11, 12]},
    "all": lambda: {
        "repetition_penalty": 0.6,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {5: 4.0, 21: 4.0},
        "allowed_token_ids": [*range(0, 1000, 3), 5, STOP],
        "min_tokens": 2,
    },
}


def requests(adjustments: Callable[[], dict[str, Any]], **parameters: Any) -> list[SamplingParams]:
    """Six requests, of which every second has the adjustments."""
    return [SamplingParams(**parameters, **(adjustments() if row % 2 else {})) for row in range(len(OUTPUTS))]


@pytest.mark.parametrize("adjusted", ADJUSTMENTS)
def test_greedy_tokens_are_vllms(adjusted: str, vllm_calls: list[int]) -> None:
    for seed in range(20):
        metadata = batch_of(requests(ADJUSTMENTS[adjusted], temperature=0.0), PROMPTS, OUTPUTS)
        logits = logits_of(len(OUTPUTS), seed)
        mine = tokens_of(ours(logits, metadata))
        assert vllm_calls == []
        assert mine == tokens_of(by_vllm(logits, metadata))
        vllm_calls.clear()


@pytest.mark.parametrize("adjusted", ADJUSTMENTS)
def test_adjusted_logits_are_vllms(adjusted: str) -> None:
    """By the log-probabilities of the whole vocabulary, without filters."""
    for temperature in (0.0, 0.8):
        metadata = whole_vocabulary(
            batch_of(requests(ADJUSTMENTS[adjusted], temperature=temperature), PROMPTS, OUTPUTS)
        )
        logits = logits_of(len(OUTPUTS))
        mine, theirs = (each(logits, metadata, "processed_logprobs").logprobs_tensors for each in (ours, by_vllm))
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine.logprobs, theirs.logprobs, **TOLERANCE)


def test_bad_words_are_vllms() -> None:
    parameters = [SamplingParams(temperature=0.0) for _ in OUTPUTS]
    words = [None, [[5, 50], [60]], [[5, 9, 51], [9, 9, 52]], [[21, 53], [22, 54]], [[38, 39, 55]], [[2, 56]]]
    for each, listed in zip(parameters, words, strict=True):
        each._bad_words_token_ids = listed
    metadata = batch_of(parameters, PROMPTS, OUTPUTS)
    logits = logits_of(len(OUTPUTS))
    # The bans decide: without them each row would draw the word's last token.
    for row, last in ((1, 50), (1, 60), (2, 51), (2, 52), (3, 53), (3, 54), (4, 55), (5, 56)):
        logits[row, last] = 40.0 + last / 100
    expected = tokens_of(by_vllm(logits, metadata))
    assert expected[2:] == [52, 54, int(logits[4].argsort()[-2]), 56]
    assert tokens_of(ours(logits, metadata)) == expected


FILTERS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 20},
    {"top_p": 0.9},
    {"top_p": 0.1},
    {"min_p": 0.05},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"top_p": 0.95, "min_p": 0.1},
]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_kept_sets_are_vllms(filters: dict[str, Any], temperature: float) -> None:
    """Over the whole vocabulary: what either leaves out is -inf, and the rest has the same log-probability."""
    parameters = [SamplingParams(temperature=temperature, **(filters if row != 3 else {})) for row in range(8)]
    logits = logits_of(8)
    metadata = whole_vocabulary(batch_of(parameters))
    mine, theirs = (each(logits, metadata, "processed_logprobs").logprobs_tensors for each in (ours, by_vllm))
    assert mine is not None
    assert theirs is not None
    torch.testing.assert_close(mine.logprobs, theirs.logprobs, **TOLERANCE)
    kept = mine.logprobs > -math.inf
    assert bool(kept[3].all())
    assert all(1 <= int(row.sum()) < VOCABULARY for place, row in enumerate(kept) if place != 3)
    for _ in range(50):
        assert bool(kept.gather(1, ours(logits, metadata).sampled_token_ids.long()).all())


def real_rows() -> Tensor:
    """The logits of a real model that the other tests have, float32 [16, 49152]."""
    return torch.from_numpy(np.load(Path(__file__).parents[1] / "data" / "real_logits.npz")["logits"]).float()


REAL_FILTERS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 50},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
]
# docs/vllm.md tells of it: row 11 keeps 2324 tokens where vLLM, whose sums are of float32, keeps 2325.
REAL_DIFFERENCES = {("{'top_p': 0.999}", 1.0): {11: (2324, 2325)}}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("filters", REAL_FILTERS, ids=str)
def test_kept_sets_of_real_rows_are_vllms(filters: dict[str, Any], temperature: float) -> None:
    """By ==, of every row, but for ties at the k-th logit, of which vLLM keeps all, and what is listed above."""
    logits = real_rows()
    metadata = whole_vocabulary(
        batch_of([SamplingParams(temperature=temperature, **filters) for _ in logits], vocabulary=logits.shape[1])
    )
    mine, theirs = (each(logits, metadata, "processed_logprobs").logprobs_tensors for each in (ours, by_vllm))
    assert mine is not None
    assert theirs is not None
    differences: dict[int, tuple[int, int]] = {}
    for row, (kept, by_them) in enumerate(zip(mine.logprobs > -math.inf, theirs.logprobs > -math.inf, strict=True)):
        assert int(kept.sum()) >= 1
        tied_with_the_last = logits[row] == logits[row][kept].min() if "top_k" in filters else torch.zeros_like(kept)
        if not torch.equal(kept, by_them & ~(tied_with_the_last & ~kept)):
            differences[row] = int(kept.sum()), int(by_them.sum())
    assert differences == REAL_DIFFERENCES.get((str(filters), temperature), {})


def test_ties_at_the_kth_logit() -> None:
    """Where they differ by intent: fastsample keeps k tokens, the first of equal logits; vLLM keeps all that tie."""
    logits = torch.zeros(1, VOCABULARY)
    metadata = whole_vocabulary(batch_of([SamplingParams(temperature=1.0, top_k=4)]))
    mine, theirs = (each(logits, metadata, "processed_logprobs").logprobs_tensors for each in (ours, by_vllm))
    assert mine is not None
    assert theirs is not None
    assert (mine.logprobs[0] > -math.inf).nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert int((theirs.logprobs > -math.inf).sum()) == VOCABULARY


def test_tokens_are_those_of_sample() -> None:
    parameters = [
        SamplingParams(temperature=0.7, top_k=30, seed=11),
        SamplingParams(temperature=1.3, top_p=0.7, min_p=0.03, seed=12),
        SamplingParams(temperature=0.0, seed=13),
        SamplingParams(temperature=1.0, seed=2**63 - 1),
    ]
    logits = logits_of(4)
    output = ours(logits, batch_of(parameters, outputs=OUTPUTS[:4]))
    expected = fastsample.sample(
        logits,
        torch.tensor([0.7, 1.3, 0.0, 1.0]),
        torch.tensor([30, 0, 0, 0]),
        torch.tensor([1.0, 0.7, 1.0, 1.0]),
        torch.tensor([0.0, 0.03, 0.0, 0.0]),
        order="min_p_first",
        seed=torch.tensor([11, 12, 13, 2**63 - 1]),
        offset=torch.tensor([0, 1, 3, 4]),
    )
    assert tokens_of(output) == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_any_type_and_stride(dtype: torch.dtype) -> None:
    wide = logits_of(4).to(dtype).repeat(1, 2)
    logits = wide[:, 500 : 500 + VOCABULARY]
    metadata = batch_of([SamplingParams(temperature=0.9, top_k=10, seed=row, logprobs=2) for row in range(4)])
    output, whole = (Sampler()(each, metadata) for each in (logits, logits.contiguous()))
    assert tokens_of(output) == tokens_of(whole)
    theirs = by_vllm(logits, metadata).logprobs_tensors
    assert output.logprobs_tensors is not None
    assert theirs is not None
    torch.testing.assert_close(output.logprobs_tensors.logprobs[:, 1:], theirs.logprobs[:, 1:], **TOLERANCE)


class Steps:
    """Requests that draw from logits which depend on the request and its step alone."""

    def __init__(self, **settings: Any) -> None:
        self.engine = Engine(**settings)
        self.step = 0

    def run(self, count: int) -> None:
        for _ in range(count):
            metadata = self.engine.metadata()
            rows = [
                logits_of(1, 1000 * int(name[1:]) + len(self.engine.requests[name].output_token_ids))
                for name in self.engine.batch.req_ids
            ]
            self.engine.record(Sampler()(torch.cat(rows), metadata).sampled_token_ids)

    def output(self, name: str) -> list[int]:
        return self.engine.requests[name].output_token_ids


def seeded(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "top_p": 0.95, "seed": 42, **changes})


def test_a_seeded_request_is_independent_of_its_batch_and_row() -> None:
    alone = Steps()
    alone.engine.add("r1", seeded())
    alone.run(12)

    crowd = Steps()
    for name in ("r2", "r3", "r4"):
        crowd.engine.add(name, seeded(seed=None if name == "r3" else int(name[1:])))
    crowd.run(3)
    crowd.engine.add("r1", seeded())
    crowd.run(4)
    assert crowd.engine.batch.req_id_to_index["r1"] == 3
    crowd.engine.remove("r2")
    crowd.run(4)
    assert crowd.engine.batch.req_id_to_index["r1"] == 0
    crowd.engine.batch.swap_states(0, 2)
    crowd.engine.add("r5", seeded(seed=None, temperature=0.0))
    crowd.run(4)
    assert crowd.engine.batch.req_id_to_index["r1"] == 2
    assert crowd.output("r1") == alone.output("r1")
    assert len(set(alone.output("r1"))) > 6


def test_a_preempted_request_goes_on_where_it_was() -> None:
    through = Steps()
    through.engine.add("r1", seeded())
    through.run(8)

    resumed = Steps()
    resumed.engine.add("r1", seeded(), output=through.output("r1")[:5])
    resumed.run(3)
    assert resumed.output("r1") == through.output("r1")


def test_the_offset_counts_tokens_that_are_not_known_yet() -> None:
    """With asynchronous scheduling the last token is -1 until it has been copied to the host."""
    parameters = [seeded()]
    logits = logits_of(1)
    known, unknown = (tokens_of(ours(logits, batch_of(parameters, outputs=[[4, last]]))) for last in (6, -1))
    assert known == unknown != tokens_of(ours(logits, batch_of(parameters, outputs=[[4]])))


def test_requests_without_a_seed_draw_from_torchs_generator() -> None:
    metadata = batch_of([SamplingParams(temperature=1.0) for _ in range(3)])
    mixed = batch_of([SamplingParams(temperature=1.0, seed=4 if row == 1 else None) for row in range(3)])
    row = logits_of(1)
    logits = row.expand(3, -1)
    for batch in (metadata, mixed):
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append([tokens_of(ours(logits, batch)) for _ in range(4)])
        assert runs[0] == runs[1] != runs[2]
        # Equal logits, other words: neither do the steps repeat each other, nor the rows.
        assert len({step[0] for step in runs[0]}) > 1
        assert any(step[0] != step[2] for step in runs[0])


def test_frequencies_of_unseeded_rows() -> None:
    metadata = batch_of([SamplingParams(temperature=1.0, top_k=3) for _ in range(10)])
    logits = torch.full((10, VOCABULARY), -10.0)
    logits[:, [10, 20, 30]] = torch.tensor([1.0, 2.0, 3.0]).log()
    torch.manual_seed(0)
    drawn = torch.cat([ours(logits, metadata).sampled_token_ids for _ in range(600)]).flatten()
    counts = torch.tensor([int((drawn == token).sum()) for token in (10, 20, 30)])
    assert int(counts.sum()) == 6000
    expected = torch.tensor([1000.0, 2000.0, 3000.0])
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.8  # chi-squared, 2 degrees of freedom, p = 0.001


@pytest.mark.parametrize("listed", [0, 1, 5, 20, 40])
def test_raw_logprobs_are_vllms(listed: int, vllm_calls: list[int]) -> None:
    parameters = [seeded(seed=row, logprobs=listed if row else None, repetition_penalty=1.2) for row in range(5)]
    metadata = batch_of(parameters, outputs=OUTPUTS[:5])
    logits = logits_of(5)
    output = ours(logits, metadata)
    assert vllm_calls == []
    mine = output.logprobs_tensors
    assert mine is not None
    theirs = Sampler.gather_logprobs(Sampler.compute_logprobs(logits), listed, output.sampled_token_ids[:, 0].long())
    for ours_, vllms in zip(mine[:3], theirs[:3], strict=True):
        assert ours_.dtype == vllms.dtype
        assert ours_.shape == vllms.shape
    assert torch.equal(mine.logprob_token_ids, theirs.logprob_token_ids)
    assert torch.equal(mine.selected_token_ranks, theirs.selected_token_ranks)
    torch.testing.assert_close(mine.logprobs, theirs.logprobs, **TOLERANCE)
    assert mine.cu_num_generated_tokens is None
    assert mine.tolists().logprobs.shape == (5, listed + 1)


def test_logprobs_of_real_rows_are_nearer_to_float64() -> None:
    """docs/vllm.md says how near, for the five most probable tokens of each row."""
    logits = real_rows()
    metadata = batch_of([SamplingParams(temperature=0.0, logprobs=5) for _ in logits], vocabulary=logits.shape[1])
    exact = logits.double().log_softmax(dim=1)

    def furthest(output: SamplerOutput) -> float:
        assert output.logprobs_tensors is not None
        ids, said = output.logprobs_tensors.logprob_token_ids[:, 1:], output.logprobs_tensors.logprobs[:, 1:]
        assert ids.shape == (16, 5)
        return float((said.double() - exact.gather(1, ids.long())).abs().max())

    assert 4.6e-7 < furthest(ours(logits, metadata)) <= 4.7e-7
    # torch's sums depend on the width of the processor's vectors.
    bound = 1.3e-5 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2.7e-5
    assert bound - 1e-6 < furthest(by_vllm(logits, metadata)) <= bound


def test_no_logprobs_unless_asked_for() -> None:
    assert ours(logits_of(2), batch_of([seeded(), seeded()])).logprobs_tensors is None


def test_a_grammar_may_leave_fewer_tokens_than_are_listed() -> None:
    """Every id can be turned into text, each is there once, and those not allowed have -inf."""
    logits = torch.full((3, VOCABULARY), -math.inf)  # vLLM applies grammars' bitmasks before it samples
    logits[0, [0, 2, 500]] = torch.tensor([1.0, 3.0, 2.0])
    logits[1, 999] = 4.0
    logits[2] = logits_of(1)[0]
    output = ours(logits, batch_of([seeded(logprobs=5) for _ in range(3)]))
    assert output.logprobs_tensors is not None
    ids, values, ranks = output.logprobs_tensors[:3]
    assert ids[0, 1:].tolist() == [2, 500, 0, 1, 3]
    assert ids[1, 1:].tolist() == [999, 0, 1, 2, 3]
    assert (values[:2, 1:] > -math.inf).sum(dim=1).tolist() == [3, 1]
    theirs = Sampler.gather_logprobs(Sampler.compute_logprobs(logits), 5, output.sampled_token_ids[:, 0].long())
    torch.testing.assert_close(values, theirs.logprobs, **TOLERANCE)
    assert torch.equal(ranks, theirs.selected_token_ranks)


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits", "processed_logprobs"])
@pytest.mark.parametrize("listed", [0, 3, -1])
@pytest.mark.parametrize("temperatures", [(0.0, 0.0, 0.0), (0.8, 0.0, 1.0), (0.8, 0.5, 1.0)], ids=str)
def test_other_scores_are_vllms(mode: str, listed: int, temperatures: tuple[float, ...]) -> None:
    """top_k = 1 makes vLLM's token the same, so that the whole output can be compared."""
    parameters = [
        SamplingParams(temperature=temperature, top_k=1 if temperature else 0, presence_penalty=0.5)
        for temperature in temperatures
    ]
    metadata = batch_of(parameters, outputs=OUTPUTS[1:4])
    metadata.max_num_logprobs = listed
    logits = logits_of(3)
    mine, theirs = ours(logits, metadata, mode), by_vllm(logits, metadata, mode)
    assert torch.equal(mine.sampled_token_ids, theirs.sampled_token_ids)
    assert mine.logprobs_tensors is not None
    assert theirs.logprobs_tensors is not None
    for ours_, vllms in zip(mine.logprobs_tensors[:3], theirs.logprobs_tensors[:3], strict=True):
        assert ours_.dtype == vllms.dtype
        torch.testing.assert_close(ours_, vllms, **TOLERANCE)


def test_logprobs_of_given_tokens() -> None:
    parameters = [SamplingParams(temperature=0.0, logprob_token_ids=[3, 4, 5] if row else [9]) for row in range(3)]
    for each in parameters:
        each.logprobs = None
    metadata = batch_of(parameters)
    metadata.logprob_token_ids = {0: [9], 1: [3, 4, 5], 2: [3, 4, 5]}
    logits = logits_of(3)
    mine, theirs = ours(logits, metadata).logprobs_tensors, by_vllm(logits, metadata).logprobs_tensors
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine.logprob_token_ids, theirs.logprob_token_ids)
    torch.testing.assert_close(mine.logprobs, theirs.logprobs, **TOLERANCE)


class Forced(AdapterLogitsProcessor):
    """A user's processor by vLLM's interface for one request at a time: the token in extra_args gets 1000 more."""

    calls = 0

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        forced = (params.extra_args or {}).get("forced")
        if forced is None:
            return None

        def change(output: list[int], logits: Tensor) -> Tensor:
            Forced.calls += 1
            logits[forced] += 1000.0
            return logits

        return change


TILT = torch.linspace(4.0, -4.0, VOCABULARY)


class Tilted(LogitsProcessor):
    """A user's processor that does not say which rows it changes."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        pass

    def apply(self, logits: Tensor) -> Tensor:
        return logits + TILT


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_a_row_with_a_processor_of_its_own_falls_back_alone(mode: str, vllm_calls: list[int]) -> None:
    Forced.calls = 0
    logits = logits_of(4)
    plain = [seeded(seed=row, logprobs=4) for row in range(4)]
    forced = [seeded(seed=row, logprobs=4, extra_args={"forced": 77} if row == 2 else None) for row in range(4)]
    without = ours(logits, batch_of(plain, outputs=OUTPUTS[:4]), mode)
    assert vllm_calls == []
    metadata = batch_of(forced, outputs=OUTPUTS[:4], processors=[Forced])
    output = ours(logits, metadata, mode)
    assert vllm_calls == [1]
    assert Forced.calls == 1
    assert tokens_of(output)[2] == 77
    assert without.logprobs_tensors is not None
    assert output.logprobs_tensors is not None
    for row in (0, 1, 3):
        assert tokens_of(output)[row] == tokens_of(without)[row]
        for fell_back, served in zip(output.logprobs_tensors[:3], without.logprobs_tensors[:3], strict=True):
            assert torch.equal(fell_back[row], served[row])
    theirs = by_vllm(logits, metadata, mode).logprobs_tensors
    assert theirs is not None
    torch.testing.assert_close(output.logprobs_tensors.logprobs[2], theirs.logprobs[2], **TOLERANCE)
    assert int(output.logprobs_tensors.selected_token_ranks[2]) == int(theirs.selected_token_ranks[2])


class Sharpened(LogitsProcessor):
    """Another one that does not, for vLLM to run after the temperature: it changes no greedy token."""

    def __init__(self, *arguments: Any) -> None:
        self.calls = 0

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass

    def apply(self, logits: Tensor) -> Tensor:
        self.calls += 1
        return logits * 1.5


def test_the_tokens_after_a_processor_of_unknown_rows_are_fastsamples(vllm_calls: list[int]) -> None:
    logits = logits_of(4)
    greedy = batch_of([SamplingParams(temperature=0.0) for _ in range(4)], processors=[Tilted])
    assert tokens_of(ours(logits, greedy)) == (logits + TILT).argmax(dim=1).tolist()
    drawn = ours(logits, batch_of([seeded(seed=row) for row in range(4)], outputs=OUTPUTS[:4], processors=[Tilted]))
    expected = ours(logits + TILT, batch_of([seeded(seed=row) for row in range(4)], outputs=OUTPUTS[:4]))
    assert tokens_of(drawn) == tokens_of(expected)
    assert vllm_calls == []


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", "processed_logits", "processed_logprobs"])
@pytest.mark.parametrize("processors", [[Tilted], [Sharpened], [Tilted, Sharpened, Forced]], ids=str)
@pytest.mark.parametrize("adjusted", ["nothing", "all"])
def test_scores_after_a_processor_of_unknown_rows_are_vllms(
    adjusted: str, processors: list[type[LogitsProcessor]], mode: str, vllm_calls: list[int]
) -> None:
    """Of the whole vocabulary, with kept sets in it, of greedy and drawn rows together; each processor runs once."""
    parameters = [
        SamplingParams(
            temperature=0.8 if row % 3 else 0.0,
            top_k=30,
            min_p=0.02,
            extra_args={"forced": 8} if row == 2 else None,
            **(ADJUSTMENTS[adjusted]() if row % 2 else {}),
        )
        for row in range(len(OUTPUTS))
    ]
    metadata = whole_vocabulary(batch_of(parameters, PROMPTS, OUTPUTS, processors))
    logits = logits_of(len(OUTPUTS))
    mine = ours(logits, metadata, mode)
    assert vllm_calls == []
    assert [each.calls for each in metadata.logitsprocs.all if type(each) is Sharpened] == [1] * (
        Sharpened in processors
    )
    theirs = by_vllm(logits, metadata, mode)
    assert [tokens_of(mine)[row] for row in (0, 3)] == [tokens_of(theirs)[row] for row in (0, 3)]
    assert mine.logprobs_tensors is not None
    assert theirs.logprobs_tensors is not None
    torch.testing.assert_close(mine.logprobs_tensors.logprobs, theirs.logprobs_tensors.logprobs, **TOLERANCE)


def test_rows_fall_back_also_after_a_processor_of_unknown_rows(vllm_calls: list[int]) -> None:
    """It is run once for the batch, and vLLM draws the row from what it made."""
    metadata = batch_of([seeded(seed=row, top_k=1) for row in range(3)], processors=[Tilted])
    (follower,) = (each for each in metadata.logitsprocs.argmax_invariant if type(each) is SeededOutputs)
    del follower.outputs[1]
    logits = logits_of(3)
    assert tokens_of(ours(logits, metadata)) == (logits + TILT).argmax(dim=1).tolist()
    assert vllm_calls == [1]


def test_a_minimum_length_with_a_grammar_falls_back_alone(vllm_calls: list[int]) -> None:
    """vLLM lifts the ban of the stop tokens where the grammar allows nothing else."""
    parameters = [SamplingParams(temperature=0.0, min_tokens=4) for _ in range(3)]
    metadata = batch_of(parameters)
    (minimum,) = (
        each for each in metadata.logitsprocs.non_argmax_invariant if type(each).__name__.startswith("MinTokens")
    )
    least, output, stops, _ = minimum.min_toks[1]
    minimum.min_toks[1] = (least, output, stops, True)
    minimum.restore_logits_slice = (
        torch.tensor([1] * len(stops), dtype=torch.int32),
        torch.tensor(sorted(stops), dtype=torch.int32),
    )
    logits = logits_of(3)
    logits[1] = -math.inf
    logits[1, STOP] = 2.0
    mine = tokens_of(ours(logits, metadata))
    assert vllm_calls == [1]
    assert mine[1] == STOP
    assert mine == tokens_of(by_vllm(logits, metadata))


def test_thinking_budgets_fall_back_alone(vllm_calls: list[int]) -> None:
    """With vLLM's own state of them: the request may think two tokens, then its thoughts are ended for it."""
    reasoning = ReasoningConfig()
    reasoning._reasoning_start_token_ids, reasoning._reasoning_end_token_ids = [120], [123, 124]

    def drawn(budget: int | None) -> list[list[int]]:
        engine = Engine(reasoning=reasoning)
        for row in range(3):
            parameters = seeded(seed=row, thinking_token_budget=budget if row == 1 else None)
            engine.add(str(row), parameters, prompt=(1, 2, 120))
        for step in range(6):
            engine.record(ours(logits_of(3, step), engine.metadata()).sampled_token_ids)
        return [engine.requests[str(row)].output_token_ids for row in range(3)]

    free = drawn(None)
    assert vllm_calls == []
    bound = drawn(2)
    assert vllm_calls == [1] * 6
    assert bound[0] == free[0]
    assert bound[2] == free[2]
    assert bound[1][2:4] == [123, 124]
    assert not {123, 124} & {*free[1], *bound[1][:2], *bound[1][4:]}


def test_a_seed_without_a_known_length_falls_back_alone(vllm_calls: list[int]) -> None:
    metadata = batch_of([seeded(seed=row) for row in range(3)])
    processors = metadata.logitsprocs.argmax_invariant
    (follower,) = (each for each in processors if type(each) is SeededOutputs)
    logits = logits_of(3)
    expected = tokens_of(ours(logits, metadata))
    del follower.outputs[1]
    mine = tokens_of(ours(logits, metadata))
    assert vllm_calls == [1]
    assert [mine[0], mine[2]] == [expected[0], expected[2]]
    # Without our processor, as under speculative decoding, whether vLLM says how long outputs are is up to neighbours.
    processors.remove(follower)
    Sampler()(logits.clone(), metadata)
    assert vllm_calls == [1, 3]


def test_invalid_rows_are_vllms_and_leave_their_neighbours_alone(vllm_calls: list[int]) -> None:
    metadata = batch_of([seeded(seed=row, logprobs=3) for row in range(4)])
    logits = logits_of(4)
    expected = tokens_of(ours(logits, metadata))
    broken = logits.clone()
    broken[1, 17] = math.nan
    broken[3] = -math.inf
    output = Sampler()(broken.clone(), metadata)
    assert vllm_calls == [2]
    mine = tokens_of(output)
    assert [mine[0], mine[2]] == [expected[0], expected[2]]
    assert all(0 <= token < VOCABULARY for token in mine)
    assert output.logprobs_tensors is not None
    assert bool((output.logprobs_tensors.logprob_token_ids >= 0).all())


def test_rows_are_told_apart_where_they_fall_back() -> None:
    """What vLLM is given for some rows is what it would find there in the whole batch."""
    parameters = [
        seeded(
            seed=row, presence_penalty=row / 10, frequency_penalty=row / 20, repetition_penalty=1 + row / 10, top_k=5
        )
        for row in range(4)
    ]
    for row, each in enumerate(parameters):
        each.temperature = 0.0
        each._bad_words_token_ids = [[300 + row]] if row != 1 else None
        each.logit_bias = {200 + row: 6.0}
        each.allowed_token_ids = list(range(row, 1000, 2))
    metadata = batch_of(parameters, PROMPTS[:4], OUTPUTS[:4])
    logits = logits_of(4)
    # Bad words of all rows, of which only a row's own are to be banned there.
    logits[:, 300:304] = torch.tensor([40.0, 39.0, 38.0, 37.0])
    whole = by_vllm(logits, metadata)
    assert tokens_of(whole) == [302, 301, 300, 301]
    v1_sampler.uninstall()
    rows = row_fallback.sample_by_vllm(Sampler().forward, logits, metadata, [0, 2, 3])
    assert tokens_of(rows) == [302, 300, 301]


def test_processors_that_change_nothing_of_a_row_are_not_run_where_it_falls_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each that is run allocates the whole batch once more."""
    run: list[str] = []
    through = row_fallback._OfRows.apply

    def recorded(self: Any, logits: Tensor) -> Tensor:
        run.append(type(self._processor).__name__)
        return through(self, logits)

    monkeypatch.setattr(row_fallback._OfRows, "apply", recorded)

    def rows(metadata: Any, of: list[int]) -> list[str]:
        run.clear()
        row_fallback.sample_by_vllm(v1_sampler.replaced_forward.theirs.__get__(Sampler()), logits_of(3), metadata, of)
        return sorted(run)

    assert rows(batch_of([seeded(), seeded(), seeded()]), [0, 1, 2]) == []
    edited = batch_of([seeded(), seeded(min_p=0.1, logit_bias={3: 1.0}, min_tokens=3), seeded()])
    everything = ["LogitBiasLogitsProcessor", "MinPLogitsProcessor", "MinTokensLogitsProcessor"]
    assert rows(edited, [1]) == rows(edited, [0, 1]) == everything
    # Of min-p vLLM knows how many rows have it, and not which.
    assert rows(edited, [0, 2]) == ["MinPLogitsProcessor"]


def test_the_bonus_token_of_speculative_decoding_is_vllms(
    vllm_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = batch_of([SamplingParams(temperature=0.0) for _ in range(2)])
    metadata.spec_token_ids = [[], []]
    logits = logits_of(2)
    # And nothing is asked of a batch that is vLLM's in any case.
    monkeypatch.setattr(v1_sampler, "rows_for_vllm", None)
    Sampler()(logits, metadata, predict_bonus_token=True)
    assert vllm_calls == [2]
    ours(logits.double(), metadata)
    assert vllm_calls == [2, 2]


def test_it_can_be_undone() -> None:
    v1_sampler.uninstall()
    assert Sampler.forward is v1_sampler.replaced_forward.theirs is not v1_sampler.forward
    assert SeededOutputs not in BUILTIN_LOGITS_PROCESSORS
    v1_sampler.install()
    v1_sampler.install()
    assert BUILTIN_LOGITS_PROCESSORS.count(SeededOutputs) == 1


def test_what_others_put_over_it_stays(vllm_calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is off, what another's patch calls of it is vLLM's; installed again, it does not call that patch."""
    calls: list[int] = []

    def patched(self: Sampler, *arguments: Any) -> SamplerOutput:
        calls.append(1)
        return v1_sampler.forward(self, *arguments)

    logits, metadata = logits_of(2), batch_of([seeded(), seeded(seed=3)])
    expected = tokens_of(ours(logits, metadata))
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "forward", patched)
        v1_sampler.uninstall()
        assert Sampler.forward is patched
        Sampler()(logits.clone(), metadata)
        assert (len(calls), vllm_calls) == (1, [2])
        v1_sampler.install()
        assert Sampler.forward is patched
        assert tokens_of(ours(logits, metadata)) == expected
        assert (len(calls), vllm_calls) == (2, [2])
    assert Sampler.forward is v1_sampler.forward


def test_what_others_put_there_before_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    v1_sampler.uninstall()
    theirs = Sampler.forward

    def patched(self: Sampler, *arguments: Any) -> SamplerOutput:
        return theirs(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "forward", patched)
        v1_sampler.install()
        v1_sampler.uninstall()
        assert Sampler.forward is patched
    assert Sampler.forward is theirs


def test_the_sampler_of_the_newer_model_runner() -> None:
    """In a process of its own, where vLLM takes Triton's interpreter for a device."""
    assert find_spec("triton") is not None, "Triton is not installed; `make test-vllm` installs it beside vLLM"
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "vllm_interpreted", str(here / "gpu_runner_cases.py")]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    finished = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
