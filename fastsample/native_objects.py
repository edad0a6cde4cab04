"""The compiled objects inside the package: what there is, what they were built for, and loading them.

A missing or broken object is a status to be told, never an exception: the rest of the package works without it.
"""

import ctypes
import mmap
import re
from pathlib import Path
from typing import NamedTuple

import torch

CPU_OBJECT = Path(__file__).with_name("_cpu.abi3.so")
CUDA_OBJECT = Path(__file__).with_name("_cuda.abi3.so")

OLDEST_CAPABILITY = (7, 5)

_CUDA_BUILD = re.compile(rb"fastsample CUDA build: nvcc ([\d.]+); ([sm_\d ]+); compute_(\d+)\x00")


class CudaBuild(NamedTuple):
    """What the CUDA object was built with and for.

    Attributes:
        nvcc: the compiler's version, "13.0.88".
        architectures: the GPUs it has binaries for, 90 for sm_90.
        ptx: the architecture of its PTX, from which the driver compiles for later GPUs.
    """

    nvcc: str
    architectures: tuple[int, ...]
    ptx: int

    def __str__(self) -> str:
        binaries = " ".join(f"sm_{number}" for number in self.architectures)
        return f"{binaries} and PTX of compute_{self.ptx}, by nvcc {self.nvcc}"

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability runs it: a binary serves the later chips of its generation."""
        number = capability[0] * 10 + capability[1]
        return number >= self.ptx or any(
            built // 10 == capability[0] and built <= number for built in self.architectures
        )


def load(path: Path) -> str:
    """Load a compiled object, whose operators torch then has. Returns "ok", or why it has not."""
    if not path.exists():
        return f"not built: {path.name} is not in the package"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        # torch says only that it could not load the file; the linker's reason is the cause.
        return f"failed: {error.__cause__ or error}"
    return "ok"


def cuda_build() -> CudaBuild | None:
    """What the CUDA object says of its build, read without loading it; None where there is no object."""
    if not CUDA_OBJECT.exists() or CUDA_OBJECT.stat().st_size == 0:
        return None
    with CUDA_OBJECT.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = _CUDA_BUILD.search(content)
        if found is None:
            return None
        nvcc, binaries, ptx = (group.decode() for group in found.groups())
    return CudaBuild(nvcc, tuple(int(name.removeprefix("sm_")) for name in binaries.split()), int(ptx))


def cuda_of_driver() -> tuple[int, int]:
    """The newest CUDA that the driver supports; (0, 0) where there is no driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0, 0
    return version.value // 1000, version.value % 1000 // 10


def why_no_gpu_runs(build: CudaBuild, capabilities: list[tuple[int, int]], driver: tuple[int, int]) -> str | None:
    """Why the CUDA object runs on none of the GPUs here, or None where it runs on one.

    Args:
        build: what the object was built for.
        capabilities: the GPUs' compute capabilities.
        driver: what `cuda_of_driver` returns.
    """
    # A runtime works with every driver of its own major version or a later one.
    if driver[0] < int(build.nvcc.partition(".")[0]):
        return (
            f"the driver supports CUDA {driver[0]}.{driver[1]}, the kernels were built with {build.nvcc}: "
            "update the driver, or build fastsample with an older nvcc"
        )
    if any(build.runs_on(capability) for capability in capabilities):
        return None
    newest = max(capabilities)
    found = f"compute capability {newest[0]}.{newest[1]}"
    if newest < OLDEST_CAPABILITY:
        return f"{found} is older than {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
    return (
        f"{found} is none of those the kernels were built for ({build}): "
        f"build fastsample with FASTSAMPLE_CUDA_ARCHS={newest[0]}{newest[1]}"
    )
