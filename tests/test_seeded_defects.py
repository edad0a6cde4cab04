"""Would the emulator's builds notice a defect in the CUDA kernels? Each defect here is put into a copy of their source,
and at least one build has to stop at it or to give other results than the reference.

A defect whose text is no longer in the source, or is there twice, fails its test: it has to follow the kernels.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import emulated_requests as requests
import emulator_builds
import test_backends_agree as agree
from emulated import FORWARD, Emulator, Schedule, Shape, emulated_ops
from emulator_builds import BINDINGS, CSRC, ROOT, Module
from fastsample.arguments import Filters
from strategies import Call

# One dtype is enough: the others run the same lines.
FLOAT32 = Module(
    "emulated_kernels", BINDINGS, ("kernels_float32.cpp", "kernels_sample_full.cpp", "kernels_requests.cpp")
)
VARIANTS = ("race", "address", "plain")  # the first notices nearly all


class Edit(NamedTuple):
    """A text of a file in csrc/cuda, there exactly once, and what takes its place."""

    file: str
    text: str
    replacement: str


class Defect(NamedTuple):
    name: str
    edits: tuple[Edit, ...]


def defect(name: str, file: str, text: str, replacement: str) -> Defect:
    return Defect(name, (Edit(file, text, replacement),))


DEFECTS = (
    # --- barriers
    defect(
        "the histogram is filled before all of it is cleared",
        "histogram.cuh",
        "      mass[kBuckets + bucket] = 0;\n    }\n    __syncthreads();\n",
        "      mass[kBuckets + bucket] = 0;\n    }\n",
    ),
    defect(
        "a sum in the block reads before all warps have written",
        "group.cuh",
        "    if (lane == 0) all[warp] = value;\n    __syncthreads();\n",
        "    if (lane == 0) all[warp] = value;\n",
    ),
    defect(
        "a warp's barrier where the block's is needed",
        "group.cuh",
        "    if (lane == 0) all[warp] = value;\n    __syncthreads();\n",
        "    if (lane == 0) all[warp] = value;\n    __syncwarp();\n",
    ),
    defect(
        "a block's barrier where the cluster's is needed",
        "group.cuh",
        "      cluster_arrive();\n      cluster_wait();\n",
        "      __syncthreads();\n",
    ),
    defect(
        "a lane takes out what others may not have read",
        "draw.cuh",
        "      __syncwarp();  // all lanes have read what lane 0 may take out; the shuffles before order no memory\n",
        "",
    ),
    defect("one mailbox for every exchange", "group.cuh", "    half ^= 1;\n    return all;\n", "    return all;\n"),
    defect("one mailbox for every sum in the block", "group.cuh", "    block_half ^= 1;\n", ""),
    defect(
        "the list is ranked before all of it is weighed",
        "gather.cuh",
        "list.weight[i] = weight(logit_of(list.place[i]));\n  __syncthreads();\n",
        "list.weight[i] = weight(logit_of(list.place[i]));\n",
    ),
    defect(
        "blocks reuse or leave what the leading one still reads",
        "gather.cuh",
        "  group.sync();  // no block reuses or leaves what the leading one still reads\n",
        "",
    ),
    Defect(
        "blocks write to others that may not have started",
        (
            Edit("row.cuh", "  if (!alone) cluster_arrive();", ""),
            Edit("row.cuh", "  if (!alone) cluster_wait();\n", ""),
        ),
    ),
    defect("arrival without wait", "row.cuh", "  if (!alone) cluster_wait();\n", ""),
    defect(
        "a barrier that only some threads reach",
        "row.cuh",
        "  if (threadIdx.x == 0) *arrived = atomicAdd(arrivals, 1u);\n  __syncthreads();\n",
        "  if (threadIdx.x == 0) {\n    *arrived = atomicAdd(arrivals, 1u);\n    __syncthreads();\n  }\n",
    ),
    # --- blocks without a cluster
    defect(
        "a block arrives without a fence",
        "row.cuh",
        "  __threadfence();\n  __syncthreads();\n  if (threadIdx.x == 0) *arrived",
        "  __syncthreads();\n  if (threadIdx.x == 0) *arrived",
    ),
    defect(
        "a block arrives before all of it has written",
        "row.cuh",
        "  __threadfence();\n  __syncthreads();\n  if (threadIdx.x == 0) *arrived",
        "  __threadfence();\n  if (threadIdx.x == 0) *arrived",
    ),
    defect(
        "the last block reads without a fence",
        "row.cuh",
        "  __syncthreads();\n  __threadfence();\n  return *arrived",
        "  __syncthreads();\n  return *arrived",
    ),
    defect("reads before earlier kernels have ended", "row.cuh", "  wait_for_earlier_kernels();\n", ""),
    # --- atomics and warp operations
    defect("counts without an atomic", "histogram.cuh", "atomicAdd(count + bucket, 1u);", "count[bucket] += 1u;"),
    defect("places without an atomic", "gather.cuh", "atomicAdd(list.size, 1u)", "(*list.size)++"),
    defect(
        "a vote in a branch",
        "histogram.cuh",
        "const uint32_t reached = __ballot_sync(kAllLanes, running >= target);",
        "const uint32_t reached = running >= target ? __ballot_sync(kAllLanes, true) : 0u;",
    ),
    # --- memory
    defect(
        "a list shorter than what it is given",
        "row.cuh",
        "SHARED_ARRAY(uint64_t, place, kListSize);",
        "SHARED_ARRAY(uint64_t, place, kListSize - 8);",
    ),
    defect("one place too many in the list", "gather.cuh", "if (at < kListSize)", "if (at <= kListSize)"),
    defect("a count that starts anywhere", "gather.cuh", "  if (group.thread() == 0) *list.size = 0;\n", ""),
    defect(
        "a row's place in its vectors is not heeded",
        "load.cuh",
        "% 16 / sizeof(Element)) : 0) {",
        "% 1 / sizeof(Element)) : 0) {",
    ),
    defect(
        "the last vector reads beyond the row",
        "load.cuh",
        "return begin < (vocab >= kTokens ? vocab - kTokens + 1 : 0);",
        "return begin < vocab;",
    ),
    # --- requests
    defect(
        "a draw is recorded while others may still read the offset",
        "sample_full.cuh",
        "    group.sync();\n",
        "",
    ),
    defect(
        "draws are described before they are all written",
        "sample_full.cuh",
        "    group.sync();\n",
        "    __syncwarp();\n",
    ),
    defect(
        "a row that lost tokens to its draws is taken for raw",
        "sample_full.cuh",
        "Row::kStays && !call.edits && drawn.replacement;",
        "Row::kStays && !call.edits;",
    ),
    defect(
        "an edited row is taken for raw",
        "sample_full.cuh",
        "Row::kStays && !call.edits && drawn.replacement;",
        "Row::kStays && drawn.replacement;",
    ),
    defect(
        "a vector's edits are looked for in one word",
        "load_edited.cuh",
        "  if (bit > 32 - RowInMemory::kTokens) {",
        "  if (bit > 32) {",
    ),
    defect(
        "the next word is read where no vector reaches it",
        "load_edited.cuh",
        "  if (bit > 32 - RowInMemory::kTokens) {",
        "  if (bit >= 32 - RowInMemory::kTokens) {",
    ),
    defect(
        "a token is taken out of a row as if it began with a vector",
        "load_edited.cuh",
        "[token + lead - (first - lane) * kTokens]",
        "[token - (first - lane) * kTokens]",
    ),
    defect(
        "bits without an atomic",
        "find_edits.cuh",
        "    atomicOr(reinterpret_cast<uint32_t*>(bits) + token / 32, 1u << token % 32);\n",
        "    bits[token / 32] |= static_cast<int32_t>(1u << token % 32);\n",
    ),
    defect(
        "of two biases either counts",
        "find_edits.cuh",
        "      atomicMax(biases + edit, entry + 1);\n",
        "      biases[edit] = entry + 1;\n",
    ),
    defect(
        "tokens are counted without an atomic",
        "find_edits.cuh",
        "      atomicAdd(marks + edit, kOneInOutput);\n",
        "      marks[edit] += kOneInOutput;\n",
    ),
    defect(
        "edits are marked before all marks are cleared",
        "find_edits.cuh",
        "    if (biases) biases[edit] = 0;\n  }\n  __syncthreads();\n",
        "    if (biases) biases[edit] = 0;\n  }\n",
    ),
    defect(
        "bits are counted before all are set",
        "find_edits.cuh",
        "  });\n  __syncthreads();\n  const uint32_t edits = count_before",
        "  });\n  const uint32_t edits = count_before",
    ),
    defect(
        "sums of warps are replaced while they are read",
        "find_edits.cuh",
        "    __syncthreads();  // of_warps is no longer read\n",
        "",
    ),
    defect(
        "kept tokens are placed before all warps have counted",
        "kept_tokens.cuh",
        "  if (lane == 0) of_warps[warp] = mine;\n  __syncthreads();\n",
        "  if (lane == 0) of_warps[warp] = mine;\n",
    ),
    defect(
        "a residual's sums are read before all warps have written",
        "speculative.cuh",
        "    if (lane == 0) of_warps[warp] = mine;\n    __syncthreads();\n",
        "    if (lane == 0) of_warps[warp] = mine;\n",
    ),
    defect("a residual below 0", "speculative.cuh", "return p > q ? p - q : 0;", "return p - q;"),
    # --- the law
    defect(
        "a maximum that drops NaN",
        "maximum.cuh",
        "largest = maximum_or_nan(largest, x[i]);",
        "largest = fmaxf(largest, x[i]);",
    ),
    defect("a weight rounded to nearest", "weigh.cuh", "__fadd_rd(d, kShifter)", "__fadd_rn(d, kShifter)"),
    defect("ties by the larger index", "gather.cuh", "<< 32 | ~index;", "<< 32 | index;"),
)

# Small rows, of which one starts in the middle of a vector and one fills the list exactly.
SHAPES = (
    Shape(1, 96, False, True),
    Shape(1, 64, False, False),
    Shape(4, 32, True, True),
    Shape(2, 64, True, False),
    Shape(3, 64, False, False),
)
SCHEDULES = (FORWARD, Schedule("reverse", 1), Schedule("random", 2), Schedule("random", 3))
FILTERS = {
    "plain": agree.PLAIN,
    "greedy": agree.PLAIN._replace(temperature=0.0),
    "T .8, k 50, p .9": agree.PLAIN._replace(temperature=0.8, top_k=50, top_p=0.9),
    "k 256": agree.PLAIN._replace(top_k=256),
    "k 400, p .95, min_p first": agree.PLAIN._replace(top_k=400, top_p=0.95, min_p=0.01, order=1),
    "p .9": agree.PLAIN._replace(top_p=0.9),
    "min_p .05": agree.PLAIN._replace(min_p=0.05),
}


def rows() -> list[torch.Tensor]:
    """Each in memory of its own, which ends where the row does."""
    aligned = agree.normal(1501, 2.0, 1)
    in_a_vector = agree.normal(1400, 3.0, 2)[1:]
    tied = (agree.normal(900, 2.0, 3) * 2).round() / 2
    invalid = agree.normal(700, 1.0, 4)
    invalid[333] = torch.nan
    return [row[None] for row in (aligned, in_a_vector, tied, invalid)]


def run_cases(module: Path) -> None:
    """Compares the kernels of a module with the reference; the first case that differs, or stops, ends it."""
    machine = Emulator(module)
    for number, (filters, row) in enumerate((filters, row) for filters in FILTERS.values() for row in rows()):
        for shape in SHAPES:
            check_case(machine, row, filters, shape, SCHEDULES[number % len(SCHEDULES)])
    for schedule in SCHEDULES:
        for shape in SHAPES:
            check_case(machine, rows()[0], FILTERS["p .9"], shape, schedule)
    for number, shape in enumerate(SHAPES):
        backend = emulated_ops(shape, SCHEDULES[number % len(SCHEDULES)], machine)
        for call in requests.larger_calls((701, 704)[number % 2]):  # the second fills its last word
            requests.check_larger(backend, call)
        requests.check_speculative(backend, requests.larger_speculative_call(1401))
        requests.check_offsets_in_the_history(backend)
    requests.check_larger(emulated_ops(SHAPES[0], FORWARD, machine), next(requests.larger_calls(20011)))


def check_case(machine: Emulator, row: torch.Tensor, filters: Filters, shape: Shape, schedule: Schedule) -> None:
    backend = emulated_ops(shape, schedule, machine)
    # Two rows, so that the blocks of one can run beside those of the other.
    agree.check_tokens(backend, Call(row.expand(2, -1), None, filters, agree.SEEDED, 5))
    agree.check_transforms(backend, row, filters)


# --- each in a process of its own: a defective kernel may do anything


def build(variant: str, edits: tuple[Edit, ...], folder: Path) -> Path:
    """The module of the kernels with these edits."""
    shutil.rmtree(folder / "csrc", ignore_errors=True)
    shutil.copytree(CSRC, folder / "csrc", ignore=shutil.ignore_patterns("*.cu", "*.cpp", "*.py", "__pycache__"))
    for edit in edits:
        path = folder / "csrc/cuda" / edit.file
        source = path.read_text()
        assert source.count(edit.text) == 1, f"{edit.file} has {source.count(edit.text)} times: {edit.text}"
        path.write_text(source.replace(edit.text, edit.replacement))
    return emulator_builds.build(FLOAT32, variant, folder / "csrc", folder / variant)


def run(variant: str, module: Path) -> "subprocess.CompletedProcess[str]":
    program = (
        "import sys, pathlib, torch, test_seeded_defects\n"
        "torch.set_num_threads(1)\n"
        "test_seeded_defects.run_cases(pathlib.Path(sys.argv[1]))\n"
    )
    environment = emulator_builds.python_environment(address_sanitizer=variant == "address")
    command = [sys.executable, "-c", program, str(module)]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1, "", "it does not end")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kernels_as_they_are_pass(variant: str) -> None:
    """Else nothing would follow from a failure."""
    module = build(variant, (), ROOT / "build/defects/none")
    result = run(variant, module)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("seeded", DEFECTS, ids=lambda seeded: seeded.name)
def test_a_defect_is_noticed(seeded: Defect) -> None:
    folder = ROOT / "build/defects" / seeded.name.replace(" ", "-")
    for variant in VARIANTS:
        result = run(variant, build(variant, seeded.edits, folder))
        if result.returncode != 0:
            print(f"{seeded.name}: {variant}: {(result.stderr.strip() or 'no message').splitlines()[-1][:300]}")
            return
    pytest.fail(f"no build notices that {seeded.name}")
