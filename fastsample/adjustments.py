"""What requests change in their logits before the filters (law section 0): what users write, checked and normalised.

`LogitsAdjustments` lists the optional arguments of `sample`, `sample_full` and `process_logits`; `normalise` brings
them to `Adjustments`, the operators' form. Lists of different length per row are CSR: one tensor of entries and
`offsets` [batch + 1], so that row b has the entries offsets[b] to offsets[b + 1]. `TokenLists.of`, `LogitBias.of` and
`BadWords.of` make them from Python's lists.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from numbers import Real
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from fastsample import python_lists
from fastsample.arguments import (
    Edits,
    check_device,
    check_names,
    describe,
    integer_matrix,
    integer_number,
    integer_rows,
    integer_vector,
    real_rows,
)
from fastsample.python_lists import NO_TOKENS, Biases, Words

INVALID_PENALTY, ENTRIES_IGNORED = 1, 2  # the bits of a row's status


class TokenLists(NamedTuple):
    """A list of token ids for each row of a batch.

    tokens: integer tensor [total]. offsets: integer tensor [batch + 1], on the same device.
    """

    tokens: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | None], device: torch.device | str | None = None) -> "TokenLists":
        """From one list of ids, or None, a row.

        Raises TypeError or ValueError, which names the row: `lists[2]`.
        """
        given = python_lists.entries("lists", lists, "a list of token ids, or None, for each row of the batch")
        rows = [
            NO_TOKENS if row is None else python_lists.token_ids(f"lists[{number}]", row)
            for number, row in enumerate(given)
        ]
        return cls(_joined(rows).to(device), _offsets(rows).to(device))

    def select(self, rows: Tensor) -> "TokenLists":
        """The lists of some rows, in their order: those of a shuffled minibatch, for example. Synchronises a GPU.

        rows: integer tensor [n] on the lists' device, each from 0 to batch - 1; a row may come several times.
        """
        batch, device = self.offsets.shape[0] - 1, self.offsets.device
        rows = integer_vector("rows", rows, None, device)
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < batch:
            raise ValueError(f"rows: got {int(rows.min())} to {int(rows.max())}; accepted: 0 to {batch - 1}")
        begins, lengths = self.offsets[rows], self.offsets.diff()[rows]
        offsets = torch.nn.functional.pad(lengths.cumsum(dim=0), (1, 0))
        place = torch.arange(int(offsets[-1]), device=device)
        return TokenLists(self.tokens[place + (begins - offsets[:-1]).repeat_interleave(lengths)], offsets)

    @classmethod
    def cat(cls, lists: "Sequence[TokenLists]") -> "TokenLists":
        """The rows of several batches as those of one."""
        lengths = torch.cat([one.offsets.diff() for one in lists])
        offsets = torch.nn.functional.pad(lengths.cumsum(dim=0), (1, 0))
        return cls(torch.cat([one.tokens for one in lists]), offsets)


class LogitBias(NamedTuple):
    """What is added to some logits of each row of a batch.

    tokens: integer tensor [total]. values: floating-point tensor [total], rounded to float32; -inf bans a token.
    offsets: integer tensor [batch + 1]. All on one device. Of a token given twice in a row the last entry counts.
    """

    tokens: Tensor
    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, rows: Sequence[Mapping[int, float] | None], device: torch.device | str | None = None) -> "LogitBias":
        """From one mapping of token id to bias, or None, a row.

        Raises TypeError or ValueError, which names the row: `rows[2]`.
        """
        given = python_lists.entries("rows", rows, "a mapping of token id to bias, or None, for each row of the batch")
        filled = [
            Biases() if row is None else python_lists.biases(f"rows[{number}]", row) for number, row in enumerate(given)
        ]
        tokens = [row.tokens for row in filled]
        values = torch.cat([Biases().values, *(row.values for row in filled)])
        return cls(_joined(tokens).to(device), values.to(device), _offsets(tokens).to(device))


class BadWords(NamedTuple):
    """Sequences of tokens that each row of a batch must not complete.

    tokens: integer tensor [total], the words one after another. word_offsets: integer tensor [words + 1], where each
    begins. row_offsets: integer tensor [batch + 1]: row b has the words row_offsets[b] to row_offsets[b + 1].
    in_prompt: whether a word may begin in the prompt (Hugging Face) or only in the output (vLLM).
    """

    tokens: Tensor
    word_offsets: Tensor
    row_offsets: Tensor
    in_prompt: bool = False

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[Sequence[int]] | None],
        device: torch.device | str | None = None,
        *,
        in_prompt: bool = False,
    ) -> "BadWords":
        """From one list of words, each a list of ids, or None, a row.

        Raises TypeError or ValueError, which names the row and the word: `rows[2][0]`.
        """
        given = python_lists.entries("rows", rows, "a list of words, or None, for each row of the batch")
        filled = [
            Words() if row is None else python_lists.words(f"rows[{number}]", row) for number, row in enumerate(given)
        ]
        lengths = [row.lengths for row in filled]
        word_offsets = torch.nn.functional.pad(_joined(lengths).cumsum(0), (1, 0))
        tokens = _joined([row.tokens for row in filled])
        return cls(tokens.to(device), word_offsets.to(device), _offsets(lengths).to(device), in_prompt)


class LogitsAdjustments(TypedDict, total=False):
    """Optional arguments for what happens before temperature and filters, in vLLM's order (law section 0).

    A penalty is a number for all rows, a 0-d tensor or a tensor [batch]. Everything is indexed by the output row and
    lies on the device of the logits. Token ids outside [0, vocab) are ignored and flag their row. The prompt, like the
    output, may be given as a list of tokens, by token (`prompt_mask`, `output_counts`), or both: penalties then look at
    the latter alone, and the list serves `bad_words` and, by its length, `min_tokens`.

    Attributes:
        repetition_penalty: Above 0; positive logits of tokens in the prompt or the output are divided by it, others
            multiplied. 1 is off; else it needs a prompt or an output, which may be empty.
        presence_penalty: Finite; subtracted from the logits of tokens in the output. 0 is off; else it needs
            `output_tokens` or `output_counts`, as the next.
        frequency_penalty: Finite; subtracted once for each time that the token is in the output. 0 is off.
        prompt_tokens: Integer [batch, length]: the prompts, of which row b has the first prompt_lengths[b] tokens.
        prompt_lengths: Integer [batch]; without it every prompt has all columns.
        output_tokens: Integer [batch, length]: what the requests have drawn, of which row b has the first
            output_lengths[b] tokens.
        output_lengths: Integer [batch]; without it every output has all columns, padding too, which then counts as
            output. `min_tokens` needs one of the two.
        prompt_mask: int32 [batch, at least ceil(vocab / 32)]: a bit for each token in the prompt, which penalties look
            at instead of its list; `pack_bitmask(lists, vocab, empty=False)` makes it.
        output_counts: int32 [batch, vocab]: how often each token is in the output, which penalties look at instead of
            its list.
        logit_bias: Added to the logits, before the penalties.
        bad_words: Sequences that must not be completed: their last token is banned where the others end the output.
        min_tokens: `stop_tokens` are banned while a row's output is shorter than this. A number or a tensor, 0-d or
            [batch].
        stop_tokens: The tokens that `min_tokens` bans.
        allowed_tokens: The only tokens that may be drawn; a row with an empty list is not restricted. `pack_bitmask`
            once, and `bitmask` instead, costs less where the lists stay the same.
        bitmask: int32 [batch, at least ceil(vocab / 32)] or [1, ...] for all rows: bit i % 32 of word i / 32 allows
            token i, as xgrammar and llguidance write it.
    """

    repetition_penalty: float | Tensor
    presence_penalty: float | Tensor
    frequency_penalty: float | Tensor
    prompt_tokens: Tensor
    prompt_lengths: Tensor
    output_tokens: Tensor
    output_lengths: Tensor
    prompt_mask: Tensor
    output_counts: Tensor
    logit_bias: LogitBias
    bad_words: BadWords
    min_tokens: int | Tensor
    stop_tokens: TokenLists
    allowed_tokens: TokenLists
    bitmask: Tensor


class Adjustments(NamedTuple):
    """`LogitsAdjustments` as the operators take them, in the order of the schemas; None where there is nothing."""

    repetition_penalty: float = 1.0
    repetition_penalty_rows: Tensor | None = None
    presence_penalty: float = 0.0
    presence_penalty_rows: Tensor | None = None
    frequency_penalty: float = 0.0
    frequency_penalty_rows: Tensor | None = None
    prompt_tokens: Tensor | None = None
    prompt_lengths: Tensor | None = None
    output_tokens: Tensor | None = None
    output_lengths: Tensor | None = None
    prompt_mask: Tensor | None = None
    output_counts: Tensor | None = None
    bias_tokens: Tensor | None = None
    bias_values: Tensor | None = None
    bias_offsets: Tensor | None = None
    bad_words: Tensor | None = None
    bad_word_offsets: Tensor | None = None
    bad_word_rows: Tensor | None = None
    bad_words_in_prompt: bool = False
    min_tokens: int = 0
    min_tokens_rows: Tensor | None = None
    stop_tokens: Tensor | None = None
    stop_offsets: Tensor | None = None
    allowed: Tensor | None = None

    @property
    def any_edits(self) -> bool:
        """Whether anything but the bitmask may change a logit, as far as the shapes and numbers tell."""
        penalised = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
        # A penalty in a tensor may be invalid, which makes its row so even where there is nothing to penalise.
        penalties = (self.repetition_penalty_rows, self.presence_penalty_rows, self.frequency_penalty_rows)
        listed = (self.bias_tokens, self.bad_words, self.stop_tokens)
        return penalised or any(tensor is not None for tensor in (*penalties, *listed))


_NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# The largest number that float32 rounds to 0, and the smallest that it rounds to infinity.
_ROUNDS_TO_0, _OVERFLOWS = 2.0**-150, 2.0**128 - 2.0**103
# Other arguments of the functions that take adjustments, for who mistypes one.
_OTHERS = ("temperature", "top_k", "top_p", "min_p", "seed", "offset", "stream", "generator", "order", "num_samples")
_OF_SAMPLE_FULL = {"raw_logprobs", "top_logprobs", "top_logprobs_of", "distribution", "kept_set", "history"}
_KNOWN = sorted(LogitsAdjustments.__annotations__)


class Normalised(NamedTuple):
    """Adjustments as the operators take them, and which rows of `allowed_tokens` have something to be ignored."""

    adjustments: Adjustments
    ignored: Tensor | None  # bool [batch]


def normalise(given: LogitsAdjustments, batch: int, vocab: int, device: torch.device) -> Normalised:
    """Check `given` against `batch` output rows of `vocab` logits on `device`; bring it to what the operators take.

    Values in tensors are not looked at. Raises TypeError or ValueError, which names the argument.
    """
    if said := sorted(given.keys() & _OF_SAMPLE_FULL):
        raise TypeError(f"got the argument {said[0]!r}, which is one of `fastsample.sample_full`; call that instead")
    check_names(given, _KNOWN, _OTHERS)
    repetition = check_penalty("repetition_penalty", given.get("repetition_penalty", 1.0), batch, device)
    presence = check_penalty("presence_penalty", given.get("presence_penalty", 0.0), batch, device)
    frequency = check_penalty("frequency_penalty", given.get("frequency_penalty", 0.0), batch, device)
    _check_penalised(given)
    prompt_tokens, prompt_lengths = _histories("prompt", given, batch, device)
    output_tokens, output_lengths = _histories("output", given, batch, device)
    stops = given.get("stop_tokens")
    words, word_offsets, word_rows, in_prompt = _words(given.get("bad_words"), batch, device)
    least = _least_tokens(given.get("min_tokens", 0), batch, device)
    if (stops is None) != ("min_tokens" not in given):
        raise ValueError("min_tokens: it needs stop_tokens, the tokens it bans, and they need min_tokens")
    if stops is not None and output_tokens is None and output_lengths is None:
        raise ValueError("min_tokens: it needs output_tokens or output_lengths to know how long the outputs are")
    allowed, ignored = _allowed(given, batch, vocab, device)
    adjustments = Adjustments(
        *repetition,
        *presence,
        *frequency,
        prompt_tokens,
        prompt_lengths,
        output_tokens,
        output_lengths,
        check_bitmask("prompt_mask", given.get("prompt_mask"), batch, vocab, device),
        _counts(given.get("output_counts"), batch, vocab, device),
        *_bias(given.get("logit_bias"), batch, device),
        words,
        word_offsets,
        word_rows,
        in_prompt,
        *least,
        *_lists("stop_tokens", stops, batch, device),
        allowed,
    )
    return Normalised(adjustments, ignored)


def find_edits(
    operators: Any, logits: Tensor, indices: Tensor | None, batch: int, given: Normalised
) -> tuple[Edits, Tensor | None]:
    """The edits that adjustments come to, and each row's status (None where nothing can be wrong with it).

    operators: the `fastsample.ops.Ops` of a backend. The others: as the operator `find_edits` takes them.
    """
    adjustments, ignored = given
    status = None if ignored is None else ignored.to(torch.int32) * ENTRIES_IGNORED
    if not adjustments.any_edits:
        return Edits(allowed=adjustments.allowed), status
    bits, before, values, found = operators.find_edits(logits, indices, batch, *adjustments)
    return Edits(adjustments.allowed, bits, before, values), found if status is None else found | status


def pack_bitmask(lists: TokenLists | Tensor, vocab: int, *, empty: bool = True) -> Tensor:
    """The bitmask that allows what is listed, in the layout of xgrammar and llguidance: bit i % 32 of word i / 32.

    Args:
        lists: the allowed ids of each row, as `TokenLists`; ids outside [0, vocab) and what offsets that fall leave
            of a row are ignored. Or a bool tensor [batch, vocab], True where a token is allowed.
        vocab: the length of a row of logits, at least 1.
        empty: whether a row with an empty list has all bits set, as `allowed_tokens` has it, or none, as a
            `prompt_mask` needs it.

    Returns:
        int32 [batch, ceil(vocab / 32)] on the device of the lists.

    Raises:
        TypeError, ValueError: the lists are no such tensor, nor `TokenLists` of integer tensors on one device.
    """
    if isinstance(lists, Tensor) and lists.dtype is torch.bool and lists.dim() == 2 and lists.shape[1] == vocab:
        return _packed(torch.nn.functional.pad(lists, (0, -vocab % 32)))
    if not isinstance(lists, TokenLists) or not isinstance(lists.offsets, Tensor) or lists.offsets.dim() != 1:
        raise TypeError(
            f"lists: got {describe(lists)}; accepted: a TokenLists (TokenLists.of([[1, 2], None])), or a bool tensor "
            f"[batch, {vocab}]"
        )
    batch, device = lists.offsets.shape[0] - 1, lists.offsets.device
    return _pack(check_lists("lists", lists, batch, device), vocab, empty)[0]


def _packed(bits: Tensor) -> Tensor:
    """int32 [rows, words] of bools [rows, 32 * words]."""
    powers = torch.ones(32, dtype=torch.int32, device=bits.device) << torch.arange(32, device=bits.device)
    return (bits.view(bits.shape[0], -1, 32) * powers.to(torch.int32)).sum(dim=2, dtype=torch.int32)


def _pack(lists: TokenLists, vocab: int, empty: bool) -> tuple[Tensor, Tensor]:
    """`pack_bitmask` of lists that are checked, and which rows have something that is ignored, bool [batch]."""
    tokens, offsets = lists
    rows, words = offsets.shape[0] - 1, (vocab + 31) // 32
    rising = offsets.clamp(0, tokens.shape[0]).cummax(dim=0).values
    place = torch.arange(tokens.shape[0], device=tokens.device)
    row = torch.searchsorted(rising, place, right=True) - 1
    listed = (row >= 0) & (row < rows)
    row = row.clamp(0, max(rows - 1, 0))
    inside = (tokens >= 0) & (tokens < vocab)
    nowhere = rows * words * 32
    bits = torch.zeros(nowhere + 1, dtype=torch.bool, device=tokens.device)
    bits[torch.where(listed & inside, row * (words * 32) + tokens, nowhere)] = True
    packed = _packed(bits[:-1].view(rows, words * 32))
    ignored = (rising != offsets)[:-1] | (rising != offsets)[1:]
    outside = torch.zeros(rows + 1, dtype=torch.bool, device=tokens.device)
    outside[torch.where(listed & ~inside, row, rows)] = True
    outside[rows] = False
    if empty:
        packed = torch.where((rising[1:] > rising[:-1])[:, None], packed, -1)
    return packed, ignored | outside[:-1]


def check_penalty(name: str, value: Any, batch: int, device: torch.device) -> tuple[float, Tensor | None]:
    """A penalty as a number or as a tensor, 0-d or [batch]; raises where it is neither, or no number for it."""
    if isinstance(value, Tensor):
        return 1.0, real_rows(name, value, batch, device)
    least, accepted = (_ROUNDS_TO_0, "above 0") if name == "repetition_penalty" else (-_OVERFLOWS, "finite")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {describe(value)}; accepted: a number, {accepted}, or a tensor, 0-d or [batch]")
    number: Any = value  # compared before it is made a float: an int may have no float
    if not least < number < _OVERFLOWS:
        raise ValueError(f"{name}: got {value}; accepted: a number, {accepted}, also once it is rounded to float32")
    return float(value), None


def _check_penalised(given: LogitsAdjustments) -> None:
    """Raise where a penalty is given, but nothing that it could find a token in."""
    values: Mapping[str, Any] = given
    for name, neutral in _NEUTRAL.items():
        penalty = values.get(name, neutral)
        if not isinstance(penalty, Tensor) and penalty == neutral:
            continue
        looked_through: tuple[str, ...] = ("output_tokens", "output_counts")
        if name == "repetition_penalty":
            looked_through = ("prompt_tokens", "prompt_mask", *looked_through)
        if all(values.get(history) is None for history in looked_through):
            raise ValueError(
                f"{name}: got {describe(penalty)} without {' or '.join(looked_through)}, whose tokens it is for; "
                "accepted: with one of them, which may be empty (torch.empty((batch, 0), dtype=torch.int64))"
            )


def _least_tokens(value: Any, batch: int, device: torch.device) -> tuple[int, Tensor | None]:
    if isinstance(value, Tensor):
        return 0, integer_rows("min_tokens", value, batch, device)
    return max(0, min(integer_number("min_tokens", value), 2**62)), None


def _joined(rows: list[Tensor]) -> Tensor:
    return torch.cat([NO_TOKENS, *rows])


def _offsets(rows: list[Tensor]) -> Tensor:
    """Where each of several rows begins, one after another, and where the last ends."""
    return torch.tensor(list(accumulate((row.shape[0] for row in rows), initial=0)), dtype=torch.int64)


def _histories(
    name: str, given: LogitsAdjustments, batch: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    values: Mapping[str, Any] = given
    tokens, lengths = values.get(f"{name}_tokens"), values.get(f"{name}_lengths")
    if tokens is not None:
        tokens = integer_matrix(f"{name}_tokens", tokens, batch, device)
    elif lengths is not None and name == "prompt":
        raise ValueError("prompt_lengths: given without prompt_tokens, whose lengths they are")
    if lengths is not None:
        lengths = integer_vector(f"{name}_lengths", lengths, batch, device)
    return tokens, lengths


def check_bitmask(name: str, mask: Any, batch: int, vocab: int, device: torch.device) -> Tensor | None:
    """A bitmask over the vocabulary for each row, or None; raises where its type, shape or device does not fit."""
    if mask is None:
        return None
    words = (vocab + 31) // 32
    accepted = f"an int32 tensor [{batch}, at least {words}] (32 tokens a word, {vocab} in all)"
    if not isinstance(mask, Tensor) or mask.dtype is not torch.int32:
        hint = "; fastsample.pack_bitmask makes one of bools" if getattr(mask, "dtype", None) is torch.bool else ""
        raise TypeError(f"{name}: got {describe(mask)}; accepted: {accepted}{hint}")
    rows_fit = mask.dim() == 2 and (mask.shape[0] == 1 or mask.shape[0] == batch)
    if mask.layout is not torch.strided or not rows_fit or mask.shape[1] < words:
        raise ValueError(f"{name}: got {describe(mask)}; accepted: {accepted}, or [1, ...] for all rows")
    check_device(name, mask, device)
    return mask.expand(batch, -1)


def _counts(counts: Any, batch: int, vocab: int, device: torch.device) -> Tensor | None:
    if counts is None:
        return None
    if not isinstance(counts, Tensor) or counts.dtype is not torch.int32:
        raise TypeError(f"output_counts: got {describe(counts)}; accepted: an int32 tensor [{batch}, {vocab}]")
    if counts.layout is not torch.strided or counts.shape != (batch, vocab):
        raise ValueError(f"output_counts: got {describe(counts)}; accepted: shape [{batch}, {vocab}]")
    check_device("output_counts", counts, device)
    return counts


def _lists(name: str, lists: Any, batch: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if lists is None else check_lists(name, lists, batch, device)


def check_lists(name: str, lists: Any, batch: int, device: torch.device) -> TokenLists:
    """Token lists for `batch` rows, as int64; raises where they do not fit. Their values are not looked at."""
    if not isinstance(lists, TokenLists):
        raise TypeError(f"{name}: got {describe(lists)}; accepted: a TokenLists (TokenLists.of([[1, 2], None]))")
    return TokenLists(
        integer_vector(f"{name}.tokens", lists.tokens, None, device),
        integer_vector(f"{name}.offsets", lists.offsets, batch + 1, device),
    )


def _bias(bias: Any, batch: int, device: torch.device) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if bias is None:
        return None, None, None
    if not isinstance(bias, LogitBias):
        raise TypeError(f"logit_bias: got {describe(bias)}; accepted: a LogitBias (LogitBias.of([{{7: -1.5}}, None]))")
    tokens = integer_vector("logit_bias.tokens", bias.tokens, None, device)
    values = bias.values
    if not isinstance(values, Tensor) or values.dim() != 1 or values.shape != tokens.shape:
        raise ValueError(f"logit_bias.values: got {describe(values)}; accepted: shape {list(tokens.shape)}, as tokens")
    values = real_rows("logit_bias.values", values, tokens.shape[0], device)
    return tokens, values, integer_vector("logit_bias.offsets", bias.offsets, batch + 1, device)


def _words(words: Any, batch: int, device: torch.device) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool]:
    if words is None:
        return None, None, None, False
    if not isinstance(words, BadWords):
        raise TypeError(f"bad_words: got {describe(words)}; accepted: a BadWords (BadWords.of([[[1, 2]], None]))")
    if not isinstance(words.in_prompt, bool):
        raise TypeError(f"bad_words.in_prompt: got {describe(words.in_prompt)}; accepted: True or False")
    word_offsets = integer_vector("bad_words.word_offsets", words.word_offsets, None, device)
    if word_offsets.shape[0] < 1:
        raise ValueError("bad_words.word_offsets: got no entry; accepted: one more than there are words")
    return (
        integer_vector("bad_words.tokens", words.tokens, None, device),
        word_offsets,
        integer_vector("bad_words.row_offsets", words.row_offsets, batch + 1, device),
        words.in_prompt,
    )


def _allowed(
    given: LogitsAdjustments, batch: int, vocab: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The grammar's bitmask and the allowed lists in one, and the rows of the lists with something to be ignored."""
    mask = check_bitmask("bitmask", given.get("bitmask"), batch, vocab, device)
    tokens, offsets = _lists("allowed_tokens", given.get("allowed_tokens"), batch, device)
    if tokens is None or offsets is None:
        return mask, None
    listed, ignored = _pack(TokenLists(tokens, offsets), vocab, True)
    return listed if mask is None else listed & mask[:, : listed.shape[1]], ignored
