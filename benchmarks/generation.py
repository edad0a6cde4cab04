"""`generate` of transformers with a clock inside: how long its steps take, and how long the sampling in them.

What counts as sampling is the same whoever does it. It begins where `generate` calls its chain of logits processors
with the last position's logits, and ends where torch.multinomial (torch.argmax in greedy search) has returned the
tokens. So it holds, of transformers: the temperature and the filters, the softmax after them and the draw; of
fastsample: the processor that stands in their place, the softmax that is deferred and the draw. A step lasts from one
end of sampling to the next. What of it is not sampling is its rest: the model, and the bookkeeping of `generate`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from transformers import BatchEncoding, LogitsProcessorList

from fastsample.integrations.transformers import enable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTIONS = (
    "Write three sentences about the sea in winter.",
    "Explain to a child why the sky is blue.",
    "Name an animal and describe how it sleeps.",
    "What makes a good friend?",
    "Describe a train journey at night.",
    "Why do leaves fall in autumn?",
    "Tell me about an unusual musical instrument.",
    "Give me a simple recipe with eggs.",
)
OPENINGS = (
    "In winter the sea looks",
    "The sky is blue because",
    "An elephant sleeps",
    "A good friend is somebody who",
    "The night train left the station and",
    "Leaves fall in autumn because",
    "The strangest musical instrument that I know",
    "To make an omelette, first",
)


class StepTimes(NamedTuple):
    """Seconds of each decoding step of a batch, and of the sampling in it; the prompt's own step is left out."""

    batch: int
    steps: list[float]
    sampling: list[float]

    @property
    def rest(self) -> list[float]:
        """What of each step is not sampling."""
        return [step - sampling for step, sampling in zip(self.steps, self.sampling, strict=True)]

    def tokens_per_second(self) -> float:
        return self.batch / median(self.steps)

    def milliseconds(self) -> float:
        return 1000 * median(self.sampling)

    def share(self) -> float:
        return median(self.sampling) / median(self.steps)


@contextlib.contextmanager
def sampling_clock(model: Any, batch: int) -> Iterator[StepTimes]:
    """Time the steps of `model.generate`.

    Args:
        model: a transformers model; where `enable` is to be timed, it is called before.
        batch: how many rows it will be given.

    Raises:
        RuntimeError: what the draw returned is not an ordinary tensor, so work may be left that nobody would time.
    """
    times = StepTimes(batch, [], [])
    began: float | None = None
    ended: float | None = None

    class ClockedChain(LogitsProcessorList):
        """A chain that says when it began; it holds the one it stands for, whose class may have a call of its own."""

        chain: LogitsProcessorList

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal began
            start = time.perf_counter()
            scores = self.chain(*args, **kwargs)
            began = start  # not before: a processor may itself take an argmax
            return scores

    def build_chain(*args: Any, **kwargs: Any) -> LogitsProcessorList:
        chain = original_build(*args, **kwargs)
        clocked = ClockedChain(chain)
        clocked.chain = chain
        return clocked

    def ending(select: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal began, ended
            tokens = select(*args, **kwargs)
            now = time.perf_counter()
            if began is not None:
                if type(tokens) is not Tensor:
                    raise RuntimeError(f"the draw returned {type(tokens).__name__}, which may not be computed yet")
                if ended is not None:
                    times.steps.append(now - ended)
                    times.sampling.append(now - began)
                began, ended = None, now
            return tokens

        return timed

    original_build = model._get_logits_processor
    with (
        mock.patch.object(model, "_get_logits_processor", build_chain),
        mock.patch.object(torch, "multinomial", ending(torch.multinomial)),
        mock.patch.object(torch, "argmax", ending(torch.argmax)),
    ):
        yield times


class Run(NamedTuple):
    """The times of one `generate`, and the tokens that it made, int64 [batch, steps]."""

    times: StepTimes
    tokens: Tensor


class Traced(NamedTuple):
    """The tokens of one `generate`, int64 [batch, steps], and the logits of each step, float32 [batch, vocab]."""

    tokens: Tensor
    logits: tuple[Tensor, ...]


class Generation:
    """A model that writes, with or without fastsample.

    Args:
        model, tokenizer: of transformers.
        prompts: the rows of a batch take them in turn.
        chat: whether they are questions, which go through the chat template, or beginnings of a text.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = QUESTIONS, chat: bool = True
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.chat = chat

    def inputs(self, batch: int) -> BatchEncoding:
        """The prompts of a batch, padded."""
        prompts = [self.prompts[row % len(self.prompts)] for row in range(batch)]
        if not self.chat:
            return self.tokenizer(prompts, padding=True, return_tensors="pt")
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        assert isinstance(inputs, BatchEncoding)
        return inputs

    def run(
        self,
        options: dict[str, Any],
        batch: int,
        steps: int,
        with_fastsample: bool,
        seed: int = 0,
    ) -> Run:
        """Let the model write `steps` tokens in each row, by the clock.

        Args:
            options: what `generate` is asked for.
            with_fastsample: whether `enable` was called.
            seed: of torch's default generator.
        """
        inputs = self.inputs(batch)
        with self._sampler(with_fastsample), sampling_clock(self.model, batch) as times:
            written = self._generate(inputs, options, steps, seed)
        return Run(times, written[:, inputs["input_ids"].shape[1] :])

    def trace(self, options: dict[str, Any], batch: int, steps: int, with_fastsample: bool, seed: int = 0) -> Traced:
        """The same without a clock, and with the logits."""
        inputs = self.inputs(batch)
        with self._sampler(with_fastsample):
            written = self._generate(
                inputs, {**options, "return_dict_in_generate": True, "output_logits": True}, steps, seed
            )
        return Traced(written.sequences[:, inputs["input_ids"].shape[1] :], written.logits)

    def _sampler(self, with_fastsample: bool) -> contextlib.AbstractContextManager[Any]:
        return enable(self.model) if with_fastsample else contextlib.nullcontext()

    def _generate(self, inputs: BatchEncoding, options: dict[str, Any], steps: int, seed: int) -> Any:
        torch.manual_seed(seed)
        # No end of sequence, so that both ways of sampling take equally many steps of equally many rows.
        return self.model.generate(**inputs, max_new_tokens=steps, eos_token_id=None, **options)
