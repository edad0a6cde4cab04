"""The Triton kernels in divisions that policy.py would not choose here: no token depends on how the work is divided."""

import pytest
import torch

from .mixed_rows import mixed_logits, mixed_parameters
from .target import REHEARSAL, Target

policy = pytest.importorskip("fastsample.triton_kernels.policy")

# A rehearsal has the interpreter, which takes a second for a few short rows.
ROWS = 3 if REHEARSAL else 300
VOCAB = 300 if REHEARSAL else 16007
DTYPES = [torch.float32] if REHEARSAL else [torch.float32, torch.bfloat16]
# What policy.py chooses is among the other tests; these have many chunks and parts of a row, a list that overflows, a
# row that is resident where others are not, and few or many warps.
CHANGES = [
    {"parts": 1},
    {"parts": 3},
    {"parts": 7, "warps": 4},
    {"chunk": 256, "block": 1024, "parts": 2},
    {"list": 64},
    {"list": 64, "parts": 5},
    {"block": 4096, "warps": 16, "parts": 1},
    {"block": 512 if REHEARSAL else 16384, "warps": 16, "parts": 1, "resident": True},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("changes", CHANGES[1::2] if REHEARSAL else CHANGES, ids=str)
def test_every_division_draws_the_same(triton_target: Target, changes: dict[str, int], dtype: torch.dtype) -> None:
    target = triton_target
    logits = mixed_logits(ROWS, VOCAB, dtype, target.device, seed=VOCAB)
    parameters = mixed_parameters(ROWS, target.device, seed=VOCAB)
    default = policy.by_default(VOCAB, ROWS, logits.element_size(), VOCAB, policy.multiprocessors_of(target.device))
    with policy.forced(default._replace(**{"resident": False, "block": 2048, **changes})):
        target.check_sample(logits, **parameters)
        target.check_sample(logits[: ROWS // 2], 0.8, 30, 0.9, seed=1, num_samples=3, replacement=False)
        target.check_sample(logits[:3], top_p=0.9, seed=2)
        target.check_transforms(logits[:3], 0.8, 30, 0.9)
