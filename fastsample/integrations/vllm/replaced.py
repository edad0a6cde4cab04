"""A function of vLLM's replaced by ours, until it is put back."""

from collections.abc import Callable
from typing import Any


class Replaced:
    """One attribute of a class or a module.

    Not a `StandIn` (stand_in.py), whose functions do without those that they replace and are another's to call even
    after they were taken out. Ours hands on what it does not serve, so it has to know what it replaced; and a patch
    that somebody put over it goes on calling it, so that it can only be switched off, and is never placed a second
    time: what it would then replace is that patch, and each would call the other.

    Attributes:
        on: whether ours is to do its work; where not, it hands a call on to `theirs`.
        theirs: what stood there before.

    Args:
        owner: the class or module.
        name: of the attribute.
        ours: what is to stand there.
    """

    def __init__(self, owner: Any, name: str, ours: Callable[..., Any]) -> None:
        self._owner, self._name, self._ours = owner, name, ours
        self._placed = False
        self.theirs: Callable[..., Any] = getattr(owner, name)
        self.on = False

    def install(self) -> None:
        """Put ours there; twice is once, also where somebody has put theirs over it since."""
        if not self._placed:
            self.theirs = getattr(self._owner, self._name)
            setattr(self._owner, self._name, self._ours)
            self._placed = True
        self.on = True

    def uninstall(self) -> None:
        """Put back what was there. What somebody has put over ours stays, and may go on calling it."""
        self.on = False
        if getattr(self._owner, self._name) is self._ours:
            setattr(self._owner, self._name, self.theirs)
            self._placed = False
