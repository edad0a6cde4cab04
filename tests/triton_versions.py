"""The Triton kernels with other versions of Triton than the one in .venv.

    .venv/bin/python tests/triton_versions.py [VERSION ...]

installs each version into build/triton-VERSION, compiles every kernel with it (as tests/triton_compiled.py does, by the
same rules), and runs examples of tests/test_triton.py in its interpreter.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import triton_rules
from triton_compiled import POINTS, ROOT, Kernel, compiled

VERSIONS = ("3.4.0", "3.5.1", "3.6.0", "3.7.0", "3.8.0", "3.9.0")
# Their interpreters make a loop's bounds of arrays with one element, which newer numpy does not take for integers.
WITH_OLDER_NUMPY = ("3.4.", "3.5.", "3.6.")
OLDER_NUMPY = "numpy<2.4"

EXAMPLES = 8
# Each kernel at least once; the row's also from probabilities, by itself, and without draws.
CALLS = (
    "reads bfloat16",
    "row float32",
    "short row, probabilities",
    "filter_logits float32",
    "filtered_probs float32",
    "log_probs float32",
    "edited short row",
    "find_edits",
    "kept_tokens",
    "fixed_probs_at",
    "random_words",
    "sample_residual",
)


def installed(version: str) -> Path:
    """The folder with a version, and nothing else that .venv has."""
    folder = ROOT / "build" / f"triton-{version}"
    complete = folder / ".complete"
    if not complete.exists():
        wanted = [f"triton=={version}", *([OLDER_NUMPY] if version.startswith(WITH_OLDER_NUMPY) else [])]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--upgrade", "--target", folder, *wanted], check=True)
        complete.touch()
    return folder


def compile_all(target: str, packages: Path) -> str:
    """What became of the kernels for a target."""
    try:
        kernels: list[Kernel] = compiled([(target, call) for call in CALLS], packages)
    except RuntimeError as error:
        # Some versions come without the linker that AMD's binaries need, which is ROCm's.
        if target.startswith("gfx") and "ld.lld" in str(error):
            return "no linker"
        raise
    broken = {rule: kernel.name for kernel in kernels for rule in triton_rules.broken(kernel)}
    if broken:
        told = "; ".join(f"{rule} ({name})" for rule, name in broken.items())
        raise RuntimeError(f"the law is broken: {told}")
    return f"{len(kernels)} kernels"


def interpret(packages: Path) -> str:
    """What became of the examples."""
    environment = os.environ | {"PYTHONPATH": str(packages), "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, "--interpret"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def run_examples() -> None:
    import triton
    from hypothesis import settings

    import test_triton
    import test_triton_requests

    for body in test_triton.BODIES:
        test_triton.run_examples(body, settings(test_triton.EXAMPLES, max_examples=EXAMPLES))
    for body in test_triton_requests.BODIES:
        test_triton_requests.run_examples(body, EXAMPLES)
    bodies = ", ".join((*test_triton.BODIES, *test_triton_requests.BODIES))
    print(f"{EXAMPLES} examples each of {bodies} (triton {triton.__version__})")


CHECKS: dict[str, Callable[[Path], str]] = {
    "sm_90": partial(compile_all, "sm_90"),
    "gfx942": partial(compile_all, "gfx942"),
    "interpreter": interpret,
}


def main() -> None:
    assert {name for call in CALLS for name in POINTS[call].kernels} == {
        name for point in POINTS.values() for name in point.kernels
    }
    failed = False
    for version in sys.argv[1:] or VERSIONS:
        packages = installed(version)
        for what, check in CHECKS.items():
            try:
                told = check(packages)
            except RuntimeError as error:
                failed = True
                told = f"FAILED: {error}"
            print(f"triton {version}, {what}: {told}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    run_examples() if sys.argv[1:] == ["--interpret"] else main()
