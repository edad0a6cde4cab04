"""Compiles tests/emulator, which runs CUDA kernels on the CPU, into extension modules, one for each way to look for
errors. No torch: what a sanitizer stops is run in small processes of its own.
"""

import fcntl
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pybind11

import native_build
from missing import missing

ROOT = Path(__file__).parents[1]
EMULATOR = ROOT / "tests/emulator"
CSRC = ROOT / "csrc"

# float-cast-overflow is not part of `undefined`.
SANITIZE_ADDRESS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")


RUNTIME = ("simt.cpp", "barriers.cpp", "warp.cpp", "memory.cpp", "fiber.cpp")


class Variant(NamedTuple):
    """One way to build the emulator."""

    runtime_flags: tuple[str, ...]
    kernel_flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()
    sources: tuple[str, ...] = RUNTIME


VARIANTS = {
    "plain": Variant(("-O2",), ("-O2",)),
    # What older devices run in place of single instructions.
    "sm_75": Variant(("-O2",), ("-O2", "-D__CUDA_ARCH__=750")),
    "ucontext": Variant(("-O2", "-DSIMT_UCONTEXT"), ("-O2",)),  # the way without assembly
    "address": Variant(
        ("-O1", "-fno-omit-frame-pointer", *SANITIZE_ADDRESS),
        ("-O1", "-fno-omit-frame-pointer", *SANITIZE_ADDRESS),
        SANITIZE_ADDRESS,
    ),
    # The kernels only: what they do to memory is reported to race.cpp, not to the sanitizer's runtime.
    "race": Variant(("-O2", "-DSIMT_RACE"), ("-O1", "-fsanitize=thread"), sources=(*RUNTIME, "race.cpp")),
}


class Module(NamedTuple):
    """An extension module: its name, the sources of its binding, and those of its kernels."""

    name: str
    bindings: tuple[str, ...]
    kernels: tuple[str, ...]


BINDINGS = ("binding.cpp", "requests_binding.cpp")
KERNELS = Module(
    "emulated_kernels",
    BINDINGS,
    tuple(f"kernels_{name}.cpp" for name in ("float32", "float16", "bfloat16", "sample_full", "requests")),
)
PROBES = Module("emulator_probes", ("probes_binding.cpp",), ("probes.cpp",))


def find_compiler(variant: str) -> native_build.Compiler:
    """The compiler for a variant; where there is none for it, the test that asks is skipped (`missing`)."""
    try:
        compiler = native_build.find_compiler()
    except native_build.BuildError as error:
        missing(str(error))
    if variant in ("address", "race") and compiler.family != "gcc":
        missing(f"the emulator's {variant} build is made for gcc's sanitizers; found {compiler}")
    if variant == "address" and not all(library.is_absolute() for library in sanitizer_libraries(compiler)):
        missing(f"{compiler} has no libasan.so")
    return compiler


def sanitizer_libraries(compiler: native_build.Compiler) -> list[Path]:
    """What has to be in a process before AddressSanitizer's modules: its runtime, and the C++ library.

    Without the latter, AddressSanitizer loses the exceptions that other libraries throw.
    """
    ask = [[*compiler.command, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    return [Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()) for command in ask]


def build(module: Module, variant: str, csrc: Path = CSRC, folder: Path | None = None) -> Path:
    """Compiles what changed of an extension module and returns its path.

    csrc: where the kernels' sources are. folder: where their objects are kept for the next build, and the module;
    build/emulator-VARIANT unless said otherwise. Raises native_build.BuildError where a source does not compile.
    """
    with _alone():
        return _build(module, variant, csrc, folder)


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps the test processes that run side by side from compiling into one folder at the same time."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build/emulator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(module: Module, variant: str, csrc: Path, folder: Path | None) -> Path:
    compiler = find_compiler(variant)
    chosen = VARIANTS[variant]
    # -g1 lets a report name lines; nvcc knows `#pragma unroll`.
    flags = ["-g1", "-fPIC", "-fvisibility=hidden", "-DFASTSAMPLE_EMULATOR", "-Wno-unknown-pragmas", f"-I{EMULATOR}"]
    python = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{pybind11.get_include()}"]
    own = ROOT / f"build/emulator-{variant}"

    # A binding is the same in each variant, and takes as long to compile as all its kernels.
    objects = _compile(compiler, ROOT / "build/emulator", module.bindings, [*flags, f"-I{CSRC}", *python])
    objects += _compile(compiler, own, chosen.sources, [*flags, f"-I{CSRC}", *chosen.runtime_flags])
    objects += _compile(compiler, folder or own, module.kernels, [*flags, f"-I{csrc}", *chosen.kernel_flags])
    linked = native_build.Build(folder or own, compiler)
    linked.link(linked.folder / f"{module.name}.so", objects, ["-shared", "-ldl", *chosen.link_flags])
    linked.run()
    return linked.folder / f"{module.name}.so"


def _compile(compiler: native_build.Compiler, folder: Path, sources: Iterable[str], flags: Iterable[str]) -> list[Path]:
    made = native_build.Build(folder, compiler)
    objects = [made.compile(EMULATOR / source, flags) for source in sources]
    made.run()
    return objects


def load(path: Path) -> ModuleType:
    """The extension module at `path`. A process may load several builds of one module."""
    # By the whole name, of which only the last part is in the binary: pybind11 keeps modules by it.
    name = f"{path.parent.name}.{path.stem}"
    spec = spec_from_file_location(name, path, loader=ExtensionFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_lines(message: str, module: Path) -> str:
    """The message of an emulator's error, with file and line where the race detector has addresses of code."""

    def line(match: re.Match[str]) -> str:
        command = ["addr2line", "-i", "-e", str(module), match[1]]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        # Innermost first. What the emulator does on a kernel's behalf is not the place.
        in_kernel = [frame for frame in found if "/emulated_device.h:" not in frame]
        return Path((in_kernel or found)[0].split(" ")[0]).name

    return re.sub(r"<code (0x[0-9a-f]+)>", line, message)


def python_environment(address_sanitizer: bool) -> dict[str, str]:
    """The environment of a Python that finds these tests' modules and can load what AddressSanitizer is built into."""
    path = os.pathsep.join([str(ROOT / "tests"), str(CSRC), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    if address_sanitizer:
        libraries = sanitizer_libraries(find_compiler("address"))
        environment["LD_PRELOAD"] = " ".join(map(str, libraries))
        environment["ASAN_OPTIONS"] = "detect_leaks=0"  # Python itself frees little of what it has at its end
    return environment


def run_with_address_sanitizer(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program of Python where it can load the `address` build."""
    environment = python_environment(address_sanitizer=True)
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT)
