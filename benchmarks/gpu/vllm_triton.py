"""vLLM's mask of top-k and top-p, by its Triton kernel or by torch, with the softmax and the draw that vLLM runs after.

The kernel is from an installed vLLM, or from a copy of its file `vllm/v1/sample/ops/topk_topp_triton.py` that
FASTSAMPLE_VLLM_TRITON names: vLLM itself need not be there. The copy gets stand-ins for the few helpers it imports. The
newest versions import two files more, `jit_warmup.py` and `jit_warmup_triton_helper.py` of
`vllm/model_executor/warmup`, which must stand where they stand in vLLM, seen from the copy.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastsample.benchmarks.peers.base import Job, NotServedError, refuse_bfloat16, refuse_mixed

FILE_VARIABLE = "FASTSAMPLE_VLLM_TRITON"
_MODULE = "vllm.v1.sample.ops.topk_topp_triton"
_NATIVE = "vllm.v1.sample.ops.topk_topp_sampler"

Apply = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


class VllmSession:
    """Masks by `apply`, which is vLLM's, and draws as vLLM does."""

    def __init__(self, apply: Apply, job: Job) -> None:
        self.apply, self.work = apply, job.work
        self.top_k: Tensor | None = None
        self.top_p: Tensor | None = None

    def load(self, logits: Tensor) -> None:
        self.logits = logits
        if self.top_k is None and self.top_p is None:  # on the first call, which is never captured
            batch, vocab = logits.shape
            filters = self.work.filters(batch, vocab, logits.device)
            self.top_k = filters.top_k if self.work.top_k else None
            self.top_p = filters.top_p if self.work.top_p < 1 else None

    def draw(self) -> Tensor:
        # It masks in place. vLLM divides by the temperature in place as well, since its logits are its own.
        temperature = self.work.temperature
        logits = self.logits / temperature if temperature != 1 else self.logits.clone()
        probabilities = torch.softmax(self.apply(logits, self.top_k, self.top_p), dim=-1)
        # As vLLM draws without a seed for each request (random_sample): the largest of p / q, q exponential.
        return probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(dim=-1)


class VllmTriton:
    key = "vllm-triton"
    label = "vLLM's Triton kernel"
    package = "vllm"
    note = (
        "division by the temperature (or a copy, where it is 1), vLLM's mask of top-k and top-p, torch.softmax, and "
        "the draw by exponentials"
    )

    def missing(self) -> str | None:
        try:
            load_kernel()
        except ImportError as error:
            return str(error)
        return None

    def start(self, job: Job) -> VllmSession:
        _refuse_all_but_filters(job)
        return VllmSession(load_kernel(), job)


class VllmNative:
    """Where vLLM's Triton kernel does not run, vLLM masks by torch: a sort of every row."""

    key = "vllm-native"
    label = "vLLM, by torch"
    package = "vllm"
    note = (
        "division by the temperature (or a copy, where it is 1), the mask that vLLM makes by torch operators with a "
        "sort of every row, torch.softmax, and the draw by exponentials"
    )

    def missing(self) -> str | None:
        try:
            load_native()
        except Exception as error:  # of an installed vLLM that does not go with this machine
            return f"{_NATIVE} cannot be imported: {type(error).__name__}: {error}"
        return None

    def start(self, job: Job) -> VllmSession:
        _refuse_all_but_filters(job)
        return VllmSession(load_native(), job)


def _refuse_all_but_filters(job: Job) -> None:
    refuse_mixed(job)
    refuse_bfloat16(job)
    if job.work.min_p or not (job.work.top_k or job.work.top_p < 1):
        raise NotServedError("vLLM's mask is for top_k and top_p")


def load_native() -> Apply:
    """`apply_top_k_top_p_pytorch` of an installed vLLM. Raises ImportError, or what vLLM raises, without one."""
    apply: Apply = importlib.import_module(_NATIVE).apply_top_k_top_p_pytorch
    return apply


def load_kernel() -> Apply:
    """`apply_top_k_top_p_triton`.

    Raises:
        ImportError: it is not to be had here; the message says why.
    """
    file = os.environ.get(FILE_VARIABLE)
    if not file:
        try:
            return _entry(importlib.import_module(_MODULE))
        except ImportError as error:
            raise ImportError(f"vllm cannot be imported ({error}), and {FILE_VARIABLE} names no copy of it") from error
    if not Path(file).is_file():
        raise ImportError(f"{FILE_VARIABLE}={file}: there is no such file")
    if file not in _loaded:
        specification = importlib.util.spec_from_file_location("fastsample_vllm_topk_topp", file)
        if specification is None or specification.loader is None:
            raise ImportError(f"{FILE_VARIABLE}={file}: not a Python file")
        module = importlib.util.module_from_spec(specification)
        with _stand_ins(Path(file)):
            specification.loader.exec_module(module)
        _loaded[file] = _entry(module)
    return _loaded[file]


_loaded: dict[str, Apply] = {}


def _entry(module: ModuleType) -> Apply:
    try:
        apply: Apply = module.apply_top_k_top_p_triton
    except AttributeError as error:
        raise ImportError(f"{module.__file__} has no apply_top_k_top_p_triton") from error
    return apply


@contextmanager
def _stand_ins(file: Path) -> Iterator[None]:
    """What the file imports from vLLM, for as long as it is being imported."""
    triton = importlib.import_module("triton")

    def next_power_of_2(number: int) -> int:
        return 1 << max(0, number - 1).bit_length()

    def num_compute_units(device: int | None = None) -> int:
        return torch.cuda.get_device_properties(device or 0).multi_processor_count

    utilities = {"triton": triton, "tl": importlib.import_module("triton.language"), "HAS_TRITON": True}
    contents: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.envs": {},
        "vllm.platforms": {"current_platform": _CudaPlatform()},
        "vllm.triton_utils": utilities,
        "vllm.utils": {},
        "vllm.utils.gpu_sync_debug": {"gpu_sync_allowed": nullcontext},
        "vllm.utils.math_utils": {"next_power_of_2": next_power_of_2},
        "vllm.utils.platform_utils": {"num_compute_units": num_compute_units},
    }
    before = _modules_of_vllm()
    for name, members in contents.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(members)
        sys.modules[name] = module
    # vllm/v1/sample/ops/<file>: what stands beside it is found under its own name.
    if len(file.parents) > 3 and file.parents[3].name == "vllm":
        sys.modules["vllm"].__path__ = [str(file.parents[3])]
    try:
        yield
    finally:
        for name in _modules_of_vllm():
            del sys.modules[name]
        sys.modules.update(before)


def _modules_of_vllm() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}


class _CudaPlatform:
    device_type = "cuda"

    def is_cuda_alike(self) -> bool:
        return True

    def is_cuda(self) -> bool:
        return True
