"""Tokens from logits by one sampling law: the same token, bit for bit, whatever the backend, batch or threads."""

from importlib.metadata import version as _version

from fastsample import integrations
from fastsample.adjustments import BadWords, LogitBias, LogitsAdjustments, TokenLists, pack_bitmask
from fastsample.arguments import History
from fastsample.backends import BackendStatus, backends
from fastsample.full_sampling import SampleOutput, sample_full
from fastsample.integrations.flashinfer import chain_speculative_sampling
from fastsample.request import RequestParameters
from fastsample.sampler import Sampler
from fastsample.sampling import sample
from fastsample.speculative import Verified, sample_draft, verify_chain
from fastsample.speculative_arguments import DraftFilters
from fastsample.speculative_tree import VerifiedTree, verify_tree
from fastsample.torch_dropins import multinomial, patch_torch
from fastsample.transforms import (
    filter_logits,
    filtered_log_probs,
    filtered_probs,
    log_probs,
    process_logits,
    softmax,
)

__version__ = _version("fastsample")

__all__ = [
    "BackendStatus",
    "BadWords",
    "DraftFilters",
    "History",
    "LogitBias",
    "LogitsAdjustments",
    "RequestParameters",
    "SampleOutput",
    "Sampler",
    "TokenLists",
    "Verified",
    "VerifiedTree",
    "backends",
    "chain_speculative_sampling",
    "filter_logits",
    "filtered_log_probs",
    "filtered_probs",
    "integrations",
    "log_probs",
    "multinomial",
    "pack_bitmask",
    "patch_torch",
    "process_logits",
    "sample",
    "sample_draft",
    "sample_full",
    "softmax",
    "verify_chain",
    "verify_tree",
]
