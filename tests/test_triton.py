"""The Triton kernels, run by Triton's interpreter, give what the reference gives, by ==: the bodies of
tests/test_backends_agree.py over ways to divide a row among programs and blocks.

The interpreter runs the programs of a launch one after the other, and their arithmetic in numpy. What the compilers make
of the kernels is looked at in tests/test_triton_compiled.py; a GPU runs them in tests/gpu.
"""

import pytest

pytest.importorskip("triton")

from collections.abc import Callable, Iterator
from functools import partial

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import fastsample
import test_backends_agree as agree
import test_law_vectors as law_vectors
from fastsample import ops
from strategies import Call, calls, calls_without_indices

if not ops.triton_is_interpreted():
    pytest.skip("there is a GPU: tests/gpu runs the compiled kernels", allow_module_level=True)

from fastsample.triton_kernels import policy
from fastsample.triton_kernels.policy import Division

TRITON = ops.for_backend("triton")

# The largest parts are what policy.py chooses. The others are so small that rows of a few hundred tokens have many
# chunks, blocks and parts, do not fit into the list, and need several rounds of pivots.
DIVISIONS = (
    Division(64, 2048, 1024, False, 1, 8),
    Division(64, 2048, 4096, False, 3, 8),
    Division(64, 8192, 1024, True, 1, 8),
    Division(16, 64, 32, False, 1, 4),
    Division(16, 64, 32, False, 4, 4),
    Division(32, 32, 16, False, 7, 4),
    Division(8, 8192, 16, True, 1, 4),
)
each_division = pytest.mark.parametrize("division", DIVISIONS, ids=str)


def fitting(division: Division, vocab: int) -> Division:
    """The division, with a block in which a row of `vocab` tokens fits if it is to be resident."""
    if not division.resident:
        return division
    return division._replace(block=max(division.chunk, 1 << (vocab - 1).bit_length()))


# --- whatever hypothesis thinks of

# Shrinking a failure would run the interpreter for many minutes.
EXAMPLES = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),
)
SMALL = (1, 2, 15, 16, 17, 63, 64, 65, 100, 257, 600)

BODIES: dict[str, tuple[st.SearchStrategy[Call], Callable[[ops.Ops, Call], None]]] = {
    "tokens from logits": (calls(max_rows=3, vocabularies=SMALL), agree.check_tokens),
    "tokens from probabilities": (
        calls(probabilities=True, max_rows=3, vocabularies=SMALL),
        partial(agree.check_tokens, probabilities=True),
    ),
    "transforms": (
        calls_without_indices(max_rows=3, vocabularies=SMALL),
        lambda backend, call: agree.check_transforms(backend, call.logits, call.filters),
    ),
}
each_body = pytest.mark.parametrize("body", BODIES)


def run_examples(body: str, examples: settings, number: int | None = None) -> None:
    """Runs a body over calls and divisions: the same in each process, or those of a number."""
    any_call, check = BODIES[body]

    @examples
    @given(call=any_call, division=st.sampled_from((None, *DIVISIONS)))
    def test(call: Call, division: Division | None) -> None:
        if division is None:
            check(TRITON, call)
        else:
            with policy.forced(fitting(division, call.logits.shape[1])):
                check(TRITON, call)

    (test if number is None else seed(number)(test))()


@each_body
def test_examples(body: str) -> None:
    run_examples(body, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
@each_body
def test_many_examples(body: str, number: int) -> None:
    run_examples(body, settings(EXAMPLES, max_examples=400, derandomize=False, database=None), number)
