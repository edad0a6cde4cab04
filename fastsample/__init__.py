"""Tokens from logits by one sampling law: the same token, bit for bit, whatever the backend, batch or threads."""

from importlib.metadata import version as _version

from fastsample import integrations
from fastsample.backends import BackendStatus, backends
from fastsample.sampling import sample
from fastsample.torch_dropins import multinomial, patch_torch
from fastsample.transforms import filter_logits, filtered_probs, log_probs, softmax

__version__ = _version("fastsample")

__all__ = [
    "BackendStatus",
    "backends",
    "filter_logits",
    "filtered_probs",
    "integrations",
    "log_probs",
    "multinomial",
    "patch_torch",
    "sample",
    "softmax",
]
