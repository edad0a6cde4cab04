"""The C++ kernels, without torch, under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

import subprocess
from pathlib import Path

import pytest

import native_build
from missing import missing

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests/native/sanitize.cpp"
SEED = 1

# float-cast-overflow is not part of `undefined`, and a float beyond the integers is what an odd logit becomes.
SANITIZERS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def find_compiler(flags: list[str], folder: Path) -> native_build.Compiler:
    """The compiler, if programs built with `flags` run here: the sanitizers' runtime is a package of its own."""
    try:
        compiler = native_build.find_compiler()
    except native_build.BuildError as error:
        missing(str(error))
    source, program = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() {}\n")
    attempt = subprocess.run(
        [*compiler.command, *flags, str(source), "-o", str(program)], capture_output=True, text=True
    )
    if attempt.returncode == 0:
        attempt = subprocess.run([str(program)], capture_output=True, text=True)
    if attempt.returncode != 0:
        missing(f"{compiler} cannot make programs with {' '.join(flags)}: {attempt.stderr.strip()[-300:]}")
    return compiler


def build_program(name: str, compiler: native_build.Compiler) -> Path:
    """tests/native/sanitize.cpp with every kernel, built in build/; a second run compiles only what changed."""
    # Optimised, the instrumented kernels take four times as long to compile and only half as long to run. -g1 lets a
    # report name lines.
    flags = ["-O0", "-g1", "-fno-omit-frame-pointer", "-pthread", *SANITIZERS[name], f"-I{ROOT / 'csrc'}"]
    build = native_build.Build(ROOT / f"build/sanitize-{name}", compiler)
    sources = [PROGRAM, *native_build.cpu_sources(ROOT / "csrc/cpu", compiler)]
    objects = [build.compile(source, flags) for source in sources]
    program = build.link(build.folder / "sanitize", objects, ["-pthread", *SANITIZERS[name]])
    build.run()
    return program


@pytest.mark.parametrize(("name", "cases"), [("address", 200), ("thread", 30)])
def test_kernels_run_clean_and_equal(name: str, cases: int, tmp_path: Path) -> None:
    compiler = find_compiler(SANITIZERS[name], tmp_path)
    program = build_program(name, compiler)
    result = subprocess.run([str(program), str(SEED), str(cases)], capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-6000:]}"
    assert result.stdout.startswith(f"{cases} cases equal on:")
