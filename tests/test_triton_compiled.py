"""What Triton's compilers make of the kernels, for six GPUs of which none is here: nothing that the law forbids, wide
loads, the registers of the committed table, and nothing compiled anew for another number.
"""

import re
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

import triton_compiled
import triton_rules
from missing import missing
from triton_compiled import EVERYTHING, POINTS, TARGETS, Kernel, Wanted

# Each kernel, dtype, target and compiler at least once, in about 40 seconds; the rest is in the slow test.
SOME = (
    ("sm_80", "reads float32"),
    ("sm_90", "reads float32"),
    ("sm_90", "reads bfloat16"),
    ("sm_90", "row float32"),
    ("sm_90", "filter_logits bfloat16"),
    ("sm_90", "filtered_probs float32"),
    ("sm_90", "log_probs float32"),
    ("sm_100", "reads float16"),
    ("sm_120", "reads float32"),
    ("gfx942", "reads float32"),
    ("gfx942", "short row bfloat16"),
    ("gfx942", "filtered_probs float32"),
    ("gfx942", "log_probs float32"),
    ("gfx1100", "reads float16"),
    ("gfx1100", "filter_logits bfloat16"),
    ("sm_90", "edited short row"),
    ("sm_100", "sample_residual"),
    ("sm_120", "find_edits"),
    ("gfx942", "find_edits"),
    ("gfx942", "kept_tokens"),
    ("gfx1100", "fixed_probs_at"),
    ("gfx1100", "random_words"),
)


# With options that launch.py does not give, the compilers do what the law forbids.
PERMITTED: dict[Wanted, str] = {
    ("sm_90", "filter_logits bfloat16", "enable_fp_fusion"): r"fused: fma\.rn\.f32",
    ("gfx942", "filter_logits bfloat16", "enable_fp_fusion"): r"fused: \d+ multiply-adds",
    ("gfx1100", "filter_logits bfloat16", "enable_fp_fusion"): r"fused: \d+ multiply-adds",
    ("gfx942", "filter_logits bfloat16", "allow_flush_denorm"): r"flushes denormals: ",
}


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    """Those of SOME, then one for each of PERMITTED."""
    return triton_compiled.compiled([*SOME, *PERMITTED])


@pytest.fixture
def some(kernels: list[Kernel]) -> list[Kernel]:
    return kernels[: -len(PERMITTED)]


def check(kernels: list[Kernel]) -> None:
    """What holds for every compiled kernel, whatever compiled it."""
    assert {kernel[:3]: broken for kernel in kernels if (broken := triton_rules.broken(kernel))} == {}
    for kernel in kernels:
        if kernel.name == "maximum_kernel":
            # Of a block of 2048 tokens, eight wavefronts of 64 lanes leave a lane four.
            four = TARGETS[kernel.target].warp_size == 64 and POINTS[kernel.point].dtype.itemsize == 2
            assert kernel.load == (8 if four else 16), kernel[:-1]


def check_table(kernels: list[Kernel]) -> None:
    """Another Triton may well choose other registers; then only the rules above hold."""
    committed = triton_compiled.PATH.read_text().splitlines()
    if f"triton {triton.__version__} " not in committed[2]:
        missing(f"{triton_compiled.PATH.name} is of another triton: {committed[2]}")
    rows = {kernel.row() for kernel in kernels}
    assert rows - set(committed) == set(), "after a change of the kernels: python tests/triton_compiled.py"


def test_every_kernel_follows_the_law(some: list[Kernel]) -> None:
    check(some)
    assert {kernel.name for kernel in some} == {name for point in POINTS.values() for name in point.kernels}
    assert {kernel.target for kernel in some} == set(TARGETS)


def test_the_committed_table(some: list[Kernel]) -> None:
    check_table(some)


@pytest.mark.slow
def test_everything() -> None:
    kernels = triton_compiled.compiled(EVERYTHING)
    check(kernels)
    check_table(kernels)
    assert triton_compiled.table(triton.__version__, kernels) == triton_compiled.PATH.read_text()


def test_no_number_compiles_a_kernel_anew() -> None:
    """A multiple of 16, and 1, are other kernels to Triton wherever it is let. Ten seconds in the middle of serving."""
    words = (0, 1, 2, 16, 2**31, 2**32, 2**33 + 1, 2**63 - 1, -1, -(2**63))
    changes: list[dict[str, Any]] = [
        {},
        *({name: word} for name in ("seed", "offset") for word in words),
        *({"stream": number} for number in (1, 16)),
        *({"samples": number} for number in (1, 2, 16)),
        *({"rows": number} for number in (1, 2, 16, 63)),
        *({"order": number} for number in (1, 2)),
        *({"temperature": number} for number in (0.0, 1.0)),
        *({"top_p": number} for number in (0.0, 0.5)),
        *({"top_k": number} for number in (1008, 2001, 128256)),
        {"min_p": 0.1},
        {"replacement": False},
    ]
    # The last would be seen: rows of that many tokens are not aligned, which is another kernel.
    unaligned = {"vocab": 128255}
    assert triton_compiled.recompiled_elsewhere("reads float32", [*changes, unaligned]) == [unaligned]


@pytest.mark.parametrize("name", ["edited", "find_edits", "sample_residual"])
def test_no_number_of_a_request_compiles_a_kernel_anew(name: str) -> None:
    changes: list[dict[str, Any]] = [
        {},
        *({"samples": number} for number in (1, 2, 16, 1600)),
        *({"rows": number} for number in (1, 2, 16, 63)),
        *({"seed": number} for number in (0, 2**63 - 1)),
        {"temperature": 1.0},
        {"replacement": False},
    ]
    assert triton_compiled.recompiled_elsewhere(name, changes) == []


# --- the rules can be broken


@pytest.mark.parametrize("wanted", PERMITTED, ids=" ".join)
def test_a_compiler_that_is_let(kernels: list[Kernel], wanted: Wanted) -> None:
    kernel = kernels[list(PERMITTED).index(wanted) - len(PERMITTED)]
    assert re.search(PERMITTED[wanted], "\n".join(triton_rules.broken(kernel)))


def replaced(kernel: Kernel, stage: str, old: str, new: str, count: int = -1) -> Kernel:
    """The kernel, had the compiler written something else."""
    text = kernel.texts[stage]
    assert old in text
    return kernel._replace(texts={**kernel.texts, stage: text.replace(old, new, count)})


@pytest.mark.parametrize(
    ("target", "stage", "old", "new", "told"),
    [
        ("sm_90", "ptx", "mul.rn.f32", "mul.f32", "may be fused: mul.f32"),
        ("sm_90", "ptx", "add.rn.f32", "add.rn.ftz.f32", "flushes denormals: add.rn.ftz.f32"),
        ("sm_90", "ptx", "div.rn.f64", "div.rz.f64", "rounded otherwise: div.rz.f64"),
        ("sm_90", "ttir", "tt.bitcast", "arith.divf", "approximate: arith.divf in law.py"),
        ("sm_90", "llir", "= fmul ", "= fmul contract ", "may be fused or reordered: = fmul contract"),
        ("gfx942", "llir", "= fmul ", "= fmul nnan arcp ", "may be fused or reordered: = fmul nnan arcp"),
        ("gfx942", "amdgcn", "v_mul_f32", "v_fma_f32", "fused: 1 multiply-adds that no division accounts for"),
        ("gfx942", "amdgcn", "v_floor_f32", "v_exp_f32", "approximate: v_exp_f32"),
    ],
)
def test_a_kernel_that_is_spoilt(some: list[Kernel], target: str, stage: str, old: str, new: str, told: str) -> None:
    (kernel,) = (kernel for kernel in some if (kernel.name, kernel.target) == ("filtered_probs_kernel", target))
    assert triton_rules.broken(kernel) == []
    assert told in triton_rules.broken(replaced(kernel, stage, old, new, 1))


def test_guesses_may_be_approximate_in_their_own_kernels_only(some: list[Kernel]) -> None:
    by_name = {kernel.name: kernel for kernel in some if kernel.target == "sm_90"}
    guessing = by_name["bound_kernel"]
    assert "ex2.approx" in guessing.texts["ptx"]
    another = guessing._replace(texts={**guessing.texts, "ttir": by_name["weigh_kernel"].texts["ttir"]})
    assert "approximate: ex2.approx.ftz.f32" in triton_rules.broken(another)
    elsewhere = replaced(guessing, "ttir", "bound.py", "weigh.py")
    assert "approximate: math.exp2 in weigh.py" in triton_rules.broken(elsewhere)
