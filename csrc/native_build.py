"""Compiles what is in csrc/: setup.py makes the package's objects with it, the tests their sanitizer programs.

What needs nvcc is in nvcc.py.

Only the standard library is used, so that ``python3 csrc/native_build.py`` (the first step of ``make install``) can say
what a machine lacks before anything is downloaded.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# The stable ABI's headers and the AVX-512 intrinsics need these or newer.
OLDEST_COMPILER = {"gcc": (9, 0), "clang": (10, 0)}

# Every result is defined operation by operation (law section 1): a contracted multiply-add alone changes 17 % of the
# weights. The last two change no value, only errno and the exception flags, which nothing here reads.
LAW_FLAGS = ("-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
WARNING_FLAGS = ("-Wall", "-Wextra")

# A source named ..._avx2.cpp or ..._avx512.cpp may use these instructions throughout; it runs only where the processor
# has them. All other sources keep to the processor family's baseline.
INSTRUCTION_SET_FLAGS = {
    "_avx2": ("-mavx2", "-mf16c", "-mbmi", "-mbmi2", "-mpopcnt"),
    "_avx512": (
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mf16c",
        "-mbmi",
        "-mbmi2",
        "-mpopcnt",
        # gcc 12 warns of its own intrinsics, which start from registers left undefined on purpose.
        "-Wno-uninitialized",
        "-Wno-maybe-uninitialized",
    ),
}


class BuildError(RuntimeError):
    """The native code cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Compiler:
    """A working C++17 compiler: its command line, its family (gcc or clang), version and target processor."""

    command: tuple[str, ...]
    family: str
    version: tuple[int, int]
    processor: str

    def __str__(self) -> str:
        version = ".".join(map(str, self.version))
        return f"{shlex.join(self.command)} ({self.family} {version}, {self.processor})"


def probe_compiler(command: Sequence[str]) -> Compiler | None:
    """Asks `command` for its predefined macros; None when it does not run or has no C++17 standard library."""
    try:
        macros = subprocess.run(
            [*command, "-std=c++17", "-dM", "-E", "-x", "c++", "-"],
            input="#include <optional>\n",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    defined = dict(re.findall(r"^#define (\w+) (.*)$", macros, re.MULTILINE))
    if "__clang_major__" in defined:
        family, version = "clang", (int(defined["__clang_major__"]), int(defined["__clang_minor__"]))
    else:
        family, version = "gcc", (int(defined["__GNUC__"]), int(defined["__GNUC_MINOR__"]))
    processors = {"__x86_64__": "x86_64", "__aarch64__": "aarch64"}
    processor = next((name for macro, name in processors.items() if macro in defined), "unknown processor")
    return Compiler(tuple(command), family, version, processor)


def find_compiler() -> Compiler:
    """The compiler to use: the environment's CXX, else the first of g++, clang++ and c++ that is new enough.

    Raises BuildError with what to install when there is none.
    """
    chosen = os.environ.get("CXX")
    too_old = []
    for command in [shlex.split(chosen)] if chosen else [["g++"], ["clang++"], ["c++"]]:
        compiler = probe_compiler(command)
        if compiler is None:
            continue
        if compiler.version >= OLDEST_COMPILER[compiler.family]:
            return compiler
        too_old.append(str(compiler))
    oldest = " or ".join(f"{family} {major}.{minor}" for family, (major, minor) in OLDEST_COMPILER.items())
    found = f"too old: {', '.join(too_old)}" if too_old else "none works here"
    tried = f"CXX={chosen}" if chosen else "g++, clang++, c++"
    raise BuildError(
        f"fastsample needs a C++17 compiler, {oldest} or newer (tried {tried}; {found}).\n"
        "  Debian, Ubuntu:  apt-get install g++ make\n"
        "  Fedora, RHEL:    dnf install gcc-c++ make\n"
        "  macOS:           xcode-select --install\n"
        "  another one:     CXX=/path/to/g++\n"
        "or set FASTSAMPLE_BUILD=python for the package without compiled code (correct, but slow)."
    )


def find_ninja() -> str | None:
    """The ninja of this Python's environment (also when that is not on PATH), else the one on PATH, else None."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return str(Path(ninja.BIN_DIR) / "ninja")


def cpu_sources(folder: Path, compiler: Compiler) -> list[Path]:
    """The torch-free CPU kernels in `folder` that `compiler` can build for its processor."""
    foreign = () if compiler.processor == "x86_64" else tuple(INSTRUCTION_SET_FLAGS)
    return [source for source in sorted(folder.glob("*.cpp")) if not (foreign and source.stem.endswith(foreign))]


def jobs() -> int:
    """How many compilations may run at once: the environment's MAX_JOBS, else one per core."""
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def extra_flags(variable: str) -> list[str]:
    """The user's own flags in the environment variable `variable`, such as CXXFLAGS=-Werror."""
    return shlex.split(os.environ.get(variable, ""))


@dataclass(frozen=True)
class Step:
    """One command, what it makes, and from what; `depfile` is where a compiler writes the headers it read."""

    output: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]
    depfile: Path | None = None


@dataclass
class Build:
    """Steps that ninja carries out in `folder`, each only when its inputs, headers or command changed."""

    folder: Path
    compiler: Compiler
    steps: list[Step] = field(default_factory=list)

    def object_of(self, source: Path) -> Path:
        """Where the object file of `source` is made."""
        return self.folder / f"{source.parent.name}-{source.name}.o"

    def compile(self, source: Path, flags: Iterable[str]) -> Path:
        """Adds the compilation of `source` with `flags`, those of CXXFLAGS and the law's; returns the object's path."""
        made = self.object_of(source)
        depfile = made.with_suffix(".d")
        command = [*self.compiler.command, "-std=c++17", *WARNING_FLAGS, *flags, *extra_flags("CXXFLAGS"), *LAW_FLAGS]
        for suffix, instructions in INSTRUCTION_SET_FLAGS.items():
            if source.stem.endswith(suffix):
                command += instructions
        command += ["-MD", "-MF", str(depfile), "-c", str(source), "-o", str(made)]
        self.steps.append(Step(made, (source,), tuple(command), depfile))
        return made

    def link(self, output: Path, objects: Iterable[Path], flags: Iterable[str], after: Iterable[Path] = ()) -> Path:
        """Adds the linking of `objects` into `output`, once the files in `after` are there; returns `output`."""
        objects = tuple(objects)
        command = [*self.compiler.command, "-o", str(output), *map(str, objects), *flags, *extra_flags("LDFLAGS")]
        self.steps.append(Step(output, (*objects, *after), tuple(command)))
        return output

    def run(self) -> None:
        """Carries out what is out of date. Raises BuildError when a command fails; its own message is printed above."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would write to the same files
            self._run()

    def _run(self) -> None:
        ninja_file = self.folder / "build.ninja"
        ninja_file.write_text(self._ninja())
        ninja = find_ninja()
        # Without ninja (nothing can be downloaded everywhere) the same commands run one by one, all of them.
        commands: list[Sequence[str]] = [step.command for step in self.steps]
        if ninja:
            commands = [[ninja, "-f", str(ninja_file), "-j", str(jobs())]]
        for command in commands:
            if subprocess.run(command).returncode != 0:
                raise BuildError(f"compiling failed (with {self.compiler}); see the messages above")

    def _ninja(self) -> str:
        def path(name: Path) -> str:
            return re.sub(r"([$ :])", r"$\1", str(name))

        lines = [
            "ninja_required_version = 1.8",
            f"builddir = {path(self.folder)}",
            "rule compile",
            "  command = $command",
            "  depfile = $depfile",
            "  deps = gcc",
            "rule link",
            "  command = $command",
        ]
        for step in self.steps:
            rule = "compile" if step.depfile else "link"
            lines.append(f"build {path(step.output)}: {rule} {' '.join(map(path, step.inputs))}")
            lines.append(f"  command = {shlex.join(step.command).replace('$', '$$')}")
            lines.append(f"  description = {rule} {step.output.name}")
            if step.depfile:
                lines.append(f"  depfile = {path(step.depfile)}")
        return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        print(f"compiler: {find_compiler()}")
    except BuildError as error:
        sys.exit(str(error))
