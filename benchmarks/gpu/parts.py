"""The parts of a run, in order, and how much of the time each may take."""

from __future__ import annotations

from typing import NamedTuple


class PartPlan(NamedTuple):
    """One part.

    Attributes:
        name: on the command line and in the result.
        module: beside this file; its `run(recorder, options)` is the part.
        limit: the most seconds it may take, of `BUDGET`.
        kept: seconds that the parts before it must leave for it.
    """

    name: str
    module: str
    limit: float
    kept: float


BUDGET = 540.0
# What remains is for the report, which is written by the command itself.
REPORT = 15.0
# The parts before the benchmark mostly end long before their limits, and what they leave goes to it.
PARTS = (
    PartPlan("environment", "environment", 45, 10),
    PartPlan("build", "building", 150, 60),
    PartPlan("tests", "testing", 190, 60),
    # Nearly all of it is compiling, which stays for the next call where it was stopped.
    PartPlan("triton", "testing_triton", 220, 60),
    PartPlan("compile", "compiling", 90, 25),
    PartPlan("wheel", "wheel", 40, 0),
    PartPlan("sanitizers", "sanitizing", 90, 30),
    PartPlan("peers", "readying", 60, 5),
    PartPlan("benchmark", "measuring", 400, 120),
    PartPlan("features", "request_features", 40, 15),
    PartPlan("counters", "counting", 60, 30),
)


def limit(plan: PartPlan, later: list[PartPlan], left: float, budget: float) -> float:
    """How many seconds a part gets: its limit, or less if that would take what is kept for the parts after it.

    Args:
        plan: the part.
        later: those that come after it in this run.
        left: seconds of the budget that are left.
        budget: all of it. Limits are scaled to it.
    """
    scale = budget / BUDGET
    kept = scale * (REPORT + sum(one.kept for one in later))
    return max(min(plan.limit * scale, left - kept), 0.0)
