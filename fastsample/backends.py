"""The backends: which there are, which can run here and why not, and the choice of one by name."""

from typing import NamedTuple

import torch

from fastsample import native_objects, ops

_LATER = "not part of this version"
_ACCEPTED = '"auto", "reference", "cpu" or "cuda"'


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
        "triton": BackendStatus("triton", False, _LATER),
        "cuda": _cuda(),
    }


def select(backend: str, device: torch.device) -> ops.Ops:
    """The operators that `backend` names, for tensors on `device`.

    "auto" takes the native kernels where there are some for the device, else the reference: the results are equal.

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
        raise ValueError(f'backend: "triton" is {_LATER}; accepted: {_ACCEPTED}')
    raise ValueError(f"backend: got {backend!r}; accepted: {_ACCEPTED}")


def _cpu() -> BackendStatus:
    if ops.cpu_status != "ok":
        return BackendStatus("cpu", False, ops.cpu_status)
    instruction_set = ops.instruction_set()
    return BackendStatus("cpu", True, f"native kernels, {instruction_set}", instruction_set)


def _cuda() -> BackendStatus:
    status = ops.load_cuda()
    if status != "ok":
        return BackendStatus("cuda", False, f"{status}; CUDA tensors run on the reference")
    return BackendStatus("cuda", True, f"native kernels, {native_objects.cuda_build()}")
