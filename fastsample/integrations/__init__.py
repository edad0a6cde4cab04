"""fastsample inside other libraries: one module per host, importable where that host is installed.

A host's module is imported when it is first named (`fastsample.integrations.transformers`), so that `import fastsample`
needs no host and takes no time for one.
"""

from importlib import import_module
from types import ModuleType

_HOSTS = ("flashinfer", "sglang", "transformers", "vllm")


def __getattr__(name: str) -> ModuleType:
    if name in _HOSTS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOSTS)}")
