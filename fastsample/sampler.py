"""`Sampler`: sampling for an engine, whose requests come, change and go between steps."""

import os
import threading
import weakref
from collections.abc import Collection, Iterable
from heapq import heappop, heappush
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastsample.adjustments import check_bitmask
from fastsample.arguments import MAX_VOCAB, ORDERS, check_logits, describe, integer_number, integer_vector
from fastsample.backends import select
from fastsample.full_sampling import SampleOutput, sample_full
from fastsample.python_lists import NO_TOKENS, entries
from fastsample.request import FEATURES, Request, RequestParameters, check_parameters
from fastsample.request_tensors import RequestTensors


class Sampler:
    """A fixed number of slots, each for one request; a step draws the next token of every request that has logits.

    A request's tokens depend on its parameters, seed, history and logits alone: each is the token that
    `fastsample.sample` draws for that request by itself, with offset = the length of its output, whatever its slot and
    whoever its neighbours. Lengths and outputs stay on the device; the launch that draws a token records it there too.

    Every tensor on the device is allocated here, once (`buffers`). `add`, `update` and `remove` change the host's
    side alone; `flush` copies what they changed and nothing else, and `step` begins with a flush. What no request at
    hand uses is left out of a step.

    CUDA graphs: capture a `step` whose logits (and `rows`) stay in place. A captured step has the operators of all
    `features` and does not flush: call `flush` before each replay, on the replay's stream. A warm-up advances the
    requests that have logits, so do it before the first is added.

    Calls from several threads run one after another; the steps belong on one stream. A signal's handler must not call a
    `Sampler`, since the call that it interrupts may be one of the same.

    Ctrl-C, or whatever else raises in the middle of a call, leaves a `Sampler` in use, and the other requests as they
    were. Repeat an `update` that it ended. After `add` or `remove` compare `requests` with the slots that you know: one
    that you do not know is to be removed; one that is not there is removed. A step may have drawn and recorded tokens
    that nobody was handed. With `update(slot, output_tokens=...)`, of what was handed out, a request's next step draws
    them again. A process that is forked during a call of another thread has a `Sampler` as Ctrl-C would leave it.

    Args:
        slots: how many requests there can be at once, at least 1.
        vocab: the columns of the logits, 1 to 2^22.
        max_tokens: the longest output of which bad words see all. A longer one goes on; they see its beginning, and
            while any request has bad words its row is flagged in the `status` of `step_full`.
        device: where the logits are.
        features: what requests may use besides temperature, filters and seed: of "penalties", "logit_bias",
            "bad_words", "min_tokens" and "bitmask" (which `allowed_tokens` takes too). Each slot has, with "penalties",
            4 * vocab bytes to count its output and vocab / 8 for its prompt; with "bad_words" 8 * max_tokens for its
            output; with "bitmask" vocab / 8.
        list_capacity: how many entries the `logit_bias` of all requests may have together; likewise their
            `stop_tokens`, and the tokens in their `bad_words`.
        order, backend: as for `fastsample.sample`, for all requests.

    Raises:
        TypeError, ValueError: a bad argument, before any change, here and in every method; the message names it, its
            value and, where it is about a request, the slot.
        RuntimeError: the backend is not usable here.

    Source: docs/law.md, sections 0, 4 and 7.
    """

    def __init__(
        self,
        slots: int,
        vocab: int,
        *,
        max_tokens: int,
        device: torch.device | str = "cpu",
        features: Iterable[str] = tuple(FEATURES),
        list_capacity: int = 4096,
        order: Literal["top_k_first", "min_p_first", "joint"] = "top_k_first",
        backend: str = "auto",
    ) -> None:
        self.slots = _size("slots", slots)
        self.vocab = _size("vocab", vocab, MAX_VOCAB)
        self.max_tokens = _size("max_tokens", max_tokens)
        self.list_capacity = _size("list_capacity", list_capacity)
        self.features = frozenset(entries("features", features, f"a list, of {', '.join(map(repr, FEATURES))}"))
        if not self.features <= set(FEATURES):
            raise ValueError(f"features: got {sorted(self.features)}; accepted: of {', '.join(map(repr, FEATURES))}")
        if order not in ORDERS:
            raise ValueError(f"order: got {order!r}; accepted: {', '.join(map(repr, ORDERS))}")
        # "cuda" does not equal the "cuda:0" that it stands for.
        self.device = torch.empty(0, device=device).device
        select(backend, self.device)
        self._order: Literal["top_k_first", "min_p_first", "joint"] = order
        self._backend = backend
        # Reentrant, since `step` calls `flush`.
        self._lock = threading.RLock()
        _samplers.add(self)
        # An exception can come between any two changes of what follows. So `_requests` alone says which requests there
        # are; what else a slot has is right for each slot but the `_unsettled`, which the next call sees to.
        self._requests: dict[int, Request] = {}
        self._unsettled: set[int] = set()
        self._free = list(range(self.slots))  # a heap, of all slots without a request and perhaps some with one
        self._users: dict[str, set[int]] = {feature: set() for feature in self.features}  # the slots, by feature
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            self._tensors = RequestTensors(
                self.slots, self.vocab, self.features, self.max_tokens, self.list_capacity, self.device
            )

    @property
    def buffers(self) -> list[Tensor]:
        """Every tensor on the device. None is ever replaced."""
        return self._tensors.buffers

    @property
    def lengths(self) -> Tensor:
        """int64 [slots], on the device: how many tokens each request has drawn. Not to be written."""
        return self._tensors.lengths

    @property
    def requests(self) -> frozenset[int]:
        """The slots that have a request. After Ctrl-C compare with the slots that you know, and remove the others."""
        with self._lock:
            return frozenset(self._requests)

    def add(self, **parameters: Unpack[RequestParameters]) -> int:
        """Take in a request, new or resumed.

        Args:
            parameters: as `fastsample.RequestParameters` describes them, each optional.

        Returns:
            Its slot, the lowest that is free.

        Raises:
            RuntimeError: every slot is taken.
        """
        with self._lock:
            self._settle()
            while self._free and self._free[0] in self._requests:
                heappop(self._free)
            if not self._free:
                raise RuntimeError(f"add: all {self.slots} slots are taken; remove a request, or make a larger Sampler")
            slot = self._free[0]  # low slots, so that changes lie side by side
            request = self._checked(slot, Request(), {"seed": None, **parameters}, Request._fields)
            self._unsettled.add(slot)
            self._tensors.begin(slot)
            self._write(slot, request, Request._fields)
            self._unsettled.discard(slot)
            heappop(self._free)
            return slot

    def update(self, slot: int, **parameters: Unpack[RequestParameters]) -> None:
        """Change some parameters of a request, from its next step on; the others stay.

        Args:
            slot: the request's.
            parameters: as for `add`; `output_tokens` replace what it has drawn so far, and with it the offset. A
                `bitmask` holds until the next one; those of all slots for one step are an argument of `step`.
        """
        with self._lock:
            self._settle()
            request = self._checked(slot, self._request(slot), parameters, parameters.keys())
            self._write(slot, request, parameters.keys())

    def remove(self, slot: int) -> None:
        """Let a request go; its slot is free. `add` with its `output_tokens` resumes it, in whichever slot."""
        with self._lock:
            self._request(slot)
            self._unsettled.add(slot)
            heappush(self._free, slot)
            del self._requests[slot]
            self._settle()

    def flush(self) -> int:
        """Copy to the device what has changed since the last flush; does not wait for it.

        Returns:
            How many elements were copied.

        Raises:
            RuntimeError: during CUDA graph capture, which would repeat these copies with every replay.
        """
        if self._is_capturing():
            raise RuntimeError("flush: called during CUDA graph capture; call it before each replay instead")
        with self._lock:
            self._settle()
            return self._tensors.flush()

    def step(self, logits: Tensor, rows: Tensor | None = None, bitmask: Tensor | None = None) -> Tensor:
        """Draw the next token of each request that has logits, and record it.

        Args:
            logits: [slots, vocab], of which slot s has row s; or with `rows` any [n, vocab]. Else as for `sample`.
            rows: integer tensor [slots] on the device, the row of logits of each slot; outside [0, n) for none.
            bitmask: int32 [slots, at least ceil(vocab / 32)], or [1, ...] for all, on the device: what each slot may
                draw in this step, as xgrammar and llguidance fill it for a batch: bit i % 32 of word i / 32 allows
                token i, and a slot without a grammar has all bits set. What a request has itself (`allowed_tokens`,
                `bitmask`) holds too. It needs no feature; a captured step reads it in place.

        Returns:
            int64 [slots]: -1 where there is no request or no row, and where the row is invalid (see
            `fastsample.sample`). None of these advances its request.
        """
        return self.step_full(logits, rows, bitmask).tokens

    def step_full(
        self,
        logits: Tensor,
        rows: Tensor | None = None,
        bitmask: Tensor | None = None,
        *,
        raw_logprobs: bool = False,
        top_logprobs: int = 0,
        top_logprobs_of: Literal["raw", "processed"] = "raw",
        distribution: bool = False,
        kept_set: bool = False,
    ) -> SampleOutput:
        """Like `step`; says of the draws what `fastsample.sample_full` does, with batch = slots.

        A slot without a request or a row has what an invalid row has, its `status` too.

        Args:
            logits, rows, bitmask: as for `step`.
            raw_logprobs, top_logprobs, top_logprobs_of, distribution, kept_set: as for `fastsample.sample_full`. With
                kept_set=True calls of other threads wait until a GPU has ended the step, as this one does.
        """
        check_logits(logits)
        if logits.dim() != 2 or logits.shape[1] != self.vocab or logits.device != self.device:
            raise ValueError(
                f"logits: got {describe(logits)}; accepted: shape [any, {self.vocab}] on {self.device}, as the Sampler"
            )
        if rows is not None:
            rows = integer_vector("rows", rows, self.slots, self.device)
        elif logits.shape[0] != self.slots:
            raise ValueError(
                f"logits: got {describe(logits)}; accepted: {self.slots} rows, one a slot, or any number with `rows`"
            )
        of_step = check_bitmask("bitmask", bitmask, self.slots, self.vocab, self.device)
        with self._lock:
            features = self.features
            if not self._is_capturing():
                self.flush()
                features = frozenset(feature for feature, slots in self._users.items() if slots)
            indices = self._tensors.logits_rows
            if rows is not None:
                indices = torch.where(indices < 0, indices, rows)
            adjustments = self._tensors.adjustments(features)
            if of_step is not None:
                own = adjustments.get("bitmask")
                adjustments["bitmask"] = of_step if own is None else of_step[:, : own.shape[1]] & own
            return sample_full(
                logits,
                self._tensors.parameter("temperature"),
                self._tensors.parameter("top_k"),
                self._tensors.parameter("top_p"),
                self._tensors.parameter("min_p"),
                raw_logprobs=raw_logprobs,
                top_logprobs=top_logprobs,
                top_logprobs_of=top_logprobs_of,
                distribution=distribution,
                kept_set=kept_set,
                seed=self._tensors.parameter("seed"),
                offset=self.lengths,
                order=self._order,
                indices=indices,
                backend=self._backend,
                history=self._tensors.history,
                **adjustments,
            )

    def _is_capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _request(self, slot: int) -> Request:
        """The request in a slot."""
        if isinstance(slot, bool) or not isinstance(slot, int) or slot not in self._requests:
            raise ValueError(f"slot: got {slot!r}; accepted: one with a request ({sorted(self._requests)})")
        return self._requests[slot]

    def _checked(self, slot: int, before: Request, given: RequestParameters, changed: Collection[str]) -> Request:
        """A request with what is given in place of what it was; raises unless the fields `changed` are all right."""
        try:
            request = before._replace(**check_parameters(given, self.vocab))
            self._check_fits(slot, request, changed)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (slot {slot})") from None
        return request

    def _write(self, slot: int, request: Request, changed: Collection[str]) -> None:
        """Put the fields `changed` where the next flush finds them."""
        self._tensors.put(slot, request, changed)
        if request.prompt_tokens is not NO_TOKENS or request.output_tokens is not NO_TOKENS:
            # They can be long, and are on the device from now on.
            request = request._replace(prompt_tokens=NO_TOKENS, output_tokens=NO_TOKENS)
        for feature, slots in self._users.items():
            if feature in request.features:
                slots.add(slot)
            else:
                slots.discard(slot)
        self._requests[slot] = request

    def _settle(self) -> None:
        """Let slots draw no more that lost their request, or got none, in a call which an exception may have ended."""
        for slot in self._unsettled - self._requests.keys():
            self._tensors.end(slot)
            for slots in self._users.values():
                slots.discard(slot)
        self._unsettled.clear()

    def _check_fits(self, slot: int, request: Request, changed: Collection[str]) -> None:
        """Raise unless there is what the request needs, and room for its lists."""
        for feature in request.features - self.features:
            raise ValueError(
                f"{' or '.join(FEATURES[feature])}: the Sampler was made with features={sorted(self.features)}; "
                f"accepted: with {feature!r} among them"
            )
        if request.min_tokens > 0 and len(request.stop_tokens) == 0:
            raise ValueError(f"min_tokens: got {request.min_tokens} without stop_tokens, the tokens it bans")
        if request.min_tokens > self.max_tokens:
            # Where others have bad words, no length counts as more than max_tokens.
            raise ValueError(
                f"min_tokens: got {request.min_tokens}; accepted: at most max_tokens = {self.max_tokens}, which the "
                "Sampler was made with"
            )
        for name, size in request.list_sizes.items():
            if size == 0 or name not in changed:
                continue
            others = self._tensors.entries_of_others(name, slot)
            if size + others > self.list_capacity:
                raise ValueError(
                    f"{name}: got {size} entries, with {others} of other requests; accepted: at most list_capacity = "
                    f"{self.list_capacity} in all, which the Sampler was made with"
                )


# A thread that holds a lock does not come along when a process forks.
_samplers: weakref.WeakSet[Sampler] = weakref.WeakSet()


def _renew_locks() -> None:
    for sampler in _samplers:
        sampler._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _size(name: str, value: Any, most: int = 2**31 - 1) -> int:
    size = integer_number(name, value, tensors="")
    if not 1 <= size <= most:
        raise ValueError(f"{name}: got {size}; accepted: 1 to {most}")
    return size
