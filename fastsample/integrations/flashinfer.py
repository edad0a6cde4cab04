"""FlashInfer's sampling functions, drawn by the sampling law: the API of `flashinfer.sampling` 0.7.2.

    import fastsample.integrations.flashinfer

    fastsample.integrations.flashinfer.install()  # `flashinfer.sampling` now has the functions below

Names, parameters, defaults and results are FlashInfer's, so code that calls it needs no change; FlashInfer itself need
not be installed. In all of them:

* `probs` and `logits` are [rows, vocab] with any strides, float32, float16, bfloat16 or float64 (rounded to float32),
  on any device.
* A parameter (`top_k`, `top_p`, `min_p`) is a number or a tensor [rows]: with `indices`, output b has the value of row
  indices[b], as in FlashInfer. A tensor of another length is refused, as there.
* `seed` and `offset` are numbers, tensors [1], or tensors [outputs], one value per output. A number or [1] is shared:
  outputs draw from different streams. Values per output are whole requests' own: a request's tokens do not depend on
  its place in the batch, and equal seeds and offsets draw alike, where FlashInfer mixes in the place. A seed without
  an offset has offset 0, where FlashInfer ignores it; an offset without a seed is refused, where FlashInfer ignores it.
* Tokens are int32, or of the dtype of `indices`. An invalid row (law sections 1 and 5: a NaN, nothing to draw, a bad
  value in a parameter's tensor, an index out of range) gives token 0 and `valid` False, as in FlashInfer.
* `deterministic`, `is_deterministic` and `enable_pdl` change nothing: every result is the same bits each time.

docs/flashinfer.md says what differs and why. Source: FlashInfer's documentation and kernels; docs/law.md.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample import arguments, ops, transforms
from fastsample.integrations.flashinfer_arguments import (
    check_counter,
    checked_chains,
    checked_generator,
    checked_order,
    checked_rows,
    filters_of_outputs,
    raise_for_nan,
    shared,
)
from fastsample.integrations.renormalised import renormalised, renormalised_nucleus
from fastsample.integrations.stand_in import StandIn
from fastsample.randomness import check_sources, generated, seeded
from fastsample.speculative import verify_chain

logger = logging.getLogger(__name__)

API_VERSION = "0.7.2.post1"

_INDEX_DTYPES = (torch.int32, torch.int64)
# Law section 5, where probabilities may be of more categories than logits.
_MOST_CATEGORIES = 2**31


def softmax(logits: Tensor, temperature: float | Tensor | None = None, enable_pdl: bool | None = None) -> Tensor:
    """Probabilities at a temperature, with the contract of `flashinfer.sampling.softmax`.

    Args:
        logits: [rows, vocab].
        temperature: at least 0, a number or a tensor [rows]; None is 1. 0 gives the first of the largest logits
            probability 1, where FlashInfer gives all tokens the same.
        enable_pdl: nothing depends on it.

    Returns:
        float32 [rows, vocab], equal by `==` on every device; all NaN in an invalid row.

    Raises:
        TypeError, ValueError: a bad argument.

    Source: docs/law.md, sections 1 and 5.
    """
    return transforms.softmax(checked_rows("logits", logits), 1.0 if temperature is None else temperature)


def sampling_from_logits(
    logits: Tensor,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
) -> Tensor:
    """Draw a token of each row of logits, with the contract of `flashinfer.sampling.sampling_from_logits`.

    Args:
        logits: [rows, vocab]; -inf is never drawn.
        indices: int32 or int64 [outputs]: output b draws from row indices[b]. None is each row once.
        deterministic: nothing depends on it.
        generator: a torch.Generator on the device of the logits, which the call advances; None is the device's default
            one. Not used where there is a seed.
        check_nan: whether a NaN raises, for which a GPU synchronises.
        seed, offset: see the module.

    Returns:
        [outputs], int32 or of the dtype of `indices`; 0 in an invalid row.

    Raises:
        TypeError, ValueError: a bad argument, or a NaN with check_nan=True.

    Source: docs/law.md, section 4.
    """
    rows = checked_rows("logits", logits)
    if check_nan:
        raise_for_nan("logits", rows.isnan().any(dim=1))
    tokens = _draw(rows, False, indices, (0, 1.0, 0.0), "top_k_first", generator, seed, offset)
    return _samples(tokens, indices)


def sampling_from_probs(
    probs: Tensor,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw a token of each row of probabilities, with the contract of `flashinfer.sampling.sampling_from_probs`.

    Args:
        probs: [rows, vocab], at least 0 and finite; they need not sum to 1.
        indices, deterministic, generator, check_nan, seed, offset: as for `sampling_from_logits`.
        return_valid: whether to return `valid` too.

    Returns:
        tokens [outputs], int32 or of the dtype of `indices`; or (tokens, valid) with valid bool [outputs]: False where
        the row was invalid, whose token is 0.

    Raises:
        TypeError, ValueError: a bad argument, or a NaN with check_nan=True.

    Source: docs/law.md, sections 4 and 5.
    """
    return _from_probs(probs, (0, 1.0, 0.0), "top_k_first", indices, generator, check_nan, seed, offset, return_valid)


def top_p_sampling_from_probs(
    probs: Tensor,
    top_p: float | Tensor,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw from the nucleus, with the contract of `flashinfer.sampling.top_p_sampling_from_probs`.

    Args:
        probs: as for `sampling_from_probs`.
        top_p: in [0, 1], a number or a tensor [rows]: keep the smallest set of the most probable tokens that has this
            share of the row's sum. Of equal probabilities at the boundary the smaller index wins, where FlashInfer
            keeps all.
        indices, deterministic, generator, check_nan, seed, offset, return_valid: as for `sampling_from_probs`.

    Returns:
        As `sampling_from_probs`.

    Raises:
        TypeError, ValueError: as `sampling_from_probs`.

    Source: docs/law.md, sections 3 to 5; Holtzman et al. 2019.
    """
    return _from_probs(probs, (0, top_p, 0.0), "top_k_first", indices, generator, check_nan, seed, offset, return_valid)


def top_k_sampling_from_probs(
    probs: Tensor,
    top_k: int | Tensor,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw from the k most probable tokens, with the contract of `flashinfer.sampling.top_k_sampling_from_probs`.

    Args:
        probs: as for `sampling_from_probs`.
        top_k: keep the k most probable tokens, a number or a tensor [rows]; 0 or less, and vocab or more, keep all.
            Exactly k: of equal probabilities the smaller index wins, where FlashInfer keeps all that equal the k-th.
        indices, deterministic, generator, check_nan, seed, offset, return_valid: as for `sampling_from_probs`.

    Returns:
        As `sampling_from_probs`.

    Raises:
        TypeError, ValueError: as `sampling_from_probs`.

    Source: docs/law.md, sections 2 to 5.
    """
    return _from_probs(
        probs, (top_k, 1.0, 0.0), "top_k_first", indices, generator, check_nan, seed, offset, return_valid
    )


def min_p_sampling_from_probs(
    probs: Tensor,
    min_p: float | Tensor,
    indices: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw from what is probable enough, with the contract of `flashinfer.sampling.min_p_sampling_from_probs`.

    Args:
        probs: as for `sampling_from_probs`.
        min_p: in [0, 1], a number or a tensor [rows]: keep the tokens at least this probable relative to the most
            probable one.
        indices, deterministic, generator, check_nan, seed, offset, return_valid: as for `sampling_from_probs`.

    Returns:
        As `sampling_from_probs`.

    Raises:
        TypeError, ValueError: as `sampling_from_probs`.

    Source: docs/law.md, sections 3 to 5; Nguyen et al. 2024.
    """
    return _from_probs(probs, (0, 1.0, min_p), "top_k_first", indices, generator, check_nan, seed, offset, return_valid)


def top_k_top_p_sampling_from_logits(
    logits: Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    indices: Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
) -> Tensor:
    """Draw by top_k and top_p, with the contract of `flashinfer.sampling.top_k_top_p_sampling_from_logits`.

    Args:
        logits: as for `sampling_from_logits`. No softmax of them is made.
        top_k: as for `top_k_sampling_from_probs`.
        top_p: as for `top_p_sampling_from_probs`.
        indices, deterministic, generator, seed, offset: as for `sampling_from_logits`.
        filter_apply_order: what top_p measures its share of: "top_k_first" what top_k keeps, "joint" everything.
        check_nan: whether a row whose softmax would hold a NaN raises, for which a GPU synchronises.

    Returns:
        As `sampling_from_logits`.

    Raises:
        TypeError, ValueError: as `sampling_from_logits`.

    Source: docs/law.md, sections 3 and 4.
    """
    rows = checked_rows("logits", logits)
    order = checked_order(filter_apply_order)
    if check_nan:
        raise_for_nan("probs", ~rows.amax(dim=1).isfinite())
    tokens = _draw(rows, False, indices, (top_k, top_p, 0.0), order, generator, seed, offset)
    return _samples(tokens, indices)


def top_k_top_p_sampling_from_probs(
    probs: Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    indices: Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw by top_k and top_p, with the contract of `flashinfer.sampling.top_k_top_p_sampling_from_probs`.

    Args:
        probs: as for `sampling_from_probs`.
        top_k: as for `top_k_sampling_from_probs`.
        top_p: as for `top_p_sampling_from_probs`.
        filter_apply_order: as for `top_k_top_p_sampling_from_logits`.
        indices, deterministic, generator, check_nan, seed, offset, return_valid: as for `sampling_from_probs`.

    Returns:
        As `sampling_from_probs`.

    Raises:
        TypeError, ValueError: as `sampling_from_probs`.

    Source: docs/law.md, sections 3 to 5.
    """
    return _from_probs(
        probs,
        (top_k, top_p, 0.0),
        checked_order(filter_apply_order),
        indices,
        generator,
        check_nan,
        seed,
        offset,
        return_valid,
    )


def top_p_renorm_probs(probs: Tensor, top_p: float | Tensor, is_deterministic: bool = False) -> Tensor:
    """Probabilities of the nucleus, renormalised, with the contract of `flashinfer.sampling.top_p_renorm_probs`.

    It keeps what `top_p_sampling_from_probs` draws from. Computed by PyTorch operations: on a CPU what may be kept of a
    row is sorted, on a GPU the whole row.

    Args:
        probs: as for `sampling_from_probs`.
        top_p: as for `top_p_sampling_from_probs`.
        is_deterministic: nothing depends on it.

    Returns:
        float32 [rows, vocab]: p_i / S for what is kept, where S is the sum of the kept p as the law's integers have it,
        else 0; all NaN in an invalid row.

    Raises:
        TypeError, ValueError: a bad argument.

    Source: docs/law.md, sections 3 and 5.
    """
    rows = checked_rows("probs", probs, _MOST_CATEGORIES)
    filters = filters_of_outputs(0, top_p, 0.0, "top_k_first", rows, None)
    return renormalised_nucleus(rows, filters)


def top_k_renorm_probs(probs: Tensor, top_k: int | Tensor, is_deterministic: bool = False) -> Tensor:
    """The k largest probabilities, renormalised, with the contract of `flashinfer.sampling.top_k_renorm_probs`.

    Args:
        probs: as for `sampling_from_probs`, up to 2^22 tokens.
        top_k: as for `top_k_sampling_from_probs`.
        is_deterministic: nothing depends on it.

    Returns:
        [rows, vocab] of the dtype of `probs` (float32 for float64): as `top_p_renorm_probs`, rounded to that dtype.

    Raises:
        TypeError, ValueError: a bad argument.

    Source: docs/law.md, sections 2, 3 and 5.
    """
    rows = checked_rows("probs", probs)
    # top_k looks at nothing but the order, which is the same for probabilities and for logits.
    kept = _masked(rows, top_k) > -torch.inf
    return renormalised(rows, kept).to(rows.dtype)


def top_k_mask_logits(logits: Tensor, top_k: int | Tensor) -> Tensor:
    """All but the k largest logits at -inf, with the contract of `flashinfer.sampling.top_k_mask_logits`.

    Args:
        logits: [rows, vocab].
        top_k: as for `top_k_sampling_from_probs`.

    Returns:
        [rows, vocab] of the dtype of the logits (float32 for float64): a kept logit unchanged; all NaN in an invalid
        row, also in one that is nothing but -inf.

    Raises:
        TypeError, ValueError: a bad argument.

    Source: docs/law.md, sections 2 and 3.
    """
    return _masked(checked_rows("logits", logits), top_k)


def chain_speculative_sampling(
    draft_probs: Tensor,
    draft_token_ids: Tensor,
    target_probs: Tensor,
    maybe_output_accepted_token_num: Tensor | None = None,
    maybe_output_emitted_draft_token_num: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Verify chains of drafts, with the contract of `flashinfer.sampling.chain_speculative_sampling`.

    It differs in the random numbers, and in serving any device; an id outside [0, vocab) is refused, and an invalid row
    of the target gives -1, the sign that a request ended, where FlashInfer's token is undefined.

    Args:
        draft_probs: [batch, n, vocab]: the probabilities that the drafts were drawn from, float32, float16, bfloat16 or
            float64 (rounded to float32).
        draft_token_ids: integer [batch, n].
        target_probs: [batch, n + 1, vocab]: the target's probabilities, with the same dtypes.
        maybe_output_accepted_token_num: integer [batch], to which the number of drafts is added, in place, that would
            be accepted each on its own.
        maybe_output_emitted_draft_token_num: integer [batch], to which the number of drafts is added, in place, that
            were accepted before the first refusal.
        deterministic: nothing depends on it: the result always is.
        generator: as for `sampling_from_logits`.
        seed, offset: see the module. The offset counts positions, of which a call takes n + 1.

    Returns:
        (output_token_ids, output_accepted_token_num, output_emitted_draft_token_num): int32 [batch, n + 1], the
        accepted drafts, then the recovered or bonus token, then -1; and the two counters, those given or new int32
        [batch].

    Raises:
        TypeError, ValueError: a bad argument.

    Source: FlashInfer's documentation; Chen et al. 2023; docs/law.md, sections 5 and 8.
    """
    draft, drafted, target = checked_chains(draft_probs, draft_token_ids, target_probs)
    for name, counter in (
        ("maybe_output_accepted_token_num", maybe_output_accepted_token_num),
        ("maybe_output_emitted_draft_token_num", maybe_output_emitted_draft_token_num),
    ):
        check_counter(name, counter, target)
    verified = verify_chain(
        target,
        drafted,
        draft,
        target_probabilities=True,
        draft_probabilities=True,
        seed=shared(seed),
        offset=shared(offset),
        generator=checked_generator(generator, seed),
    )
    return (
        verified.tokens.to(torch.int32),
        _add(maybe_output_accepted_token_num, verified.acceptable.sum(dim=1)),
        _add(maybe_output_emitted_draft_token_num, verified.accepted),
    )


def get_seed_and_offset(
    increment: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> tuple[int, int]:
    """A seed and an offset for one call, as numbers, drawn from a generator.

    None of the functions here needs it. FlashInfer's takes the state of a GPU's generator apart; this one draws from
    any generator, so the numbers are others, and a GPU synchronises.

    Args:
        increment: nothing depends on it: the generator moves on in any case.
        generator: a torch.Generator; None is the default one of the device.
        device: where to draw when there is no generator; None is torch's default device.

    Returns:
        (seed, offset), each from 0 to 2^63 - 1.

    Raises:
        TypeError: a generator that is none.

    Source: docs/law.md, section 4.
    """
    generator = checked_generator(generator, None)
    place = device if generator is None else generator.device
    seed, offset = torch.empty(2, dtype=torch.int64, device=place).random_(generator=generator).tolist()
    return seed, offset


# What FlashInfer called them first, and still does.
top_p_renorm_prob = top_p_renorm_probs
top_k_renorm_prob = top_k_renorm_probs

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "chain_speculative_sampling": chain_speculative_sampling,
    "get_seed_and_offset": get_seed_and_offset,
    "min_p_sampling_from_probs": min_p_sampling_from_probs,
    "sampling_from_logits": sampling_from_logits,
    "sampling_from_probs": sampling_from_probs,
    "softmax": softmax,
    "top_k_mask_logits": top_k_mask_logits,
    "top_k_renorm_prob": top_k_renorm_prob,
    "top_k_renorm_probs": top_k_renorm_probs,
    "top_k_sampling_from_probs": top_k_sampling_from_probs,
    "top_k_top_p_sampling_from_logits": top_k_top_p_sampling_from_logits,
    "top_k_top_p_sampling_from_probs": top_k_top_p_sampling_from_probs,
    "top_p_renorm_prob": top_p_renorm_prob,
    "top_p_renorm_probs": top_p_renorm_probs,
    "top_p_sampling_from_probs": top_p_sampling_from_probs,
}
_stand_in = StandIn("flashinfer.sampling", _FUNCTIONS, API_VERSION)


def install() -> None:
    """Put the functions of this module into `flashinfer.sampling`, in this process; twice is once.

    It holds for `flashinfer.sampling` however and whenever it is imported, also for who holds that module already, and
    for the functions of it that `flashinfer` has itself. Who took a function out of it earlier (`from
    flashinfer.sampling import softmax`) keeps FlashInfer's, so call this first. Without FlashInfer, `flashinfer`
    becomes a package with nothing else in it. One line is logged, at level INFO, by the logger
    `fastsample.integrations.flashinfer`; and a warning, if the installed FlashInfer's functions take other parameters.

    Raises:
        ImportError: FlashInfer is installed, and cannot be imported.
    """
    if not _stand_in.install():
        return
    installed = _stand_in.replaced_version()
    logger.info(
        "fastsample stands in for flashinfer.sampling (%s)",
        "FlashInfer is not installed" if installed is None else f"of FlashInfer {installed}",
    )
    if different := _stand_in.different_signatures():
        logger.warning(
            "FlashInfer %s takes other parameters than its version %s, which fastsample follows, in: %s",
            installed,
            API_VERSION,
            ", ".join(different),
        )


def uninstall() -> None:
    """Undo `install`: `flashinfer.sampling` is FlashInfer's again, or cannot be imported, as before."""
    if _stand_in.uninstall():
        logger.info("fastsample no longer stands in for flashinfer.sampling")


def is_installed() -> bool:
    """Whether `flashinfer.sampling` has the functions of this module."""
    return _stand_in.is_installed()


def _from_probs(
    probs: Any,
    filters: tuple[Any, Any, Any],
    order: str,
    indices: Any,
    generator: Any,
    check_nan: bool,
    seed: Any,
    offset: Any,
    return_valid: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    rows = checked_rows("probs", probs, _MOST_CATEGORIES)
    if check_nan:
        raise_for_nan("probs", rows.isnan().any(dim=1))
    tokens = _draw(rows, True, indices, filters, order, generator, seed, offset)
    samples = _samples(tokens, indices)
    return (samples, tokens >= 0) if return_valid else samples


def _draw(
    rows: Tensor,
    probabilities: bool,
    indices: Any,
    filters: tuple[Any, Any, Any],
    order: str,
    generator: Any,
    seed: Any,
    offset: Any,
) -> Tensor:
    """A token of each output by the law, int64 [outputs], -1 in an invalid row. filters: top_k, top_p and min_p."""
    device, batch = rows.device, rows.shape[0]
    source = None
    if indices is not None:
        if isinstance(indices, Tensor) and indices.dtype not in _INDEX_DTYPES:
            raise TypeError(f"indices: got dtype {indices.dtype}; accepted: int32 or int64, which the tokens have too")
        source = arguments.normalise_indices(indices, rows)
        batch = source.shape[0]
    normalised = filters_of_outputs(*filters, order, rows, source)
    seed, offset = shared(seed), shared(offset)
    generator = checked_generator(generator, seed)
    if seed is None:
        check_sources(None, offset, None, generator, device)
        randomness = generated(generator, ops.compiled, device)
    else:
        randomness = seeded(seed, offset, None, batch, device)
    tokens = torch.empty(batch, dtype=torch.int64, device=device)
    ops.compiled.sample(tokens, rows, source, *normalised, *randomness, True, probabilities)
    return tokens


def _samples(tokens: Tensor, indices: Tensor | None) -> Tensor:
    """Tokens of the law as FlashInfer has them."""
    return tokens.clamp(min=0).to(torch.int32 if indices is None else indices.dtype)


def _masked(rows: Tensor, top_k: Any) -> Tensor:
    filters = filters_of_outputs(top_k, 1.0, 0.0, "top_k_first", rows, None)
    return ops.compiled.filter_logits(rows, *filters)


def _add(counter: Tensor | None, count: Tensor) -> Tensor:
    return count.to(torch.int32) if counter is None else counter.add_(count)
