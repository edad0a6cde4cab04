"""The floor, measured: a kernel that only reads the logits' bytes, and a launch that does nothing (floor.cu)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .options import BUILD

SOURCE = Path(__file__).with_name("floor.cu")
_FOLDER = BUILD / "gpu"


class FloorError(Exception):
    """The kernels of the floor cannot be built or launched here; the message says why."""


class ReadShape(NamedTuple):
    """How the reading kernel is launched: blocks for each multiprocessor, and their threads."""

    blocks_per_multiprocessor: int
    threads: int


# Which one reads fastest differs by size; the floor is the fastest of them in each setting.
READ_SHAPES = (ReadShape(1, 1024), ReadShape(2, 1024), ReadShape(4, 512), ReadShape(16, 256))
_BYTES_PER_LOAD = 16


def build(architecture: str, folder: Path = _FOLDER) -> Path:
    """Compile floor.cu for one architecture, such as "sm_90" or "native". Returns the library's path.

    Raises:
        FloorError: there is no nvcc, or it fails.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise FloorError("nvcc is not on PATH, so the floor is not measured")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"libfloor-{architecture}.so"
    # The static runtime finds the context that torch made, since both use the device's primary one.
    command = [nvcc, "-O3", "-std=c++17", f"-arch={architecture}", "-shared", "-Xcompiler=-fPIC", "-cudart=static"]
    result = subprocess.run([*command, str(SOURCE), "-o", str(library)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise FloorError(f"nvcc failed on {SOURCE.name}: {(result.stdout + result.stderr).strip()[-500:]}")
    return library


class Floor:
    """The library, loaded; launches go to torch's current stream."""

    def __init__(self, library: Path) -> None:
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError as error:
            raise FloorError(f"{library.name} cannot be loaded: {error}") from error
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._read = loaded.floor_read
        self._read.argtypes = [pointer, size, pointer, ctypes.c_int, ctypes.c_int, pointer]
        self._launch = loaded.floor_launch
        self._launch.argtypes = [ctypes.c_int, ctypes.c_int, pointer]
        self._sink: Tensor | None = None

    def read(self, data: Tensor, shape: ReadShape) -> None:
        """Read the memory of a contiguous tensor, but for up to 15 bytes at its end."""
        if self._sink is None:
            self._sink = torch.zeros(4, dtype=torch.int32, device=data.device)
        count = data.nbytes // _BYTES_PER_LOAD
        multiprocessors = torch.cuda.get_device_properties(data.device).multi_processor_count
        needed = -(-count // shape.threads)
        blocks = max(1, min(needed, shape.blocks_per_multiprocessor * multiprocessors))
        stream = torch.cuda.current_stream(data.device).cuda_stream
        _check(self._read(data.data_ptr(), count, self._sink.data_ptr(), blocks, shape.threads, stream))

    def launch(self, blocks: int) -> None:
        """Launch a kernel that does nothing."""
        _check(self._launch(blocks, 32, torch.cuda.current_stream().cuda_stream))


class ReadSession:
    """The reading kernel as a contestant."""

    def __init__(self, floor: Floor, shape: ReadShape) -> None:
        self.floor, self.shape = floor, shape

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Sequence[int]:
        self.floor.read(self.logits, self.shape)
        return ()


class LaunchSession:
    """The empty kernel as a contestant, with a block for each row."""

    def __init__(self, floor: Floor) -> None:
        self.floor = floor

    def load(self, logits: Tensor) -> None:
        self.rows = len(logits)

    def draw(self) -> Sequence[int]:
        self.floor.launch(self.rows)
        return ()


def _check(error: int) -> None:
    if error != 0:
        raise FloorError(f"a kernel of the floor failed to launch: CUDA error {error}")
