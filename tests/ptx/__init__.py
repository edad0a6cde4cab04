"""An interpreter of the PTX that nvcc makes of our kernels, in numpy: it checks, and counts, what they do.

The rest of a GPU is not modelled: no time, no caches, no registers, and PTX is not yet what the machine executes.
"""

from .counters import SECTOR, Counts
from .machine import Checks, Machine
from .memory import Buffer, Memory
from .module import Module, PtxError
from .program import Grid

__all__ = ["SECTOR", "Buffer", "Checks", "Counts", "Grid", "Machine", "Memory", "Module", "PtxError"]
