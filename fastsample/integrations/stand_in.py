"""Functions of a host library's module replaced by ours, for whoever has the module, until they are put back."""

import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ABSENT = object()


class StandIn:
    """What stands in for functions of one module of a package, whether or not that package is installed.

    An installed package is imported first, whole. The functions are replaced inside its module, not the module in
    sys.modules: who imported the module earlier has ours too, and every other name of it is where it was. Where there
    is no package, an empty one is put in its place: Python imports a module only through its package.

    Our functions never call those that they replace. So what somebody else puts over them is simply replaced again by
    the next `install`; functions that hand calls on need `Replaced` (vllm/replaced.py), which leaves it there.

    Args:
        name: the module whose functions are to be replaced, "package.module".
        functions: what the module is to hold, by name.
        version: the `__version__` of an empty package, which users of the package may compare.
    """

    def __init__(self, name: str, functions: Mapping[str, Callable[..., Any]], version: str) -> None:
        self.name, self.functions, self.version = name, dict(functions), version
        self.package, _, self.attribute = name.rpartition(".")
        # What the module held under these names; None where there is no package.
        self._replaced: dict[str, Any] | None = None
        self._changes: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._lock = threading.Lock()

    def is_installed(self) -> bool:
        """Whether the module, as imports find it, holds a function of ours; it has none after a reload."""
        held = getattr(sys.modules.get(self.name), "__dict__", {})
        return any(held.get(name) is function for name, function in self.functions.items())

    def install(self) -> bool:
        """Replace the functions. Returns whether they had not been replaced before.

        Raises:
            ImportError: the package is installed, and cannot be imported.
        """
        with self._lock:
            return not self.is_installed() and self._install()

    def _install(self) -> bool:
        self._undo()  # somebody else may have replaced ours since
        if not self._package_is_installed():
            package, module = self._empty_package(), self._empty_module()
            self._change(sys.modules, self.package, package)
            self._change(sys.modules, self.name, module)
            self._change(vars(package), self.attribute, module)
            exported = self.functions
        else:
            package, module = import_module(self.package), import_module(self.name)
            self._replaced = {name: vars(module).get(name, _ABSENT) for name in self.functions}
            # The package exports some of them, and may have things of its own under the names of others.
            exported = {
                name: function
                for name, function in self.functions.items()
                if vars(package).get(name, _ABSENT) is self._replaced[name] is not _ABSENT
            }
        self._change_all(vars(module), self.functions)
        self._change_all(vars(package), exported)
        return True

    def uninstall(self) -> bool:
        """Put back what `install` replaced. Returns whether the functions were replaced."""
        with self._lock:
            was_installed = self.is_installed()
            self._undo()
            return was_installed

    def replaced_version(self) -> str | None:
        """The version of the package whose functions are replaced; None where it is not installed."""
        if self._replaced is None:
            return None
        return str(getattr(sys.modules[self.package], "__version__", "unknown"))

    def different_signatures(self) -> list[str]:
        """The functions whose parameters have other names, kinds, order or defaults than those that they replace."""
        return [
            name
            for name, theirs in (self._replaced or {}).items()
            if theirs is not _ABSENT and parameters_of(self.functions[name]) != parameters_of(theirs)
        ]

    def _package_is_installed(self) -> bool:
        """No stub that somebody put into sys.modules, and no folder of this name without a package in it."""
        try:
            spec = importlib.util.find_spec(self.package)
        except ValueError:
            return False
        return spec is not None and spec.origin is not None

    def _empty_package(self) -> ModuleType:
        package = ModuleType(self.package, f"An empty package for fastsample's {self.name}")
        package.__path__ = []
        package.__spec__ = ModuleSpec(self.package, None, is_package=True)
        package.__version__ = self.version  # type: ignore[attr-defined]
        return package

    def _empty_module(self) -> ModuleType:
        module = ModuleType(self.name, f"fastsample's functions in place of {self.name}")
        module.__package__ = self.package
        module.__spec__ = ModuleSpec(self.name, None)

        def other_names(name: str) -> Any:
            raise AttributeError(f"module {self.name!r} is fastsample's, and has no {name!r}")

        module.__getattr__ = other_names  # type: ignore[method-assign]
        return module

    def _change_all(self, namespace: dict[str, Any], values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._change(namespace, key, value)

    def _change(self, namespace: dict[str, Any], key: str, value: Any) -> None:
        self._changes.append((namespace, key, namespace.get(key, _ABSENT), value))
        namespace[key] = value

    def _undo(self) -> None:
        while self._changes:
            namespace, key, before, value = self._changes.pop()
            if namespace.get(key) is not value:
                continue  # somebody else's by now
            if before is _ABSENT:
                del namespace[key]
            else:
                namespace[key] = before
        self._replaced = None


def parameters_of(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter, in order."""
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]
