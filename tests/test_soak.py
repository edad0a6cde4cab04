"""Minutes of mixed work on several threads: the tokens stay those that were drawn first, and the memory stays constant.

Ten minutes, or as many seconds as FASTSAMPLE_SOAK_SECONDS says.
"""

import json
import os
import sys
from statistics import median

import pytest

from subprocesses import run_python

SECONDS = float(os.environ.get("FASTSAMPLE_SOAK_SECONDS", "600"))


def growth(numbers: list[int]) -> float:
    """How much higher the last quarter lies than the one before it."""
    quarter = len(numbers) // 4
    return median(numbers[-quarter:]) - median(numbers[-2 * quarter : -quarter])


def spread(numbers: list[int]) -> int:
    """How far apart numbers lie in the second quarter, when everything has been used once."""
    quarter = len(numbers) // 4
    return max(numbers[quarter : 2 * quarter]) - min(numbers[quarter : 2 * quarter])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process takes is read from /proc")
def test_memory_and_threads_stay_constant_and_tokens_the_same() -> None:
    report = json.loads(run_python("soak.py", str(SECONDS), seconds=2 * SECONDS + 600))
    print(report)
    assert report["wrong"] == []
    assert report["cases"] > SECONDS
    # The threads of a thread that has ended take a moment to end too.
    assert max(report["threads"][20:]) <= max(report["threads"][:20]) + 2
    # What no leak explains: resident memory goes up and down by itself, by the same from the second quarter on.
    assert growth(report["resident"]) <= spread(report["resident"]) + (2 << 20), report["resident"]
    assert growth(report["objects"]) <= spread(report["objects"]) + 50, report["objects"]
    # Less than one small object for each of the cases after the warm-up.
    assert report["python_growth"] < 64 * report["python_cases"]
