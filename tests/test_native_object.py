"""What the linker sees of the compiled kernels."""

import os
import subprocess
from itertools import combinations
from pathlib import Path

import pytest

import native_build

BUILD = Path(__file__).parents[1] / "build"


def weak_functions(made: Path) -> set[str]:
    """The functions in an object file of which the linker keeps one copy for the library, whichever it meets first."""
    listing = subprocess.run(["nm", "--defined-only", str(made)], capture_output=True, text=True, check=True).stdout
    fields = (line.split() for line in listing.splitlines())
    return {name for _, kind, name in fields if kind == "W"}


def test_instruction_sets_share_no_function() -> None:
    """A function kept from the AVX-512 file and called by baseline code would be an illegal instruction elsewhere."""
    objects = sorted(BUILD.glob("native-*/*.o"))
    if not objects:
        reason = "no object files in build/: run `make install`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    by_instruction_set: dict[str, set[str]] = {}
    for made in objects:
        stem = made.name.removesuffix(".cpp.o")
        suffix = next((suffix for suffix in native_build.INSTRUCTION_SET_FLAGS if stem.endswith(suffix)), "baseline")
        by_instruction_set.setdefault(suffix, set()).update(weak_functions(made))
    for (one, symbols), (other, others) in combinations(by_instruction_set.items(), 2):
        assert not symbols & others, f"{one} and {other} both define {sorted(symbols & others)[:5]}"
