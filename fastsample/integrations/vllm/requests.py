"""How long the outputs of seeded requests are, which vLLM tells its sampler only where something else needs it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class SeededOutputs(LogitsProcessor):
    """A logits processor that changes no logit: by vLLM's interface for them it follows each request through the batch.

    Attributes:
        outputs: by row of the batch, for requests with a seed: the list that vLLM appends the request's tokens to. With
            asynchronous scheduling a token that is not known yet is there as -1, so its length is right at any time.
    """

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        self.outputs: dict[int, Sequence[int]] = {}

    def is_argmax_invariant(self) -> bool:
        """True: it changes nothing."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """The logits as they are."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Take in which requests came, went and moved."""
        process_dict_updates(
            self.outputs, batch_update, lambda parameters, _, output: None if parameters.seed is None else output
        )
