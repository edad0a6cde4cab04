"""The registers of a kernel's lanes, and operands as functions that read or write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .lanes import Array
from .memory import BASE, Addresses
from .module import Address, Immediate, Kernel, Negated, Operand, PtxError, Register, Sink, Symbol

Index = slice | NDArray[np.int64]
Reader = Callable[[Index], Array]
Writer = Callable[[Index, Array], None]

_KINDS = {"u": "u", "b": "u", "s": "i", "f": "f"}


@cache
def dtype_of(type_: str) -> np.dtype:
    return np.dtype(bool) if type_ == "pred" else np.dtype(f"{_KINDS[type_[0]]}{int(type_[1:]) // 8}")


class Frame:
    """Every register is an array with an entry per lane.

    special: what the machine provides, such as %tid.x. places: the address of each variable and parameter in its state
    space, for each lane where it is not the same for all.
    """

    def __init__(self, kernel: Kernel, lanes: int, special: dict[str, Array], places: dict[str, int | Array]) -> None:
        self.lanes = lanes
        self._types = kernel.registers
        self._registers: dict[str, Array] = {}  # those that an instruction so far needed
        self._special = special
        self._places = places
        self.carry = np.zeros(lanes, np.uint8)

    def _constant(self, value: int, type_: str) -> Array:
        type_ = f"u{type_[1:]}" if type_ != "pred" else type_
        dtype = dtype_of(type_)
        one = np.array(value % 2 ** (8 * dtype.itemsize)).astype(dtype)
        return np.broadcast_to(one, self.lanes)

    def _register(self, name: str) -> Array:
        if name in self._special:
            return self._special[name]
        if name not in self._types:
            raise PtxError(f"the interpreter has no register {name}")
        if name not in self._registers:
            type_ = self._types[name]
            self._registers[name] = np.zeros(self.lanes, dtype_of("pred" if type_ == "pred" else f"b{type_[1:]}"))
        return self._registers[name]

    def source(self, operand: Operand, type_: str) -> Array:
        """The operand as an array that will follow its register."""
        dtype = dtype_of(type_)
        if isinstance(operand, Register):
            array = self._register(operand.name)
        elif isinstance(operand, Immediate):
            if (type_[0] == "f") != bool(operand.float_bits) and type_[0] in "fus":
                raise PtxError(f"a constant of another type than {type_}")
            array = self._constant(operand.value, type_)
        elif isinstance(operand, Symbol) and operand.name in self._places:
            place = self._places[operand.name]
            if isinstance(place, int):
                array = self._constant(place + operand.offset, type_)
            else:
                array = (place + operand.offset).astype(dtype_of(f"u{type_[1:]}"))
        else:
            raise PtxError(f"not an operand for {type_}: {operand}")
        if (array.dtype == bool) != (type_ == "pred") or array.dtype.itemsize < dtype.itemsize:
            raise PtxError(f"{operand} is not as wide as {type_}")
        # Instructions may read the lower part of a wider register.
        return array.view(dtype)[:: array.dtype.itemsize // dtype.itemsize]

    def reader(self, operand: Operand, type_: str) -> Reader:
        if isinstance(operand, Negated):
            positive = self.source(operand.register, "pred")
            return lambda index: ~positive[index]
        return self.source(operand, type_).__getitem__

    def writer(self, operand: Operand, type_: str) -> Writer:
        """A wider register is filled up with zeros, or with the sign of a signed type."""
        if isinstance(operand, Sink):
            return lambda index, value: None
        if not isinstance(operand, Register) or operand.name in self._special:
            raise PtxError(f"cannot be written: {operand}")
        array = self._register(operand.name)
        dtype = dtype_of(type_)
        if (array.dtype == bool) != (type_ == "pred") or array.dtype.itemsize < dtype.itemsize:
            raise PtxError(f"{operand} is not as wide as {type_}")
        if type_ == "pred":
            return array.__setitem__
        if array.dtype.itemsize > dtype.itemsize and type_[0] == "f":
            raise PtxError(f"{operand} is wider than {type_}")
        return array.view(f"{dtype.kind}{array.dtype.itemsize}").__setitem__

    def addresses(self, operand: Operand, space: str) -> Callable[[Index], Addresses]:
        """Generic addresses of an address operand in a state space."""
        if not isinstance(operand, Address):
            raise PtxError(f"not an address: {operand}")
        base, offset = BASE[space], operand.offset
        if isinstance(operand.base, Register):
            array = self._register(operand.base.name)
        else:
            array = self.source(operand.base, "u64")
        if array.dtype.itemsize == 4:
            step = np.uint32(offset % 2**32)  # 32-bit addresses wrap
            return lambda index: (array[index] + step).astype(np.int64) + base
        signed = array.view(np.int64)
        return lambda index: signed[index] + (offset + base)
