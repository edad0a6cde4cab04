"""`sample_full`: tokens with what engines and trainers want to know of them (law section 7)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastsample import arguments, ops
from fastsample.adjustments import ENTRIES_IGNORED, LogitsAdjustments, TokenLists, find_edits, normalise
from fastsample.arguments import NO_EDITS, NO_FILTERS, NO_HISTORY, Edits, History, describe
from fastsample.backends import select
from fastsample.graph_breaks import outside_of_graphs
from fastsample.invalid_rows import check_errors, raise_for_invalid_rows
from fastsample.ops import Ops
from fastsample.randomness import check_sources, generated, seeded
from fastsample.reference_full import NUMBERS
from fastsample.sorted_top import sorted_top

MOST_TOP_LOGPROBS_IN_ONE_PASS = 32
_LN2 = 0.6931471805599453


class SampleOutput(NamedTuple):
    """What `sample_full` returns. Shapes are for 2-D logits; for 1-D logits the batch dimension is missing.

    "Processed" is the distribution that was drawn from; "raw" is the softmax of the logits as they came, before
    adjustments, temperature and filters.

    Attributes:
        tokens: int64 [batch], or [batch, num_samples]; -1 in an invalid row and when nothing is left to draw.
        logprobs: float32 like `tokens`: natural log-probabilities of the tokens, processed. NaN where the token is -1.
        raw_logprobs: float32 like `tokens`, with raw_logprobs=True.
        ranks: int64 like `tokens`, with raw_logprobs=True: the token's place among the raw logits, 1 for the largest;
            ties by index. 0 where the token is -1.
        top_tokens: int64 [batch, n], with top_logprobs=n: the n most probable tokens in order, raw or processed as
            `top_logprobs_of` says. -1 beyond those above -inf, or kept.
        top_logprobs: float32 [batch, n]: their log-probabilities, -inf beyond.
        kept: The tokens that the filters kept, in index order, with kept_set=True: what `filtered_log_probs` takes.
        numbers: int64 [batch, 8], with distribution=True or kept_set=True: the law's integers, equal by `==` everywhere
            (law section 7).
        edit_status: int32 [batch]: bit 0 for invalid penalties, bit 1 for ignored entries; None without adjustments
            that can fail.
        first_tokens: int64 [batch]: the first draw of each row, which is `tokens` where there is but one.
    """

    tokens: Tensor
    logprobs: Tensor
    raw_logprobs: Tensor | None
    ranks: Tensor | None
    top_tokens: Tensor | None
    top_logprobs: Tensor | None
    kept: TokenLists | None
    numbers: Tensor | None
    edit_status: Tensor | None
    first_tokens: Tensor

    @property
    def status(self) -> Tensor:
        """int32 [batch]: 0, or bit 0 for an invalid row (its token is -1), bit 1 for adjustments partly ignored."""
        invalid = (self.first_tokens < 0).to(torch.int32)
        return invalid if self.edit_status is None else invalid | (self.edit_status & ENTRIES_IGNORED)

    @property
    def kept_size(self) -> Tensor:
        """int64 [batch]: how many tokens the filters kept."""
        return self._of_distribution()[..., 5]

    @property
    def kept_mass(self) -> Tensor:
        """float64 [batch]: their share of the probability after temperature, before the filters. NaN when invalid."""
        numbers = self._of_distribution()
        return numbers[..., 4].double() / numbers[..., 7]

    @property
    def entropy(self) -> Tensor:
        """float64 [batch], in nats: the entropy of the processed distribution. NaN when invalid."""
        numbers = self._of_distribution()
        z = numbers[..., 4].double()
        return torch.log(z * 2.0**-40) + _LN2 * (numbers[..., 6] / z)

    def _of_distribution(self) -> Tensor:
        if self.numbers is None:
            raise ValueError("distribution: entropy, kept_size and kept_mass need sample_full(..., distribution=True)")
        return self.numbers


def sample_full(
    logits: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    raw_logprobs: bool = False,
    top_logprobs: int = 0,
    top_logprobs_of: Literal["raw", "processed"] = "raw",
    distribution: bool = False,
    kept_set: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    stream: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    order: Literal["top_k_first", "min_p_first", "joint"] = "top_k_first",
    num_samples: int | None = None,
    replacement: bool = True,
    indices: Tensor | None = None,
    backend: str = "auto",
    errors: Literal["sentinel", "raise"] = "sentinel",
    history: History | None = None,
    **adjustments: Unpack[LogitsAdjustments],
) -> SampleOutput:
    """Draw the tokens that `sample` draws, and say what serving and training need to know of them.

    The arguments of `sample` mean the same here; what is asked for beside the tokens never changes them. The
    log-probability of each token comes in any case; the rest costs nothing unless it is asked for.

    Args:
        logits, temperature, top_k, top_p, min_p: as for `sample`.
        raw_logprobs: also the tokens' raw log-probabilities and ranks: one more sum over the raw logits.
        top_logprobs: how many of the most probable tokens to list with their log-probabilities. Up to 32 from the same
            pass; more by a second one that sorts the row.
        top_logprobs_of: the distribution that they are of. "raw" sums over the raw logits as `raw_logprobs` does;
            "processed" is that of the draw, in which filters leave fewer tokens; up to 32 need no more sums.
        distribution: also entropy, size and mass of the kept set.
        kept_set: also the kept tokens themselves. Their number is known on the device alone, so a GPU synchronises and
            a torch.compile graph breaks.
        seed, offset, stream, generator, order, num_samples, replacement, indices, backend, errors: as for `sample`.
        history: where the first token of each row is recorded by the same launch: `tokens` (int64 [batch, n]) at place
            lengths[b], `lengths` (int64 [batch]) and `counts` (int32 [batch, vocab]) one up, each optional. `lengths`
            may be the tensor given as `offset` and `output_lengths`, which then advance by themselves; no 0-d view of
            it may be. With errors="raise" the valid rows are recorded before the error is raised.
        adjustments: as for `sample`, see `fastsample.LogitsAdjustments`.

    Returns:
        A `SampleOutput`.

    Raises:
        TypeError, ValueError: a bad argument, before any work, or invalid rows with errors="raise".
        RuntimeError: the backend is not usable here, or CUDA graph capture with errors="raise" or kept_set=True.

    Source: docs/law.md, sections 0 and 7.
    """
    batch = arguments.check_logits(logits)
    device, one_row = logits.device, logits.dim() == 1
    if indices is not None:
        indices = arguments.normalise_indices(indices, logits)
        batch = indices.shape[0]
    filters = arguments.normalise_filters(temperature, top_k, top_p, min_p, order, batch, device)
    arguments.check_flag("replacement", replacement)
    arguments.check_flag("raw_logprobs", raw_logprobs)
    arguments.check_flag("distribution", distribution)
    arguments.check_flag("kept_set", kept_set)
    if errors != "sentinel":
        check_errors(errors, device)
    if kept_set and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "kept_set: its size is read by the host, which CUDA graph capture cannot; leave it out there"
        )
    count = 1 if num_samples is None else arguments.check_num_samples(num_samples)
    listed = top_logprobs if type(top_logprobs) is int else arguments.integer_number("top_logprobs", top_logprobs, "")
    if listed < 0:
        raise ValueError(f"top_logprobs: got {listed}; accepted: at least 0")
    if top_logprobs_of not in ("raw", "processed"):
        raise ValueError(f"top_logprobs_of: got {describe(top_logprobs_of)}; accepted: 'raw' or 'processed'")
    of_processed = top_logprobs_of == "processed"
    chosen = ops.compiled if backend == "auto" else select(backend, device)
    rows = logits.unsqueeze(0) if one_row else logits
    recorded = NO_HISTORY if history is None else check_history(history, batch, rows.shape[1], device)
    named = normalise(adjustments, batch, rows.shape[1], device) if adjustments else None
    check_sources(seed, offset, stream, generator, device)
    randomness = generated(generator, chosen, device) if seed is None else seeded(seed, offset, stream, batch, device)

    shape = (batch,) if num_samples is None else (batch, count)
    tokens = torch.empty(shape, dtype=torch.int64, device=device)
    logprobs = torch.empty_like(tokens, dtype=torch.float32)
    raw = torch.empty_like(logprobs) if raw_logprobs else None
    ranks = torch.empty_like(tokens) if raw_logprobs else None
    top_tokens = top_values = numbers = None
    if 0 < listed <= MOST_TOP_LOGPROBS_IN_ONE_PASS:
        top_tokens = torch.empty((batch, listed), dtype=torch.int64, device=device)
        top_values = torch.empty_like(top_tokens, dtype=torch.float32)
    second_pass = listed > MOST_TOP_LOGPROBS_IN_ONE_PASS
    if distribution or kept_set or (second_pass and of_processed):
        numbers = torch.empty((batch, NUMBERS), dtype=torch.int64, device=device)
    if history is not None and not torch.compiler.is_compiling():
        # As for `out` in `sample`: a backward that saved them is told that they have changed. A list, since torch makes
        # a SystemError of an exception, such as Ctrl-C's, that comes while it reads a generator.
        torch.autograd.graph.increment_version([tensor for tensor in recorded if tensor is not None])
    edits, status = (NO_EDITS, None) if named is None else find_edits(chosen, rows, indices, batch, named)
    drawn = *filters, *randomness, replacement
    if named is None and history is None and raw is None and top_tokens is None and numbers is None:
        chosen.sample(tokens, rows, indices, *drawn, False, logprobs)
    else:
        details = logprobs, raw, ranks, top_tokens, top_values, numbers, of_processed
        chosen.sample_full(tokens, rows, indices, *drawn, *edits, *recorded, *details)
    first = tokens if num_samples is None else tokens[:, 0]
    if errors == "raise":
        raise_for_invalid_rows(tokens, rows, indices, filters, status)
    if second_pass:
        asked = (filters, edits, numbers) if of_processed else (NO_FILTERS, NO_EDITS, None)
        top_tokens, top_values = sorted_top(chosen, rows, indices, *asked, first, listed)
    kept = _kept(chosen, rows, indices, edits, numbers) if kept_set and numbers is not None else None
    described = numbers if distribution or kept_set else None
    output = SampleOutput(tokens, logprobs, raw, ranks, top_tokens, top_values, kept, described, status, first)
    if one_row:
        output = SampleOutput._make(values[0] if isinstance(values, Tensor) else values for values in output)
    return output


def check_history(history: History, batch: int, vocab: int, device: torch.device) -> History:
    """Raise unless each tensor of `history` can be recorded into; return it."""
    if not isinstance(history, History):
        raise TypeError(f"history: got {describe(history)}; accepted: a fastsample.History, or None")
    expected = (
        ("tokens", history.tokens, torch.int64, (batch, None)),
        ("lengths", history.lengths, torch.int64, (batch,)),
        ("counts", history.counts, torch.int32, (batch, vocab)),
    )
    for name, tensor, dtype, shape in expected:
        if tensor is None:
            continue
        accepted = f"{dtype} [{', '.join('any' if size is None else str(size) for size in shape)}]"
        if not isinstance(tensor, Tensor) or tensor.dtype is not dtype:
            raise TypeError(f"history.{name}: got {describe(tensor)}; accepted: {accepted}")
        if len(shape) != tensor.dim() or any(
            size not in (None, given) for size, given in zip(shape, tensor.shape, strict=True)
        ):
            raise ValueError(f"history.{name}: got {describe(tensor)}; accepted: {accepted}")
        arguments.check_device(f"history.{name}", tensor, device)
        if arguments.has_overlap(tensor):
            raise ValueError(f"history.{name}: several of its elements share one place in memory; pass a clone()")
    if history.tokens is not None and history.lengths is None:
        raise ValueError("history.tokens: given without history.lengths, which says where a token goes")
    return history


@outside_of_graphs("kept_set=True looks at how many tokens were kept")
def _kept(operators: Ops, logits: Tensor, indices: Tensor | None, edits: Edits, numbers: Tensor) -> TokenLists:
    offsets = torch.nn.functional.pad(numbers[:, 5].cumsum(dim=0), (1, 0))
    total = int(offsets[-1])  # synchronises
    return TokenLists(operators.kept_tokens(logits, indices, *edits, numbers, offsets, total), offsets)
