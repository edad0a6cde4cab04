"""The real sampler modules of SGLang on a machine without a GPU, for tests and timings.

`import sglang` would need about fifty packages, most of them for models, servers and GPUs. The modules that sample need
few of them (requirements-dev.txt has those), once these are out of the way: the package's own first lines, and four
modules of which the sampler's neighbours take a name or two to annotate what they are given.
"""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import distribution
from typing import Any
from unittest import mock


def _names(*names: str) -> dict[str, Any]:
    return {name: type(name, (), {}) for name in names}


# None of it is called by anything that samples.
STAND_INS: dict[str, dict[str, Any]] = {
    "sglang.srt.layers.vocab_parallel_embedding": _names("VocabParallelEmbedding"),
    "sglang.srt.managers.schedule_batch": _names("ScheduleBatch"),
    "sglang.srt.model_executor.forward_batch_info": {
        "CaptureHiddenMode": type("CaptureHiddenMode", (), {"NULL": 0}),
        **_names("ForwardBatch", "ForwardMode"),
    },
    "sglang.srt.parser.reasoning_parser": _names("ReasoningParser"),
}
# What a notebook shows is not SGLang's, and others ask whether it is there.
NOTEBOOK: dict[str, dict[str, Any]] = {"IPython": {}, "IPython.display": _names("HTML", "display")}


def load() -> None:
    """Import SGLang's sampler and what makes its batches; twice is once.

    Raises:
        ImportError: SGLang is not installed (PackageNotFoundError), or something that its sampler needs.
    """
    if "sglang" in sys.modules:
        return
    sys.modules["sglang"] = _package()
    sys.modules.update({name: _module(name, values) for name, values in (STAND_INS | NOTEBOOK).items()})
    try:
        import_module("sglang.srt.layers.sampler")
        import_module("sglang.srt.plugins")
    finally:
        for name in NOTEBOOK:
            del sys.modules[name]


def _package() -> types.ModuleType:
    """The package without what its __init__.py does, which patches transformers and imports SGLang's clients."""
    installed = distribution("sglang")
    package = _module("sglang", {"__version__": installed.version})
    package.__path__ = [str(installed.locate_file("sglang"))]
    package.__spec__ = ModuleSpec("sglang", None, is_package=True)
    return package


def _module(name: str, values: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name, "A stand-in of fastsample's tests")
    vars(module).update(values)
    return module


@contextmanager
def server(
    backend: str = "pytorch", deterministic: bool = False, on_policy: str | None = None, mask_tokens: int = 1000
) -> Iterator[None]:
    """What a server's arguments would make of SGLang's settings, as far as its sampler asks for them."""
    from sglang.srt.layers import sampler
    from sglang.srt.sampling import sampling_batch_info

    settings = types.SimpleNamespace(
        kernel=types.SimpleNamespace(sampling_backend=backend),
        deterministic=types.SimpleNamespace(
            enable_deterministic_inference=deterministic, rl_on_policy_target=on_policy
        ),
        features=types.SimpleNamespace(sampling_mask_max_tokens=mask_tokens, enable_custom_logit_processor=True),
    )
    group = types.SimpleNamespace(device_group=None)
    with (
        mock.patch.object(sampler, "get_exec", return_value=settings),
        mock.patch.object(sampling_batch_info, "get_exec", return_value=settings),
        mock.patch.object(sampler, "get_parallel", return_value=types.SimpleNamespace(tp_group=group)),
        mock.patch.object(sampler, "is_dp_attention_enabled", return_value=False),
    ):
        yield
