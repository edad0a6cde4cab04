"""The CUDA kernels in shapes that their policy would not choose here: no token depends on how a row is divided."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from fastsample import ops

from .mixed_rows import mixed_logits, mixed_parameters
from .target import Target, needs_gpu

pytestmark = needs_gpu

# blocks, threads, cluster, resident
SHAPES = [
    *((blocks, threads, blocks > 1, True) for blocks in (1, 2, 4, 8, 16) for threads in (32, 128, 512)),
    *((blocks, 512, True, False) for blocks in (2, 8, 16)),
    *((blocks, threads, False, False) for blocks in (1, 2, 5, 16) for threads in (64, 512)),
]


def shape_of(target: Target, shape: tuple[int, int, bool, bool]) -> AbstractContextManager[None]:
    """A rehearsal on a CPU has no shapes."""
    return ops.cuda_shape_forced(*shape) if target.device.type == "cuda" else nullcontext()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_draws_the_same(cuda_target: Target, shape: tuple[int, int, bool, bool]) -> None:
    for vocab in (40, 2049, 16007):
        for dtype in (torch.float32, torch.bfloat16):
            logits = mixed_logits(500, vocab, dtype, cuda_target.device, seed=vocab)
            parameters = mixed_parameters(500, cuda_target.device, seed=vocab)
            with shape_of(cuda_target, shape):
                cuda_target.check_sample(logits, **parameters)
                cuda_target.check_sample(logits[:50], 0.8, 30, 0.9, seed=1, num_samples=5, replacement=False)
                cuda_target.check_transforms(logits, 0.8, 30, 0.9)
