"""On which backends the tests of requests run, and over how many examples."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from conftest import BACKENDS
from emulated import emulated_ops
from fastsample import ops
from fastsample.ops import Ops
from missing import missing
from strategies import one_thread

REFERENCE = ops.for_backend("reference")


# How many examples of hypothesis each backend is given: an interpreter and an emulator take a hundred times as long.
EXAMPLES = {"reference": 120, "cpu-scalar": 60, "cpu-avx2": 60, "cpu-avx512": 60, "triton": 6, "cuda": 60}
SMALL = {"triton": (1, 33, 65)}


def kernels(name: str, operator: str) -> Ops:
    """The operators by the kernels that `name` stands for, "triton" and "cuda" on this CPU.

    Fails where `operator` has no kernel there: its registration is lost, and the reference would be tested instead.
    """
    if name == "reference":
        return REFERENCE
    if name == "triton":
        if ops.triton_status() != "ok" or not ops.triton_is_interpreted():
            missing("Triton's interpreter is not to be had here")
        backend, there = ops.triton_only, operator in ops._HAS_TRITON_KERNEL
    elif name == "cuda":
        backend = emulated_ops()
        there = getattr(backend, operator) is not getattr(REFERENCE, operator)
    else:
        backend = ops.compiled
        there = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastsample::{operator}", "CPU")
    assert there, f"{operator} has no kernel on {name}"
    return backend


@pytest.fixture(params=(*BACKENDS, "triton", "cuda"))
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend, with the instruction set that it says in force."""
    backend, _, instruction_set = request.param.partition("-")
    if backend != "cpu":
        yield request.param
        return
    if ops.cpu_status != "ok":
        missing(f"the native CPU kernels are not loaded ({ops.cpu_status})")
    with ops.instruction_set_capped(instruction_set) as in_force:
        if in_force != instruction_set:
            pytest.skip(f"this processor has {in_force} at most")
        yield request.param


# The interpreter and the emulator run operators, not the public functions' choice of a backend.
public = pytest.mark.parametrize("name", BACKENDS, indirect=True)


def run_examples(
    name: str,
    operator: str,
    calls: Callable[..., st.SearchStrategy],
    check: Callable[..., None],
    number: int | None = None,
) -> None:
    """Run `check(backend, call)` over calls, as many and as large as the backend has time for: the same ones in each
    process, or 10 times as many of a number.
    """
    backend = kernels(name, operator)
    strategy = calls(vocabularies=SMALL[name]) if name in SMALL else calls()

    # Not shrunk: that takes an interpreter minutes, and the calls are small.
    @settings(
        max_examples=EXAMPLES[name] * (1 if number is None else 10),
        deadline=None,
        derandomize=number is None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=(Phase.explicit, Phase.generate),
    )
    @given(call=strategy)
    def test(call: Any) -> None:
        with one_thread():
            check(backend, call)

    (test if number is None else seed(number)(test))()


many = pytest.mark.parametrize("number", [None, *(pytest.param(n, marks=pytest.mark.slow) for n in range(4))])


def backend_of(name: str) -> str:
    return name.partition("-")[0]
