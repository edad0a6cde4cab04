"""Builds fastsample/_cpu.abi3.so and _cuda.abi3.so; everything else about the package is in pyproject.toml.

FASTSAMPLE_BUILD chooses what is compiled:
    auto    (default) the CPU object and, where nvcc is, the CUDA object; what fails is left out with a loud warning
    cpu     the CPU object, or an error
    cuda    both objects, or an error
    python  nothing
    built   nothing either: what an earlier build left in fastsample/ is packaged as it is
The objects use torch's stable ABI and nothing of Python's, so one build serves every Python >= 3.10, free-threaded ones
included, and torch >= 2.10, with and without CUDA.
FASTSAMPLE_CUDA_ARCHS ("native", or numbers such as "80 90") restricts the GPUs that the CUDA object serves. CUDA_HOME,
CXX, CXXFLAGS, NVCCFLAGS, LDFLAGS and MAX_JOBS are honoured.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))  # setuptools' build backend does not put the project's folder on the path

from native_build import Build, BuildError, cpu_sources, find_compiler  # noqa: E402
from nvcc import chosen_architectures, compile_cuda, description, find_nvcc, nvcc_command  # noqa: E402

MODES = ("auto", "cpu", "cuda", "python", "built")
MODE = os.environ.get("FASTSAMPLE_BUILD", "auto")
OLDEST_TORCH = (2, 10)
TORCH_TARGET_VERSION = "0x020a000000000000ULL"  # OLDEST_TORCH, as torch's headers spell it
CPU, CUDA = "fastsample._cpu", "fastsample._cuda"
BINDINGS = {CPU: "csrc/ops.cpp", CUDA: "csrc/ops_cuda.cpp"}


def object_path(name: str) -> str:
    """Where the native object of this name is, from the root of a source tree or a wheel."""
    # torch loads the object, not Python's import system, so the name never depends on the Python that built it.
    return str(Path(*name.split(".")).with_suffix(".abi3.so"))


def chosen_objects() -> list[str]:
    """The native objects that MODE asks for."""
    if MODE == "python":
        return []
    if MODE == "built":
        return [name for name in BINDINGS if (ROOT / object_path(name)).exists()]
    with_cuda = MODE == "cuda" or (MODE == "auto" and nvcc_command() is not None)
    return [CPU, CUDA] if with_cuda else [CPU]


def torch_headers() -> Path:
    """The include folder of the installed torch, found without importing it.

    pip's build isolation hides the environment's packages from `import`, but sysconfig still names their folder. torch
    is no build requirement, since isolation would then download its CUDA packages for a few headers.
    """
    found = importlib.util.find_spec("torch")
    roots = [Path(found.origin).parent] if found and found.origin else []
    roots += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    for root in roots:
        if (root / "include/torch/csrc/stable/library.h").exists():
            match = re.search(r"__version__ = '(\d+)\.(\d+)", (root / "version.py").read_text())
            if match and (int(match[1]), int(match[2])) >= OLDEST_TORCH:
                return root / "include"
    wanted = ".".join(map(str, OLDEST_TORCH))
    raise BuildError(
        f"the headers of torch >= {wanted} were not found (looked in {', '.join(map(str, dict.fromkeys(roots)))}).\n"
        f"Install torch >= {wanted} into this environment first, then build with `pip install --no-build-isolation`."
    )


def object_flags() -> list[str]:
    """Compiler flags of the package's objects. The instruction sets are chosen per function, so there is no -march."""
    flags = ["-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    # Error messages name the source, and should not name the folder of whoever built it.
    flags.append(f"-ffile-prefix-map={ROOT}/=")
    # -isystem: warnings in torch's headers are not ours.
    return [*flags, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-isystem", str(torch_headers())]


def link_object(build: Build, output: Path, objects: Sequence[Path], libraries: Sequence[str] = ()) -> None:
    """Adds the linking of one of the package's objects, which torch loads."""
    if sys.platform == "darwin":
        build.link(output, objects, [*libraries, "-bundle", "-undefined", "dynamic_lookup"])
        return
    # Only the names of torch's libraries are needed (DT_NEEDED), so that the loader binds to whichever torch is in the
    # process; empty stand-ins give them without tying the object to the torch it was built with.
    folder = build.folder
    stand_ins = [
        build.link(folder / f"lib{name}.so", [], ["-shared", f"-Wl,-soname,lib{name}.so", "-x", "c++", os.devnull])
        for name in ("torch", "torch_cpu")
    ]
    torch_flags = [f"-L{folder}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
    build.link(output, objects, ["-shared", *torch_flags, *libraries], after=stand_ins)


def build_cpu_object(output: Path, folder: Path) -> None:
    """Compiles the CPU kernels into `output`; intermediate files stay in `folder` for the next build."""
    compiler = find_compiler()
    build = Build(folder, compiler)
    flags = object_flags()
    sources = [ROOT / BINDINGS[CPU], *cpu_sources(ROOT / "csrc/cpu", compiler)]
    link_object(build, output, [build.compile(source, flags) for source in sources])
    build.run()


def build_cuda_object(output: Path, folder: Path) -> None:
    """Compiles the CUDA kernels into `output`; intermediate files stay in `folder` for the next build."""
    nvcc = find_nvcc()
    architectures = chosen_architectures(nvcc)
    build = Build(folder, find_compiler())
    flags = [*object_flags(), f'-DFASTSAMPLE_CUDA_BUILD="{description(nvcc, architectures)}"']
    kernels = compile_cuda(build, nvcc, sorted((ROOT / "csrc/cuda").glob("*.cu")), architectures)
    # The static runtime: a wheel must not depend on the CUDA version of the torch that it meets. Its symbols stay
    # inside, since torch brings a runtime of its own.
    libraries = [str(nvcc.static_runtime()), "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]
    link_object(build, output, [build.compile(ROOT / BINDINGS[CUDA], flags), *kernels], libraries)
    build.run()


BUILDERS = {CPU: build_cpu_object, CUDA: build_cuda_object}


class BuildNative(build_ext):
    """Replaces setuptools' compilation by ninja's."""

    def get_ext_filename(self, fullname: str) -> str:
        return object_path(fullname)

    def run(self) -> None:
        # An object of an earlier build that this one leaves out would not match the sources.
        for name in BINDINGS.keys() - chosen_objects():
            Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        # Not self.build_temp, which is a new folder for each editable install: there, nothing would be incremental.
        folder = ROOT / "build" / f"{ext.name.rpartition('._')[2]}-{sysconfig.get_platform()}"
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        if MODE == "built":
            if not self.inplace:
                self.copy_file(str(ROOT / object_path(ext.name)), str(output))
            return
        try:
            BUILDERS[ext.name](folder / output.name, folder)
        except BuildError as error:
            if MODE != "auto":
                raise SystemExit(f"FASTSAMPLE_BUILD={MODE}: {error}") from error
            output.unlink(missing_ok=True)
            kernels = "CPU kernels and will be slow" if ext.name == CPU else "CUDA kernels: GPU tensors will be slow"
            line = "*" * 100
            print(
                f"{line}\nWARNING: fastsample is being installed WITHOUT its compiled {kernels}:\n"
                f"{error}\n`fastsample doctor` shows what an installation has.\n{line}",
                file=sys.stderr,
                flush=True,
            )
        else:
            self.copy_file(str(folder / output.name), str(output))


class TagWheel(bdist_wheel):
    """Says that the wheel is for any Python; setuptools takes objects for extension modules, made for one."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if MODE not in MODES:
    sys.exit(f"FASTSAMPLE_BUILD={MODE}: expected one of {', '.join(MODES)}")

setup(
    ext_modules=[Extension(name, [BINDINGS[name]], optional=MODE == "auto") for name in chosen_objects()],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": TagWheel},
)
