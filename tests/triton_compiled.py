"""What Triton's compilers make of the kernels, on a machine without a GPU: the table tests/data/triton_resources.md.

    make install && .venv/bin/python tests/triton_compiled.py

writes it anew, in about twelve minutes. The calls are those of the operators, so that each kernel is specialised as in
a real call; but what is launched is compiled only, for a GPU that Triton is told of by a driver without one. That takes
a process of its own, since a process has the kernels compiled or, like other tests, interpreted: see `compiled`.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
PATH = Path(__file__).parent / "data" / "triton_resources.md"
CACHE = ROOT / "build" / "triton-compiled"

# By which policy.py divides; an H100 has so many.
MULTIPROCESSORS = 132


class Target(NamedTuple):
    """A GPU as `triton.backends.compiler.GPUTarget` has it."""

    backend: str
    architecture: int | str
    warp_size: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32),
    "sm_90": Target("cuda", 90, 32),
    "sm_100": Target("cuda", 100, 32),
    "sm_120": Target("cuda", 120, 32),
    "gfx942": Target("hip", "gfx942", 64),
    "gfx1100": Target("hip", "gfx1100", 32),
}


class Point(NamedTuple):
    """A call, and the kernels among those it launches that are looked at."""

    kernels: tuple[str, ...]
    dtype: torch.dtype
    rows: int
    vocab: int
    top_k: int = 0
    operator: str = "sample"
    probabilities: bool = False
    edited: bool = False


READS = ("maximum_kernel", "bound_kernel", "narrow_kernel", "weigh_kernel")
ROW = ("row_kernel",)
DETAILS = ("sums_kernel", "details_kernel")
RESIDUAL = ("residual_kernel", "draw_residual_kernel")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# A row that several programs read, with and without a top_k that bounds its candidates, and one that a program holds.
# Every call has top_p.
POINTS = {
    **{f"reads {name}": Point(READS, dtype, 64, 128256) for name, dtype in _DTYPES.items()},
    **{f"row {name}": Point(ROW, dtype, 64, 128256) for name, dtype in _DTYPES.items()},
    **{f"row, top_k 50 {name}": Point(ROW, dtype, 64, 128256, 50) for name, dtype in _DTYPES.items()},
    **{f"short row {name}": Point(ROW, dtype, 64, 4096) for name, dtype in _DTYPES.items()},
    "probabilities": Point((*READS, *ROW), torch.float32, 64, 128256, probabilities=True),
    "short row, probabilities": Point(ROW, torch.float32, 64, 4096, probabilities=True),
    "filter_logits float32": Point((*ROW, "filter_logits_kernel"), torch.float32, 64, 128256, 0, "filter_logits"),
    "filter_logits bfloat16": Point(("filter_logits_kernel",), torch.bfloat16, 64, 128256, 0, "filter_logits"),
    "filtered_probs float32": Point(("filtered_probs_kernel",), torch.float32, 64, 128256, 0, "filtered_probs"),
    "log_probs float32": Point(("log_probs_kernel",), torch.float32, 64, 128256, 0, "log_probs"),
    "edited": Point((*READS, *ROW, *DETAILS), torch.float32, 64, 128256, 0, "sample_full", edited=True),
    "edited short row": Point((*ROW, *DETAILS), torch.bfloat16, 64, 4096, 0, "sample_full", edited=True),
    "find_edits": Point(("find_edits_kernel",), torch.float32, 64, 128256, 0, "find_edits"),
    "kept_tokens": Point(("kept_tokens_kernel",), torch.float32, 64, 128256, 0, "kept_tokens", edited=True),
    "fixed_probs_at": Point(("fixed_probs_kernel",), torch.float32, 64, 128256, 0, "fixed_probs_at"),
    "random_words": Point(("random_words_kernel",), torch.float32, 64, 128256, 0, "random_words"),
    "sample_residual": Point(RESIDUAL, torch.float32, 64, 128256, 0, "sample_residual"),
}

# A target and a point; then maybe options of the compiler that `launch.py` does not give, to be switched on.
Wanted = tuple[str, ...]
EVERYTHING: tuple[Wanted, ...] = tuple((target, point) for point in POINTS for target in TARGETS)

_COLUMNS = ("call", "kernel", "target", "warps", "registers", "spilled", "shared memory", "widest load of logits")


class Kernel(NamedTuple):
    """One kernel of one call, compiled for one target. All but warps and registers are bytes."""

    point: str
    name: str
    target: str
    warps: int
    registers: int  # of a thread; those that AMD calls vector registers
    spilled: int  # of a thread, to memory
    shared: int
    load: int
    texts: dict[str, str]  # what the stages of the compiler wrote, by Triton's names for them

    def row(self) -> str:
        """The kernel as a row of the table."""
        return f"| {' | '.join(map(str, self[:-1]))} |"


# --- in a process that compiles


class _Driver:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*self._target)

    def get_current_device(self) -> int:
        # Triton remembers for each device, not for each target, with which compiler a kernel is compiled.
        return list(TARGETS.values()).index(self._target)

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Instead:
    """Stands for a kernel in `triton_kernels`: hands the launch, with its grid, to a function."""

    def __init__(self, launch: Callable[..., None], kernel: Any) -> None:
        self._launch = launch
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, self._kernel, grid)


@contextmanager
def launches(launch: Callable[..., None], names: Sequence[str] | None = None) -> Iterator[None]:
    """Every launch becomes `launch(kernel, grid, *arguments, **options)`; of kernels not in `names`, nothing."""
    from fastsample.triton_kernels import details, edits, kept, kernels, speculative, write

    before = [
        (module, name, kernel)
        for module in (details, edits, kept, kernels, speculative, write)
        for name, kernel in vars(module).items()
        if name.endswith("_kernel")
    ]
    for module, name, kernel in before:
        wanted = names is None or name in names
        setattr(module, name, _Instead(launch if wanted else lambda *_, **__: None, kernel))
    try:
        yield
    finally:
        for module, name, kernel in before:
            setattr(module, name, kernel)


class Numbers(NamedTuple):
    """What may be another number in each call, and must not compile a kernel anew."""

    temperature: float = 0.8
    top_p: float = 0.9
    min_p: float = 0.0
    order: int = 0
    seed: int = 1
    offset: int = 0
    stream: int = 0
    samples: int = 1
    replacement: bool = True


def call(point: Point, numbers: Numbers) -> None:
    """The call of a point, on logits that take no memory."""
    from fastsample import triton_kernels
    from fastsample.adjustments import Adjustments
    from fastsample.arguments import Details, Edits, Filters, History, Randomness
    from fastsample.triton_kernels import policy

    rows, vocab, samples = point.rows, point.vocab, numbers.samples
    logits = torch.empty(rows, vocab, dtype=point.dtype, device="meta")
    filters = Filters(
        numbers.temperature, None, point.top_k, None, numbers.top_p, None, numbers.min_p, None, numbers.order
    )
    randomness = Randomness(numbers.seed, None, numbers.offset, None, numbers.stream, None, True)

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def words() -> Tensor:
        return torch.empty(rows, (vocab + 31) // 32, dtype=torch.int32, device="meta")

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="meta")

    edits = Edits(words(), words(), words(), floats(rows, 99)) if point.edited else Edits()
    # Of each call what follows the logits, and indices where it has them.
    operands: dict[str, tuple[Any, ...]] = {
        "sample": (None, *filters, *randomness, numbers.replacement, point.probabilities),
        "log_probs": (integers(rows, samples), *filters),
        "filter_logits": filters,
        "filtered_probs": filters,
        "sample_full": (
            None,
            *filters,
            *randomness,
            numbers.replacement,
            *edits,
            *History(integers(rows, 50), integers(rows), None),
            *Details(
                floats(rows, samples),
                floats(rows, samples),
                integers(rows, samples),
                integers(rows, 20),
                floats(rows, 20),
                integers(rows, 8),
            ),
        ),
        "find_edits": (None, rows, *Adjustments(1.1, None, numbers.temperature, output_tokens=integers(rows, samples))),
        "kept_tokens": (None, *edits, integers(rows, 8), integers(rows + 1), samples),
        "fixed_probs_at": (None, integers(rows, samples), *filters, point.probabilities),
        "random_words": (rows, *randomness, 0, samples),
        "sample_residual": (integers(rows), *filters, False, logits, integers(rows), *filters, False, *randomness),
    }
    written = (integers(rows, samples),) if point.operator.startswith("sample") else ()
    with policy.forced(policy.by_default(vocab, rows, logits.element_size(), point.top_k, MULTIPROCESSORS)):
        getattr(triton_kernels, point.operator)(*written, logits, *operands[point.operator])


def compile_for(target: str) -> None:
    """From now on Triton compiles for a target, whatever GPU there is."""
    from triton.runtime import driver

    driver.set_active(_Driver(TARGETS[target]))


def compile_wanted(wanted: Wanted) -> list[Kernel]:
    """The kernels of a point for a target."""
    target, point, *permitted = wanted
    options = dict.fromkeys(permitted, True)
    found = []

    def compile_only(kernel: Any, grid: tuple[int, ...], *arguments: Any, **given: Any) -> None:
        made = kernel.warmup(*arguments, grid=grid, **{**given, **options})
        texts = {stage: text for stage, text in made.asm.items() if stage in ("ttir", "llir", "ptx", "amdgcn")}
        text = texts.get("ptx") or texts["amdgcn"]
        registers, spilled = _of_cubin(made.asm["cubin"]) if "ptx" in texts else _of_metadata(text)
        load = max(_loads(text), default=0)
        name, shared = kernel.fn.__name__, made.metadata.shared
        found.append(Kernel(point, name, target, given["num_warps"], registers, spilled, shared, load, texts))

    compile_for(target)
    with launches(compile_only, POINTS[point].kernels):
        call(POINTS[point], Numbers())
    return found


def keys_of(point: Point, numbers: Numbers) -> set[str]:
    """By what Triton tells apart the kernels that a call launches: with the same keys it compiles nothing anew."""
    from triton import knobs

    keys = set()

    def note(*, key: str, **_: Any) -> bool:
        keys.add(key)
        return True  # nothing is to be compiled

    def specialise(kernel: Any, grid: tuple[int, ...], *arguments: Any, **given: Any) -> None:
        kernel.warmup(*arguments, grid=grid, **given)

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = note
    try:
        with launches(specialise):
            call(point, numbers)
    finally:
        knobs.runtime.jit_cache_hook = before
    return keys


def recompiled(name: str, changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which of these changes of the call of a point, in fields of `Point` or `Numbers`, would compile a kernel anew."""
    point, numbers = POINTS[name], Numbers(samples=5)
    compile_for("sm_90")
    known = keys_of(point, numbers)

    def changed(change: dict[str, Any], of: Any) -> Any:
        return of._replace(**{name: value for name, value in change.items() if name in of._fields})

    return [change for change in changes if keys_of(changed(change, point), changed(change, numbers)) - known]


def _of_cubin(cubin: bytes) -> tuple[int, int]:
    """Registers and stack of the one kernel in a cubin. The kernels have no arrays: all of their stack is spills."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    return int(found[0]), int(found[1])


def _of_metadata(assembly: str) -> tuple[int, int]:
    """Registers and private memory of the one kernel in AMD's assembly."""
    (registers,) = re.findall(r"\.vgpr_count: +(\d+)", assembly)
    (spilled,) = re.findall(r"\.private_segment_fixed_size: +(\d+)", assembly)
    return int(registers), int(spilled)


_FILE = re.compile(r'\.file\s+(\d+) .*?([^"/]+)"$', re.MULTILINE)
_LOCATION = re.compile(r"\.loc\s+(\d+) ")
_LOAD = re.compile(r"(?:ld\.global|(?:global|buffer)_load)\S*")


def _loads(assembly: str) -> Iterator[int]:
    """How many bytes each load reads that comes from load.py."""
    files = dict(_FILE.findall(assembly))
    here = ""
    for line in assembly.splitlines():
        if location := _LOCATION.search(line):
            here = files.get(location[1], "")
        elif here == "load.py" and (load := _LOAD.search(line)):
            yield _bytes_of(load[0])


def _bytes_of(load: str) -> int:
    """What a load instruction of PTX or of either spelling of AMD's reads, from its name."""
    if load.startswith("ld."):
        *_, kind = load.split(".")
        vector = re.search(r"\.v(\d)\.", load)
        return int(kind[1:]) // 8 * (int(vector[1]) if vector else 1)
    if bits := re.search(r"_b(\d+)$", load):
        return int(bits[1]) // 8
    if words := re.search(r"dword(?:x(\d))?$", load):
        return 4 * int(words[1] or 1)
    if re.search(r"short|16", load):
        return 2
    raise ValueError(f"how much does {load} read?")


# --- from any process


def compiled(wanted: Iterable[Wanted], packages: Path | None = None) -> list[Kernel]:
    """The kernels of points for targets, compiled in another process; the packages in a folder come before others."""
    return [Kernel(*fields) for fields in _in_another_process(map("=".join, wanted), packages)]


def recompiled_elsewhere(name: str, changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """`recompiled`, in another process."""
    found: list[dict[str, Any]] = _in_another_process([name, "--changes", json.dumps(list(changes))], None)
    return found


def _in_another_process(arguments: Iterable[str], packages: Path | None) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(CACHE)
    if packages is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(packages), *filter(None, [environment.get("PYTHONPATH")])])
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, "--json", file.name, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return json.load(file)


def table(version: str, of: list[Kernel]) -> str:
    """The whole file."""
    return "\n".join(
        [
            "# What the Triton kernels take of a GPU",
            "",
            f"As the compilers of triton {version} say it; sizes in bytes. Written by `tests/triton_compiled.py`; its",
            "`POINTS` are the calls.",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"| --- | --- | --- |{' ---: |' * (len(_COLUMNS) - 3)}",
            *(kernel.row() for kernel in of),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes tests/data/triton_resources.md, or what --json says.")
    parser.add_argument("wanted", nargs="*", metavar="TARGET=POINT[=OPTION]")
    parser.add_argument("--json", type=Path, help="write the kernels here, and no table")
    parser.add_argument(
        "--changes", type=json.loads, help="write which of these changes of a call, named by its point, compile anew"
    )
    given = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE))
    import triton

    if given.changes is not None:
        given.json.write_text(json.dumps(recompiled(given.wanted[0], given.changes)))
        return
    found = []
    for wanted in [tuple(words.split("=")) for words in given.wanted] or EVERYTHING:
        found += compile_wanted(wanted)
        if given.json is None:
            print(*wanted, flush=True)
    if given.json is None:
        PATH.write_text(table(triton.__version__, found))
    else:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
