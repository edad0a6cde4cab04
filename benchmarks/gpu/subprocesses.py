"""Commands with a time limit, of which nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from .options import CHECKOUT, PartOptions

_TAIL = 4000
_SCRIPT = Path(__file__).with_name("from_source.py")
# What a command gets to end by itself once it is told to. It must be enough to stop, in turn, the commands that it
# itself has started.
GRACE = 2.0
GRACE_OF_PARTS = 8.0


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit status; None if it was stopped at its limit.
        seconds: how long it ran.
        output: the end of what it printed.
    """

    code: int | None
    seconds: float
    output: str


class Running:
    """A command under way, in a process group of its own, so that its children end with it.

    Args:
        command: and its arguments.
        environment: variables to set beside those of this process.
        folder: where it runs.
        grace: seconds that it gets to end by itself, once it is told to.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        grace: float = GRACE,
    ) -> None:
        self.started = time.monotonic()
        self.grace = grace
        # A file and not a pipe: a child that outlives its parent would keep a pipe open, and its reader waiting.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `wait`
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                cwd=folder,
                start_new_session=True,
            )
        except OSError:
            self._output.close()
            raise

    def wait(self, seconds: float) -> Ended:
        """Wait for the end, at most so long; then stop it and whatever it has started."""
        code: int | None
        with self._output:
            try:
                code = self._process.wait(max(0.0, seconds))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.stop()
            took = time.monotonic() - self.started
            self._output.seek(0)
            output = self._output.read().decode(errors="replace")
        return Ended(code, round(took, 1), output)

    def stop(self) -> None:
        """End every process of the group, first politely."""
        for number, patience in ((signal.SIGTERM, self.grace), (signal.SIGKILL, None)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


def part_command(module: str, records: Path, options: PartOptions) -> list[str]:
    """The command line of a process that runs a part's module, from the checkout or as installed."""
    program = [str(_SCRIPT)] if CHECKOUT else ["-m", __package__]
    told = ["--run-part", module, "--records", str(records), "--options", json.dumps(asdict(options))]
    return [sys.executable, *program, *told]


def with_python_path(folder: Path) -> dict[str, str]:
    """The variable by which another Python finds what is in `folder` before anything else it would find."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def run(
    command: Sequence[str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Ended:
    """Run a command for at most so long. Raises OSError if it cannot be started."""
    return Running(command, environment, folder).wait(seconds)


def end_politely() -> None:
    """From now on, being told to end is an exception, so that a process stops its own commands on the way out."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def tail(output: str) -> str:
    """The end of an output, for a record."""
    return output.strip()[-_TAIL:]
