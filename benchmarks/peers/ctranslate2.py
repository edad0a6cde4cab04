"""CTranslate2: it has no sampler to call, so it generates one token from a model whose logits are the rows.

The model embeds start token r as the r-th unit vector, leaves it as it is in a layer of zeros, and multiplies it by the
transposed logits. The product is exact, and is in the time, as is all of the step.
"""

from __future__ import annotations

import importlib
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .base import Job, NotServedError, missing_package, refuse_bfloat16, refuse_per_row

# Of the model's vectors; the product takes vocab x batch^2 operations, and soon most of the step.
_LARGEST_BATCH = 32


class CTranslate2Session:
    def __init__(self, job: Job, models: Models) -> None:
        self.job, self.models = job, models
        work = job.work
        # Its top_k of 1 is greedy, and 0 the whole vocabulary.
        self.options: dict[str, Any] = {
            "sampling_topk": 1 if work.greedy else min(work.top_k, job.vocab),
            "sampling_topp": work.top_p,
            "sampling_temperature": work.temperature or 1.0,
        }
        self.starts = [[str(row)] for row in range(job.batch)]
        self.generator: Any = None

    def load(self, logits: Tensor) -> None:
        if self.generator is None:  # later batches would need a model each
            self.generator = self.models.generator(logits, self.job.threads)

    def draw(self) -> list[int]:
        results = self.generator.generate_batch(
            self.starts, max_length=1, include_prompt_in_result=False, end_token=[], **self.options
        )
        return [result.sequences_ids[0][0] for result in results]


class Models:
    """The model of the last batch, which several kinds of work share."""

    def __init__(self) -> None:
        self.made_of: weakref.ref[Tensor] | None = None
        self.threads = 0
        self.last: Any = None

    def generator(self, logits: Tensor, threads: int) -> Any:
        """A generator whose logits for the start token "r" are row r."""
        if self.made_of is None or self.made_of() is not logits or self.threads != threads:
            library = importlib.import_module("ctranslate2")
            self.last = None  # before the next takes as much memory
            with tempfile.TemporaryDirectory() as folder:
                write_toy_model(Path(folder), logits)
                self.last = library.Generator(folder, compute_type="float32", intra_threads=threads)
            self.made_of, self.threads = weakref.ref(logits), threads
        return self.last


def write_toy_model(folder: Path, logits: Tensor) -> None:
    """Write the model for these logits [batch, vocab]."""
    batch, vocab = logits.shape
    specs = importlib.import_module("ctranslate2.specs.transformer_spec")
    model = specs.TransformerDecoderModelSpec.from_config(1, 1, pre_norm=True, no_final_norm=True)
    decoder, layer = model.decoder, model.decoder.layer[0]
    decoder.scale_embeddings = False
    decoder.embeddings.weight = np.eye(vocab, batch, dtype=np.float32)
    decoder.position_encodings.encodings = np.zeros((4, batch), np.float32)
    decoder.projection.weight = np.ascontiguousarray(logits.numpy().T)
    decoder.projection.bias = np.zeros(vocab, np.float32)
    for normalisation in (layer.self_attention.layer_norm, layer.ffn.layer_norm):
        normalisation.gamma = normalisation.beta = np.zeros(batch, np.float32)
    inner = (*layer.self_attention.linear, layer.ffn.linear_0, layer.ffn.linear_1)
    for linear, size in zip(inner, (3 * batch, batch, batch, batch), strict=True):
        linear.weight, linear.bias = np.zeros((size, batch), np.float32), np.zeros(size, np.float32)
    last = str(vocab - 1)
    model.config.bos_token, model.config.eos_token, model.config.unk_token = "0", last, last
    model.register_vocabulary([str(token) for token in range(vocab)])
    model.validate()
    model.save(str(folder))


class CTranslate2:
    key = "ctranslate2"
    label = "CTranslate2, whole step"
    package = "ctranslate2"
    note = (
        "no sampler can be called, so this is a whole step of a toy model, with the product that makes the logits; its "
        f"greedy step is the measure of the rest; always the same logits, of which the caches keep what fits without "
        f"--cold, which favours it; batches up to {_LARGEST_BATCH}"
    )

    def __init__(self) -> None:
        self.models = Models()

    def missing(self) -> str | None:
        return missing_package(self.package)

    def start(self, job: Job) -> CTranslate2Session:
        refuse_per_row(job)
        refuse_bfloat16(job)
        if job.work.min_p:
            raise NotServedError(f"{self.label} has no min_p")
        if job.batch > _LARGEST_BATCH:
            raise NotServedError(f"its toy model is as wide as the batch, and stops at {_LARGEST_BATCH}")
        return CTranslate2Session(job, self.models)
