"""The peers that pack_peers.py packed on another machine, put in place where the GPU is."""

from __future__ import annotations

import importlib
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from .options import BUILD
from .vllm_triton import FILE_VARIABLE

PACKED = BUILD / "gpu-peers.zip"
# What the file holds: a description, a folder for Python's path, and a part of vLLM.
CONTENTS = "contents.json"
PYTHON_PATH = "python"
VLLM = "vllm-part"
VLLM_KERNEL = "vllm/v1/sample/ops/topk_topp_triton.py"


class PackedPeers(NamedTuple):
    """What was packed.

    Attributes:
        interpreter: which Python it is for, as wheels name it: "cp312".
        capability: the compute capability that FlashInfer's kernels were compiled for: "9.0".
        flashinfer, vllm: the versions.
    """

    interpreter: str
    capability: str
    flashinfer: str
    vllm: str

    def why_not_here(self) -> str | None:
        """Why this Python on this GPU cannot take it, or None."""
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        if self.interpreter != python:
            return f"it is for {self.interpreter}, and this is {python}"
        if not torch.cuda.is_available():
            return "there is no GPU"
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        if self.capability != capability:
            return f"it is for compute capability {self.capability}, and this GPU has {capability}"
        return None


def put_in_place(packed: Path = PACKED) -> str:
    """Unpack the peers beside their file and let this process find them, before any that is installed.

    Args:
        packed: the file that pack_peers.py wrote.

    Returns:
        What was done, or why nothing was: a sentence for the report's notes.
    """
    if not packed.exists():
        return f"no peers were packed ({packed.name}): those that are installed are measured"
    folder = packed.with_suffix("")
    try:
        with zipfile.ZipFile(packed) as archive:
            peers = PackedPeers(**json.loads(archive.read(CONTENTS)))
            if reason := peers.why_not_here():
                return f"{packed.name} was left alone: {reason}"
            archive.extractall(folder)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        return f"{packed.name} is damaged, make it again with make gpu-peers: {type(error).__name__}: {error}"
    sys.path.insert(0, str(folder / PYTHON_PATH))
    importlib.invalidate_caches()
    os.environ[FILE_VARIABLE] = str(folder / VLLM / VLLM_KERNEL)
    return f"peers as packed: FlashInfer {peers.flashinfer}, the Triton kernel of vLLM {peers.vllm}"
