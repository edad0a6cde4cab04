"""Part: the CUDA object, compiled for this GPU alone."""

from __future__ import annotations

import sys

from .options import ROOT, PartFailedError, PartOptions
from .records import Recorder
from .subprocesses import run as run_command
from .subprocesses import tail, with_python_path

_COMMAND = (sys.executable, "setup.py", "build_ext", "--inplace")
_REHEARSED_COMMAND = (sys.executable, "setup.py", "--name")


def run(recorder: Recorder, options: PartOptions) -> None:
    """Build (what is up to date is not built again) and ask a new process whether the backend is usable."""
    # A rehearsal must leave the objects alone that are there.
    command = _REHEARSED_COMMAND if options.rehearsal else _COMMAND
    mode = {"FASTSAMPLE_BUILD": "python" if options.rehearsal else "cuda", "FASTSAMPLE_CUDA_ARCHS": "native"}
    ended = run_command(command, options.seconds, mode, ROOT)
    recorder.add("build", seconds=ended.seconds, code=ended.code, output=tail(ended.output)[-1500:])
    if ended.code != 0:
        raise PartFailedError(f"setup.py ended with {ended.code}: {tail(ended.output)[-800:]}")
    name = "cpu" if options.rehearsal else "cuda"
    question = f"import fastsample; status = fastsample.backends()[{name!r}]; print(status.usable, status.detail)"
    asked = run_command([sys.executable, "-c", question], 60, with_python_path(ROOT))
    recorder.add("environment", facts={f"backend {name}": asked.output.strip()[-200:]})
    if asked.code != 0 or not asked.output.startswith("True"):
        raise PartFailedError(f"the backend {name} is not usable after the build: {tail(asked.output)[-800:]}")
    # The Triton kernels lie beside the package in a checkout that is not installed.
    beside = f"import fastsample; fastsample.__path__.append({str(ROOT)!r})"
    doctor = f"{beside}; from fastsample import doctor; print(doctor.render(doctor.examine()))"
    examined = run_command([sys.executable, "-c", doctor], 60, with_python_path(ROOT))
    recorder.add("doctor", code=examined.code, output=tail(examined.output))
