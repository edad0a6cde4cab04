"""What the linker and the loader see of the compiled objects."""

import re
import subprocess
from itertools import combinations
from pathlib import Path

import pytest

import native_build
from fastsample import native_objects
from missing import missing

BUILD = Path(__file__).parents[1] / "build"


def weak_functions(made: Path) -> set[str]:
    """The functions in an object file of which the linker keeps one copy for the library, whichever it meets first."""
    listing = subprocess.run(["nm", "--defined-only", str(made)], capture_output=True, text=True, check=True).stdout
    fields = (line.split() for line in listing.splitlines())
    return {name for _, kind, name in fields if kind == "W"}


def test_instruction_sets_share_no_function() -> None:
    """A function kept from the AVX-512 file and called by baseline code would be an illegal instruction elsewhere."""
    objects = sorted(BUILD.glob("cpu-*/*.o"))
    if not objects:
        missing("no object files in build/: run `make install`")

    by_instruction_set: dict[str, set[str]] = {}
    for made in objects:
        stem = made.name.removesuffix(".cpp.o")
        suffix = next((suffix for suffix in native_build.INSTRUCTION_SET_FLAGS if stem.endswith(suffix)), "baseline")
        by_instruction_set.setdefault(suffix, set()).update(weak_functions(made))
    for (one, symbols), (other, others) in combinations(by_instruction_set.items(), 2):
        assert not symbols & others, f"{one} and {other} both define {sorted(symbols & others)[:5]}"


@pytest.mark.parametrize("path", [native_objects.CPU_OBJECT, native_objects.CUDA_OBJECT], ids=["cpu", "cuda"])
def test_what_an_object_depends_on(path: Path) -> None:
    """On the system and on libraries that every torch has: no CUDA runtime, and nothing of a torch with CUDA."""
    if not path.exists():
        missing(f"{path.name} is not built: run `make install` where its compiler is")
    listing = subprocess.run(["readelf", "-dW", str(path)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", listing))
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    system = re.compile(r"libtorch(_cpu)?\.so|lib(stdc\+\+|gcc_s|m|c|dl|rt|pthread)\.so\.\d|ld-linux-.*")
    assert [name for name in needed if not system.fullmatch(name)] == []
    symbols = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    assert not re.findall(r"\w*(?:cudart|cudaLaunch|cudaGet|c10)\w*", symbols)


def test_no_folder_of_the_builder() -> None:
    """Error messages name their source; where it was compiled is nobody's business, and makes builds differ."""
    if not native_objects.CPU_OBJECT.exists():
        missing("the CPU object is not built: run `make install`")
    content = native_objects.CPU_OBJECT.read_bytes()
    assert b"csrc/binding.h" in content
    assert str(BUILD.parent).encode() not in content
