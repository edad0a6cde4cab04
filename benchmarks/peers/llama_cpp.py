"""llama.cpp: its sampler chain, through llama-cpp-python's low-level interface."""

from __future__ import annotations

import ctypes
import importlib
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from .base import Job, missing_package, refuse_bfloat16, refuse_per_row

# llama_token_data of llama.h.
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_SEED = 1


class LlamaCppSession:
    def __init__(self, job: Job) -> None:
        self.library = importlib.import_module("llama_cpp")
        self.threads = min(job.threads, job.batch)
        # A chain holds a random number generator, so every thread has its own.
        self.chains = [self._chain(job) for _ in range(self.threads)]
        self.ids = np.arange(job.vocab, dtype=np.int32)
        self.data = np.zeros((job.batch, job.vocab), dtype=_TOKEN_DATA)
        pointer = ctypes.POINTER(self.library.llama_token_data)
        self.rows = [row.ctypes.data_as(pointer) for row in self.data]
        self.candidates = [self.library.llama_token_data_array() for _ in self.rows]
        self.pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None

    def _chain(self, job: Job) -> Any:
        library, work = self.library, job.work
        chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        weakref.finalize(self, library.llama_sampler_free, chain)  # with the links that it owns
        if work.greedy:
            links = [library.llama_sampler_init_greedy()]
        else:
            links = []
            # First, as elsewhere: with llama.cpp's default, temperature last, top_p would keep another set.
            if work.temperature != 1:
                links.append(library.llama_sampler_init_temp(work.temperature))
            if work.top_k:
                links.append(library.llama_sampler_init_top_k(work.top_k))
            if work.top_p < 1:
                links.append(library.llama_sampler_init_top_p(work.top_p, 1))
            if work.min_p:
                links.append(library.llama_sampler_init_min_p(work.min_p, 1))
            links.append(library.llama_sampler_init_dist(_SEED))
        for link in links:
            library.llama_sampler_chain_add(chain, link)
        return chain

    def load(self, logits: Tensor) -> None:
        # Sampling sorts and cuts the candidates in place.
        self.data["id"] = self.ids
        self.data["logit"] = logits.numpy()
        for row, candidates in zip(self.rows, self.candidates, strict=True):
            candidates.data, candidates.size = row, len(self.ids)
            candidates.selected, candidates.sorted = -1, False

    def draw(self) -> list[int]:
        if self.pool is None:
            return self._draw_share(0)
        # ctypes releases the interpreter's lock during each call, so the threads do run side by side.
        others = [self.pool.submit(self._draw_share, share) for share in range(1, self.threads)]
        shares = [self._draw_share(0), *(other.result() for other in others)]
        return [token for share in shares for token in share]

    def _draw_share(self, share: int) -> list[int]:
        chain, apply = self.chains[share], self.library.llama_sampler_apply
        rows = len(self.candidates)
        tokens = []
        for candidates in self.candidates[share * rows // self.threads : (share + 1) * rows // self.threads]:
            apply(chain, ctypes.byref(candidates))
            tokens.append(candidates.data[candidates.selected].id)
        return tokens


class LlamaCpp:
    key = "llama-cpp"
    label = "llama.cpp"
    package = "llama-cpp-python"
    note = (
        "sampler chain, temperature first, rows over threads; filling its candidate arrays is not timed, and without "
        "--cold leaves what fits in the caches, which favours it"
    )

    def missing(self) -> str | None:
        return missing_package(self.package)

    def start(self, job: Job) -> LlamaCppSession:
        refuse_per_row(job)
        refuse_bfloat16(job)
        return LlamaCppSession(job)
