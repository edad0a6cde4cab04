"""The features of a request: what each asks of fastsample, and of Hugging Face where it has the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

import fastsample
from fastsample import BadWords, LogitBias, TokenLists

from .peers.base import Work

_SEED = 20240607
# Sizes of one request of a chat: a prompt, half an answer, and what OpenAI's interface allows of biases.
PROMPT, OUTPUT, BIASES, WORDS, ALLOWED = 1024, 256, 300, 20, 1000

CPU = torch.device("cpu")

Processor = Callable[[Tensor, Tensor], Tensor]


class Inputs(NamedTuple):
    """What the requests of a batch bring along."""

    batch: int
    vocab: int
    prompt: Tensor  # int64 [batch, PROMPT]
    output: Tensor  # int64 [batch, OUTPUT]
    biases: list[dict[int, float]]
    words: list[list[list[int]]]
    allowed: Tensor  # int64 [batch, ALLOWED]

    @classmethod
    def make(cls, batch: int, vocab: int) -> Inputs:
        generator = torch.Generator().manual_seed(_SEED)

        def ids(*shape: int) -> Tensor:
            return torch.randint(vocab, shape, generator=generator)

        biases = [dict.fromkeys(row.tolist(), 1.5) for row in ids(batch, BIASES)]
        output, words = ids(batch, OUTPUT), ids(batch, WORDS, 2)
        words[:, 0, 0] = output[:, -1]  # one of them is about to be completed
        return cls(batch, vocab, ids(batch, PROMPT), output, biases, words.tolist(), ids(batch, ALLOWED))


class Feature(NamedTuple):
    """One feature, or several together.

    Attributes:
        key, label: its name on the command line and in tables.
        full: whether it is `sample_full` that is timed, and not `sample`.
        arguments: its keyword arguments for fastsample.
        processors: the same in Hugging Face, as functions of (input ids, scores); None where it has none.
    """

    key: str
    label: str
    full: bool
    arguments: Callable[[Inputs], dict[str, Any]]
    processors: Callable[[Inputs], list[Processor]] | None = None


class FeatureSession:
    """A call with a feature, from torch's default generator as `ours.FastsampleSession` makes it."""

    def __init__(
        self, feature: Feature | None, inputs: Inputs, work: Work, backend: str, device: torch.device = CPU
    ) -> None:
        self.arguments = {**work.parameters(inputs.batch), "backend": backend}
        if feature is not None:
            self.arguments.update(feature.arguments(inputs))
        self.arguments = {name: _placed(value, device) for name, value in self.arguments.items()}
        self.call: Callable[..., Any] = (
            fastsample.sample_full if feature is not None and feature.full else fastsample.sample
        )

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Any:
        return self.call(self.logits, **self.arguments)


class ProcessorSession:
    """Hugging Face's processors of a feature alone, without the draw."""

    def __init__(self, feature: Feature, inputs: Inputs) -> None:
        assert feature.processors is not None
        self.processors = feature.processors(inputs)
        self.ids = torch.cat([inputs.prompt, inputs.output], dim=1)

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        scores = self.logits
        for processor in self.processors:
            scores = processor(self.ids, scores)
        return scores


def _placed(value: Any, device: torch.device) -> Any:
    """An argument on a device: a tensor, a tuple of them such as `LogitBias`, or a number."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)._make(_placed(field, device) for field in value) if hasattr(value, "_make") else value


def _histories(inputs: Inputs) -> dict[str, Any]:
    return {"prompt_tokens": inputs.prompt, "output_tokens": inputs.output}


def _counts(inputs: Inputs) -> dict[str, Any]:
    counts = torch.zeros((inputs.batch, inputs.vocab), dtype=torch.int32)
    counts.scatter_add_(1, inputs.output, torch.ones_like(inputs.output, dtype=torch.int32))
    prompts = TokenLists.of(inputs.prompt.tolist())
    return {"prompt_mask": fastsample.pack_bitmask(prompts, inputs.vocab, empty=False), "output_counts": counts}


def _penalties(inputs: Inputs) -> dict[str, Any]:
    return {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1}


def _bitmask(share: float) -> Callable[[Inputs], dict[str, Any]]:
    def arguments(inputs: Inputs) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(_SEED)
        words = (inputs.vocab + 31) // 32
        bits = torch.rand((inputs.batch, words, 32), generator=generator) < share
        bits[:, 0, 0] = True
        packed = (bits.long() << torch.arange(32)).sum(dim=2).to(torch.int32)
        return {"bitmask": packed}

    return arguments


def _everything(inputs: Inputs) -> dict[str, Any]:
    return {
        **_histories(inputs),
        **_penalties(inputs),
        "logit_bias": LogitBias.of(inputs.biases),
        "bad_words": BadWords.of(inputs.words),
        "min_tokens": OUTPUT + 1,
        "stop_tokens": TokenLists.of([[0, 1]] * inputs.batch),
        **_bitmask(0.5)(inputs),
        "raw_logprobs": True,
        "top_logprobs": 20,
        "distribution": True,
        "kept_set": True,
    }


def _of_transformers(*named: tuple[str, Callable[[Inputs], tuple[Any, ...]]]) -> Callable[[Inputs], list[Processor]]:
    """Makers of transformers' processors, by class name and arguments; imported when one is needed."""

    def make(inputs: Inputs) -> list[Processor]:
        import transformers

        return [cast(Processor, getattr(transformers, name)(*arguments(inputs))) for name, arguments in named]

    return make


FEATURES = (
    Feature(
        "repetition",
        f"repetition penalty, {PROMPT} + {OUTPUT} tokens",
        False,
        lambda inputs: {**_histories(inputs), "repetition_penalty": 1.1},
        _of_transformers(("RepetitionPenaltyLogitsProcessor", lambda _: (1.1,))),
    ),
    Feature(
        "penalties", "three penalties, histories", False, lambda inputs: {**_histories(inputs), **_penalties(inputs)}
    ),
    Feature(
        "counts", "three penalties, counts per token", False, lambda inputs: {**_counts(inputs), **_penalties(inputs)}
    ),
    Feature(
        "bias",
        f"{BIASES} biases",
        False,
        lambda inputs: {"logit_bias": LogitBias.of(inputs.biases)},
        _of_transformers(
            ("SequenceBiasLogitsProcessor", lambda inputs: ([[[t], b] for t, b in inputs.biases[0].items()],))
        ),
    ),
    Feature(
        "bad-words",
        f"{WORDS} bad words of 2 tokens",
        False,
        lambda inputs: {"bad_words": BadWords.of(inputs.words), "output_tokens": inputs.output},
        _of_transformers(("NoBadWordsLogitsProcessor", lambda inputs: (inputs.words[0], [inputs.vocab - 1]))),
    ),
    Feature(
        "min-tokens",
        "minimum length, 2 stop tokens",
        False,
        lambda inputs: {
            "min_tokens": OUTPUT + 1,
            "stop_tokens": TokenLists.of([[0, 1]] * inputs.batch),
            "output_tokens": inputs.output,
        },
        _of_transformers(("MinLengthLogitsProcessor", lambda _: (PROMPT + OUTPUT + 1, [0, 1]))),
    ),
    Feature(
        "allowed",
        f"{ALLOWED} allowed tokens, as lists",
        False,
        lambda inputs: {"allowed_tokens": TokenLists.of(inputs.allowed.tolist())},
        _of_transformers(
            (
                "PrefixConstrainedLogitsProcessor",
                lambda inputs: (lambda batch, _: inputs.allowed[batch].tolist(), 1),
            )
        ),
    ),
    Feature("bitmask-half", "bitmask, half allowed", False, _bitmask(0.5)),
    Feature("bitmask-few", "bitmask, one in 100 allowed", False, _bitmask(0.01)),
    Feature("logprob", "log-probability", True, lambda _: {}),
    Feature("raw-logprob", "and raw log-probability, rank", True, lambda _: {"raw_logprobs": True}),
    Feature(
        "top-20-processed",
        "and 20 top log-probabilities, processed",
        True,
        lambda _: {"top_logprobs": 20, "top_logprobs_of": "processed"},
    ),
    Feature("top-20", "and 20 top log-probabilities, raw", True, lambda _: {"top_logprobs": 20}),
    Feature("distribution", "and entropy, kept size and mass", True, lambda _: {"distribution": True}),
    Feature("kept-set", "and the kept set", True, lambda _: {"kept_set": True}),
    Feature("everything", "everything together", True, _everything),
)
