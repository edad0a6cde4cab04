"""PTX as text, taken apart: kernels, their parameters, registers and variables, and instructions with typed operands.

What is read is what nvcc writes and what inline assembly in our kernels adds. Anything else raises PtxError with its
text, so that nothing is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property


class PtxError(Exception):
    """The PTX is beyond the interpreter, or did what it must not do."""


# --- operands


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant as its bits: an integer of any width, or a float that is `float_bits` wide."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True)
class Symbol:
    """The address of a variable or parameter, plus `offset`; or a label."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    """`[base + offset]`"""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    """`{a, b, ...}`"""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """`%p|%q`: two results of one instruction."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Negated:
    """`!%p`"""

    register: Register


@dataclass(frozen=True)
class Sink:
    """`_`: a result that nobody wants."""


Operand = Register | Immediate | Symbol | Address | Vector | Pair | Negated | Sink


@dataclass(frozen=True)
class Guard:
    """`@%p` or `@!%p` before an instruction."""

    register: Register
    negated: bool


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[Operand, ...]
    guard: Guard | None
    text: str

    def __str__(self) -> str:
        return self.text


# --- declarations


@dataclass(frozen=True)
class Variable:
    """A variable in memory; `values` are its initial bytes, where it has any."""

    name: str
    space: str
    alignment: int
    size: int
    values: bytes | None = None


@dataclass(frozen=True)
class Parameter:
    name: str
    offset: int
    size: int


@dataclass
class Kernel:
    name: str
    parameters: dict[str, Parameter]
    registers: dict[str, str] = field(default_factory=dict)  # name: type
    variables: dict[str, Variable] = field(default_factory=dict)  # shared and local ones
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name: number of the instruction that follows


def _bytes_of(type_: str) -> int:
    return int(re.sub(r"\D", "", type_)) // 8


_VARIABLE = re.compile(
    r"""(?:\.(?:visible|extern|weak|common)\s+)*
        \.(?P<space>shared|local|global|const)\s+
        (?:\.align\s+(?P<alignment>\d+)\s+)?
        \.(?P<type>[busf]\d+)\s+
        (?P<name>[\w$]+)
        (?P<array>\[\d*\])?
        (?:\s*=\s*(?P<values>.*))?$""",
    re.VERBOSE | re.DOTALL,
)


def _parse_variable(statement: str) -> Variable:
    match = _VARIABLE.match(statement)
    if match is None:
        raise PtxError(f"not understood: {statement}")
    element = _bytes_of(match["type"])
    count = int(match["array"][1:-1] or 0) if match["array"] else 1
    values = None
    if match["values"] is not None:
        numbers = re.findall(r"[^\s,{}]+", match["values"])
        if not all(re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?|0f[0-9A-Fa-f]{8}", number) for number in numbers):
            raise PtxError(f"initial values not understood: {statement[:200]}")
        bits = [_immediate(number).value for number in numbers]
        values = b"".join((value % 2 ** (8 * element)).to_bytes(element, "little") for value in bits)
        values = values.ljust(count * element, b"\0")
    alignment = int(match["alignment"] or element)
    return Variable(match["name"], match["space"], alignment, count * element, values)


_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<alignment>\d+)\s+)?\.(?P<type>[busf]\d+)\s+(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?$"
)


def _parse_parameters(text: str) -> dict[str, Parameter]:
    parameters, end = {}, 0
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        match = _PARAMETER.match(declaration)
        if match is None:
            raise PtxError(f"parameter not understood: {declaration}")
        element = _bytes_of(match["type"])
        alignment, size = int(match["alignment"] or element), element * int(match["count"] or 1)
        offset = -(-end // alignment) * alignment
        parameters[match["name"]] = Parameter(match["name"], offset, size)
        end = offset + size
    return parameters


# --- statements


def _immediate(text: str) -> Immediate:
    if text[:2] in ("0f", "0F"):
        return Immediate(int(text[2:], 16), 32)
    if text[:2] in ("0d", "0D"):
        return Immediate(int(text[2:], 16), 64)
    return Immediate(int(text.removesuffix("U"), 0))


def _split(text: str) -> list[str]:
    """The parts between the commas that are not in braces or brackets."""
    parts = re.findall(r"(?:[^,{}\[\]]|\{[^}]*\}|\[[^\]]*\])+", text)
    return [part.strip() for part in parts]


class _Scopes:
    """Names of registers in nested braces: an inner `%p1` is another register than the one it hides."""

    def __init__(self, registers: dict[str, str]) -> None:
        self.registers = registers
        self.stack: list[dict[str, str]] = []
        self.opened = 0

    def open(self) -> None:
        self.stack.append({})
        self.opened += 1

    def close(self) -> None:
        self.stack.pop()

    def declare(self, statement: str) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.DOTALL)
        if match is None:
            raise PtxError(f"not understood: {statement}")
        for name in _split(match[2]):
            several = re.fullmatch(r"([%\w$]+)<(\d+)>", name)
            for one in [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]:
                unique = one if len(self.stack) == 1 else f"{one}@{self.opened}"
                self.stack[-1][one] = unique
                self.registers[unique] = match[1]

    def find(self, name: str) -> str | None:
        return next((scope[name] for scope in reversed(self.stack) if name in scope), None)


def _parse_operand(text: str, scopes: _Scopes) -> Operand:
    if text == "_":
        return Sink()
    if text[0] == "{":
        return Vector(tuple(_parse_operand(item, scopes) for item in _split(text[1:-1])))
    if "|" in text:
        first, second = text.split("|")
        return Pair(_parse_operand(first.strip(), scopes), _parse_operand(second.strip(), scopes))
    if text[0] == "!":
        register = _parse_operand(text[1:].strip(), scopes)
        if isinstance(register, Register):
            return Negated(register)
    elif text[0] == "[":
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        inner = _parse_operand(base, scopes)
        if isinstance(inner, Register | Symbol | Immediate):
            return Address(inner, int(offset or "0", 0))
    elif re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?|0[fF][0-9A-Fa-f]{8}|0[dD][0-9A-Fa-f]{16}", text):
        return _immediate(text)
    elif name := scopes.find(text):
        return Register(name)
    elif text[0] == "%":
        return Register(text)  # one that the machine provides, such as %tid.x
    elif match := re.fullmatch(r"([\w$]+)(?:\s*\+\s*(\d+))?", text):
        return Symbol(match[1], int(match[2] or 0))
    raise PtxError(f"operand not understood: {text}")


def _parse_instruction(statement: str, scopes: _Scopes) -> Instruction:
    match = re.match(r"(?:@(!?)\s*([%\w$]+)\s+)?([\w.:]+)\s*(.*)$", statement, re.DOTALL)
    if match is None:
        raise PtxError(f"not understood: {statement}")
    guard = Guard(Register(scopes.find(match[2]) or match[2]), bool(match[1])) if match[2] else None
    operands = tuple(_parse_operand(operand, scopes) for operand in _split(match[4]))
    return Instruction(match[3], operands, guard, " ".join(statement.split()))


def _statements(body: str) -> Iterator[str]:
    """Each `{` and `}` of a scope, each label with its colon, each statement without its semicolon."""
    position = 0
    token = re.compile(r"\s*(?:([{}])|([\w$]+:)(?!:)|([^;]*);)")
    while position < len(body.rstrip()):
        match = token.match(body, position)
        if match is None:
            raise PtxError(f"not understood: {body[position : position + 100]!r}")
        yield match[1] or match[2] or match[3].strip()
        position = match.end()


def _parse_body(kernel: Kernel, body: str) -> None:
    scopes = _Scopes(kernel.registers)
    for statement in _statements(body):
        if statement == "{":
            scopes.open()
        elif statement == "}":
            scopes.close()
        elif statement.endswith(":"):
            kernel.labels[statement[:-1]] = len(kernel.instructions)
        elif statement.startswith(".reg"):
            scopes.declare(statement)
        elif re.match(r"\.(extern\s+)?(shared|local)\b", statement):
            variable = _parse_variable(statement)
            kernel.variables[variable.name] = variable
        elif statement.startswith(".pragma"):
            continue
        elif statement.startswith("."):
            raise PtxError(f"not understood: {statement} (calls of functions that are not inlined are not interpreted)")
        else:
            kernel.instructions.append(_parse_instruction(statement, scopes))


def _end_of_braces(text: str, begin: int) -> int:
    """The position after the brace that closes the one at `begin`."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    raise PtxError("braces do not match")


class Module:
    """What one PTX file holds. Kernels are taken apart when they are first asked for."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
        self._bodies: dict[str, tuple[str, str]] = {}
        outside, position = [], 0
        for match in re.finditer(r"(?:\.(?:visible|weak)\s+)*\.(entry|func)\b[^{;]*", text):
            outside.append(text[position : match.start()])
            position = match.end()
            if text[position] == ";":  # a declaration
                continue
            position = _end_of_braces(text, match.end())
            if match[1] == "entry":
                head = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?", match[0], re.DOTALL)
                assert head is not None
                self._bodies[head[1]] = head[2] or "", text[match.end() : position]
        outside.append(text[position:])
        declared = [statement.strip() for statement in "".join(outside).split(";")]
        declared[0] = re.sub(r"\.(version|target|address_size)[^\n]*", "", declared[0]).strip()
        self.variables = {variable.name: variable for variable in map(_parse_variable, filter(None, declared))}
        self._parsed: dict[str, Kernel] = {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The kernels' names, mangled as the compiler left them."""
        return tuple(self._bodies)

    def kernel(self, name: str) -> Kernel:
        if name not in self._parsed:
            parameters, body = self._bodies[name]
            kernel = Kernel(name, _parse_parameters(parameters), variables=dict(self.variables))
            _parse_body(kernel, body)
            self._parsed[name] = kernel
        return self._parsed[name]
