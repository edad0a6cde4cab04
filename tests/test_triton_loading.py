"""When Triton can be used, when not, and what is told then; when "auto" takes it. None of it needs a GPU."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import fastsample
from fastsample import native_objects, ops
from fastsample.backends import select
from fastsample.schemas import OPERATORS

CUDA = torch.device("cuda", 0)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Triton that is new enough, and not interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(ops, "triton_version", lambda: "3.6.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((7, 5), (9, 0))[index])


def test_reasons_not_to_use_triton(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ops.triton_status() == "ok"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert ops.triton_status() == "compute capability 7.5 is older than Triton's 8.0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ops.triton_status().startswith("no GPU; with TRITON_INTERPRET=1 set before Python starts")
    assert not fastsample.backends()["triton"].usable
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.triton_status() == "ok"
    monkeypatch.setattr(ops, "triton_version", lambda: "3.3.1")
    assert ops.triton_status() == "Triton 3.3.1 is older than 3.4"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ops.triton_status() == "triton is not installed"
    with pytest.raises(RuntimeError, match='backend: "triton" is not usable: triton is not installed'):
        fastsample.sample(torch.zeros(2, 3), backend="triton")


@pytest.mark.parametrize(
    ("distribution", "version"), [("triton", "3.10.0"), ("pytorch-triton-rocm", "3.5.1+gitabc"), ("other", None)]
)
def test_the_version_is_found_under_every_name(
    distribution: str, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(name: str) -> str:
        if name != distribution or version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", of)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.triton_version() == version
    assert ops.triton_status() == "ok"


def test_which_tensors_it_serves(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select("triton", CUDA) is ops.triton_only
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match=f'backend: "triton" serves no tensors on {device}'):
            select("triton", torch.device(device))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert select("triton", torch.device("cpu")) is ops.triton_only


class Recorder:
    """In place of the library of operators: what would be registered."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, str]] = []

    def impl(self, name: str, function: Any, key: str) -> None:
        self.registered.append((name, key))


@pytest.mark.parametrize(
    ("torch_cuda", "capabilities", "status", "takes_triton"),
    [
        ("13.0", [(9, 0)], "ok", True),
        ("13.0", [(8, 0), (12, 0)], "ok", True),
        ("13.0", [(9, 0), (7, 5)], "ok", False),  # Triton does not run on both
        ("13.0", [(9, 0)], "triton is not installed", False),
        (None, [(9, 4)], "ok", True),  # ROCm calls itself cuda, and has capabilities of its own
    ],
)
def test_auto_takes_triton_where_there_is_no_cuda_object(
    torch_cuda: str | None,
    capabilities: list[tuple[int, int]],
    status: str,
    takes_triton: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Recorder()
    monkeypatch.setattr(ops, "_library", library)
    monkeypatch.setattr(ops, "cuda_status", None)
    monkeypatch.setattr(ops, "runs_gpu_tensors", "the reference")
    monkeypatch.setattr(ops, "triton_status", lambda: status)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(native_objects, "cuda_build", lambda: None)
    monkeypatch.setattr(native_objects, "load", lambda path: "not built: _cuda.abi3.so is not in the package")
    ops._load_cuda_kernels()
    names = [name for name in OPERATORS if name not in ("kept_log_probs", "draw_seed")]
    assert library.registered == ([(name, "CUDA") for name in names] if takes_triton else [])
    assert ops.runs_gpu_tensors == ("Triton" if takes_triton else "the reference")
    assert fastsample.backends()["cuda"].detail.endswith(f"CUDA tensors run on {ops.runs_gpu_tensors}")


def test_auto_takes_the_cuda_object_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder()
    monkeypatch.setattr(ops, "_library", library)
    monkeypatch.setattr(ops, "cuda_status", None)
    monkeypatch.setattr(ops, "triton_status", lambda: "ok")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(native_objects, "cuda_build", lambda: None)
    monkeypatch.setattr(native_objects, "load", lambda path: "ok")
    ops._load_cuda_kernels()
    assert ops.cuda_status == "ok"
    assert library.registered == []


def test_import_leaves_triton_alone() -> None:
    """Triton decides on the import of its kernels whether it interprets them."""
    code = "import sys, fastsample; sys.exit('fastsample.triton_kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_interpreter_has_to_be_asked_for_in_time() -> None:
    """Triton's own functions are interpreted or not from its import on, which is torch's."""
    code = (
        "import os, torch, triton, fastsample; os.environ['TRITON_INTERPRET'] = '1'; "
        "print(fastsample.backends()['triton'].detail)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "TRITON_INTERPRET was set after Triton was imported; set it before Python starts"
