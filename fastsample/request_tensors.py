"""The tensors of a `Sampler`: what its requests are given and have drawn, as operators take it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fastsample.adjustments import BadWords, LogitBias, LogitsAdjustments, TokenLists, pack_bitmask
from fastsample.arguments import History
from fastsample.python_lists import NO_TOKENS, Biases
from fastsample.request import Request
from fastsample.slots import PackedLists, SlotCounts, SlotRows

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("top_k", "seed", "min_tokens")


class RequestTensors:
    """A row of every tensor for each slot; only of the features that are there.

    Args: as for `Sampler`, checked.
    """

    def __init__(
        self,
        slots: int,
        vocab: int,
        features: frozenset[str],
        max_tokens: int,
        list_capacity: int,
        device: torch.device,
    ) -> None:
        self._vocab = vocab
        self._max_tokens = max_tokens
        self._parts: list[SlotRows | SlotCounts | PackedLists] = []

        def rows(width: int, dtype: torch.dtype, empty: int = 0) -> SlotRows:
            part = SlotRows(slots, width, dtype, device, empty)
            self._parts.append(part)
            return part

        def lists(empty: Tensor, size: int, *, sums: bool = False) -> PackedLists:
            part = PackedLists([empty] * slots, size, device, sums=sums)
            self._parts.append(part)
            return part

        def offsets() -> PackedLists:
            return lists(torch.zeros(1, dtype=int64), slots + 1, sums=True)

        words, int64 = (vocab + 31) // 32, torch.int64
        self._floats = rows(len(_FLOATS), torch.float32)
        self._integers = rows(len(_INTEGERS), int64)
        self._lengths = rows(1, int64)
        self._logits_rows = rows(1, int64, empty=-1)
        self._prompts = rows(words, torch.int32) if "penalties" in features else None
        self._masks = rows(words, torch.int32, empty=-1) if "bitmask" in features else None
        self._outputs = rows(max_tokens, int64) if "bad_words" in features else None
        self._counts: SlotCounts | None = None
        if "penalties" in features:
            self._counts = SlotCounts(slots, vocab, device)
            self._parts.append(self._counts)
        # The fields of `Request` that are lists, each as the tensors of what operators take.
        self._lists: dict[str, tuple[PackedLists, ...]] = {}
        # What slots are to hold in them. A list is several tensors, and an exception between two of these would have
        # the other slots read at shifted offsets: so each list is put in here whole, and placed before it is used.
        self._unplaced: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        if "logit_bias" in features:
            entries, values = lists(NO_TOKENS, list_capacity), lists(Biases().values, list_capacity)
            self._lists["logit_bias"] = entries, values, offsets()
        if "bad_words" in features:
            entries, ends = lists(NO_TOKENS, list_capacity), lists(NO_TOKENS, list_capacity + 1, sums=True)
            self._lists["bad_words"] = entries, ends, offsets()
        if "min_tokens" in features:
            self._lists["stop_tokens"] = lists(NO_TOKENS, list_capacity), offsets()

    @property
    def buffers(self) -> list[Tensor]:
        return [tensor for part in self._parts for tensor in part.tensors]

    @property
    def lengths(self) -> Tensor:
        """int64 [slots]: how many tokens each request has drawn."""
        return self._lengths.tensor[:, 0]

    @property
    def logits_rows(self) -> Tensor:
        """int64 [slots]: the slot itself where there is a request, else -1."""
        return self._logits_rows.tensor[:, 0]

    @property
    def history(self) -> History:
        """Where a draw is recorded."""
        return History(
            None if self._outputs is None else self._outputs.tensor,
            self.lengths,
            None if self._counts is None else self._counts.tensor,
        )

    def parameter(self, name: str) -> Tensor:
        """A number of every request, float32 or int64 [slots]."""
        if name in _FLOATS:
            return self._floats.tensor[:, _FLOATS.index(name)]
        return self._integers.tensor[:, _INTEGERS.index(name)]

    def adjustments(self, features: frozenset[str]) -> LogitsAdjustments:
        """What `sample_full` takes for the sake of `features`."""
        given: LogitsAdjustments = {}
        if "penalties" in features:
            given["repetition_penalty"] = self.parameter("repetition_penalty")
            given["presence_penalty"] = self.parameter("presence_penalty")
            given["frequency_penalty"] = self.parameter("frequency_penalty")
            if self._prompts is not None:
                given["prompt_mask"] = self._prompts.tensor
            if self._counts is not None:
                given["output_counts"] = self._counts.tensor
        if "logit_bias" in features:
            given["logit_bias"] = LogitBias(*self._packed("logit_bias"))
        if "bad_words" in features and self._outputs is not None:
            tokens, word_offsets, row_offsets = self._packed("bad_words")
            given["bad_words"] = BadWords(tokens, word_offsets, row_offsets)
            given["output_tokens"] = self._outputs.tensor
            given["output_lengths"] = self.lengths
        if "min_tokens" in features:
            given["min_tokens"] = self.parameter("min_tokens")
            given["stop_tokens"] = TokenLists(*self._packed("stop_tokens"))
            given["output_lengths"] = self.lengths
        if "bitmask" in features and self._masks is not None:
            given["bitmask"] = self._masks.tensor
        return given

    def entries_of_others(self, name: str, slot: int) -> int:
        """How many entries all slots but one have in a field that is a list; 0 where its feature is not there."""
        self._place_lists()
        return self._lists[name][0].entries_of_others(slot) if name in self._lists else 0

    def put(self, slot: int, request: Request, changed: Iterable[str]) -> None:
        """Let a slot hold what `request` is given; of its fields those `changed` differ from what the slot holds."""
        fields = frozenset(changed)
        if not fields.isdisjoint(_FLOATS):
            self._floats.put(slot, [getattr(request, name) for name in _FLOATS])
        if not fields.isdisjoint(_INTEGERS):
            self._integers.put(slot, [getattr(request, name) for name in _INTEGERS])
        if "output_tokens" in fields:
            self._put_output(slot, request.output_tokens)
        if "prompt_tokens" in fields and self._prompts is not None:
            self._prompts.put(slot, self._bits(request.prompt_tokens))
        if not fields.isdisjoint(("allowed_tokens", "bitmask")) and self._masks is not None:
            self._masks.put(slot, self._mask(request))
        for name in fields & self._lists.keys():
            self._put_lists(slot, name, request)

    def begin(self, slot: int) -> None:
        """Let a slot draw."""
        self._logits_rows.put(slot, [slot])

    def end(self, slot: int) -> None:
        """Let a slot draw no more, and make room in the lists."""
        self._logits_rows.put(slot, None)
        for name in self._lists:
            self._put_lists(slot, name, Request())

    def flush(self) -> int:
        """Bring the tensors up to date; returns the number of elements copied."""
        self._place_lists()
        return sum(part.flush() for part in self._parts)

    def _packed(self, name: str) -> tuple[Tensor, ...]:
        """The tensors of a field that is a list."""
        return tuple(part.tensor for part in self._lists[name])

    def _put_lists(self, slot: int, name: str, request: Request) -> None:
        """Let a slot hold what `request` has in a field that is a list."""
        held = getattr(request, name)
        tensors = held if isinstance(held, tuple) else (held,)
        # The last of them has an entry for each that an operator counts: a token, or a word.
        self._unplaced[name, slot] = (*tensors, torch.tensor([len(tensors[-1])]))

    def _place_lists(self) -> None:
        for (name, slot), tensors in self._unplaced.items():
            for part, entries in zip(self._lists[name], tensors, strict=True):
                part.put(slot, entries)
        self._unplaced.clear()  # only now: an exception has all of them placed anew

    def _put_output(self, slot: int, tokens: Tensor) -> None:
        self._lengths.put(slot, [len(tokens)])
        if self._outputs is not None:
            self._outputs.put(slot, tokens[: self._max_tokens])  # as a draw records no more of them
        if self._counts is not None:
            self._counts.put(slot, tokens)

    def _mask(self, request: Request) -> Tensor | None:
        listed = self._bits(request.allowed_tokens)
        if listed is None or request.bitmask is None:
            return request.bitmask if listed is None else listed
        return listed & request.bitmask

    def _bits(self, tokens: Tensor) -> Tensor | None:
        """The bitmask of a list, or None of an empty one."""
        if len(tokens) == 0:
            return None
        return pack_bitmask(TokenLists(tokens, torch.tensor([0, len(tokens)])), self._vocab)[0]
