"""`generate` draws by the law once `enable(model)` was called, and in all else does what transformers does."""

import contextlib
import copy
import functools
import gc
import importlib.util
import io
import logging
import math
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    WatermarkingConfig,
)

import fastsample
from fastsample.benchmarks.model import load_model
from fastsample.integrations import transformers as integration
from fastsample.integrations.deferred import DeferredBatch, DeferredProbabilities, DeferredScores, SamplingParameters
from fastsample.integrations.transformers import disable, enable, is_enabled
from fastsample.integrations.transformers_chain import ServedChain
from transformers_host import (
    EOS,
    PAD,
    PROMPT,
    VOCABULARY,
    messages_of_fastsample,
    narrow_model,
    one_thread,
    redrawn,
    sampled,
    warped,
)

PARAMETERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]
each_parameters = pytest.mark.parametrize("parameters", PARAMETERS, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def model() -> LlamaForCausalLM:
    return narrow_model()


@pytest.fixture
def warnings_of_fastsample() -> Iterator[list[str]]:
    with messages_of_fastsample(logging.WARNING) as messages:
        yield messages


# --- the tokens


@each_parameters
def test_tokens_are_those_of_sample_on_the_same_logits_and_seed(
    model: LlamaForCausalLM, parameters: dict[str, Any]
) -> None:
    with enable(model):
        result = sampled(model, num_return_sequences=3, **parameters)
    assert result.sequences.shape == (3, PROMPT.shape[1] + 8)
    assert torch.equal(result.sequences[:, PROMPT.shape[1] :], redrawn(result.logits, parameters))


def test_parameters_come_from_the_models_config_a_given_config_and_keyword_arguments(model: LlamaForCausalLM) -> None:
    parameters = {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
    enable(model)
    by_keywords = sampled(model, **parameters).sequences
    config = GenerationConfig(do_sample=True, pad_token_id=PAD, max_new_tokens=8, **parameters)
    assert torch.equal(sampled(model, generation_config=config).sequences, by_keywords)
    keywords_win = GenerationConfig(do_sample=True, pad_token_id=PAD, max_new_tokens=8, temperature=9.0, top_k=3)
    assert torch.equal(sampled(model, generation_config=keywords_win, **parameters).sequences, by_keywords)
    model.generation_config.update(**parameters)
    assert torch.equal(sampled(model).sequences, by_keywords)
    assert not torch.equal(sampled(model, temperature=0.7).sequences, by_keywords)


def test_manual_seed_reproduces_and_another_seed_differs(model: LlamaForCausalLM) -> None:
    enable(model)
    first, again, other = (sampled(model, seed=seed, top_p=0.9).sequences for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_padded_batch_draws_from_each_rows_own_logits(model: LlamaForCausalLM) -> None:
    batch = torch.tensor([[PAD, PAD, 5, 20], [5, 20, 31, 9], [PAD, 8, 8, 8]])
    with enable(model):
        result = sampled(model, batch, attention_mask=batch != PAD, eos_token_id=None, top_k=20)
    assert torch.equal(result.sequences[:, 4:], redrawn(result.logits, {"top_k": 20}))
    assert len(result.sequences[:, 4:].unique()) > 8


def test_a_finished_row_is_padded(model: LlamaForCausalLM) -> None:
    class EosInTheThirdStep(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            if input_ids.shape[1] == PROMPT.shape[1] + 2:
                scores[1] = torch.full((VOCABULARY,), -math.inf).index_fill(0, torch.tensor(EOS), 0.0)
            return scores

    with enable(model):
        result = sampled(
            model, PROMPT.repeat(2, 1), eos_token_id=EOS, logits_processor=LogitsProcessorList([EosInTheThirdStep()])
        )
    assert result.sequences[1, PROMPT.shape[1] + 2 :].tolist() == [EOS] + [PAD] * 5
    assert (result.sequences[0, PROMPT.shape[1] + 2 :] != PAD).any()


def test_no_filter_of_transformers_runs(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a warper of transformers was called")

    for warper in (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper):
        monkeypatch.setattr(warper, "__call__", forbidden)
    parameters = {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
    with pytest.raises(AssertionError, match="warper"):
        sampled(model, **parameters)
    with enable(model):
        sampled(model, **parameters)


def test_a_streamer_gets_every_token(model: LlamaForCausalLM) -> None:
    class Collecting(transformers.generation.BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: Tensor) -> None:
            assert type(value) is Tensor
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-7)

    streamer = Collecting()
    with enable(model):
        result = sampled(model, streamer=streamer, top_p=0.9)
    assert streamer.tokens == [*result.sequences[0].tolist(), -7]


# --- the scores


@each_parameters
def test_scores_are_the_tensors_of_transformers(model: LlamaForCausalLM, parameters: dict[str, Any]) -> None:
    with enable(model):
        result = sampled(model, num_return_sequences=2, **parameters)
        without = sampled(model, num_return_sequences=2, output_scores=False, **parameters)
    assert torch.equal(result.sequences, without.sequences)
    assert {type(scores) for scores in result.scores} == {Tensor}
    assert torch.stack(result.scores).shape == (8, 2, VOCABULARY)
    for scores, logits in zip(result.scores, result.logits, strict=True):
        assert torch.equal(scores, warped(logits, **parameters))
    transition = model.compute_transition_scores(result.sequences, result.scores, normalize_logits=True)
    assert transition.isfinite().all()


def test_processors_before_the_filters_keep_working(model: LlamaForCausalLM) -> None:
    class Shift(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(1, torch.tensor([11]), 100.0)

    options = {"top_k": 20, "repetition_penalty": 1.7, "num_return_sequences": 4, "max_new_tokens": 5}
    with enable(model):
        shifted = sampled(model, logits_processor=LogitsProcessorList([Shift()]), bad_words_ids=[[12]], **options)
        banned = sampled(model, bad_words_ids=[[token] for token in range(250)], **options)
    assert (shifted.sequences[:, PROMPT.shape[1] :] == 11).all()
    assert (banned.sequences[:, PROMPT.shape[1] :] >= 250).all()
    assert all((scores > -math.inf).sum(dim=1).max() <= 20 for scores in banned.scores)


def test_invalid_logits_are_an_error(model: LlamaForCausalLM) -> None:
    class Poison(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(1, torch.tensor([11]), math.nan)

    enable(model)
    with pytest.raises(ValueError, match="row 0"):
        sampled(model, logits_processor=LogitsProcessorList([Poison()]), output_scores=False)


# --- what is not served, or in part


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.8},
        {"epsilon_cutoff": 0.005},
        {"eta_cutoff": 0.01},
        {"top_h": 0.5},
        {"renormalize_logits": True},
        {"watermarking_config": WatermarkingConfig(bias=3.0)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_filter_that_is_not_the_laws_runs_in_transformers(
    model: LlamaForCausalLM, options: dict[str, Any], warnings_of_fastsample: list[str]
) -> None:
    options = options | {"temperature": 0.9, "top_k": 50, "top_p": 0.95}
    config = GenerationConfig(do_sample=True, pad_token_id=PAD, max_new_tokens=8, **options)
    model._prepare_special_tokens(config)
    chain = model._get_logits_processor(config, PROMPT.shape[1], device="cpu")
    with enable(model):
        result = sampled(model, generation_config=config)
        sampled(model, generation_config=config)
    (message,) = warnings_of_fastsample
    assert "TemperatureLogitsWarper" in message
    input_ids = PROMPT
    for step, (scores, logits) in enumerate(zip(result.scores, result.logits, strict=True)):
        input_ids = result.sequences[:, : PROMPT.shape[1] + step]
        assert torch.equal(scores, chain(input_ids, logits.clone()))
    if "top_h" not in options:  # there fastsample still runs the filters after it
        assert torch.equal(result.sequences[:, PROMPT.shape[1] :], redrawn(result.scores, {}))
    assert torch.stack(result.scores).gather(2, result.sequences[:, PROMPT.shape[1] :].T[..., None]).isfinite().all()


def test_a_warper_that_is_not_quite_transformers_own_stays(model: LlamaForCausalLM) -> None:
    class Doubled(TemperatureLogitsWarper):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores * 2

    config = GenerationConfig(do_sample=True, num_beams=1)
    for stays in (
        Doubled(2.0),
        TopKLogitsWarper(5, filter_value=-1e4),
        TopPLogitsWarper(0.5, min_tokens_to_keep=2),
        MinPLogitsWarper(0.5, min_tokens_to_keep=2),
    ):
        with enable(model):
            chain = model._get_logits_processor(config, 4, logits_processor=[stays, TopPLogitsWarper(0.9)])
        assert chain[0] is stays
        assert len(chain) == 2
        logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))
        assert torch.equal(chain(PROMPT, logits) + 0, TopPLogitsWarper(0.9)(PROMPT, stays(PROMPT, logits)))


def test_filters_in_another_order_stay_apart(model: LlamaForCausalLM) -> None:
    """top_p before top_k is another distribution than top_k before top_p."""
    config = GenerationConfig(do_sample=True)
    top_p_first = [TopPLogitsWarper(0.5), TopKLogitsWarper(200)]
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    with enable(model):
        chain = model._get_logits_processor(config, 4, logits_processor=top_p_first)
    assert torch.equal(chain(PROMPT, logits) + 0, LogitsProcessorList(top_p_first)(PROMPT, logits))


def test_beam_sampling_is_transformers_own(model: LlamaForCausalLM, warnings_of_fastsample: list[str]) -> None:
    plain = sampled(model, num_beams=3, top_p=0.9).sequences
    with enable(model):
        assert torch.equal(sampled(model, num_beams=3, top_p=0.9).sequences, plain)
        assert torch.equal(sampled(model, num_beams=3, top_p=0.9).sequences, plain)
    (message,) = warnings_of_fastsample
    assert "beam" in message


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.3}], ids=str)
def test_greedy_search_is_untouched(model: LlamaForCausalLM, options: dict[str, Any]) -> None:
    plain = sampled(model, do_sample=False, **options)
    with enable(model):
        ours = sampled(model, do_sample=False, **options)
        chain = model._get_logits_processor(GenerationConfig(do_sample=False), 4)
    assert torch.equal(ours.sequences, plain.sequences)
    assert torch.equal(torch.stack(ours.scores), torch.stack(plain.scores))
    assert chain == []


# --- on and off


def test_disable_restores(model: LlamaForCausalLM) -> None:
    attributes = set(vars(model))
    plain = sampled(model, top_p=0.9).sequences
    enable(model)
    assert is_enabled(model)
    assert not torch.equal(sampled(model, top_p=0.9, max_new_tokens=30).sequences[:, :12], plain)
    disable(model)
    disable(model)
    assert not is_enabled(model)
    assert set(vars(model)) == attributes
    assert torch.equal(sampled(model, top_p=0.9).sequences, plain)


def test_the_context_manager_restores_what_was_there(model: LlamaForCausalLM) -> None:
    with enable(model) as entered:
        assert entered is model
        assert is_enabled(model)
    assert not is_enabled(model)
    with contextlib.suppress(KeyError), enable(model):
        raise KeyError
    assert not is_enabled(model)
    enable(model)
    with enable(model):
        pass
    assert is_enabled(model), "it was enabled on entry"


def test_blocks_of_several_threads_end_with_the_last_of_them(model: LlamaForCausalLM) -> None:
    entered, may_leave = threading.Event(), threading.Event()

    def other_thread() -> None:
        with enable(model):
            entered.set()
            assert may_leave.wait(30)

    thread = threading.Thread(target=other_thread)
    with enable(model):
        thread.start()
        assert entered.wait(30)
    assert is_enabled(model), "the other block is open"
    may_leave.set()
    thread.join()
    assert not is_enabled(model)


def test_blocks_and_calls_without_one(model: LlamaForCausalLM) -> None:
    with enable(model):
        with enable(model):
            pass
        assert is_enabled(model), "the outer block is open"
        enable(model)
    assert is_enabled(model), "enabled without a block as well"
    disable(model)
    assert not is_enabled(model)

    with enable(model):
        disable(model)
        assert not is_enabled(model)
        enable(model)
    assert is_enabled(model), "enabled after what the block had done was undone"
    disable(model)

    twice = enable(model)
    enable(model)
    for _ in range(2):
        with twice:
            pass
    assert is_enabled(model), "a block undoes its own call, once"

    twin = copy.deepcopy(model)
    with enable(twin):
        pass
    assert is_enabled(twin), "it was enabled on entry"


NAMES = ["_get_logits_processor", "init_continuous_batching", "_get_candidate_generator"]


@pytest.mark.parametrize("name", NAMES)
def test_what_another_library_has_set_is_not_lost(model: LlamaForCausalLM, name: str) -> None:
    theirs = functools.partial(getattr(type(model), name), model)
    setattr(model, name, theirs)
    with pytest.raises(TypeError, match=f"model: {name} of this LlamaForCausalLM were replaced by somebody else"):
        enable(model)
    disable(model)
    assert [name for name in NAMES if name in vars(model)] == [name]
    assert getattr(model, name) is theirs
    delattr(model, name)
    with enable(model):
        assert is_enabled(model)


@pytest.mark.parametrize("name", NAMES)
def test_disable_takes_off_what_is_ours_and_names_the_rest(
    model: LlamaForCausalLM, warnings_of_fastsample: list[str], name: str
) -> None:
    enable(model)
    ours = getattr(model, name)
    theirs = functools.partial(ours)
    setattr(model, name, theirs)
    disable(model)
    assert [name for name in NAMES if name in vars(model)] == [name]
    assert getattr(model, name) is theirs
    (message,) = warnings_of_fastsample
    assert name in message
    assert "disable(model) again" in message
    setattr(model, name, ours)
    disable(model)
    assert not any(name in vars(model) for name in NAMES)


def test_a_disabled_model_is_freed_at_once() -> None:
    gc.disable()
    try:
        model = narrow_model()
        enable(model)
        with enable(model):
            sampled(model)
        disable(model)
        seen = weakref.ref(model)
        del model
        assert seen() is None
    finally:
        gc.enable()


def test_a_failing_generate_leaves_the_model_enabled_and_usable(model: LlamaForCausalLM) -> None:
    class Fails(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            raise KeyError

    with enable(model):
        before = sampled(model).sequences
        with pytest.raises(KeyError):
            sampled(model, logits_processor=LogitsProcessorList([Fails()]))
        assert torch.equal(sampled(model).sequences, before)


def test_a_copy_is_its_own_model(model: LlamaForCausalLM) -> None:
    enable(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight *= -1
    disable(model)
    assert is_enabled(twin)
    result = sampled(twin)
    assert torch.equal(result.sequences[:, PROMPT.shape[1] :], redrawn(result.logits, {}))

    enable(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert not is_enabled(loaded)
    assert torch.equal(sampled(loaded, do_sample=False).sequences, sampled(model, do_sample=False).sequences)


def test_other_models_stay_as_they_are(model: LlamaForCausalLM) -> None:
    other = copy.deepcopy(model)
    with enable(model):
        assert not is_enabled(other)
        chain = other._get_logits_processor(GenerationConfig(do_sample=True, top_p=0.5), 4)
        assert [type(warper) for warper in chain] == [TopPLogitsWarper]


@pytest.mark.parametrize("place", [0, 1], ids=["before", "after"])
def test_a_processor_that_is_inserted_into_the_chain_is_called(model: LlamaForCausalLM, place: int) -> None:
    called_with = []

    class Looks(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            called_with.append(scores)
            return scores

    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    with enable(model):
        chain = model._get_logits_processor(GenerationConfig(do_sample=True, top_p=0.5), 4)
    assert (len(chain), type(chain)) == (1, ServedChain)

    def drawn() -> list[int]:
        torch.manual_seed(0)
        return torch.multinomial(chain(PROMPT, logits).softmax(-1), 1)[:, 0].tolist()

    alone = drawn()
    chain.insert(place, Looks())
    assert drawn() == alone
    assert [type(scores) for scores in called_with] == [(Tensor, DeferredScores)[place]]


def test_what_is_not_a_model_is_refused(model: LlamaForCausalLM) -> None:
    class Wrapper(torch.nn.Module):
        """Forwards unknown attributes, as PEFT does."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.model, name)

    for wrong in (Wrapper(), torch.nn.Linear(2, 2), None):
        with pytest.raises(TypeError, match=rf"model: got {type(wrong).__name__}; .*pipeline\.model"):
            enable(wrong)
        with pytest.raises(TypeError, match="model: got"):
            disable(wrong)


def test_without_transformers_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    spec = importlib.util.spec_from_file_location("copy_of_the_integration", integration.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"pip install 'fastsample\[transformers\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- deferred tensors

FILTERS = SamplingParameters(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01)


@pytest.fixture(params=[torch.no_grad, torch.inference_mode, torch.enable_grad])
def logits(request: pytest.FixtureRequest) -> Iterator[Tensor]:
    with request.param():
        yield torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 3


def test_softmax_and_multinomial_draw_by_the_law(logits: Tensor) -> None:
    torch.manual_seed(5)
    expected = fastsample.sample(logits, *FILTERS, num_samples=1)
    for softmax in (
        lambda scores: torch.nn.functional.softmax(scores, dim=-1),
        lambda scores: torch.softmax(scores, 1),
        lambda scores: scores.softmax(-1, dtype=torch.float32),
    ):
        torch.manual_seed(5)
        scores = DeferredScores.of(logits, FILTERS)
        probabilities = softmax(scores)
        assert type(probabilities) is DeferredProbabilities
        tokens = torch.multinomial(probabilities, num_samples=1)
        assert type(tokens) is Tensor
        assert torch.equal(tokens, expected)
        assert type(scores) is DeferredScores, "nothing has looked at the values"
    generator = torch.Generator().manual_seed(5)
    tokens = DeferredScores.of(logits, FILTERS).softmax(-1).multinomial(1, generator=generator)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    "use",
    [
        lambda scores: scores + 0,
        lambda scores: scores[1:, 3],
        lambda scores: torch.stack([scores, scores]),
        lambda scores: torch.cat((torch.zeros(1, VOCABULARY), scores)),
        lambda scores: torch.log_softmax(scores, dim=-1),
        lambda scores: torch.softmax(scores, dim=0).nan_to_num(),
        lambda scores: torch.softmax(scores, dim=-1, dtype=torch.float64),
        lambda scores: torch.softmax(scores, dim=-1).sum(dim=1),
        lambda scores: torch.softmax(scores, dim=-1).view(1, 4, VOCABULARY)[0].cumsum(-1),
        lambda scores: torch.zeros(2, 4, VOCABULARY).index_put((torch.tensor(1),), scores),
        lambda scores: torch.from_numpy(scores.numpy().copy()),
        lambda scores: torch.tensor(scores.tolist()),
        lambda scores: scores.argmax(dim=-1),
        lambda scores: scores.clone().masked_fill_(scores < 0, 0.0),
    ],
)
def test_any_other_use_finds_transformers_values(logits: Tensor, use: Any) -> None:
    ours = use(DeferredScores.of(logits, FILTERS))
    assert type(ours) is Tensor
    assert torch.equal(ours, use(warped(logits, *FILTERS)))


def test_once_looked_at_it_is_an_ordinary_tensor_that_can_be_written_to(logits: Tensor) -> None:
    before = logits.clone()
    scores = DeferredScores.of(logits, FILTERS)
    scores[:, logits.argmax(dim=1)] = -math.inf
    assert type(scores) is Tensor
    assert vars(scores) == {}
    assert torch.equal(logits, before), "the logits are somebody else's"
    probabilities = torch.softmax(scores, dim=-1)
    assert type(probabilities) is Tensor
    drawn = torch.multinomial(probabilities, 50, replacement=True)
    assert not torch.isin(drawn, logits.argmax(dim=1)).any()
    row = torch.zeros(2, 4, VOCABULARY)
    row[1] = DeferredScores.of(logits, FILTERS)
    assert torch.equal(row[1], warped(logits, *FILTERS))


def test_shape_and_dtype_do_not_compute_the_values(logits: Tensor) -> None:
    scores = DeferredScores.of(logits, FILTERS)
    assert scores.shape == logits.shape
    assert (scores.dim(), scores.ndim, scores.size(-1)) == (2, 2, VOCABULARY)
    assert (scores.dtype, scores.device) == (logits.dtype, logits.device)
    assert type(scores) is DeferredScores


def test_other_draws_are_torchs(logits: Tensor) -> None:
    for arguments in ({"num_samples": 5}, {"num_samples": 300, "replacement": True}):
        torch.manual_seed(5)
        ours = torch.multinomial(DeferredScores.of(logits, FILTERS).softmax(-1), **arguments)
        torch.manual_seed(5)
        assert torch.equal(ours, torch.multinomial(warped(logits, *FILTERS).softmax(-1), **arguments))


def test_each_row_has_its_own_parameters(logits: Tensor) -> None:
    temperature, top_k = torch.tensor([0.0, 0.5, 1.0, 2.0]), torch.tensor([0, 5, 300, 2], dtype=torch.int32)
    rows = SamplingParameters(temperature, top_k, torch.tensor([1.0, 0.9, 0.5, 1.0]))
    torch.manual_seed(5)
    expected = fastsample.sample(logits, *rows, num_samples=1)
    torch.manual_seed(5)
    batch = DeferredScores.of(logits, rows).view(1, 4, VOCABULARY)
    assert type(batch) is DeferredBatch
    assert torch.equal(batch[0].softmax(-1).multinomial(1), expected)
    assert type(batch) is DeferredBatch, "nothing has looked at the values"

    probabilities = DeferredScores.of(logits, rows).softmax(-1) + 0
    assert probabilities[0].tolist() == torch.nn.functional.one_hot(logits[0].argmax(), VOCABULARY).tolist()
    for row in range(1, 4):
        alone = warped(logits[row : row + 1], *(value[row].item() for value in rows[:3]))
        assert torch.equal(probabilities[row : row + 1], alone.softmax(-1))
    half = logits.bfloat16()
    assert torch.equal(SamplingParameters(torch.full((4,), 0.7)).scores(half), SamplingParameters(0.7).scores(half))


@pytest.mark.parametrize(
    "use",
    [
        lambda scores: scores.view(1, 4, VOCABULARY) + 0,
        lambda scores: scores.view(1, 4, VOCABULARY)[:, 2],
        lambda scores: scores.view(1, 4, VOCABULARY)[-1],
        lambda scores: scores.view(1, 4, VOCABULARY)[0, 1],
        lambda scores: scores.view(1, 4, VOCABULARY)[torch.tensor([0])],
        lambda scores: scores.view(1, 4, VOCABULARY).squeeze(0).argmax(-1),
        lambda scores: scores.view(2, 2, VOCABULARY),
        lambda scores: scores.view(torch.int32).float(),
        lambda scores: scores.view(1, 4, VOCABULARY)[0].log_softmax(-1),
    ],
)
def test_any_other_use_of_the_view_finds_transformers_values(logits: Tensor, use: Any) -> None:
    ours = use(DeferredScores.of(logits, FILTERS))
    assert type(ours) is Tensor
    assert torch.equal(ours, use(warped(logits, *FILTERS)))


def test_code_that_gets_past_the_override_finds_nan(logits: Tensor) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        assert torch.isnan(DeferredScores.of(logits, FILTERS) * 1).all()


# --- a real model


@pytest.fixture(scope="module")
def real() -> tuple[Any, Any]:
    return load_model()


@pytest.fixture(scope="module")
def chats(real: tuple[Any, Any]) -> Any:
    questions = ["Name a fruit.", "Write one sentence about rain.", "What is the capital of France? Explain in detail."]
    return real[1].apply_chat_template(
        [[{"role": "user", "content": question}] for question in questions],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )


def test_real_greedy_text_is_that_of_transformers(real: tuple[Any, Any], chats: Any) -> None:
    model, tokenizer = real
    plain = model.generate(**chats, do_sample=False, max_new_tokens=8)
    with enable(model):
        ours = model.generate(**chats, do_sample=False, max_new_tokens=8)
    assert tokenizer.batch_decode(ours) == tokenizer.batch_decode(plain)
    assert "Paris" in tokenizer.decode(ours[2])


def test_real_tokens_lie_in_the_kept_set_of_transformers(real: tuple[Any, Any], chats: Any) -> None:
    model, _ = real
    parameters = {"temperature": 0.8, "top_k": 50, "top_p": 0.9}
    with enable(model):
        torch.manual_seed(0)
        result = model.generate(
            **chats,
            do_sample=True,
            max_new_tokens=8,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
            **parameters,
        )
    drawn = result.sequences[:, chats["input_ids"].shape[1] :]
    assert torch.equal(drawn, redrawn(result.logits, parameters))
    for tokens, logits in zip(drawn.T, result.logits, strict=True):
        assert warped(logits, **parameters).gather(1, tokens[:, None]).isfinite().all()


def test_real_pipeline_and_streamer(real: tuple[Any, Any]) -> None:
    model, tokenizer = real
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    enable(pipeline.model)
    try:
        # All that the pipeline would otherwise set on its own.
        options = {"do_sample": True, "temperature": 0.9, "top_k": 20, "max_new_tokens": 8}
        torch.manual_seed(0)
        (first,) = pipeline("The sea in winter is", **options)
        torch.manual_seed(0)
        (again,) = pipeline("The sea in winter is", **options)
        assert first == again
        streamer = transformers.TextIteratorStreamer(tokenizer)
        torch.manual_seed(0)
        model.generate(**tokenizer("The sea in winter is", return_tensors="pt"), streamer=streamer, **options)
        assert "".join(streamer) == first["generated_text"]
    finally:
        disable(pipeline.model)
