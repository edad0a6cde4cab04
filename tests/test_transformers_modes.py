"""Every way to call `generate` that is no mode of its own: processors, streamers, pipelines, caches, other models."""

import logging
import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CompileConfig,
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    SynthIDTextWatermarkingConfig,
)

import fastsample
from fastsample.benchmarks.model import load_model
from fastsample.integrations.transformers import disable, enable
from fastsample.integrations.transformers_chain import can_defer
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

PAGE = Path(__file__).resolve().parents[1] / "docs" / "transformers.md"
FILTERS = {"temperature": 0.8, "top_k": 60, "top_p": 0.95}


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


# --- processors


class OnlyEven(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 1, -math.inf)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[12], [20, 31], [9, 5]]},
        {"min_new_tokens": 6, "eos_token_id": EOS},
        {"min_length": 9, "eos_token_id": EOS},
        {"sequence_bias": [[[5], 4.0], [[9, 20], 50.0]]},
        {"suppress_tokens": list(range(100))},
        {"begin_suppress_tokens": list(range(200))},
        {"forced_eos_token_id": EOS, "eos_token_id": EOS},
        {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": EOS},
        {"remove_invalid_values": True},
        {"guidance_scale": 1.5},
        {"prefix_allowed_tokens_fn": lambda row, ids: [1 + int(ids[-1]) % 7, 50, 60, 70]},
        {"logits_processor": LogitsProcessorList([OnlyEven()])},
    ],
    ids=lambda options: next(iter(options)),
)
def test_processors_run_before_the_filters(
    model: LlamaForCausalLM, options: dict[str, Any], warnings_of_fastsample: list[str]
) -> None:
    with enable(model):
        result = sampled(model, num_return_sequences=3, **options, **FILTERS)
    assert warnings_of_fastsample == []
    of_config = {name: value for name, value in options.items() if name in vars(GenerationConfig())}
    config = GenerationConfig(
        do_sample=True, num_beams=1, use_cache=True, top_k=0, max_length=PROMPT.shape[1] + 8, **of_config
    )
    model._prepare_special_tokens(config, device="cpu")
    processors = model._get_logits_processor(
        config, PROMPT.shape[1], device="cpu", **{name: options[name] for name in options.keys() - of_config.keys()}
    )
    assert len(processors) == 1
    with torch.no_grad():  # guidance runs the model
        processed = tuple(
            processors(result.sequences[:, : PROMPT.shape[1] + step], logits.clone())
            for step, logits in enumerate(result.logits)
        )
    for ours, before in zip(result.scores, processed, strict=True):
        assert torch.equal(ours, warped(before, **FILTERS))
    drawn = redrawn(processed, FILTERS)
    if config.eos_token_id is not None:
        ended = (drawn == EOS).cumsum(1) - (drawn == EOS).long() > 0
        drawn[ended] = PAD
    assert torch.equal(result.sequences[:, PROMPT.shape[1] :], drawn[:, : len(result.logits)])


def test_a_watermark_by_tournament_is_drawn_from(model: LlamaForCausalLM, warnings_of_fastsample: list[str]) -> None:
    watermark = SynthIDTextWatermarkingConfig(ngram_len=3, keys=[654, 400, 836], context_history_size=64)
    with enable(model):
        result = sampled(model, watermarking_config=watermark, **FILTERS)
    (message,) = warnings_of_fastsample
    assert "SynthIDTextWatermarkLogitsProcessor" in message
    assert torch.equal(result.sequences[:, PROMPT.shape[1] :], redrawn(result.scores, {}))


def test_scores_that_sample_does_not_take_are_transformers_own(
    model: LlamaForCausalLM, warnings_of_fastsample: list[str]
) -> None:
    class Widen(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.double()

    options = {"logits_processor": LogitsProcessorList([Widen()]), **FILTERS}
    plain = sampled(model, **options).sequences
    with enable(model):
        for _ in range(2):
            assert torch.equal(sampled(model, **options).sequences, plain)
        sampled(model, PROMPT.repeat(3, 1), **options)
    (message,) = warnings_of_fastsample  # for batches of any size
    assert "torch.float64" in message


@pytest.mark.parametrize(
    ("of_rows", "reason"),
    [
        (lambda rows: torch.zeros(rows, 5, 2), "of 3 dimensions"),
        (lambda rows: torch.zeros(rows, 5, dtype=torch.float64), "of torch.float64"),
        (lambda rows: torch.zeros(1).expand(rows, 2**22 + 1), "of a vocabulary of 4194305 tokens, but of 1 to 4194304"),
        (lambda rows: torch.zeros(rows, 0), "of a vocabulary of 0 tokens"),
        (lambda rows: torch.zeros(rows, 5, requires_grad=True), "that require a gradient"),
    ],
)
def test_each_reason_is_given_once_whatever_the_batch(
    warnings_of_fastsample: list[str], of_rows: Callable[[int], Tensor], reason: str
) -> None:
    assert [can_defer(of_rows(rows)) for rows in (1, 2, 3)] == [False] * 3
    (message,) = warnings_of_fastsample
    assert reason in message
    assert can_defer(torch.zeros(2, 5))


# --- other ways through generate


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": 2},
        {"inputs_embeds": True},
        {"stop_strings": None, "max_time": 60.0},
    ],
    ids=str,
)
def test_caches_and_prefills(model: LlamaForCausalLM, options: dict[str, Any]) -> None:
    if options.pop("inputs_embeds", False):
        torch.manual_seed(0)
        options["inputs_embeds"] = model.get_input_embeddings()(PROMPT)
    with enable(model):
        result = sampled(model, **options, **FILTERS)
    assert torch.equal(result.sequences[:, -8:], redrawn(result.logits, FILTERS))


def test_a_compiled_forward(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward is what transformers compiles; logits leave it before any processor."""
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    compiled: list[object] = []
    get_compiled_call = model.get_compiled_call
    monkeypatch.setattr(
        model, "get_compiled_call", lambda given: compiled.append(given) or get_compiled_call(given), raising=False
    )
    with enable(model):
        result = sampled(model, cache_implementation="static", compile_config=config, **FILTERS)
    assert len(compiled) > 0
    assert torch.equal(result.sequences[:, -8:], redrawn(result.logits, FILTERS))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradient_modes(model: LlamaForCausalLM, mode: Any) -> None:
    with enable(model), mode():
        result = sampled(model, **FILTERS)
    assert torch.equal(result.sequences[:, -8:], redrawn(result.logits, FILTERS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    with enable(model):
        result = sampled(model.to(dtype), **FILTERS)
    assert torch.equal(result.sequences[:, -8:], redrawn(result.logits, FILTERS))


def test_a_decoding_loop_of_the_users_own(model: LlamaForCausalLM) -> None:
    """`custom_generate`: whatever the loop does with the chain, it finds transformers' values or draws by the law."""
    step_logits: list[Tensor] = []

    def loop(
        model: LlamaForCausalLM,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        while input_ids.shape[1] < generation_config.max_length:
            logits = model(input_ids).logits[:, -1]
            scores = logits_processor(input_ids, logits)
            step_logits.append(logits)
            if input_ids.shape[1] == PROMPT.shape[1]:
                token = torch.nn.functional.softmax(scores, dim=-1).multinomial(1)
            else:
                assert torch.equal(
                    scores.sort(descending=True).values, warped(logits, **FILTERS).sort(descending=True)[0]
                )
                token = scores.argmax(dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=1)
        return input_ids

    with enable(model):
        torch.manual_seed(0)
        ids = model.generate(PROMPT, custom_generate=loop, do_sample=True, max_new_tokens=3, **FILTERS)
    assert ids[0, -3] == redrawn((step_logits[0],), FILTERS)[0]
    assert ids[0, -2:].tolist() == [int(logits.argmax()) for logits in step_logits[1:]]


def test_an_encoder_decoder() -> None:
    torch.manual_seed(1)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, max_position_embeddings=64, forced_eos_token_id=None, **sizes, **heads)
    ).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.model.shared.weight *= 30
    with enable(model):
        result = sampled(model, encoder_repetition_penalty=1.2, **FILTERS)
    processor = transformers.EncoderRepetitionPenaltyLogitsProcessor(1.2, PROMPT)
    processed = tuple(processor(PROMPT, logits) for logits in result.logits)
    assert torch.equal(result.sequences[:, -8:], redrawn(processed, FILTERS))


# --- a real model, its tokenizer and pipelines

OPTIONS: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_k": 20, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[Any, Any]]:
    model, tokenizer = load_model()
    yield model, tokenizer
    disable(model)


def test_real_streamers(real: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = real
    inputs = tokenizer("The sea in winter is", return_tensors="pt")
    with enable(model):
        torch.manual_seed(0)
        text = tokenizer.decode(model.generate(**inputs, **OPTIONS)[0, inputs["input_ids"].shape[1] :])

        torch.manual_seed(0)
        model.generate(**inputs, **OPTIONS, streamer=transformers.TextStreamer(tokenizer, skip_prompt=True))
        assert capsys.readouterr().out.strip() == text.strip()

        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        torch.manual_seed(0)
        thread = threading.Thread(target=model.generate, kwargs={**inputs, **OPTIONS, "streamer": streamer})
        thread.start()
        assert "".join(streamer) == text
        thread.join()


def test_real_pipeline_over_a_batch(real: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = real
    steps: list[Tensor] = []
    sample = fastsample.sample

    def recorded(*args: Any, **options: Any) -> Tensor:
        steps.append(sample(*args, **options))
        return steps[-1]

    monkeypatch.setattr(fastsample, "sample", recorded)
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    answers = []
    with enable(pipeline.model):
        for _ in range(2):
            torch.manual_seed(0)
            answers += pipeline(
                ["The sea in winter is", "Bread"],
                batch_size=2,
                num_return_sequences=2,
                return_full_text=False,
                eos_token_id=None,
                **OPTIONS,
            )
    texts = [answer["generated_text"] for group in answers for answer in group]
    assert texts[:4] == texts[4:]
    assert len(set(texts)) == 4
    drawn = torch.cat(steps[: OPTIONS["max_new_tokens"]], dim=1)
    assert texts[:4] == tokenizer.batch_decode(drawn, skip_special_tokens=True)


def test_the_line_that_says_it_is_on(model: LlamaForCausalLM) -> None:
    verbosity = transformers.logging.get_verbosity()
    try:
        transformers.logging.set_verbosity_info()
        with messages_of_fastsample(logging.INFO) as messages:
            enable(model)
            enable(model)
        assert messages == ["fastsample draws the tokens of this LlamaForCausalLM"]
    finally:
        transformers.logging.set_verbosity(verbosity)


def test_the_examples_of_the_page_run(real: tuple[Any, Any]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = dict(zip(("model", "tokenizer"), real, strict=True))
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
