"""ONNX Runtime GenAI: its own search on the CPU, behind a toy graph whose logits are replaced before every draw."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .base import Job, NotServedError, missing_package, refuse_bfloat16, refuse_per_row

# Its constructor refuses more.
_LARGEST_BATCH = 32


class OnnxRuntimeGenAISession:
    def __init__(self, job: Job) -> None:
        genai = importlib.import_module("onnxruntime_genai")
        self.folder = tempfile.TemporaryDirectory()  # removed with the session
        write_toy_model(Path(self.folder.name), job.vocab)
        self.model = genai.Model(self.folder.name)
        parameters = genai.GeneratorParams(self.model)
        work = job.work
        parameters.set_search_options(
            batch_size=job.batch,
            max_length=4,
            do_sample=not work.greedy,
            temperature=work.temperature or 1.0,
            # A top_k of 0 makes it ignore top_p.
            top_k=min(work.top_k or job.vocab, job.vocab),
            top_p=work.top_p,
        )
        self.generator = genai.Generator(self.model, parameters)
        self.prompt = np.zeros((job.batch, 1), dtype=np.int64)

    def load(self, logits: Tensor) -> None:
        # Back to the beginning, so that no row has ended: it would be padded and not sampled.
        self.generator.rewind_to(0)
        self.generator.append_tokens(self.prompt)
        shape = self.generator.get_logits().shape
        self.generator.set_logits(logits.numpy().reshape(shape))

    def draw(self) -> Any:
        self.generator.generate_next_token()
        return self.generator.get_next_tokens()


def write_toy_model(folder: Path, vocab: int) -> None:
    """Write a model without weights: zeros [batch, sequence, vocab] for any input."""
    onnx = importlib.import_module("onnx")
    helper, float32, int64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["input_ids"], ["sequence_shape"]),
            helper.make_node("Concat", ["sequence_shape", "vocab"], ["shape"], axis=0),
            helper.make_node("Expand", ["zero", "shape"], ["logits"]),
        ],
        "toy",
        [helper.make_tensor_value_info("input_ids", int64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", float32, ["batch", "sequence", vocab])],
        [
            onnx.numpy_helper.from_array(np.array([vocab], np.int64), "vocab"),
            onnx.numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    configuration = {
        "model": {
            "type": "llama",
            "bos_token_id": 0,
            "eos_token_id": vocab - 1,
            "pad_token_id": 0,
            "context_length": 64,
            "vocab_size": vocab,
            "decoder": {
                "filename": "model.onnx",
                "head_size": 1,
                "hidden_size": 1,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "num_hidden_layers": 0,
                # Sampling has no threads. Those of the graph would spin for a while and disturb who is timed next.
                "session_options": {"intra_op_num_threads": 1, "inter_op_num_threads": 1},
                "inputs": {"input_ids": "input_ids"},
                "outputs": {"logits": "logits"},
            },
        },
        "search": {"max_length": 64, "past_present_share_buffer": False},
    }
    (folder / "genai_config.json").write_text(json.dumps(configuration))


class OnnxRuntimeGenAI:
    key = "onnxruntime-genai"
    label = "ONNX Runtime GenAI"
    package = "onnxruntime-genai"
    note = (
        "generate_next_token() and get_next_tokens(); handing over the logits is not timed, and without --cold leaves "
        "what fits in the caches, which favours it; it samples on one thread"
    )

    def missing(self) -> str | None:
        return missing_package(self.package) or missing_package("onnx")

    def start(self, job: Job) -> OnnxRuntimeGenAISession:
        refuse_per_row(job)
        refuse_bfloat16(job)
        if job.work.min_p:
            raise NotServedError("its generate_next_token() is not asked for min_p here")
        if job.batch > _LARGEST_BATCH:
            raise NotServedError(f"its batches end at {_LARGEST_BATCH} rows")
        return OnnxRuntimeGenAISession(job)
