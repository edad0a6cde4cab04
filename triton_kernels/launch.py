"""The operators of one step on Triton, tokens, filtered rows and log-probabilities: what they launch.

A call takes one launch where a row fits into a program, else two with top_k, three without, five with top_p alone; the
operators that return rows take one more.
"""

from typing import Any

import torch
from torch import Tensor

from fastsample import arguments, reference

from . import policy, work, write
from .call import EXACT, describe, on_device, prepare, randomness_of, read, select, tokens_of
from .launch_full import sample_full

# Probabilities may have more tokens than logits. Beyond, the tiles of a row's 4096 chunks no longer fit into registers.
LARGEST_VOCAB = 2**24


def sample(out: Tensor, logits: Tensor, indices: Tensor | None, *operands: Any) -> None:
    """`fastsample.reference.sample` on Triton; of more than 2^24 probabilities a row, the reference itself."""
    filters, randomness = arguments.Filters(*operands[:9]), arguments.Randomness(*operands[9:16])
    replacement, probabilities, *rest = operands[16:]
    if rest and rest[0] is not None:
        more = *arguments.NO_EDITS, *arguments.NO_HISTORY, *arguments.Details(rest[0])
        return sample_full(out, logits, indices, *operands[:17], *more)
    out = reference.by_draw(out)
    rows, samples = out.shape
    if logits.numel() == 0 or logits.shape[1] > LARGEST_VOCAB:
        reference.sample(out, logits, indices, *operands)
    elif rows > 0 and samples > 0:
        with on_device(logits):
            call = prepare(logits, indices, filters, rows, samples, probabilities)
            read(call, filters)
            words = randomness_of(randomness, call.scratch)._replace(replacement=work.coded(replacement))
            select(call, words, tokens_of(out, call.scratch), None, draws=True, described=False)


def filter_logits(logits: Tensor, *operands: Any) -> Tensor:
    """`fastsample.reference.filter_logits` on Triton."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _write_rows(write.filter_logits_kernel, out, logits, operands)
    return out


def filtered_probs(logits: Tensor, *operands: Any) -> Tensor:
    """`fastsample.reference.filtered_probs` on Triton."""
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _write_rows(write.filtered_probs_kernel, out, logits, operands)
    return out


def log_probs(logits: Tensor, tokens: Tensor, *operands: Any) -> Tensor:
    """`fastsample.reference.log_probs` on Triton."""
    out = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
    count = tokens.shape[1]
    if logits.numel() > 0 and count > 0:
        filters = arguments.Filters(*operands)
        with on_device(logits):
            call = describe(prepare(logits, None, filters, logits.shape[0], 0), filters)
            blocks = -(-count // call.division.chunk)
            write.log_probs_kernel[(call.rows * blocks,)](
                call.logits,
                call.filters.temperature,
                call.sizes,
                call.scratch,
                tokens_of(tokens, call.scratch),
                count,
                tokens_of(out, call.scratch),
                call.shape,
                num_warps=4,
                **EXACT,
            )
    return out


def _write_rows(kernel: Any, out: Tensor, logits: Tensor, operands: tuple[Any, ...]) -> None:
    if logits.numel() == 0:
        return
    filters = arguments.Filters(*operands)
    with on_device(logits):
        call = describe(prepare(logits, None, filters, logits.shape[0], 0), filters)
        vocab = logits.shape[1]
        parts = policy.parts_to_write(vocab, call.division)
        kernel[(call.rows * parts,)](
            call.logits,
            call.filters.temperature,
            call.sizes,
            call.scratch,
            parts,
            work.Logits(out, vocab, 1),
            call.shape,
            num_warps=call.division.warps,
            **EXACT,
        )
