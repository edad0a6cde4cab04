"""Python processes that a test starts, and that it ends, with all that they started, when they hang."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_FOLDER = Path(__file__).parent


def run_python(*arguments: str, seconds: float = 120, **environment: str) -> str:
    """What `python *arguments` prints, run in the tests' folder.

    It fails when the process fails; and when it takes more than `seconds`, with the stack of each of its threads.
    """
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *arguments],
        cwd=_FOLDER,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its own children can be ended with it
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # at which faulthandler prints the stacks
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(
            f"still running after {seconds} s; its stacks:\n{errors[-6000:]}\n{output[-1000:]}"
        ) from None
    assert process.returncode == 0, f"it ended with {process.returncode}:\n{errors[-6000:]}\n{output[-1000:]}"
    return output
