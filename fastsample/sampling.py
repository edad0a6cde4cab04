"""`sample`: tokens from logits by the sampling law (docs/law.md)."""

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastsample import arguments, ops
from fastsample.adjustments import LogitsAdjustments, find_edits, normalise
from fastsample.arguments import NO_DETAILS, NO_HISTORY
from fastsample.backends import select
from fastsample.invalid_rows import check_errors, raise_for_invalid_rows
from fastsample.randomness import check_sources, generated, seeded


def sample(
    logits: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    stream: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    order: Literal["top_k_first", "min_p_first", "joint"] = "top_k_first",
    num_samples: int | None = None,
    replacement: bool = True,
    indices: Tensor | None = None,
    backend: str = "auto",
    out: Tensor | None = None,
    errors: Literal["sentinel", "raise"] = "sentinel",
    **adjustments: Unpack[LogitsAdjustments],
) -> Tensor:
    """Draw a token of every row of `logits`, or several, by the sampling law.

    The tokens depend on the row's logits and parameters, the seed, offset and stream, and on nothing else: not on the
    backend, the batch, the row's place in memory or the number of threads. No gradient flows through a token.

    Every parameter is a number for all rows, a 0-d tensor (a number held on the device) or a tensor [batch], one value
    per output row, on the device of the logits. Numbers out of range raise; in a tensor, which is not read here, they
    make their row invalid. T, top_p and min_p are rounded to float32. Under torch.compile, pass numbers that change
    from call to call as 0-d tensors: each new Python number would be compiled anew.

    Args:
        logits: [batch, vocab] or [vocab], float32, float16 or bfloat16, with any strides and storage offset; never
            copied. The vocabulary is 1 to 2^22 tokens. -inf is a token that is never drawn.
        temperature: at least 0; the logits are divided by it. 0 is greedy: the first of the largest logits.
        top_k: keep the k largest logits, exactly k even among ties (the smaller index wins). 0 or less keeps all.
        top_p: in [0, 1]; keep the smallest set of the largest logits that has this share of the probability. 1 keeps
            all.
        min_p: in [0, 1]; keep the tokens at least this probable relative to the most probable one. 0 keeps all.
        seed: 64 bits (any integer, mod 2^64). A number or 0-d tensor is shared by the rows, which then differ in their
            stream; a tensor [batch] holds per-request seeds, so that a request's place in the batch does not matter.
            Integer tensors of any width; uint64 keeps its bits. None draws it from `generator`.
        offset: 64 bits, only with a seed; for per-request seeds the number of tokens the request has drawn. None is 0,
            so a repeated call repeats its tokens.
        stream: 32 bits (mod 2^32), only with a seed; None is 0. With a shared seed, row b takes stream + b.
        generator: a torch.Generator on the device of the logits, which the call advances; with neither seed nor
            generator, torch's default one, so that `torch.manual_seed` reproduces. A generator breaks a torch.compile
            graph; the default one does not.
        order: what top_p measures its share of: "top_k_first" what top_k keeps, "min_p_first" what top_k and min_p
            keep, "joint" everything.
        num_samples: tokens per row, at least 1; None draws one and leaves out that dimension.
        replacement: whether several draws of a row are independent; without, a drawn token is not drawn again, and when
            nothing is left each further draw is -1.
        indices: integer tensor [batch]: output row b draws from logits row indices[b]. Only with 2-D logits; every
            parameter is indexed by the output row. An index out of range makes its output row invalid.
        backend: "auto", "cpu" or "cuda" (native kernels, or an error), "triton" (on a GPU, or in its interpreter), or
            "reference" (plain PyTorch). All give the same tokens.
        out: int64 tensor of the result's shape, on the device of the logits, with any strides; it is written and
            returned.
        errors: what an invalid row (a NaN, no finite or +inf logit, a bad parameter in a tensor, an index out of range)
            does: "sentinel" gives -1; "raise" raises a ValueError that names rows and reasons. "raise" looks at the
            tokens, so it makes a GPU synchronise, breaks a torch.compile graph and is an error under CUDA graph
            capture.
        adjustments: penalties, bias, bad words, minimum length, allowed tokens and bitmasks, applied before all of the
            above; each is described in `fastsample.LogitsAdjustments`. None of them costs nothing.

    Returns:
        int64 tokens: [batch], or [batch, num_samples]; for 1-D logits 0-d, or [num_samples].

    Raises:
        TypeError, ValueError: a bad argument, before any work; the message names it, its value and what is accepted.
        ValueError: invalid rows, with errors="raise".
        RuntimeError: the backend is not usable here, or errors="raise" under CUDA graph capture.

    The law is docs/law.md; the filters are those of Holtzman et al. 2019 (top_p) and Nguyen et al. 2024 (min_p).
    """
    batch = arguments.check_logits(logits)
    device = logits.device
    one_row = logits.dim() == 1
    if indices is not None:
        indices = arguments.normalise_indices(indices, logits)
        batch = indices.shape[0]
    filters = arguments.normalise_filters(temperature, top_k, top_p, min_p, order, batch, device)
    arguments.check_flag("replacement", replacement)
    if errors != "sentinel":
        check_errors(errors, device)
    chosen = ops.compiled if backend == "auto" else select(backend, device)

    if num_samples is None:
        shape: tuple[int, ...] = () if one_row else (batch,)
    else:
        num_samples = arguments.check_num_samples(num_samples)
        shape = (num_samples,) if one_row else (batch, num_samples)
    if out is not None:
        arguments.check_out(out, shape, device)

    check_sources(seed, offset, stream, generator, device)
    randomness = generated(generator, chosen, device) if seed is None else seeded(seed, offset, stream, batch, device)

    if out is None:
        out = torch.empty(shape, dtype=torch.int64, device=device)
    elif not torch.compiler.is_compiling():
        # The operator has no autograd kernel that would do it; a caller who saved `out` for a backward is told so.
        torch.autograd.graph.increment_version(out)
    rows = logits.unsqueeze(0) if one_row else logits
    tokens = out.unsqueeze(0) if one_row else out
    status = None
    if adjustments:
        named = normalise(adjustments, batch, rows.shape[1], device)
        edits, status = find_edits(chosen, rows, indices, batch, named)
        chosen.sample_full(tokens, rows, indices, *filters, *randomness, replacement, *edits, *NO_HISTORY, *NO_DETAILS)
    else:
        chosen.sample(tokens, rows, indices, *filters, *randomness, replacement, False)
    if errors == "raise":
        raise_for_invalid_rows(tokens, rows, indices, filters, status)
    return out
