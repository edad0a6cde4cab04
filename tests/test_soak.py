"""Minutes of mixed work on several threads: the tokens stay those that were drawn first, and the memory stays constant.

Ten minutes, or as many seconds as FASTSAMPLE_SOAK_SECONDS says.
"""

import json
import os
import sys

import pytest

from subprocesses import run_python

SECONDS = float(os.environ.get("FASTSAMPLE_SOAK_SECONDS", "600"))
MOST_BYTES, MOST_OBJECTS = 2 << 20, 50


def rise(numbers: list[int]) -> int:
    """How far the last quarter stays above the second, by when everything has been used once.

    Resident memory goes up and down by itself: a leak is what it no longer comes down from.
    """
    quarter = len(numbers) // 4
    return min(numbers[-quarter:]) - max(numbers[quarter : 2 * quarter])


def test_a_steady_leak_is_seen() -> None:
    noise = [(place * 7919) % 13 << 20 for place in range(40)]
    assert rise([(400 << 20) + moment for moment in noise]) <= 0
    assert rise([(400 << 20) + (2 << 20) * place + moment for place, moment in enumerate(noise)]) > MOST_BYTES
    assert rise([30000 + 10 * place for place in range(40)]) > MOST_OBJECTS


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process takes is read from /proc")
def test_memory_and_threads_stay_constant_and_tokens_the_same() -> None:
    report = json.loads(run_python("soak.py", str(SECONDS), seconds=2 * SECONDS + 600))
    print(report, rise(report["resident"]), rise(report["objects"]))
    assert report["wrong"] == []
    assert report["cases"] > SECONDS
    # The threads of a thread that has ended take a moment to end too.
    assert max(report["threads"][20:]) <= max(report["threads"][:20]) + 2
    assert rise(report["resident"]) <= MOST_BYTES, report["resident"]
    assert rise(report["objects"]) <= MOST_OBJECTS, report["objects"]
    # Less than one small object for each of the cases after the warm-up: 7500 bytes were seen over 480 of them.
    assert report["python_growth"] < 32 * report["python_cases"]
