"""What each CUDA kernel takes of a GPU, as ptxas says it: the table tests/data/cuda_resources.md.

    make install && .venv/bin/python tests/cuda_resources.py

writes it anew, from the reports of the last build (FASTSAMPLE_CUDA_ARCHS unset), which lie beside the object files.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PATH = Path(__file__).parent / "data" / "cuda_resources.md"

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'\n")
_STACK = re.compile(r"Function properties for (\w+)\n +(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")

_COLUMNS = ("kernel", "architecture", "registers", "spill stores", "spill loads", "stack", "static shared memory")


class Kernel(NamedTuple):
    """One kernel on one architecture. All but the registers are bytes."""

    name: str
    architecture: int
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int

    def row(self) -> str:
        """The kernel as a row of the table."""
        cells = [self.name, f"sm_{self.architecture}", *map(str, self[2:])]
        return f"| {' | '.join(cells)} |"


def reports() -> list[Path]:
    """What ptxas said of each file of kernels in the last build; empty where none was compiled."""
    folders = (ROOT / "build").glob("cuda-*")
    sources = (ROOT / "csrc/cuda").glob("*.cu")
    wanted = {f"cuda-{source.name}.ptxas" for source in sources}
    return sorted(report for folder in folders for report in folder.glob("*.ptxas") if report.name in wanted)


def kernels(text: str) -> list[Kernel]:
    """The kernels in a report of ptxas (`-Xptxas=-v`), with their names as ptxas has them."""
    found = []
    _, *parts = _ENTRY.split(text)
    for name, architecture, said in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        # With --threads several ptxas write to one file; where their words mix, nothing here can be trusted.
        frames = {function: tuple(map(int, sizes)) for function, *sizes in _STACK.findall(said)}
        registers = _REGISTERS.findall(said)
        if name not in frames or len(registers) != 1:
            raise ValueError(f"not what ptxas says of one kernel: {name}\n{said}")
        shared = _SHARED.search(said)
        # A function that was not inlined spills in the kernel that calls it.
        stores, loads = (sum(frame[i] for frame in frames.values()) for i in (1, 2))
        found.append(
            Kernel(
                name,
                int(architecture),
                int(registers[0]),
                stores,
                loads,
                frames[name][0],
                int(shared[1]) if shared else 0,
            )
        )
    return found


def readable(names: list[str]) -> list[str]:
    """Mangled names as `row_kernel<float, true>`: without the namespace they share, result and parameters."""
    spelled = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return [re.sub(r"^void |\((fastsample::.*)?\)$|fastsample::cuda::", "", name) for name in spelled]


def built_kernels() -> list[Kernel]:
    """The kernels of the last build, by name and architecture; empty where none was compiled."""
    found = [kernel for report in reports() for kernel in kernels(report.read_text())]
    if not found:
        return []
    names = readable([kernel.name for kernel in found])
    return sorted(kernel._replace(name=name) for kernel, name in zip(found, names, strict=True))


def table(nvcc: str, of: list[Kernel]) -> str:
    """The whole file."""
    return "\n".join(
        [
            "# What the CUDA kernels take of a GPU",
            "",
            f"As ptxas says it, from nvcc {nvcc}; sizes in bytes. Written by `tests/cuda_resources.py`.",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"| --- | --- |{' ---: |' * (len(_COLUMNS) - 2)}",
            *(kernel.row() for kernel in of),
            "",
        ]
    )


if __name__ == "__main__":
    from fastsample import native_objects

    build = native_objects.cuda_build()
    if build is None:
        sys.exit("there is no CUDA object: make install, where nvcc is")
    PATH.write_text(table(build.nvcc, built_kernels()))
