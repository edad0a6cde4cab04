"""What `sample` draws from, as tensors: filtered logits, probabilities and log-probabilities under the sampling law.

All take logits with any strides and storage offset, float32, float16 or bfloat16; parameters as `fastsample.sample`
does (a number, or a 0-d or [batch] tensor on the device of the logits); and the same `order` and `backend`. All are
differentiable with respect to the logits, with the kept set held fixed; nothing flows to the parameters. They raise
TypeError or ValueError for bad arguments before any work. An invalid row (law section 1) becomes NaN.
"""

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from fastsample import arguments, reference_edits
from fastsample.adjustments import LogitsAdjustments, TokenLists, check_lists, find_edits, normalise
from fastsample.arguments import Filters
from fastsample.backends import select
from fastsample.invalid_rows import check_errors, raise_for_ignored_entries
from fastsample.ops import Ops

Order = Literal["top_k_first", "min_p_first", "joint"]


def softmax(logits: Tensor, temperature: float | Tensor = 1.0, *, backend: str = "auto") -> Tensor:
    """Probabilities at a temperature, equal by `==` on every backend (law section 5).

    Args:
        logits: [batch, vocab] or [vocab], float32, float16 or bfloat16; the vocabulary is 1 to 2^22 tokens.
        temperature: at least 0; the logits are divided by it. 0 gives the first of the largest logits probability 1.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        float32, whatever the dtype of the logits, in the shape of the logits. As in any float32 softmax the exponent is
        rounded: a token a nats below the largest has a relative error of about a * 1e-7. Below 2^-126 of the largest
        probability it is 0.

    Raises:
        TypeError, ValueError: a bad argument. RuntimeError: the backend is not usable here.
    """
    return filtered_probs(logits, temperature, backend=backend)


def filter_logits(
    logits: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    order: Order = "top_k_first",
    backend: str = "auto",
) -> Tensor:
    """Logits with everything that the filters leave out set to -inf (law section 3).

    Args:
        logits: [batch, vocab] or [vocab], float32, float16 or bfloat16; the vocabulary is 1 to 2^22 tokens.
        temperature: at least 0; it decides what top_p and min_p keep. The logits that are kept are not divided by it. 0
            keeps the first of the largest logits alone.
        top_k: keep the k largest logits, exactly k even among ties; 0 or less keeps all.
        top_p: in [0, 1]; keep the smallest set of the largest logits that has this share of the probability.
        min_p: in [0, 1]; keep the tokens at least this probable relative to the most probable one.
        order: what top_p measures its share of: "top_k_first", "min_p_first" or "joint".
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        A new tensor of the dtype and shape of the logits: a kept logit unchanged, -inf elsewhere, all NaN in an invalid
            row.

    Raises:
        TypeError, ValueError: a bad argument. RuntimeError: the backend is not usable here.
    """
    rows, filters, operators = _prepare(logits, temperature, top_k, top_p, min_p, order, backend)
    filtered: Tensor = operators.filter_logits(rows, *filters)
    return filtered.squeeze(0) if logits.dim() == 1 else filtered


def filtered_probs(
    logits: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    order: Order = "top_k_first",
    backend: str = "auto",
) -> Tensor:
    """Probabilities of what the filters keep, renormalised, equal by `==` on every backend (law section 5).

    Args:
        logits: [batch, vocab] or [vocab], float32, float16 or bfloat16; the vocabulary is 1 to 2^22 tokens.
        temperature: at least 0; the logits are divided by it. 0 gives the first of the largest logits probability 1.
        top_k: keep the k largest logits, exactly k even among ties; 0 or less keeps all.
        top_p: in [0, 1]; keep the smallest set of the largest logits that has this share of the probability.
        min_p: in [0, 1]; keep the tokens at least this probable relative to the most probable one.
        order: what top_p measures its share of: "top_k_first", "min_p_first" or "joint".
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        float32, whatever the dtype of the logits, in the shape of the logits: 0 for what is not kept, all NaN in an
            invalid row.

    Raises:
        TypeError, ValueError: a bad argument. RuntimeError: the backend is not usable here.
    """
    rows, filters, operators = _prepare(logits, temperature, top_k, top_p, min_p, order, backend)
    probs: Tensor = operators.filtered_probs(rows, *filters)
    return probs.squeeze(0) if logits.dim() == 1 else probs


def log_probs(
    logits: Tensor,
    tokens: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    order: Order = "top_k_first",
    backend: str = "auto",
) -> Tensor:
    """Natural log-probabilities of given tokens under the filtered distribution (law section 5).

    Args:
        logits: [batch, vocab] or [vocab], float32, float16 or bfloat16; the vocabulary is 1 to 2^22 tokens.
        tokens: integer tensor of token ids, on the device of the logits: [batch] or [batch, n] (n tokens of each row)
            for 2-D logits, 0-d or [n] for 1-D logits.
        temperature: at least 0; the logits are divided by it.
        top_k: keep the k largest logits, exactly k even among ties; 0 or less keeps all.
        top_p: in [0, 1]; keep the smallest set of the largest logits that has this share of the probability.
        min_p: in [0, 1]; keep the tokens at least this probable relative to the most probable one.
        order: what top_p measures its share of: "top_k_first", "min_p_first" or "joint".
        backend: "auto", "cpu", "cuda", "triton" or "reference". They agree within 4 units in the last place (a
            logarithm is not correctly rounded everywhere), where all else agrees by `==`.

    Returns:
        float32 in the shape of `tokens`: finite for every kept token (but one more than the largest float32 below the
        maximum), -inf for one that the filters leave out, NaN for an id outside [0, vocab) and in an invalid row.

    Raises:
        TypeError, ValueError: a bad argument. RuntimeError: the backend is not usable here.
    """
    rows, filters, operators = _prepare(logits, temperature, top_k, top_p, min_p, order, backend)
    token_rows = arguments.normalise_tokens(tokens, logits)
    return operators.log_probs(rows, token_rows, *filters).view(tokens.shape)


def filtered_log_probs(
    logits: Tensor,
    tokens: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    kept: TokenLists | None = None,
    order: Order = "top_k_first",
    backend: str = "auto",
) -> Tensor:
    """Log-probabilities of sampled tokens over the support they were sampled from, for a trainer.

    With `kept`, the kept set that `sample_full(..., kept_set=True)` returned, the support is the sampler's, whatever
    the trainer's logits would keep themselves: with equal logits the result equals the sampler's `logprobs`. Without it
    the filters are applied to these logits anew, and a token that they now leave out has -inf. Differentiable with
    respect to the logits, with the support held fixed; beyond the logits nothing of their size is saved.

    Args:
        logits: [batch, vocab] or [vocab], float32, float16 or bfloat16; the vocabulary is 1 to 2^22 tokens.
        tokens: integer tensor of token ids, on the device of the logits: [batch] or [batch, n] for 2-D logits, 0-d or
            [n] for 1-D logits.
        temperature: at least 0; the logits are divided by it.
        top_k, top_p, min_p: as for `log_probs`; only without `kept`, which stands for them.
        kept: the kept tokens of each row: `tokens` [total] in any order, each once, and `offsets` [batch + 1].
        order: what top_p measures its share of: "top_k_first", "min_p_first" or "joint".
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        float32 in the shape of `tokens`: -inf for a token outside the support, NaN for an id outside [0, vocab) without
            `kept`, and in an invalid row (with `kept`: one whose kept set is empty or holds a NaN).

    Raises:
        TypeError, ValueError: a bad argument, or filters beside `kept`. RuntimeError: the backend is not usable here.

    Source: docs/law.md, section 5.
    """
    if kept is None:
        return log_probs(logits, tokens, temperature, top_k, top_p, min_p, order=order, backend=backend)
    rows, filters, operators = _prepare(logits, temperature, top_k, top_p, min_p, order, backend)
    given = (filters.top_k_rows, filters.top_p_rows, filters.min_p_rows)
    if filters.top_k > 0 or filters.top_p < 1.0 or filters.min_p > 0.0 or any(rows is not None for rows in given):
        raise ValueError(
            "kept: given together with top_k, top_p or min_p; the kept set stands for them, leave them out"
        )
    batch, device = rows.shape[0], rows.device
    kept_tokens, kept_offsets = check_lists("kept", kept, batch, device)
    token_rows = arguments.normalise_tokens(tokens, logits)
    of_rows: Tensor = operators.kept_log_probs(
        rows, token_rows, kept_tokens, kept_offsets, filters.temperature, filters.temperature_rows
    )
    return of_rows.view(tokens.shape)


def process_logits(
    logits: Tensor,
    *,
    errors: Literal["sentinel", "raise"] = "sentinel",
    backend: str = "auto",
    **adjustments: Unpack[LogitsAdjustments],
) -> Tensor:
    """The logits that `sample(logits, **adjustments)` draws from, as a tensor (law section 0).

    For the functions that take no adjustments themselves, and to look at; `sample` and `sample_full` never write them.
    The result is detached. A trainer whose sampler had adjustments passes `x + (process_logits(x, ...) - x).detach()`
    to `filtered_log_probs`: the gradient flows through it, without the repetition penalty's factor.

    Args:
        logits: [batch, vocab] or [vocab], float32, float16 or bfloat16; the vocabulary is 1 to 2^22 tokens.
        errors: what ids outside the vocabulary and the like do: "sentinel" passes them over, "raise" raises a
            ValueError that names the rows, for which a GPU synchronises.
        backend: "auto", "cpu", "cuda", "triton" or "reference".
        adjustments: see `fastsample.LogitsAdjustments`.

    Returns:
        float32 in the shape of the logits: -inf for what is banned or not allowed. A row with invalid penalties has NaN
            at token 0.

    Raises:
        TypeError, ValueError: a bad argument. RuntimeError: the backend is not usable here.
    """
    batch = arguments.check_logits(logits)
    rows = (logits.unsqueeze(0) if logits.dim() == 1 else logits).detach()
    operators = select(backend, logits.device)
    named = normalise(adjustments, batch, rows.shape[1], logits.device)
    check_errors(errors, logits.device)
    edits, status = find_edits(operators, rows, None, batch, named)
    if errors == "raise" and status is not None:
        raise_for_ignored_entries(status)
    return reference_edits.process(rows, edits).view(logits.shape)


def _prepare(
    logits: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
    order: str,
    backend: str,
) -> tuple[Tensor, Filters, Ops]:
    batch = arguments.check_logits(logits)
    rows = logits.unsqueeze(0) if logits.dim() == 1 else logits
    filters = arguments.normalise_filters(temperature, top_k, top_p, min_p, order, batch, logits.device)
    return rows, filters, select(backend, logits.device)
