"""Processes that are forked, spawned or served: each draws what its parent draws, and none hangs."""

import pytest

from drawing_processes import PROGRAMS
from fastsample import ops
from missing import missing
from subprocesses import run_python

STUBBORN = "import signal; signal.signal(signal.SIGABRT, signal.SIG_IGN); print('here', flush=True); "
CHILD = "import os, time; os.fork(); "


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import time; time.sleep(60)", "most recent call first"),
        (CHILD + "time.sleep(60)", "most recent call first"),
        (STUBBORN + "import time; time.sleep(60)", "here"),
    ],
    ids=["alone", "with-a-child", "deaf"],
)
def test_a_program_that_hangs_is_ended_and_says_where_it_was(program: str, said: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)still running after 1 s.*{said}"):
        run_python("-c", program, seconds=1)


@pytest.mark.parametrize("name", PROGRAMS)
def test_children_draw_as_their_parent(name: str) -> None:
    if ops.cpu_status != "ok":
        missing(f"the native CPU kernels are not loaded ({ops.cpu_status})")
    run_python("drawing_processes.py", name, seconds=240)
