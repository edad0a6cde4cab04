"""The backends: which there are, which can run here and why not, and the choice of one by name."""

from typing import NamedTuple

import torch

from fastsample import native_objects, ops

_ACCEPTED = '"auto", "reference", "cpu", "triton" or "cuda"'


class BackendStatus(NamedTuple):
    """What is known of one backend.

    Attributes:
        name: what `backend=` takes.
        usable: whether `backend=name` works in this process.
        detail: what it runs on, or why it is not usable.
        instruction_set: the CPU instruction set in force ("scalar", "avx2" or "avx512"); None but for the native CPU
            backend.
    """

    name: str
    usable: bool
    detail: str
    instruction_set: str | None = None


def backends() -> dict[str, BackendStatus]:
    """The status of every backend, by name, without running any. Initialises CUDA where there is a device.

    Returns:
        "reference", "cpu", "triton" and "cuda", each with a `BackendStatus`.
    """
    return {
        "reference": BackendStatus("reference", True, "plain PyTorch, on any device"),
        "cpu": _cpu(),
        "triton": _triton(),
        "cuda": _cuda(),
    }


def select(backend: str, device: torch.device) -> ops.Ops:
    """The operators that `backend` names, for tensors on `device`.

    "auto" takes the native kernels where there are some for the device, else Triton on a GPU, else the reference: the
    results are equal.

    Raises:
        ValueError: there is no such backend, or it does not serve this device.
        RuntimeError: the backend is not usable in this installation; the message says why.
    """
    if backend == "auto":
        return ops.compiled
    if backend == "reference":
        return ops.reference_only
    if backend in ("cpu", "cuda"):
        status = ops.cpu_status if backend == "cpu" else ops.cuda_status or ops.load_cuda()
        if status != "ok":
            raise RuntimeError(f'backend: "{backend}" is not usable: {status}; accepted: "auto" or "reference"')
        if device.type != backend:
            raise ValueError(f'backend: "{backend}" serves no tensors on {device}; accepted: "auto" or "reference"')
        return ops.compiled
    if backend == "triton":
        status = ops.triton_status()
        if status != "ok":
            raise RuntimeError(f'backend: "triton" is not usable: {status}; accepted: "auto" or "reference"')
        if device.type != "cuda" and not (device.type == "cpu" and ops.triton_is_interpreted()):
            raise ValueError(f'backend: "triton" serves no tensors on {device}; accepted: "auto" or "reference"')
        return ops.triton_only
    raise ValueError(f"backend: got {backend!r}; accepted: {_ACCEPTED}")


def _cpu() -> BackendStatus:
    if ops.cpu_status != "ok":
        return BackendStatus("cpu", False, ops.cpu_status)
    instruction_set = ops.instruction_set()
    return BackendStatus("cpu", True, f"native kernels, {instruction_set}", instruction_set)


def _triton() -> BackendStatus:
    status = ops.triton_status()
    if status != "ok":
        return BackendStatus("triton", False, status)
    where = "in its interpreter (TRITON_INTERPRET), slowly" if ops.triton_is_interpreted() else "on the GPU"
    return BackendStatus("triton", True, f"Triton {ops.triton_version() or ''}, {where}")


def _cuda() -> BackendStatus:
    status = ops.load_cuda()
    if status != "ok":
        return BackendStatus("cuda", False, f"{status}; CUDA tensors run on {ops.runs_gpu_tensors}")
    return BackendStatus("cuda", True, f"native kernels, {native_objects.cuda_build()}")
