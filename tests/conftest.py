"""What every test can ask for: one body, run on each backend, and memory that is not zero by luck."""

import os
from collections.abc import Iterator

import pytest
import torch

# Before anything imports the Triton kernels: without a GPU they run in Triton's interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from fastsample import ops
from missing import missing

BACKENDS = ("reference", "cpu-scalar", "cpu-avx2", "cpu-avx512")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    # The suite shares its cores with pytest-xdist's other workers, and OpenMP threads that wait for each other on busy
    # cores made a generate 20 times slower. Tests of threads set their own number.
    torch.set_num_threads(1)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[ops.Ops]:
    """The operators of one backend, with the instruction set of its name in force.

    Skipped where the native object is not built (a failure when the environment has CI=true) or the processor lacks the
    instruction set.
    """
    name, _, instruction_set = request.param.partition("-")
    if name == "reference":
        yield ops.for_backend("reference")
        return
    if ops.cpu_status != "ok":
        missing(f"the native CPU kernels are not loaded ({ops.cpu_status})")
    with ops.instruction_set_capped(instruction_set) as in_force:
        if in_force != instruction_set:
            pytest.skip(f"this processor has {in_force} at most")
        yield ops.for_backend("cpu")


@pytest.fixture
def backend_name(backend: ops.Ops, request: pytest.FixtureRequest) -> str:
    """What `backend=` of the public functions takes for the backend of this test."""
    name: str = request.node.callspec.params["backend"].partition("-")[0]
    return name


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty returns with NaN or the largest integer, so that a result that is not written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert int(torch.empty(1, dtype=torch.int64)) == torch.iinfo(torch.int64).max
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
