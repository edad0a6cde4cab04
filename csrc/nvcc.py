"""Finds nvcc and compiles csrc/cuda/ with it: for which architectures, with which flags, and what ptxas says of it.

Only the standard library is used, as in native_build.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from native_build import LAW_FLAGS, WARNING_FLAGS, Build, BuildError, Step, extra_flags, jobs

# The first nvcc for sm_120.
OLDEST_NVCC = (12, 8)

# A binary runs on later chips of its generation too: sm_80 on the 8.6 and 8.7, sm_120 on the 12.1.
ARCHITECTURES = (75, 80, 89, 90, 100, 103, 120)
ARCHITECTURES_VARIABLE = "FASTSAMPLE_CUDA_ARCHS"

# Where NVIDIA's installers put the toolkit, or a link to it.
USUAL_HOME = "/usr/local/cuda"

# nvcc's own counterparts of LAW_FLAGS: each operation by itself, correctly rounded, denormals kept.
ARITHMETIC_FLAGS = ("-fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")

# Keeps what ptxas says of each kernel in a file and out of sight; errors and warnings are shown. $1 is the file.
_KEEP_REPORT = (
    'report=$1; shift; "$@" 2> "$report"; status=$?; '
    'grep -Ev "^ptxas info|^ +[0-9]+ bytes stack frame" "$report" >&2; exit $status'
)


@dataclass(frozen=True)
class Nvcc:
    """A working nvcc: its command, the toolkit's folder, version ("13.0.88") and the architectures it compiles for."""

    command: Path
    root: Path
    version: str
    architectures: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.command} (nvcc {self.version})"

    @property
    def release(self) -> tuple[int, int]:
        """The version's first two numbers."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    def static_runtime(self) -> Path:
        """The toolkit's libcudart_static.a. Raises BuildError where it is not installed."""
        for folder in ("lib64", "lib", *sorted(f"targets/{path.name}/lib" for path in self.root.glob("targets/*"))):
            library = self.root / folder / "libcudart_static.a"
            if library.exists():
                return library
        raise BuildError(f"{self.command} is there, but no libcudart_static.a in {self.root}: install CUDA's runtime")


def nvcc_command() -> Path | None:
    """The first nvcc of CUDA_HOME, CUDA_PATH, PATH, USUAL_HOME and pip's packages, whether or not it works."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [str(Path(home, "bin/nvcc")) for home in homes if home]
    candidates += ["nvcc", f"{USUAL_HOME}/bin/nvcc"]
    folders = dict.fromkeys([*sys.path, sysconfig.get_path("purelib")])
    candidates += [str(path) for folder in folders for path in sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"))]
    found = next((path for path in map(shutil.which, candidates) if path), None)
    return Path(found) if found else None


def find_nvcc() -> Nvcc:
    """The nvcc to use. Raises BuildError with what to install when there is none, or none that serves."""
    command = nvcc_command()
    if command is not None:
        return probe_nvcc(command)
    raise BuildError(
        f"fastsample's CUDA kernels need nvcc {_version_text(OLDEST_NVCC)} or newer; there is none in CUDA_HOME, on "
        f"PATH, in {USUAL_HOME} or in pip's packages.\n"
        "  NVIDIA's repositories:  apt-get install cuda-nvcc-13-0 cuda-cudart-dev-13-0\n"
        "  somewhere else:         CUDA_HOME=/path/to/cuda\n"
        "or set FASTSAMPLE_BUILD=cpu for the package without CUDA kernels."
    )


def probe_nvcc(command: Path) -> Nvcc:
    """Asks `command` what it is. Raises BuildError when it does not run, or is too old."""
    try:
        release = _output(command, "--version")
        # The nvcc on PATH can be a script that starts another one, so its own place says nothing.
        steps = _output(command, "-dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
        targets = _output(command, "--list-gpu-code")
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{command} does not run: {getattr(error, 'stderr', None) or error}") from error
    version = re.search(r"\bV(\d+\.\d+\.\d+)", release)
    root = re.search(r"^#\$ TOP=(.+)$", steps, re.MULTILINE)
    if version is None or root is None:
        raise BuildError(f"{command} does not answer as nvcc does: {release.strip() or steps.strip()}")
    architectures = tuple(sorted(int(number) for number in re.findall(r"^sm_(\d+)$", targets, re.MULTILINE)))
    nvcc = Nvcc(command, Path(root[1].strip()).resolve(), version[1], architectures)
    if nvcc.release < OLDEST_NVCC:
        raise BuildError(
            f"{nvcc} is too old; fastsample's CUDA kernels need {_version_text(OLDEST_NVCC)} or newer "
            "(FASTSAMPLE_BUILD=cpu for the package without them)"
        )
    return nvcc


def chosen_architectures(nvcc: Nvcc) -> tuple[int, ...]:
    """What to compile for: FASTSAMPLE_CUDA_ARCHS ("native", or numbers such as "80 90"), else all of ARCHITECTURES.

    Raises BuildError when that is neither, when there is no GPU to be native to, or when nvcc does not know one.
    """
    value = os.environ.get(ARCHITECTURES_VARIABLE, "").strip()
    wanted = set(ARCHITECTURES)
    if value == "native":
        wanted = set(_present_architectures())
    elif value:
        numbers = re.split(r"[\s,;]+", value)
        if not all(number.isdecimal() for number in numbers):
            raise BuildError(f'{ARCHITECTURES_VARIABLE}={value}: accepted: "native" or numbers such as "80 90"')
        wanted = set(map(int, numbers))
    unknown = sorted(wanted - set(nvcc.architectures))
    if unknown:
        raise BuildError(
            f"{nvcc} does not compile for {', '.join(f'sm_{number}' for number in unknown)}; it knows "
            f"{', '.join(map(str, nvcc.architectures))}: set {ARCHITECTURES_VARIABLE} to a choice of these"
        )
    return tuple(sorted(wanted))


def description(nvcc: Nvcc, architectures: Sequence[int]) -> str:
    """What the CUDA object says of its build (fastsample/native_objects.py reads it): nvcc, binaries, PTX."""
    return f"nvcc {nvcc.version}; {' '.join(f'sm_{number}' for number in architectures)}; compute_{max(architectures)}"


def compile_cuda(build: Build, nvcc: Nvcc, sources: Sequence[Path], architectures: Sequence[int]) -> list[Path]:
    """Adds the compilation of `sources` for all `architectures` to `build`; returns the objects' paths.

    Each object gets binaries for all of them and PTX of the newest one for chips to come. What ptxas says of its
    kernels is in the file beside it that `report_of` names.
    """
    newest = max(architectures)
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures if number != newest]
    targets.append(f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]")
    # ninja runs a source per job; where there are more jobs than sources, each compiles several architectures at once.
    threads = max(2, -(-jobs() // max(1, len(sources))))
    # -lineinfo, for the profiler, makes binaries 3 times as large; this makes them a sixth of that. Every driver for
    # CUDA 13 can unpack it, but not every one for CUDA 12.
    compression = ["-compress-mode=size"] if nvcc.release >= (13, 0) else []
    host = [*WARNING_FLAGS, "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", *LAW_FLAGS]
    made = []
    for source in sources:
        output = build.object_of(source)
        depfile = output.with_suffix(".d")
        command = ["sh", "-c", _KEEP_REPORT, "sh", str(report_of(output)), str(nvcc.command)]
        # nvcc takes a program, no command line such as "ccache g++".
        if len(build.compiler.command) == 1 and "NVCC_CCBIN" not in os.environ:
            command += ["-ccbin", build.compiler.command[0]]
        command += ["-std=c++17", "-O3", "-lineinfo", *compression, *ARITHMETIC_FLAGS, f"--threads={threads}", *targets]
        command += ["-Xptxas=-v", f"-Xcompiler={','.join(host)}", *extra_flags("NVCCFLAGS")]
        command += ["-MD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
        build.steps.append(Step(output, (source,), tuple(command), depfile))
        made.append(output)
    return made


def report_of(output: Path) -> Path:
    """Where ptxas's report on the kernels in the object file `output` is kept."""
    return output.with_suffix(".ptxas")


def _present_architectures() -> list[int]:
    """The architectures of this machine's GPUs, by nvidia-smi, which comes with every driver."""
    try:
        listing = _output(Path("nvidia-smi"), "--query-gpu=compute_cap", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{ARCHITECTURES_VARIABLE}=native, but nvidia-smi finds no GPU here: {error}") from error
    return [int(major) * 10 + int(minor) for major, minor in re.findall(r"(\d+)\.(\d)", listing)]


def _version_text(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _output(command: Path, *arguments: str) -> str:
    """What `command` prints. nvcc prints the steps of a -dryrun as errors."""
    result = subprocess.run([str(command), *arguments], capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


if __name__ == "__main__":
    if sys.argv[1:] == ["mode"]:  # what FASTSAMPLE_BUILD is for make where nobody has set it
        print("cuda" if nvcc_command() else "cpu")
    else:
        try:
            print(f"nvcc: {find_nvcc()}")
        except BuildError as error:
            sys.exit(str(error))
