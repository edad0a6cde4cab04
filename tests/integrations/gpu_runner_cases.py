"""The sampler of vLLM's newer GPU model runner, with its kernels in Triton's interpreter; test_vllm.py runs this file.

In a process of its own, where vllm_interpreted.py has made that possible before vLLM is imported.
"""

import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample import sampler as vllm_sampler
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState

import fastsample
from fastsample.integrations.vllm import gpu_sampler

VOCABULARY = 300
SLOTS = 8
_CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    gpu_sampler.install()
    yield
    gpu_sampler.uninstall()


class Runner:
    """Requests in the slots of a sampler, as the model runner keeps them."""

    def __init__(self, mode: str = "raw_logprobs", **settings: Any) -> None:
        self.states = RequestState(SLOTS, 64, 64, 1, VOCABULARY, _CPU)
        config: Any = types.SimpleNamespace(reasoning_config=None)
        self.sampler = Sampler(config, SLOTS, VOCABULARY, _CPU, self.states, logprobs_mode=mode, **settings)

    def add(self, name: str, parameters: SamplingParams, prompt: Sequence[int], output: Sequence[int] = ()) -> None:
        known = [*prompt, *output]
        self.states.add_request(name, len(prompt), known, len(known), 20)
        self.sampler.add_request(self.states.req_id_to_index[name], parameters)
        self.states.apply_staged_writes()
        self.sampler.apply_staged_writes()

    def batch(self, names: Sequence[str]) -> InputBatch:
        """The batch in which each of these requests has one row, behind its last token."""
        slots = np.array([self.states.req_id_to_index[name] for name in names], dtype=np.int32)
        lengths = self.states.total_len.gpu[slots]
        count = len(names)
        index = torch.arange(count, dtype=torch.int32)
        bounds = torch.arange(count + 1, dtype=torch.int32)
        last = torch.stack([self.states.all_token_ids.gpu[slot, n - 1] for slot, n in zip(slots, lengths, strict=True)])
        mapping = torch.from_numpy(slots)
        needed: dict[str, Any] = {
            "req_ids": list(names),
            "num_reqs": count,
            "idx_mapping": mapping,
            "idx_mapping_np": slots,
            "expanded_idx_mapping": mapping,
            "expanded_local_pos": torch.zeros(count, dtype=torch.int32),
            "seq_lens": lengths,
            "seq_lens_cpu_upper_bound": lengths,
            "input_ids": last.to(torch.int32),
            "positions": (lengths - 1).long(),
            "logits_indices": index.long(),
            "cu_num_logits": bounds,
            "cu_num_logits_np": bounds.numpy(),
        }
        return InputBatch(**{name: needed.get(name) for name in InputBatch.__dataclass_fields__})

    def __call__(self, logits: Tensor, *names: str) -> Any:
        given = logits.clone()
        output = self.sampler(given, self.batch(names))
        assert torch.equal(given, logits)
        return output

    def by_vllm(self, logits: Tensor, *names: str) -> Any:
        gpu_sampler.uninstall()
        try:
            return self.sampler(logits.clone(), self.batch(names))
        finally:
            gpu_sampler.install()


def logits_of(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def tokens_of(output: Any) -> list[int]:
    assert output.sampled_token_ids.dtype == torch.int64
    tokens: list[int] = output.sampled_token_ids.flatten().tolist()
    return tokens


ADJUSTED: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.8},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {3: 9.0, 5: -50.0}},
    {"allowed_token_ids": [4, 90, 299]},
]


def test_greedy_tokens_are_vllms() -> None:
    runner = Runner()
    names = [str(number) for number in range(len(ADJUSTED))]
    for name, adjusted in zip(names, ADJUSTED, strict=True):
        runner.add(name, SamplingParams(temperature=0.0, **adjusted), [5, 6, 7], [5, 8, 5])
    for seed in range(5):
        logits = logits_of(len(names), seed)
        assert tokens_of(runner(logits, *names)) == tokens_of(runner.by_vllm(logits, *names))


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": 0.8},
        {"temperature": 1.0, "top_k": 9},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.03},
        {"temperature": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["processed_logits", "processed_logprobs"])
def test_kept_sets_and_scores_are_vllms(mode: str, filters: dict[str, Any]) -> None:
    runner = Runner(mode)
    runner.add("a", SamplingParams(**filters, logprobs=VOCABULARY, presence_penalty=0.5), [1, 2], [9])
    runner.add("b", SamplingParams(temperature=1.0, logprobs=VOCABULARY), [1, 2, 3])
    logits = logits_of(2)
    mine, theirs = runner(logits, "a", "b").logprobs_tensors, runner.by_vllm(logits, "a", "b").logprobs_tensors

    def by_token(scores: Any) -> Tensor:
        return torch.zeros(2, VOCABULARY).scatter_(1, scores.logprob_token_ids[:, 1:], scores.logprobs[:, 1:])

    torch.testing.assert_close(by_token(mine), by_token(theirs), rtol=1e-5, atol=1e-5)


def test_tokens_are_those_of_sample() -> None:
    runner = Runner()
    runner.add("a", SamplingParams(temperature=0.8, top_k=30, top_p=0.9, min_p=0.01, seed=5), [1, 2, 3], [9, 9])
    runner.add("b", SamplingParams(temperature=1.2, seed=-7), [1])
    logits = logits_of(2)
    expected = fastsample.sample(
        logits,
        torch.tensor([0.8, 1.2]),
        torch.tensor([30, 0]),
        torch.tensor([0.9, 1.0]),
        torch.tensor([0.01, 0.0]),
        order="min_p_first",
        seed=torch.tensor([5, -7]),
        offset=torch.tensor([2, 0]),
    )
    assert tokens_of(runner(logits, "a", "b")) == expected.tolist()
    for dtype in (torch.bfloat16, torch.float16):
        low = logits.to(dtype)
        assert tokens_of(runner(low, "a", "b")) == tokens_of(runner(low.float(), "a", "b"))


@pytest.mark.parametrize("adjusted", [{}, {"repetition_penalty": 1.5}, {"logit_bias": {4: 1.0}}], ids=str)
def test_a_seeded_request_is_independent_of_its_batch_row_and_slot(adjusted: dict[str, Any]) -> None:
    logits = logits_of(3)
    drawn = set()
    for output in ([], [8], [8, 9]):
        seen = set()
        for before, row in ((0, 0), (1, 1), (2, 2), (3, 1)):
            runner = Runner()
            for other in range(before):
                runner.add(str(other), SamplingParams(temperature=1.0, top_k=other, seed=other), [4, 4])
            runner.add("r", SamplingParams(temperature=1.3, seed=21, **adjusted), [1, 2, 3], output)
            names = [str(other) for other in range(before)]
            names.insert(row, "r")
            batch = logits_of(len(names), 7)
            batch[row] = logits[0]
            seen.add(tokens_of(runner(batch, *names))[row])
        assert len(seen) == 1
        drawn |= seen
    assert len(drawn) > 1


def test_requests_without_a_seed_differ() -> None:
    runner = Runner()
    for name in "abcdef":
        runner.add(name, SamplingParams(temperature=1.0), [1])
    row = torch.zeros(1, VOCABULARY)
    assert len(set(tokens_of(runner(row.expand(6, -1), *"abcdef")))) > 1


@pytest.mark.parametrize("listed", [0, 4, 32, 33])
@pytest.mark.parametrize("adjusted", [{}, {"presence_penalty": 0.5}], ids=str)
def test_raw_logprobs_are_vllms(listed: int, adjusted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    runner.add("a", SamplingParams(temperature=0.9, seed=1, logprobs=listed, **adjusted), [1, 2], [9])
    runner.add("b", SamplingParams(temperature=0.0), [1, 2, 3])
    logits = logits_of(2)
    replaced, calls = gpu_sampler.replaced_scores, []
    original = replaced.theirs
    monkeypatch.setattr(replaced, "theirs", lambda *given, **named: calls.append(1) or original(*given, **named))
    output = runner(logits, "a", "b")
    assert len(calls) == (1 if adjusted or listed > 32 else 0)
    mine = output.logprobs_tensors
    theirs = original(logits, listed, output.sampled_token_ids.flatten())
    assert torch.equal(mine.logprob_token_ids, theirs.logprob_token_ids)
    assert torch.equal(mine.selected_token_ranks, theirs.selected_token_ranks)
    torch.testing.assert_close(mine.logprobs, theirs.logprobs, rtol=1e-5, atol=1e-5)


def test_invalid_rows_have_a_token_and_leave_their_neighbours_alone() -> None:
    runner = Runner()
    for name in "abc":
        runner.add(name, SamplingParams(temperature=1.0, seed=ord(name)), [1])
    logits = logits_of(3)
    expected = tokens_of(runner(logits, *"abc"))
    logits[1, 3] = torch.nan
    gpu_sampler.install()
    drawn = runner.sampler(logits.clone(), runner.batch("abc")).sampled_token_ids.flatten().tolist()
    assert drawn == [expected[0], 0, expected[2]]


def test_a_sampler_with_its_own_draw_is_left_alone() -> None:
    class Watermarked(Sampler):
        """A subclass such as vLLM's for watermarks."""

        def _sample_random(self, processed_logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
            return torch.full((processed_logits.shape[0],), 42), processed_logits

    runner = Runner()
    runner.add("a", SamplingParams(temperature=1.0), [1])
    runner.sampler.__class__ = Watermarked
    assert tokens_of(runner(logits_of(1), "a")) == [42]


def test_what_others_put_over_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is off, what another's patch calls of it is vLLM's; installed again, it does not call that patch."""
    runner = Runner("processed_logits")
    runner.add("a", SamplingParams(temperature=1.0, top_k=3, seed=1, logprobs=5), [1])
    logits = logits_of(1)
    mine = runner(logits, "a")
    calls: list[int] = []

    def patched(self: Sampler, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return gpu_sampler.sample(self, *arguments, **named)

    monkeypatch.setattr(Sampler, "sample", patched)
    gpu_sampler.uninstall()
    assert Sampler.sample is patched
    assert vllm_sampler.compute_topk_scores is gpu_sampler.replaced_scores.theirs
    drawn: list[int] = []
    theirs = gpu_sampler.replaced_sample.theirs
    monkeypatch.setattr(
        gpu_sampler.replaced_sample, "theirs", lambda *given, **named: drawn.append(1) or theirs(*given, **named)
    )
    runner.sampler(logits.clone(), runner.batch("a"))
    assert len(calls) == len(drawn) == 1
    gpu_sampler.install()
    assert Sampler.sample is patched
    assert tokens_of(runner(logits, "a")) == tokens_of(mine)
    assert (len(calls), len(drawn)) == (2, 1)
    monkeypatch.undo()
    gpu_sampler.uninstall()
    assert Sampler.sample is theirs
