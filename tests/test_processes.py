"""Processes that are forked, spawned or served: each draws what its parent draws, and none hangs."""

import pytest

from drawing_processes import PROGRAMS
from fastsample import ops
from missing import missing
from subprocesses import run_python


@pytest.mark.parametrize("name", PROGRAMS)
def test_children_draw_as_their_parent(name: str) -> None:
    if ops.cpu_status != "ok":
        missing(f"the native CPU kernels are not loaded ({ops.cpu_status})")
    run_python("drawing_processes.py", name, seconds=240)
