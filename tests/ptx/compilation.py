"""The PTX of our kernels, and the host's side of a launch, compiled into build/ptx whenever their sources changed."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import native_build
import nvcc
from missing import missing

from .module import Module

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/ptx"


def require_compiler() -> native_build.Compiler:
    """A C++ compiler; where there is none the test that asks is skipped, and in CI fails."""
    try:
        return native_build.find_compiler()
    except native_build.BuildError as error:
        missing(str(error))


def require_toolkit() -> nvcc.Nvcc:
    """nvcc, likewise."""
    try:
        return nvcc.find_nvcc()
    except native_build.BuildError as error:
        missing(str(error))


def _made(name: str, command: Sequence[str], source: Path) -> Path:
    """The file that `command` makes of `source`; it is made again when the command or anything in csrc/ changes."""
    digest = hashlib.sha256("\0".join(command).encode())
    for file in sorted([source, *(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cuda").iterdir()]):
        digest.update(file.read_bytes())
    made = BUILD / f"{name}-{digest.hexdigest()[:16]}"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist's workers ask for the same at the same time
        if not made.exists():
            for older in BUILD.glob(f"{name}-*"):
                older.unlink()
            unfinished = BUILD / f"{name}.unfinished"
            attempt = subprocess.run([*command, str(source), "-o", str(unfinished)], capture_output=True, text=True)
            if attempt.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} {source} failed:\n{attempt.stderr[-4000:]}")
            unfinished.rename(made)
    return made


@functools.cache
def module(source: Path, capability: int) -> Module:
    """What nvcc makes of a .cu file for sm_`capability`."""
    command = [str(require_toolkit().command), "-std=c++17", "-O3", *nvcc.ARITHMETIC_FLAGS]
    made = _made(f"{source.stem}-sm_{capability}.ptx", [*command, f"-arch=sm_{capability}", "-ptx"], source)
    return Module(made.read_text())


@functools.cache
def host(question: str, *numbers: int) -> Any:
    """What host.cpp answers."""
    command = [*require_compiler().command, "-std=c++17", "-Wall", "-Wextra", f"-I{ROOT / 'csrc'}"]
    program = _made("host", command, Path(__file__).with_name("host.cpp"))
    answer = subprocess.run([str(program), question, *map(str, numbers)], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def refused_by_ptxas(ptx: str, capability: int, folder: Path) -> str:
    """What ptxas has to say against a PTX text; nothing if it takes it."""
    ptxas = require_toolkit().root / "bin/ptxas"
    source = folder / "text.ptx"
    source.write_text(ptx)
    command = [str(ptxas), f"-arch=sm_{capability}", str(source), "-o", "/dev/null"]
    attempt = subprocess.run(command, capture_output=True, text=True)
    return attempt.stderr if attempt.returncode else ""
