"""The memory of a simulated device: one flat array of bytes in which every state space has its place.

A generic address is a place in that array. Shared memory has a window for each block of a cluster, so that an address
from mapa is the own one a number of windows further on. Whatever is allocated is surrounded by bytes that are not, and
each byte knows what it belongs to and whether it was ever written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .module import Kernel, Module, PtxError

PARAMETERS = 1 << 12
SHARED = 1 << 20
WINDOW = 1 << 18  # of one block's shared memory
LOCAL = 1 << 23
LOCAL_BYTES = 1 << 9  # per lane
GLOBAL = 1 << 24

BLOCKS = 16  # of a cluster, at most
LANES = BLOCKS * 1024

BASE = {"param": PARAMETERS, "shared": SHARED, "local": LOCAL, "global": 0, "const": 0, "generic": 0}

# Between two things in memory, so that an access past the end of one meets nothing. A multiple of what 32 banks hold:
# every array in shared memory begins at bank 0.
_GAP = 128

_OWNER, _WRITTEN = 0x7F, 0x80
_PARAMETER_OWNER, _SHARED_OWNER, _LOCAL_OWNER, _FIRST_BUFFER = 1, 2, 3, 4
_SPACE_OF_OWNER = {_PARAMETER_OWNER: "param", _SHARED_OWNER: "shared", _LOCAL_OWNER: "local"}

# 1 in each of so many bytes.
_EACH_BYTE = {size: int.from_bytes(b"\1" * size, "little") for size in (1, 2, 4, 8)}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

Addresses = NDArray[np.int64]


def _aligned(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment


@dataclass(frozen=True)
class Buffer:
    """A piece of global memory."""

    name: str
    address: int
    size: int
    writable: bool


@dataclass(frozen=True)
class Access:
    """What a load, a store or an atomic operation does, the same for all its lanes."""

    space: str
    size: int  # of one element, in bytes
    elements: int = 1
    reads: bool = False
    writes: bool = False
    strong: bool = False  # volatile, or with an order: such accesses do not race with each other
    constant: bool = False  # ld.global.nc

    @property
    def bytes(self) -> int:
        return self.size * self.elements

    @property
    def atomic(self) -> bool:
        return self.reads and self.writes


class Memory:
    def __init__(self, capacity: int = 1 << 26) -> None:
        # Zeroed pages come from the system when they are first touched: only what is used costs anything.
        self.data = np.zeros(GLOBAL + capacity, np.uint8)
        self._state = np.zeros(GLOBAL + capacity, np.uint8)
        self.buffers: list[Buffer] = []
        self._end = GLOBAL + _GAP
        self.extent = {"shared": 0, "local": 0}  # of the last kernel, in each window
        self._shared: dict[str, int] = {}  # offsets of its variables

    # --- what the host does

    def add(self, name: str, content: NDArray[np.generic] | int, writable: bool = False, misalign: int = 0) -> Buffer:
        """Puts bytes, or so many uninitialised ones, at an address that is `misalign` bytes past a multiple of 256."""
        size = content if isinstance(content, int) else content.nbytes
        address = _aligned(self._end + _GAP, 256) + misalign
        if len(self.buffers) >= _OWNER - _FIRST_BUFFER or address + size + _GAP > len(self.data):
            raise PtxError("the simulated memory is full")
        buffer = Buffer(name, address, size, writable)
        self._end = address + size
        self.buffers.append(buffer)
        self._state[address : address + size] = _FIRST_BUFFER + len(self.buffers) - 1
        if not isinstance(content, int):
            self.data[address : address + size] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
            self._state[address : address + size] |= _WRITTEN
        return buffer

    def content(self, buffer: Buffer) -> NDArray[np.uint8]:
        """A copy of its bytes; raises when some were never written."""
        part = slice(buffer.address, buffer.address + buffer.size)
        if not (self._state[part] & _WRITTEN).all():
            raise PtxError(f"{buffer.name} was not written everywhere")
        return self.data[part].copy()

    def add_variables(self, module: Module) -> dict[str, int]:
        """Gives the module's variables in global and constant memory a place, and returns the addresses."""
        places = {}
        for variable in module.variables.values():
            if variable.space in ("global", "const"):
                values = np.frombuffer(variable.values or bytes(variable.size), np.uint8)
                places[variable.name] = self.add(variable.name, values, variable.space == "global").address
        return places

    # --- what a launch does

    def set_parameters(self, parameters: bytes) -> None:
        self._state[PARAMETERS:SHARED] = 0
        self.data[PARAMETERS : PARAMETERS + len(parameters)] = np.frombuffer(parameters, np.uint8)
        self._state[PARAMETERS : PARAMETERS + len(parameters)] = _PARAMETER_OWNER | _WRITTEN

    @staticmethod
    def layout(kernel: Kernel, space: str) -> dict[str, int]:
        """Offsets of the kernel's variables in `space`, in the shared window or in the local memory of a lane.

        The shared memory whose size the launch chooses is behind the rest.
        """
        offsets, end = {}, 0
        variables = [variable for variable in kernel.variables.values() if variable.space == space]
        for variable in sorted(variables, key=lambda variable: variable.size == 0):
            offsets[variable.name] = _aligned(end, _GAP)
            end = offsets[variable.name] + variable.size + _GAP
        return offsets

    def clear(self, kernel: Kernel, blocks: int, lanes: int, dynamic: int, written: bool) -> None:
        """Shared and local memory as a new cluster finds them: of unknown content, and none of it `written`.

        dynamic: bytes of the shared memory whose size the launch chooses.
        """
        for space, base, pitch, count, owner in (
            ("shared", SHARED, WINDOW, blocks, _SHARED_OWNER),
            ("local", LOCAL, LOCAL_BYTES, lanes, _LOCAL_OWNER),
        ):
            part = slice(base, base + pitch * (BLOCKS if space == "shared" else LANES))
            data, state = (array[part].reshape(-1, pitch) for array in (self.data, self._state))
            state[:, : self.extent[space]] = 0
            self.extent[space] = 0
            offsets = self.layout(kernel, space)
            if space == "shared":
                self._shared = offsets
            for name, offset in offsets.items():
                end = offset + (kernel.variables[name].size or dynamic)
                if end > pitch:
                    raise PtxError(f"{kernel.name} has too much {space} memory")
                data[:count, offset:end] = 0xFF
                state[:count, offset:end] = owner | (_WRITTEN if written else 0)
                self.extent[space] = end

    # --- what the kernel does

    def owners(self, addresses: Addresses, access: Access) -> int | NDArray[np.uint8]:
        """What the lanes' addresses belong to, one number if it is the same for all; raises for what is not allowed.

        What such a number stands for, `buffer` and `is_shared` tell.
        """
        misaligned = (addresses & (access.bytes - 1)) != 0
        if misaligned.any():
            raise self._wrong("misaligned", addresses, misaligned, access)
        unit = min(access.bytes, 8)
        state = self._state.view(_UNSIGNED[unit])
        places = addresses // unit
        try:
            words = np.stack([state[places + part] for part in range(access.bytes // unit)], axis=1)
        except IndexError:
            raise PtxError(f"out of bounds: addresses up to {addresses.view(np.uint64).max():#x}") from None
        first = int(words[0, 0])
        same = first == (first & 0xFF) * _EACH_BYTE[unit] and bool((words == words[0, 0]).all())
        if not (same and first & _OWNER and first & _WRITTEN):
            states = words.view(np.uint8)
            outside = ((states & _OWNER) == 0).any(axis=1)
            if outside.any():
                raise self._wrong("out of bounds", addresses, outside, access)
            unwritten = ((states & _WRITTEN) == 0).any(axis=1)
            if access.reads and unwritten.any():
                raise self._wrong("read before anything was written there", addresses, unwritten, access)
            if access.writes:
                for part in range(access.bytes // unit):
                    state[places + part] |= state.dtype.type(_WRITTEN * _EACH_BYTE[unit])
        found = words.astype(np.uint8)[:, 0] & np.uint8(_OWNER)
        if same or (found == found[0]).all():
            self._check_owner(int(found[0]), access)
            return int(found[0])
        for owner in np.unique(found).tolist():
            self._check_owner(owner, access)
        return found

    def _wrong(self, what: str, addresses: Addresses, lanes: NDArray[np.bool_], access: Access) -> PtxError:
        return PtxError(f"{what}: {access.bytes} bytes at {self.describe(int(addresses[lanes][0]))}")

    def _check_owner(self, owner: int, access: Access) -> None:
        buffer = self.buffer(owner)
        space = _SPACE_OF_OWNER.get(owner, "global")
        if access.space not in ("generic", space) and not (access.space == "const" and buffer):
            raise PtxError(f"a {access.space} access reaches {buffer.name if buffer else space}")
        if access.writes and (space == "param" or (buffer and not buffer.writable)):
            raise PtxError(f"writes to {buffer.name if buffer else 'the parameters'}, which it may only read")
        if access.constant and buffer and buffer.writable:
            raise PtxError(f"ld.global.nc of {buffer.name}, which is not constant while the kernel runs")

    def buffer(self, owner: int) -> Buffer | None:
        """The buffer of a number from `owners`; None for the other spaces."""
        return self.buffers[owner - _FIRST_BUFFER] if owner >= _FIRST_BUFFER else None

    @staticmethod
    def is_shared(owner: int) -> bool:
        return owner == _SHARED_OWNER

    def describe(self, address: int) -> str:
        if SHARED <= address < SHARED + BLOCKS * WINDOW:
            block, offset = divmod(address - SHARED, WINDOW)
            before = [(begin, name) for name, begin in self._shared.items() if begin <= offset]
            begin, name = max(before, default=(0, "shared memory"))
            name = re.sub(r"^_ZZ.*E\d+", "", name)  # what is left of a mangled name is the variable's own
            return f"byte {offset - begin} of {name} in block {block} of the cluster"
        for buffer in self.buffers:
            if buffer.address - _GAP <= address < buffer.address + buffer.size + _GAP:
                return f"byte {address - buffer.address} of {buffer.name} ({buffer.size} bytes)"
        return f"address {address:#x}"

    def load(self, addresses: Addresses, access: Access) -> list[NDArray[np.unsignedinteger]]:
        """The elements of each lane's access: a list of arrays with an entry per lane."""
        data = self.data.view(_UNSIGNED[access.size])
        places = addresses // access.size
        return [data[places + element if element else places] for element in range(access.elements)]

    def store(self, addresses: Addresses, access: Access, values: list[NDArray[np.unsignedinteger]]) -> None:
        data = self.data.view(_UNSIGNED[access.size])
        places = addresses // access.size
        for element, value in enumerate(values):
            data[places + element if element else places] = value
