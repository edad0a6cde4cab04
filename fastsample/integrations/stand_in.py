"""A module of a host library replaced by functions of ours, for whoever imports it, until it is put back."""

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
    """What stands in for one module of a package, whether or not that package is installed.

    An installed package is imported first, whole, so that what it binds at its import is its own, and can be put back.
    Where there is none, an empty package is put in its place: Python imports a module only through its package.

    Args:
        name: the module to be replaced, "package.module".
        functions: what the module is to hold, by name. For every other name it goes on to the replaced module.
        version: the `__version__` of an empty package, which users of the package may compare.
    """

    def __init__(self, name: str, functions: Mapping[str, Callable[..., Any]], version: str) -> None:
        self.name, self.functions, self.version = name, dict(functions), version
        self.package, _, self.attribute = name.rpartition(".")
        self._module: ModuleType | None = None
        self._replaced: ModuleType | None = None
        self._changes: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._lock = threading.Lock()

    def is_installed(self) -> bool:
        """Whether the module is replaced, as far as imports are concerned."""
        return self._module is not None and sys.modules.get(self.name) is self._module

    def install(self) -> bool:
        """Replace the module. Returns whether it had not been replaced before.

        Raises:
            ImportError: the package is installed, and cannot be imported.
        """
        with self._lock:
            return not self.is_installed() and self._install()

    def _install(self) -> bool:
        self._undo()  # somebody else may have replaced ours since
        if not self._package_is_installed():
            package, self._replaced = self._empty_package(), None
            self._change(sys.modules, self.package, package)
            self._change_all(vars(package), self.functions)
        else:
            package, self._replaced = import_module(self.package), import_module(self.name)
            bound = {
                name: function
                for name, function in self.functions.items()
                if vars(package).get(name, _ABSENT) is vars(self._replaced).get(name)
            }
            self._change_all(vars(package), bound)
        self._module = self._new_module()
        self._change(sys.modules, self.name, self._module)
        self._change(vars(package), self.attribute, self._module)
        return True

    def uninstall(self) -> bool:
        """Put back what `install` replaced. Returns whether the module was replaced."""
        with self._lock:
            was_installed = self.is_installed()
            self._undo()
            self._module = self._replaced = None
            return was_installed

    def replaced_version(self) -> str | None:
        """The version of the package whose module is replaced; None where it is not installed."""
        if self._replaced is None:
            return None
        return str(getattr(sys.modules[self.package], "__version__", "unknown"))

    def different_signatures(self) -> list[str]:
        """The functions whose parameters have other names, kinds, order or defaults in the replaced module."""
        if self._replaced is None:
            return []
        return [
            name
            for name, function in self.functions.items()
            if (theirs := getattr(self._replaced, name, None)) is not None
            and parameters_of(function) != parameters_of(theirs)
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

    def _new_module(self) -> ModuleType:
        module = ModuleType(self.name, f"fastsample's functions in place of {self.name}")
        module.__package__ = self.package
        module.__spec__ = ModuleSpec(self.name, None)
        vars(module).update(self.functions)
        replaced = self._replaced

        def other_names(name: str) -> Any:
            if replaced is None:
                raise AttributeError(f"module {self.name!r} is fastsample's, and has no {name!r}")
            return getattr(replaced, name)

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


def parameters_of(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter, in order."""
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]
