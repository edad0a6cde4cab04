"""When the CUDA object is loaded, when not, and what is told then. None of it needs a GPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastsample
from fastsample import native_objects, ops
from fastsample.backends import select
from fastsample.native_objects import CudaBuild
from missing import missing

BUILD = CudaBuild("13.0.88", (75, 80, 90), 90)
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 6), True),  # by the binary for 8.0
        ((8, 9), True),
        ((9, 0), True),
        ((12, 0), True),  # by the PTX
    ],
)
def test_which_gpus_run_it(capability: tuple[int, int], runs: bool) -> None:
    assert BUILD.runs_on(capability) == runs


def test_a_binary_serves_no_earlier_chip() -> None:
    assert not CudaBuild("13.0.88", (86, 90), 90).runs_on((8, 0))
    assert not CudaBuild("13.0.88", (100,), 100).runs_on((9, 0))


@pytest.mark.parametrize(
    ("capabilities", "driver", "told"),
    [
        ([(9, 0)], (13, 0), None),
        ([(9, 0)], (14, 1), None),
        ([(7, 0), (9, 0)], (13, 0), None),
        ([(9, 0)], (12, 8), r"the driver supports CUDA 12\.8, the kernels were built with 13\.0\.88"),
        ([(9, 0)], (0, 0), r"the driver supports CUDA 0\.0"),
        ([(7, 0)], (13, 0), r"compute capability 7\.0 is older than 7\.5"),
    ],
)
def test_why_no_gpu_runs_it(capabilities: list[tuple[int, int]], driver: tuple[int, int], told: str | None) -> None:
    reason = native_objects.why_no_gpu_runs(BUILD, capabilities, driver)
    assert (reason is None) == (told is None)
    if told is not None:
        with pytest.raises(ValueError, match=told):
            raise ValueError(reason)


def test_a_gpu_that_was_left_out() -> None:
    reason = native_objects.why_no_gpu_runs(CudaBuild("13.0.88", (90,), 90), [(8, 0)], (13, 0))
    assert reason is not None
    assert "FASTSAMPLE_CUDA_ARCHS=80" in reason


@pytest.fixture
def no_cuda_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not used CUDA yet, with an object that is there."""
    monkeypatch.setattr(ops, "cuda_status", None)
    made = tmp_path / "_cuda.abi3.so"
    made.write_bytes(b"\0fastsample CUDA build: nvcc 13.0.88; sm_75 sm_80 sm_90; compute_90\0")
    monkeypatch.setattr(native_objects, "CUDA_OBJECT", made)
    return made


def _raise(error: Exception) -> Callable[[], None]:
    def raiser() -> None:
        raise error

    return raiser


def test_reasons_not_to_use_cuda(no_cuda_used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ops.load_cuda() == f"this torch ({torch.__version__}) has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ops.load_cuda() == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", _raise(RuntimeError("Cannot re-initialize CUDA in forked subprocess")))
    assert ops.load_cuda() == "failed: Cannot re-initialize CUDA in forked subprocess"
    no_cuda_used.unlink()
    assert ops.load_cuda() == "not built: _cuda.abi3.so is not in the package"


@pytest.mark.parametrize(
    ("capability", "driver", "told"),
    [
        ((7, 0), (13, 0), "compute capability 7.0 is older than 7.5"),
        ((9, 0), (12, 9), "the driver supports CUDA 12.9"),
        ((9, 0), (13, 0), "failed: "),  # the object of the fixture is no shared object
    ],
)
def test_what_the_first_use_of_a_device_finds(
    capability: tuple[int, int],
    driver: tuple[int, int],
    told: str,
    no_cuda_used: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every case the process goes on, with CUDA tensors on the reference."""
    monkeypatch.setattr(ops, "triton_status", lambda: "triton is not installed")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(native_objects, "cuda_of_driver", lambda: driver)
    ops._load_cuda_kernels()
    assert ops.cuda_status is not None
    assert ops.cuda_status.startswith(told)
    status = fastsample.backends()["cuda"]
    assert not status.usable
    assert status.detail.startswith(told)
    with pytest.raises(RuntimeError, match='backend: "cuda" is not usable: ') as raised:
        select("cuda", CUDA)
    assert told in str(raised.value)
    assert select("auto", CUDA) is ops.compiled


def test_select_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cuda_status", "ok")
    assert select("cuda", CUDA) is ops.compiled
    with pytest.raises(ValueError, match='"cuda" serves no tensors on cpu'):
        select("cuda", torch.device("cpu"))
    with pytest.raises(ValueError, match='"cpu" serves no tensors on cuda:0'):
        select("cpu", CUDA)


def test_what_the_driver_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, version: Any) -> None:
            version._obj.value = 12080

    monkeypatch.setattr(native_objects.ctypes, "CDLL", Driver)
    assert native_objects.cuda_of_driver() == (12, 8)
    monkeypatch.setattr(native_objects.ctypes, "CDLL", lambda name: _raise(OSError(name))())
    assert native_objects.cuda_of_driver() == (0, 0)


def _run(code: str, **environment: str) -> str:
    """What a process of its own prints: an object that was loaded once stays."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(fastsample.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


# A torch that says it has CUDA, in a process that has not used it.
_WITH_CUDA = """
import torch
torch.version.cuda = "13.0"
from fastsample import ops
def registered():
    return torch._C._dispatch_has_kernel_for_dispatch_key("fastsample::sample", "CUDA")
"""


def _require_object() -> None:
    if not native_objects.CUDA_OBJECT.exists():
        missing("the CUDA object is not built: run `make install` where nvcc is")


def test_loaded_at_the_first_use_of_a_device() -> None:
    """Not on import, which must neither initialise CUDA nor load what a CPU process does not need."""
    _require_object()
    code = (
        _WITH_CUDA
        + """
assert not torch.cuda.is_initialized() and not registered() and ops.cuda_status is None
queued = [call for call, _ in torch.cuda._queued_calls if call.__module__ == "fastsample.ops"]
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda index: (9, 0)
ops.native_objects.cuda_of_driver = lambda: (13, 0)
for call in queued:
    call()
assert ops.cuda_status == "ok" and registered(), ops.cuda_status
print(len(queued), ops.load_cuda())
"""
    )
    assert _run(code).split() == ["1", "ok"]


def test_it_loads_in_a_torch_without_cuda(tmp_path: Path) -> None:
    """And a call says what is wrong. A stand-in for torch's CUDA library brings the call to its next check."""
    _require_object()
    code = (
        _WITH_CUDA
        + """
from fastsample import native_objects
assert native_objects.load(native_objects.CUDA_OBJECT) == "ok" and registered()
key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
arguments = (1.0, None, 0, None, 1.0, None, 0.0, None, 0)
try:
    torch.ops.fastsample.filtered_probs.default.redispatch(key, torch.zeros(1, 3), *arguments)
except RuntimeError as error:
    print(error)
"""
    )
    if torch.version.cuda is None:
        assert "the CUDA kernels cannot run: this torch is built without CUDA" in _run(code)
    stand_in = tmp_path / "libtorch_cuda.so"
    source = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { *stream = 0; return 0; }"
    subprocess.run(
        ["cc", "-x", "c", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", str(stand_in), "-"],
        input=source,
        text=True,
        check=True,
    )
    assert "logits: expected a CUDA tensor" in _run(code, LD_PRELOAD=str(stand_in))
