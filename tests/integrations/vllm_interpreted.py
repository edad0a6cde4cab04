"""A pytest plugin (-p) that lets vLLM's newer GPU sampler run on a CPU, its kernels in Triton's interpreter.

It changes what vLLM's V1 sampler does as well, so it is for a process of its own, and has to be loaded before vLLM is.
"""

import os
import types

import pytest

os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Make vLLM take the interpreter for a device, then leave out what the interpreter cannot do."""
    from triton.backends import backends

    # vLLM's build for CPUs uses Triton where it finds a backend of this name.
    backends["cpu"] = types.SimpleNamespace(driver=types.SimpleNamespace(is_active=lambda: False), compiler=None)

    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu import buffer_utils

    # There is no memory that a device and the host share.
    buffer_utils.is_uva_available = lambda: False
    # vLLM's kernel for top-k and top-p calls methods on numbers, which in the interpreter are Python's.
    topk_topp_sampler.HAS_TRITON = False
