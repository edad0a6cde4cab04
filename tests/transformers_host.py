"""What the tests of the transformers integration share: a narrow model, and what it drew compared with the law."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import fastsample
from fastsample.integrations.transformers_chain import logger, warn_once

VOCABULARY = 300
EOS, PAD = 7, 0
PROMPT = torch.tensor([[5, 20, 31, 9]])


def narrow_model() -> LlamaForCausalLM:
    """A Llama of two narrow layers, random but for a scale that spreads its logits."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        pad_token_id=PAD,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 20
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, pad_token_id=PAD, bos_token_id=1)
    return model


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    # Where another process has the second core, two threads wait for each other: a real model took 20 times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def messages_of_fastsample(level: int) -> Iterator[list[str]]:
    """What is logged; pytest's own handler misses it, since transformers' loggers keep theirs from the root."""
    warn_once.cache_clear()
    messages: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def sampled(model: LlamaForCausalLM, inputs: Tensor = PROMPT, seed: int = 0, **options: Any) -> Any:
    """`generate` with all that it can tell, eight tokens unless told otherwise."""
    torch.manual_seed(seed)
    options = {"do_sample": True, "max_new_tokens": 8, "output_logits": True, "output_scores": True} | options
    return model.generate(inputs, return_dict_in_generate=True, **options)


def redrawn(step_logits: tuple[Tensor, ...], parameters: dict[str, Any], seed: int = 0) -> Tensor:
    """What `fastsample.sample` draws from the logits of each step, [batch, steps]."""
    torch.manual_seed(seed)
    return torch.stack([fastsample.sample(logits, **parameters) for logits in step_logits], dim=1)


def warped(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """The scores that transformers' own warpers make of the logits."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    return LogitsProcessorList([*warpers, TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)])(PROMPT, logits)
