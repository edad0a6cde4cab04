"""Part: a wheel that was built elsewhere, without a GPU, works here. Only if dist/ holds one."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

from .options import ROOT, PartFailedError, PartOptions
from .records import Recorder
from .subprocesses import run as run_command
from .subprocesses import tail, with_python_path

DIST = ROOT / "dist"
_QUESTION = (
    "import sys; from fastsample import doctor; report = doctor.examine(); print(doctor.render(report)); "
    "sys.exit(not (report.healthy and report.backends[sys.argv[1]].usable))"
)


def run(recorder: Recorder, options: PartOptions) -> None:
    """Unpack the wheel and ask it. Raises PartFailedError if its backend for this device is not usable or disagrees."""
    wheels = sorted(DIST.glob("fastsample-*.whl"))
    if not wheels:
        recorder.add("note", text="no wheel was tried: there is none in dist/")
        return
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheels[-1]) as archive:
            archive.extractall(folder)
        command = [sys.executable, "-c", _QUESTION, "cpu" if options.rehearsal else "cuda"]
        # From the unpacked wheel alone: the checkout's package must not be found first.
        ended = run_command(command, options.seconds - 3, with_python_path(Path(folder)), Path(folder))
    recorder.add("wheel", name=wheels[-1].name, code=ended.code, output=tail(ended.output))
    if ended.code != 0:
        raise PartFailedError(f"{wheels[-1].name}: {tail(ended.output)[-800:]}")
