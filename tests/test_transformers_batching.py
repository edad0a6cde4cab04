"""Continuous batching draws each row by the law with its request's parameters, through transformers' real managers."""

import logging
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import (
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
)

import fastsample
from fastsample.benchmarks.model import load_model
from fastsample.integrations.deferred import DeferredScores
from fastsample.integrations.transformers import enable
from fastsample.sampling import sample
from transformers_host import PAD, PROMPT, VOCABULARY, messages_of_fastsample, narrow_model, one_thread, warped

PROMPTS = [PROMPT[0].tolist(), [8, 8, 8], [100, 3, 77, 20, 5]]
SEED = 11


class Step(NamedTuple):
    """One call of `fastsample.sample`: what it was given, and what it drew."""

    logits: Tensor
    parameters: list[Any]
    tokens: Tensor


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


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What the manager's thread asks of fastsample."""
    taken: list[Step] = []

    def recorded(logits: Tensor, *parameters: Any, **options: Any) -> Tensor:
        # The tensors are the manager's own, which the next step overwrites.
        given = [value.clone() if isinstance(value, Tensor) else value for value in parameters]
        tokens = sample(logits, *parameters, **options)
        taken.append(Step(logits.clone(), given, tokens))
        return tokens

    # As deferred.py calls it; `sample` itself stays what it is.
    monkeypatch.setattr(fastsample, "sample", recorded)
    return taken


def batching(**options: Any) -> ContinuousBatchingConfig:
    """As small as it gets: the default is a cache of almost all memory."""
    small = {"seed": SEED, "num_blocks": 16, "page_size": 16, "max_batch_tokens": 64}
    return ContinuousBatchingConfig(**(small | options))


def generation(**options: Any) -> GenerationConfig:
    defaults = {"do_sample": True, "top_k": 0, "max_new_tokens": 6, "eos_token_id": -1, "pad_token_id": PAD}
    return GenerationConfig(**(defaults | options))


FILTERS = ("temperature", "top_k", "top_p", "min_p")


def assert_drawn_by_the_law(steps: list[Step], parameters: dict[str, Any] | None = None) -> None:
    """That the tokens are those of `sample` with these parameters, or the steps' own, from the seed of the batch on."""
    torch.manual_seed(SEED)
    for step in steps:
        given = parameters if parameters is not None else dict(zip(FILTERS, step.parameters, strict=True))
        assert torch.equal(step.tokens[:, 0], sample(step.logits, **given))


@pytest.mark.parametrize(
    ("per_request", "parameters"),
    [
        (False, {}),
        (False, {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02}),
        (True, {"temperature": 0.7, "top_p": 0.8}),
    ],
    ids=str,
)
def test_generate_batch_draws_by_the_law(
    model: LlamaForCausalLM, steps: list[Step], parameters: dict[str, Any], per_request: bool
) -> None:
    with enable(model):
        outputs = model.generate_batch(PROMPTS, generation(**parameters), batching(per_request_processors=per_request))
    assert [output.error for output in outputs.values()] == [None] * 3
    assert_drawn_by_the_law(steps, parameters)
    written = [token for output in outputs.values() for token in output.generated_tokens]
    assert sorted(written) == sorted(torch.cat([step.tokens for step in steps]).flatten().tolist())


def test_several_sequences_of_a_prompt(model: LlamaForCausalLM, steps: list[Step]) -> None:
    with enable(model):
        outputs = model.generate_batch(PROMPTS[:1], generation(num_return_sequences=3), batching())
    texts = [output.generated_tokens for output in outputs.values()]
    assert [len(tokens) for tokens in texts] == [6, 6, 6]
    assert len(set(map(tuple, texts))) == 3
    assert_drawn_by_the_law(steps, {})
    assert {token for tokens in texts for token in tokens} <= set(
        torch.cat([step.tokens for step in steps])[:, 0].tolist()
    )


def test_each_row_is_drawn_with_its_requests_parameters(model: LlamaForCausalLM, steps: list[Step]) -> None:
    config = generation(temperature=1.5, top_k=50, top_p=0.95)
    of_requests = [{"top_k": 1}, {"temperature": 0.5, "top_p": 0.6}, {}, {"temperature": 0.0}]
    prompts = [*PROMPTS, PROMPTS[0]]
    with enable(model):
        manager = model.init_continuous_batching(config, batching(per_request_processors=True))
        names = [
            manager.add_request(prompt, **parameters) for prompt, parameters in zip(prompts, of_requests, strict=True)
        ]
        manager.start()
        results = {}
        while len(results) < len(names):
            result = manager.get_result(timeout=30)
            assert result is not None
            assert result.error is None
            results[result.request_id] = result.generated_tokens
        manager.stop()
    rows = [
        dict(zip(FILTERS, values, strict=True))
        for values in zip(
            *(
                value.tolist() if isinstance(value, Tensor) else [value] * len(steps[0].logits)
                for value in steps[0].parameters
            ),
            strict=True,
        )
    ]
    float32 = {value: torch.tensor(value).item() for value in (0.95, 0.6)}
    assert rows == [
        {"temperature": 1.5, "top_k": 1, "top_p": float32[0.95], "min_p": 0.0},
        {"temperature": 0.5, "top_k": 50, "top_p": float32[0.6], "min_p": 0.0},
        {"temperature": 1.5, "top_k": 50, "top_p": float32[0.95], "min_p": 0.0},
        {"temperature": 0.0, "top_k": 50, "top_p": float32[0.95], "min_p": 0.0},
    ]
    assert_drawn_by_the_law(steps)
    greedy = model.generate(PROMPT, do_sample=False, max_new_tokens=6, eos_token_id=None)[0, PROMPT.shape[1] :].tolist()
    assert results[names[0]] == greedy, "top_k 1"
    assert results[names[3]] == greedy, "temperature 0"
    assert results[names[1]] != results[names[2]]


@pytest.mark.parametrize("per_request", [False, True], ids=["shared", "per request"])
def test_the_scores_are_those_of_transformers(model: LlamaForCausalLM, per_request: bool) -> None:
    """The managers' real lists, driven by hand with a tensor for each parameter."""
    config = generation(temperature=1.4, top_k=20, top_p=0.9, min_p=0.02)
    plain = model.init_continuous_batching(config, batching(per_request_processors=per_request)).logit_processor
    with enable(model):
        ours = model.init_continuous_batching(config, batching(per_request_processors=per_request)).logit_processor
        tensors = torch.tensor([[0.7, 1.0, 2.0, 1.0, 1.0], [0.9, 0.5, 0.2, 1.5, -1.0]]).view(torch.int32)
        tensors = torch.stack([tensors[0], torch.tensor([5, 300, 20, 9, 9], dtype=torch.int32), tensors[1]])
        # Longer than the rows, as they are where a step is padded.
        tensors = torch.nn.functional.pad(tensors, (0, 2))[: 3 if per_request else 0]
        logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
        scores = ours(PROMPT, logits, tensors)
        assert type(scores) is DeferredScores
        kept = scores.view(1, 5, VOCABULARY)[0]
        assert type(kept) is DeferredScores
        assert torch.equal(kept + 0, plain(PROMPT, logits, tensors))
        assert torch.equal(scores.view(1, 5, VOCABULARY) + 0, plain(PROMPT, logits, tensors)[None])
        assert torch.equal(scores.view(5 * VOCABULARY), plain(PROMPT, logits, tensors).flatten())
    assert torch.equal(ours(PROMPT, logits, tensors), plain(PROMPT, logits, tensors)), "no longer enabled"


def test_log_probabilities_are_of_the_kept_tokens(model: LlamaForCausalLM, steps: list[Step]) -> None:
    with enable(model):
        outputs = model.generate_batch(
            PROMPTS[:1], generation(temperature=0.7, top_k=9), batching(return_logprobs=True)
        )
    (output,) = outputs.values()
    assert output.generated_tokens == [int(step.tokens) for step in steps]
    expected = [warped(step.logits, 0.7, 9).softmax(-1)[0, int(step.tokens)].log().item() for step in steps]
    assert output.logprobs == expected


def test_a_request_that_streams_gets_every_token(model: LlamaForCausalLM, steps: list[Step]) -> None:
    with (
        enable(model),
        model.continuous_batching_context_manager(
            generation(top_p=0.9), continuous_batching_config=batching()
        ) as manager,
    ):
        name = manager.add_request(PROMPTS[0], streaming=True)
        seen = [output.generated_tokens[:] for output in manager.request_id_iter(name)]
    tokens = [int(step.tokens) for step in steps]
    assert seen[-1] == tokens
    assert all(tokens[: len(part)] == part for part in seen)


def test_greedy_batches_are_untouched(model: LlamaForCausalLM, steps: list[Step]) -> None:
    config = generation(do_sample=False)
    plain = model.generate_batch(PROMPTS, config, batching())
    with enable(model):
        ours = model.generate_batch(PROMPTS, config, batching())
    assert [o.generated_tokens for o in ours.values()] == [o.generated_tokens for o in plain.values()]
    assert steps == []


def test_a_kept_manager_ends_with_what_it_was_made_under(model: LlamaForCausalLM, steps: list[Step]) -> None:
    """With CUDA graphs it would replay what it captured, whether fastsample is on or off."""
    config = generation(temperature=0.7)

    def manager_kept_after_a_batch() -> Any:
        model.generate_batch(PROMPTS[:1], config, batching(), persistent_manager=True)
        return model._cached_continuous_batching_manager

    plain = manager_kept_after_a_batch()
    assert steps == []
    with enable(model):
        ours = manager_kept_after_a_batch()
        assert len(steps) == 6
        assert ours is not plain
        with enable(model):
            assert manager_kept_after_a_batch() is ours, "nothing was turned on or off"
        assert manager_kept_after_a_batch() is ours
        assert len(steps) == 18
    assert manager_kept_after_a_batch() not in (plain, ours)
    assert len(steps) == 18
    model.destroy_cached_continuous_batching_manager()


def test_a_manager_in_use_after_enable_samples_as_transformers_does(model: LlamaForCausalLM, steps: list[Step]) -> None:
    with enable(model):
        manager = model.init_continuous_batching(generation(temperature=0.7), batching())
    manager.add_request(PROMPTS[0])
    manager.start()
    result = manager.get_result(timeout=30)
    manager.stop()
    assert result is not None
    assert len(result.generated_tokens) == 6
    assert steps == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0 for this request; accepted: at least 0"),
        ({"temperature": float("nan")}, "temperature: got nan for this request; accepted: at least 0"),
        ({"top_p": float("nan")}, "top_p: got nan for this request"),
    ],
    ids=str,
)
def test_a_bad_parameter_fails_its_own_request_alone(
    model: LlamaForCausalLM, wrong: dict[str, float], message: str
) -> None:
    config = generation(temperature=0.7, top_p=0.9)
    with enable(model):
        manager = model.init_continuous_batching(config, batching(per_request_processors=True))
        names = [
            manager.add_request(prompt, **parameters)
            for prompt, parameters in zip(PROMPTS, ({}, wrong, {}), strict=True)
        ]
        manager.start()
        results = {}
        while len(results) < len(names):
            result = manager.get_result(timeout=30)
            assert result is not None
            results[result.request_id] = result
        manager.stop()
    first, failed, last = (results[name] for name in names)
    assert message in failed.error
    assert failed.generated_tokens == []
    assert (first.error, last.error) == (None, None)
    assert [len(first.generated_tokens), len(last.generated_tokens)] == [6, 6]


def test_requests_are_checked_by_transformers_as_well(model: LlamaForCausalLM) -> None:
    with enable(model):
        config = generation(temperature=0.7)
        ours = model.init_continuous_batching(config, batching(per_request_processors=True)).logit_processor
        with pytest.raises(TypeError, match="temperature"):
            ours.check_kwargs({"temperature": "hot"})
        with pytest.raises(ValueError, match="temperature: got"):
            ours.check_kwargs({"temperature": -1.0})
    ours.check_kwargs({"temperature": -1.0})  # off, transformers decides


# --- what is not served, or in part


class Shift(LogitsProcessor):
    supports_continuous_batching = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.roll(1, dims=1)


@pytest.mark.parametrize("per_request", [False, True], ids=["shared", "per request"])
def test_filters_that_others_follow_run_in_transformers(
    model: LlamaForCausalLM, steps: list[Step], warnings_of_fastsample: list[str], per_request: bool
) -> None:
    config = generation(temperature=0.7, top_k=9, typical_p=0.9)
    plain = model.init_continuous_batching(config, batching(per_request_processors=per_request)).logit_processor
    with enable(model):
        outputs = model.generate_batch(PROMPTS, config, batching(per_request_processors=per_request))
        ours = model.init_continuous_batching(config, batching(per_request_processors=per_request)).logit_processor
    (message,) = warnings_of_fastsample
    assert "TypicalLogitsWarper run in transformers" in message
    assert [output.error for output in outputs.values()] == [None] * 3
    assert_drawn_by_the_law(steps, {})
    tensors = torch.stack([torch.full((3,), 0.7).view(torch.int32), torch.full((3,), 9, dtype=torch.int32)])
    with enable(model):
        logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
        assert torch.equal(ours(PROMPT, logits, tensors) + 0, plain(PROMPT, logits, tensors))


def test_processors_before_the_filters_run_first(model: LlamaForCausalLM) -> None:
    config = generation(temperature=0.7, top_k=9)
    with enable(model):
        manager = model.init_continuous_batching(config, batching(per_request_processors=True))
        ours = manager.logit_processor
        ours.logits_processor = LogitsProcessorList([Shift(), *ours.logits_processor])
        rebuilt = type(ours)(ours, lambda: True)
        tensors = torch.stack([torch.full((3,), 0.7).view(torch.int32), torch.full((3,), 9, dtype=torch.int32)])
        logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
        scores = rebuilt(PROMPT, logits, tensors)
    assert type(scores) is DeferredScores
    assert torch.equal(scores + 0, warped(logits.roll(1, dims=1), 0.7, 9))


def test_compiled_batching_is_transformers_own(model: LlamaForCausalLM, warnings_of_fastsample: list[str]) -> None:
    config, compiled = generation(temperature=0.7), batching(varlen_compile_config=CompileConfig())
    plain = type(model.init_continuous_batching(config, compiled).logit_processor)
    with enable(model):
        for _ in range(2):
            assert type(model.init_continuous_batching(config, compiled).logit_processor) is plain
    (message,) = warnings_of_fastsample
    assert "compiled" in message


def test_a_manager_in_use_before_enable_stays_as_it_is(
    model: LlamaForCausalLM, steps: list[Step], warnings_of_fastsample: list[str]
) -> None:
    config = generation(temperature=0.7)
    manager = model.init_continuous_batching(config, batching())
    manager.start()
    manager.add_request(PROMPTS[0])
    assert manager.get_result(timeout=30) is not None
    with enable(model):
        manager.stop(keep_for_next_session=True)
        for _ in range(2):
            assert model.init_continuous_batching(config, batching()) is manager
    assert steps == []
    (message,) = warnings_of_fastsample
    assert "destroy_cached_continuous_batching_manager" in message
    model.destroy_cached_continuous_batching_manager()


def test_a_vocabulary_above_the_laws_is_transformers_own(
    model: LlamaForCausalLM, warnings_of_fastsample: list[str]
) -> None:
    config = generation(temperature=0.5)
    with enable(model):
        ours = model.init_continuous_batching(config, batching()).logit_processor
        row = torch.zeros(1, 2**22 + 1)
        row[0, 3] = 1.0
        for _ in range(2):
            scores = ours(PROMPT, row.clone(), torch.empty(0, 1, dtype=torch.int32))
    assert type(scores) is Tensor
    assert torch.equal(scores, row / 0.5)
    (message,) = warnings_of_fastsample
    assert str(2**22) in message


def test_transformers_before_filters_per_request(
    model: LlamaForCausalLM, warnings_of_fastsample: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastsample.integrations.transformers_batching", None)
    with enable(model):
        for _ in range(2):
            manager = model.init_continuous_batching(generation(temperature=0.7), batching())
            assert "fastsample" not in type(manager.logit_processor).__module__
    (message,) = warnings_of_fastsample
    assert "continuous batching" in message


def test_invalid_logits_fail_the_requests_of_the_step(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight[11] = torch.nan
    with enable(model):
        outputs = model.generate_batch(PROMPTS[:1], generation(temperature=0.7), batching())
    (output,) = outputs.values()
    assert "row 0" in output.error


def test_a_negative_temperature_is_an_error(model: LlamaForCausalLM) -> None:
    config = generation(temperature=0.7)
    with enable(model):
        ours = model.init_continuous_batching(config, batching(per_request_processors=True)).logit_processor
        probabilities = ours(PROMPT, torch.zeros(2, VOCABULARY), torch.tensor([[1.0, -1.0]]).view(torch.int32)).softmax(
            -1
        )
    with pytest.raises(ValueError, match="row 1"):
        torch.multinomial(probabilities, num_samples=1)


def test_real_batches(steps: list[Step]) -> None:
    real, tokenizer = load_model()
    prompts = [tokenizer(text)["input_ids"] for text in ("The sea in winter is", "Bread", "One, two, three,")]
    with enable(real):
        outputs = real.generate_batch(prompts, generation(temperature=0.8, top_p=0.9, max_new_tokens=4), batching())
    assert [len(output.generated_tokens) for output in outputs.values()] == [4, 4, 4]
    assert_drawn_by_the_law(steps, {"temperature": 0.8, "top_p": 0.9})
    for step in steps:
        assert warped(step.logits, 0.8, top_p=0.9).gather(1, step.tokens).isfinite().all()
