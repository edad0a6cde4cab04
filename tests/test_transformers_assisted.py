"""Assisted generation: what is drafted is accepted or replaced by law section 8, whatever drafts it."""

import copy
import gc
import logging
import math
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation import utils
from transformers.generation.candidate_generator import SinglePositionMultiTokenCandidateGenerator

import fastsample
from fastsample.benchmarks.model import load_model
from fastsample.integrations.transformers import disable, enable, is_enabled
from fastsample.speculative import Verified, verify_chain
from transformers_host import PAD, VOCABULARY, messages_of_fastsample, narrow_model, one_thread, sampled, warped

PARAMETERS = {"temperature": 0.7, "top_k": 40}
REPEATING = torch.tensor([[5, 20, 31, 9, 5, 20, 31]])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def model() -> LlamaForCausalLM:
    return narrow_model()


@pytest.fixture
def assistant(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Another model than the main one, but near enough to have drafts accepted."""
    assistant = copy.deepcopy(model)
    torch.manual_seed(2)
    with torch.no_grad():
        assistant.lm_head.weight += torch.randn_like(assistant.lm_head.weight) * 0.1
    return assistant


@pytest.fixture
def warnings_of_fastsample() -> Iterator[list[str]]:
    with messages_of_fastsample(logging.WARNING) as messages:
        yield messages


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], Verified]]:
    """What was asked of `verify_chain`, and its answers."""
    calls: list[tuple[tuple[Any, ...], Verified]] = []

    def recorded(*args: Any, **options: Any) -> Verified:
        answer = verify_chain(*args, **options)
        calls.append((args, answer))
        return answer

    monkeypatch.setattr(fastsample, "verify_chain", recorded)
    return calls


def verified_tokens(verifications: list[tuple[tuple[Any, ...], Verified]]) -> list[int]:
    return [token for _, answer in verifications for token in answer.tokens[0].tolist() if token >= 0]


def tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Two that write the same words with other numbers; the second one has a few more."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    made = []
    for words in (range(VOCABULARY), [*range(VOCABULARY + 10, 0, -1), 0]):
        tokenizer = Tokenizer(WordLevel({f"w{word}": place for place, word in enumerate(words)}, unk_token="w0"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        made.append(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", pad_token="w0"))
    return made[0], made[1]


@pytest.mark.parametrize("way", ["assistant", "prompt lookup", "early exit", "other tokenizer"])
def test_the_tokens_are_those_that_the_law_verifies(
    model: LlamaForCausalLM,
    assistant: LlamaForCausalLM,
    verifications: list[tuple[tuple[Any, ...], Verified]],
    way: str,
) -> None:
    target_tokenizer, assistant_tokenizer = tokenizers()
    if way == "other tokenizer":
        assistant.resize_token_embeddings(len(assistant_tokenizer))
    options: dict[str, Any] = {
        "assistant": {"assistant_model": assistant},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "early exit": {"assistant_early_exit": 1},
        "other tokenizer": {
            "assistant_model": assistant,
            "tokenizer": target_tokenizer,
            "assistant_tokenizer": assistant_tokenizer,
        },
    }[way]
    with enable(model), enable(assistant):
        result = sampled(model, REPEATING, max_new_tokens=12, **options, **PARAMETERS)
    drawn = result.sequences[0, REPEATING.shape[1] :]
    assert len(result.scores) == len(drawn) == 12
    assert verified_tokens(verifications)[:12] == drawn.tolist()
    drafts = [args[2] for args, _ in verifications]
    assert any(draft is not None for draft in drafts) == (way != "prompt lookup")
    assert way != "assistant" or sum(int(answer.accepted) for _, answer in verifications) > 0
    for token, scores, logits in zip(drawn, result.scores, result.logits, strict=True):
        assert torch.equal(scores, warped(logits, **PARAMETERS))
        assert scores[0, token] > -torch.inf


def test_drafts_are_drawn_from_the_scores_that_they_are_verified_by(
    model: LlamaForCausalLM,
    assistant: LlamaForCausalLM,
    verifications: list[tuple[tuple[Any, ...], Verified]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn_from: list[tuple[Tensor, Tensor]] = []
    sample = fastsample.sample

    def recorded(logits: Tensor, *parameters: Any, **options: Any) -> Tensor:
        tokens = sample(logits, *parameters, **options)
        drawn_from.append((fastsample.filter_logits(logits, *parameters), tokens))
        return tokens

    monkeypatch.setattr(fastsample, "sample", recorded)
    with enable(model), enable(assistant):
        # The assistant's own temperature is 1, so that what it filters is what it draws from.
        sampled(model, REPEATING, assistant_model=assistant, top_k=40)
    drafted = [
        (scores, token)
        for (_, tokens, draft, *_), _ in verifications
        if draft is not None
        for scores, token in zip(draft[0], tokens[0], strict=True)
    ]
    assert len(drafted) == len(drawn_from) > 0
    for (scores, token), (filtered, drawn) in zip(drafted, drawn_from, strict=True):
        assert torch.equal(scores, filtered[0])
        assert int(token) == int(drawn)


def test_the_same_seed_repeats_the_tokens(model: LlamaForCausalLM, assistant: LlamaForCausalLM) -> None:
    with enable(model), enable(assistant):
        first, again, other = (
            sampled(model, REPEATING, seed, assistant_model=assistant, **PARAMETERS).sequences for seed in (3, 3, 4)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_assistant_that_is_the_model_has_every_draft_accepted(
    model: LlamaForCausalLM, verifications: list[tuple[tuple[Any, ...], Verified]]
) -> None:
    """Where p = q, but for the rounding of another pass through the model, nothing is refused."""
    with enable(model):
        for seed in range(5):
            sampled(model, REPEATING, seed, assistant_model=model, top_k=40)
    drafts = [(args[1].shape[1], int(answer.accepted)) for args, answer in verifications]
    assert sum(count for count, _ in drafts) > 10
    assert all(count == accepted for count, accepted in drafts)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["assistant", "prompt lookup"])
def test_the_distribution_is_that_of_sampling_without_an_assistant(
    verifications: list[tuple[tuple[Any, ...], Verified]], way: str
) -> None:
    """2500 texts of four tokens, over those that a vocabulary of three and top-p leave, against exact probabilities."""
    words, length, texts = 3, 4, 2500
    model = narrow_model()
    with torch.no_grad():
        model.lm_head.weight[words + 1 :] = 0
        model.lm_head.weight[: words + 1] *= 0.05
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        assistant.lm_head.weight[:4] = assistant.lm_head.weight[[1, 0, 3, 2]]
    options: dict[str, Any] = {"assistant_model": assistant} if way == "assistant" else {"prompt_lookup_num_tokens": 3}
    filters = {"temperature": 0.9, "top_p": 0.95}
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=length,
        pad_token_id=PAD,
        suppress_tokens=list(range(words, VOCABULARY)),
        **filters,
    )
    prompt = torch.tensor([[1, 2, 0, 1, 2]])
    probabilities = {(): 1.0}
    for _ in range(length):
        probabilities = {
            (*text, token): of_text * float(of_token)
            for text, of_text in probabilities.items()
            for token, of_token in enumerate(
                next_probabilities(model, torch.cat([prompt, torch.tensor([text]).long()], dim=1), words, filters)
            )
            if of_token > 0
        }
    counts = Counter[tuple[int, ...]]()
    torch.manual_seed(0)
    with enable(model), enable(assistant):
        for _ in range(texts):
            ids = model.generate(prompt, generation_config=config, **options)
            counts[tuple(ids[0, -length:].tolist())] += 1
    assert max(int(answer.accepted) for _, answer in verifications) > 1
    assert set(counts) <= set(probabilities)
    # Texts too rare to be counted alone are counted together.
    often = [text for text, probability in probabilities.items() if probability * texts > 5]
    expected = [probabilities[text] * texts for text in often]
    counted = [counts[text] for text in often]
    rest = texts - sum(expected)
    if rest > 5:
        expected, counted = [*expected, rest], [*counted, texts - sum(counted)]
    assert len(expected) > 30
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counted, expected, strict=True))
    degrees = len(expected) - 1
    # The chi-square of p = 0.001, by the approximation of Wilson and Hilferty.
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


def next_probabilities(model: LlamaForCausalLM, ids: Tensor, words: int, filters: dict[str, Any]) -> Tensor:
    """Of the first `words` tokens, the only ones that are allowed, by transformers' own filters."""
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
    logits[:, words:] = -torch.inf
    return warped(logits, **filters)[0, :words].double().softmax(-1)


@pytest.mark.parametrize("way", ["assistant", "prompt lookup"])
def test_what_drafts_is_freed_with_the_call(
    model: LlamaForCausalLM, assistant: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """An assistant's cache must not wait until Python looks for cycles."""
    made: weakref.WeakSet[Any] = weakref.WeakSet()
    count = 0

    class Seen(type(model)):  # type: ignore[misc]
        def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            generator = super()._get_candidate_generator(*args, **kwargs)
            made.add(generator)
            count += 1
            return generator

    model.__class__ = Seen
    options: dict[str, Any] = {"assistant_model": assistant} if way == "assistant" else {"prompt_lookup_num_tokens": 3}
    gc.disable()
    try:
        with enable(model), enable(assistant):
            sampled(model, REPEATING, **options)
        assert count == 1
        assert len(made) == 0
    finally:
        gc.enable()


def test_a_drafter_that_does_not_draw_is_compared_with_draws(model: LlamaForCausalLM) -> None:
    """Gemma 4's assistants take the most probable token: their scores are not what the drafts were drawn from."""
    ids, scores = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 2, VOCABULARY)
    name = SinglePositionMultiTokenCandidateGenerator.__name__  # by which it is known
    drafter = type(name, (), {"get_candidates": lambda *_: (ids, scores)})()

    class WithSuchADrafter(type(model)):  # type: ignore[misc]
        def _get_candidate_generator(self, *_: object) -> Any:
            return drafter

    model.__class__ = WithSuchADrafter
    with enable(model):
        generator = model._get_candidate_generator(GenerationConfig(do_sample=True))
    assert generator.get_candidates(ids)[1].shape == (1, 0, 0)


def test_a_model_that_is_not_enabled_keeps_transformers_rule(
    model: LlamaForCausalLM, assistant: LlamaForCausalLM, verifications: list[tuple[tuple[Any, ...], Verified]]
) -> None:
    for options in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}):
        plain = sampled(model, REPEATING, **options, **PARAMETERS).sequences
        with enable(model):
            sampled(model, REPEATING, **options, **PARAMETERS)
        drawn = len(verifications)
        assert drawn > 0
        assert torch.equal(sampled(model, REPEATING, **options, **PARAMETERS).sequences, plain)
        assert len(verifications) == drawn


def test_greedy_assisted_generation_is_untouched(
    model: LlamaForCausalLM, assistant: LlamaForCausalLM, verifications: list[tuple[tuple[Any, ...], Verified]]
) -> None:
    for options in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}):
        plain = sampled(model, REPEATING, do_sample=False, **options).sequences
        with enable(model), enable(assistant):
            assert torch.equal(sampled(model, REPEATING, do_sample=False, **options).sequences, plain)
    assert verifications == []


def test_an_ensemble_is_verified_by_transformers(
    model: LlamaForCausalLM,
    assistant: LlamaForCausalLM,
    verifications: list[tuple[tuple[Any, ...], Verified]],
    warnings_of_fastsample: list[str],
) -> None:
    with enable(model), enable(assistant):
        for _ in range(2):
            sampled(model, REPEATING, assistant_model=assistant, assistant_ensemble_weight=0.5, **PARAMETERS)
    assert verifications == []
    (message,) = warnings_of_fastsample
    assert "assistant_ensemble_weight" in message


def test_a_transformers_without_that_function_verifies_by_itself(
    model: LlamaForCausalLM, warnings_of_fastsample: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(utils, "_speculative_sampling")
    with enable(model):
        for _ in range(2):  # no assistant, so that transformers does not miss the function
            sampled(model, REPEATING, prompt_lookup_num_tokens=2)
    (message,) = warnings_of_fastsample
    assert "_speculative_sampling" in message


def test_a_copy_verifies_for_itself(
    model: LlamaForCausalLM, verifications: list[tuple[tuple[Any, ...], Verified]]
) -> None:
    enable(model)
    twin = copy.deepcopy(model)
    disable(model)
    assert is_enabled(twin)
    sampled(twin, REPEATING, prompt_lookup_num_tokens=2)
    assert len(verifications) > 0
    assert type(twin)._get_candidate_generator is GenerationMixin._get_candidate_generator


def test_prompt_lookup_leaves_out_what_a_processor_forbids(
    model: LlamaForCausalLM, verifications: list[tuple[tuple[Any, ...], Verified]]
) -> None:
    """The drafts after 31 are 9, 5, 20, of which 5 is forbidden."""
    with enable(model):
        sampled(model, REPEATING, prompt_lookup_num_tokens=3, suppress_tokens=[5], max_new_tokens=4, **PARAMETERS)
    assert verifications[0][0][1].tolist() == [[9]]


def test_a_real_text_that_repeats_is_drafted_from_its_prompt(
    verifications: list[tuple[tuple[Any, ...], Verified]],
) -> None:
    real, tokenizer = load_model()
    inputs = tokenizer("one two three four five one two three four five one two three", return_tensors="pt")
    with enable(real):
        torch.manual_seed(0)
        ids = real.generate(
            **inputs, do_sample=True, temperature=0.5, top_k=50, max_new_tokens=8, prompt_lookup_num_tokens=3
        )
    drawn = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert verified_tokens(verifications)[: len(drawn)] == drawn
    assert tokenizer.decode(verifications[0][0][1][0]) == " four five one"
    assert sum(int(answer.accepted) for _, answer in verifications) > 0
