"""Batches as vLLM's model runner makes them, by vLLM's own code, for tests of its sampler."""

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config.reasoning import ReasoningConfig
from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

VOCABULARY = 1000
STOP = 7
_CPU = torch.device("cpu")


class Engine:
    """The persistent batch of a model runner, without the model."""

    def __init__(
        self,
        processors: Sequence[Any] = (),
        vocabulary: int = VOCABULARY,
        slots: int = 32,
        reasoning: ReasoningConfig | None = None,
    ) -> None:
        settings: Any = types.SimpleNamespace(scheduler_config=types.SimpleNamespace(max_num_seqs=slots))
        made = LogitsProcessors(kind(settings, _CPU, False) for kind in (*BUILTIN_LOGITS_PROCESSORS, *processors))
        self.vocabulary = vocabulary
        self.batch = InputBatch(
            slots,
            1024,
            1024,
            _CPU,
            vocabulary,
            [16],
            [64],
            logitsprocs=made,
            logitsprocs_need_output_token_ids=bool(processors),
            reasoning_config=reasoning,
        )
        self.requests: dict[str, CachedRequestState] = {}

    def add(
        self, name: str, parameters: SamplingParams, prompt: Sequence[int] = (1, 2, 3), output: Sequence[int] = ()
    ) -> None:
        generator = None
        if parameters.seed is not None and parameters.temperature > 0:
            generator = torch.Generator().manual_seed(parameters.seed)
        # What the engine does on the way to the model runner.
        parameters.update_from_generation_config({}, STOP)
        request = CachedRequestState(name, list(prompt), [], parameters, generator, ([0],), 0, list(output))
        self.requests[name] = request
        self.batch.add_request(request)

    def remove(self, name: str) -> None:
        self.batch.remove_request(name)
        del self.requests[name]

    def metadata(self) -> Any:
        """What the sampler is given, after the batch has closed its gaps."""
        self.batch.condense()
        self.batch.refresh_metadata()
        return self.batch.sampling_metadata

    def record(self, tokens: Tensor) -> None:
        """Append the tokens of a step to the outputs, as the model runner does."""
        for name, token in zip(self.batch.req_ids, tokens.flatten().tolist(), strict=True):
            self.requests[name].output_token_ids.append(token)


def batch_of(
    parameters: Sequence[SamplingParams],
    prompts: Sequence[Sequence[int]] | None = None,
    outputs: Sequence[Sequence[int]] | None = None,
    processors: Sequence[Any] = (),
    vocabulary: int = VOCABULARY,
) -> Any:
    """The metadata of a batch with these requests in this order."""
    engine = Engine(processors, vocabulary)
    for number, each in enumerate(parameters):
        prompt = (1, 2, 3) if prompts is None else prompts[number]
        engine.add(str(number), each, prompt, () if outputs is None else outputs[number])
    return engine.metadata()
