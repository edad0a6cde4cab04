"""Part: the peers that are there, each called once: what they compile on a first call must not cost the benchmark."""

from __future__ import annotations

import torch

from fastsample.benchmarks.peers.base import Job, NotServedError, Peer, Work, version_of

from . import packed_peers
from .contestants import PEERS
from .options import PartOptions
from .records import Recorder

_WORKS = ("t0.8-k50-p0.9", "k50", "p0.9", "m0.05", "plain")
_BATCH, _VOCABULARY = 2, 128256


def run(recorder: Recorder, options: PartOptions) -> None:
    """Record of each peer its version, and why it is not measured, if it is not."""
    if not options.rehearsal:
        recorder.add("note", text=packed_peers.put_in_place())
    for peer in PEERS.values():
        if peer.key in options.unusable_peers:
            _record(recorder, peer, "it was not asked for")
            continue
        reason = peer.missing()
        # Recorded before the call as well, in case compiling takes longer than this part may.
        _record(recorder, peer, reason or "its first call did not end in time")
        if reason is None:
            try:
                call_once(peer, options.device)
            except Exception as error:  # a peer that fails in whatever way is not measured, and that is all
                reason = f"its first call failed: {type(error).__name__}: {str(error)[:300]}"
            _record(recorder, peer, reason)


def call_once(peer: Peer, device: str) -> None:
    """Let a peer do each kind of work once."""
    logits = torch.randn(_BATCH, _VOCABULARY, device=device)
    for key in _WORKS:
        try:
            session = peer.start(Job(Work.parse(key), _BATCH, _VOCABULARY, 1, torch.float32))
        except NotServedError:
            continue
        session.load(logits)
        session.draw()
    if device == "cuda":
        torch.cuda.synchronize()


def _record(recorder: Recorder, peer: Peer, missing: str | None) -> None:
    version = version_of(peer.package)
    recorder.add("peer", key=peer.key, label=peer.label, version=version, note=peer.note, missing=missing)
