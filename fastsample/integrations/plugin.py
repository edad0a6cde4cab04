"""What a plugin asks before it touches its host: whether it is switched on, for which versions, and with which kernels.

Nothing here imports the host.
"""

import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import NamedTuple

from torch import Tensor

from fastsample.arguments import LOGITS_DTYPES, MAX_VOCAB
from fastsample.backends import backends

_KERNELS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
_warned: set[tuple[str, str]] = set()


class Plugin(NamedTuple):
    """One host's plugin.

    Attributes:
        host: the host as its users write it.
        variable: the environment variable that switches the plugin off.
        oldest: the oldest version it was written against, as numbers.
        too_new: the first that it was not; its parts may be named differently.
        group: the group of entry points in which the host looks for plugins.
        logger: one whose lines the host shows.
    """

    host: str
    variable: str
    oldest: tuple[int, ...]
    too_new: tuple[int, ...]
    group: str
    logger: logging.Logger

    def switched_on(self) -> bool:
        """Whether the environment lets the plugin work: the variable is unset, or anything but 0, off, false and no."""
        return os.environ.get(self.variable, "1").strip().lower() not in ("0", "off", "false", "no")

    def unsupported(self, version: str) -> str | None:
        """Why the plugin does not work with a version of the host; None where it does.

        Args:
            version: as the host's `__version__` has it, such as "0.5.23" or "0.33.1.dev4+cpu".

        Returns:
            A sentence that names the version, the accepted ones and what to do.
        """
        accepted = f"{_dotted(self.oldest)} or newer, below {_dotted(self.too_new)}"
        numbers = re.match(r"v?(\d+(?:\.\d+)*)", version)
        parts = [int(part) for part in numbers[1].split(".")] if numbers else []
        if len(parts) < len(self.oldest):
            return f"cannot read the version {version!r} of {self.host}; accepted: {accepted}"
        found = tuple(parts[: len(self.oldest)])
        if found < self.oldest:
            return f"{self.host} {version} is too old; accepted: {accepted}. Upgrade {self.host}"
        if found >= self.too_new:
            return f"{self.host} {version} is newer than this fastsample; accepted: {accepted}. Upgrade fastsample"
        return None

    def obstacle(self, version: str | None, excluding: str | None) -> str | None:
        """Why the host would not sample with fastsample in this environment; None where it would.

        Args:
            version: of the installed host; None where none is.
            excluding: the environment variable that lists the plugins which the host may load, if it leaves out ours.
        """
        if version is None:
            return f"{self.host} is not installed"
        if not self.switched_on():
            return f"turned off by {self.variable}={os.environ[self.variable]}"
        if excluding is not None:
            return f"{excluding}={os.environ[excluding]} does not name fastsample"
        if not any(entry.name == "fastsample" for entry in entry_points(group=self.group)):
            return f"fastsample is not installed as a package here, so that {self.host} finds no plugin"
        if not any(backends()[name].usable for names in _KERNELS.values() for name in names):
            return "no compiled kernels run here"
        return self.unsupported(version)

    def serves(self, logits: Tensor) -> bool:
        """Whether compiled kernels draw from these logits, [batch, vocab]; warns once where none run on their device.

        The plain PyTorch reference, which would draw the same tokens, takes longer than the host does.
        """
        if logits.dtype not in LOGITS_DTYPES or not 1 <= logits.shape[1] <= MAX_VOCAB:
            return False
        device_type = logits.device.type
        usable, reasons = _kernels(device_type)
        if not usable:
            self.warn_once(f"leaves {self.host}'s sampling on {device_type} alone, for want of kernels ({reasons})")
        return usable

    def warn_once(self, what: str) -> None:
        """Warn, once in a process, in a line that begins with fastsample's name."""
        if (self.host, what) not in _warned:
            _warned.add((self.host, what))
            self.logger.warning("fastsample %s", what)


@cache
def _kernels(device_type: str) -> tuple[bool, str]:
    """Whether kernels run on a type of device, and what each backend says of itself."""
    statuses = [backends()[name] for name in _KERNELS.get(device_type, ())]
    details = "; ".join(f"{status.name}: {status.detail}" for status in statuses) or "there are none for it"
    return any(status.usable for status in statuses), details


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))
