"""The backends: which there are, which can run here and why not, and the choice of one by name."""

from typing import NamedTuple

import torch

from fastsample import ops

_LATER = "not part of this version: GPU tensors run on the reference"


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
    """The status of every backend, by name, without running any.

    Returns:
        "reference", "cpu", "triton" and "cuda", each with a `BackendStatus`.
    """
    if ops.cpu_status == "ok":
        instruction_set = ops.instruction_set()
        cpu = BackendStatus("cpu", True, f"native kernels, {instruction_set}", instruction_set)
    else:
        cpu = BackendStatus("cpu", False, ops.cpu_status)
    return {
        "reference": BackendStatus("reference", True, "plain PyTorch, on any device"),
        "cpu": cpu,
        "triton": BackendStatus("triton", False, _LATER),
        "cuda": BackendStatus("cuda", False, _LATER),
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
    if backend == "cpu":
        if ops.cpu_status != "ok":
            raise RuntimeError(f'backend: "cpu" is not usable: {ops.cpu_status}; accepted: "auto" or "reference"')
        if device.type != "cpu":
            raise ValueError(f'backend: "cpu" does not serve tensors on {device}; accepted: "auto" or "reference"')
        return ops.compiled
    if backend in ("triton", "cuda"):
        raise ValueError(f'backend: "{backend}" is {_LATER}; accepted: "auto", "reference" or "cpu"')
    raise ValueError(f'backend: got {backend!r}; accepted: "auto", "reference" or "cpu"')
