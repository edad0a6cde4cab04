"""What the law demands of compiled Triton kernels, read off the compiler's texts: float32 operations rounded one by
one, denormals kept, divisions correctly rounded. The float64 logarithm of `log_probs` has a tolerance (law section 5).

Guesses are free: what `bound.py` computes says where to look first, never what is kept. Which operations are its own is
known only before optimisation, from the locations in Triton's first intermediate text ("ttir"); of the machine's
instructions, those that such an operation becomes are let through in the kernels that have it.
"""

import re
from collections.abc import Iterator

from triton_compiled import Kernel

_GUESSING = "bound.py"

# Operations without a rounding that IEEE 754 prescribes, and by which instructions NVIDIA's and AMD's compilers compute
# them. On AMD a division in bound.py is a correctly rounded one all the same.
_APPROXIMATE = {
    "arith.divf": r"div\.(full|approx)\.f32",
    "math.exp2": r"ex2\.approx(\.ftz)?\.f32|v_exp_f32",
    "math.log2": r"lg2\.approx(\.ftz)?\.f32|fma\.rn\.ftz\.f32|v_log_f32",
    "math.sqrt": r"sqrt\.approx(\.ftz)?\.f32|v_sqrt_f32",
}
# Triton's floor. Of a negative denormal it makes 0 instead of -1: q * 2^n is 1 both times (law section 1).
_FLOOR = r"cvt\.rmi\.ftz\.f32\.f32"

_PTX = {
    "fused": r"(?:fma|mad)\.\S*f32\S*",
    "may be fused": r"(?:add|sub|mul)\.(?!rn\.)\S*f32\S*",
    "flushes denormals": r"[a-z]\S*\.ftz\S*f(?:32|16)\S*",
    "approximate": r"[a-z]\S*\.(?:approx|full)\S*f(?:32|16)\S*",
    "rounded otherwise": r"div\.(?!rn\.)\S*f64",
}
_AMD = {
    "approximate": r"v_(?:exp|log|sqrt|rsq|sin|cos)_f32",
}
_AMD_FUSED = re.compile(r"v_(?:dual_|pk_)?(?:fma|fmac|fmamk|fmaak|mad|mac|madmk|madak)_f32")
_TWO_TO_32 = re.compile(r"\b0x[4c]f800000\b")
_LLVM = {
    "may be fused or reordered": r"= f(?:add|sub|mul|div|neg|rem) (?:\w+ )*(?:fast|contract|reassoc|arcp|afn)\b",
    "fused": r"@llvm\.(?:fma|fmuladd)\.\S*f32",
    "division to a few units in the last place": r"= fdiv [^\n]*!fpmath",
}


def broken(kernel: Kernel) -> list[str]:
    """Every rule that a kernel breaks, with the instruction that does."""
    return sorted({*_approximations_outside_guesses(kernel), *_instructions(kernel)})


def _operations(ttir: str) -> Iterator[tuple[str, str]]:
    """Each operation on float32 in Triton's own text, and the file of the source that it is from."""
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))

    def file_of(place: str) -> str:
        # A call is written callsite(callee at caller), a named value "name"(place): the callee is what comes first.
        name = re.match(r'"(?:[^"]*/)?([^"/]+)":\d+:\d+', place)
        inner = re.search(r"#loc\d*", place)
        return name[1] if name else file_of(places[inner[0]]) if inner else ""

    for operation, kind, place in re.findall(r"= (\w+\.\w+) [^\n]* : ([^\n]*?) loc\((#loc\d*)\)$", ttir, re.MULTILINE):
        if "f32" in kind:
            yield operation, file_of(places[place])


def _guesses(kernel: Kernel) -> set[str]:
    return {operation for operation, file in _operations(kernel.texts["ttir"]) if file == _GUESSING}


def _approximations_outside_guesses(kernel: Kernel) -> Iterator[str]:
    for operation, file in _operations(kernel.texts["ttir"]):
        approximate = operation in ("arith.divf", "tt.extern_elementwise")
        approximate |= operation.startswith("math.") and operation not in ("math.floor", "math.absf")
        if approximate and file != _GUESSING:
            yield f"approximate: {operation} in {file}"


def _instructions(kernel: Kernel) -> Iterator[str]:
    allowed = [pattern for operation, pattern in _APPROXIMATE.items() if operation in _guesses(kernel)]
    allowed_here = re.compile("|".join((_FLOOR, *allowed)))

    def found(rules: dict[str, str], text: str) -> Iterator[str]:
        for rule, pattern in rules.items():
            for instruction in re.findall(pattern, text):
                if not allowed_here.fullmatch(instruction):
                    yield f"{rule}: {instruction}"

    # law.py divides in float64 and rounds once more; LLVM may make that the one division of float32 that it equals.
    divides = re.search(r"arith\.divf [^\n]* : f64 ", kernel.texts["ttir"]) is not None
    yield from found(_LLVM, kernel.texts["llir"])
    if "ptx" in kernel.texts:
        ptx = re.sub(r"//.*", "", kernel.texts["ptx"])
        yield from found(_PTX, ptx)
        if divides and not re.search(r"div\.rn\.f(32|64)", ptx):
            yield "approximate: no div.rn"
    else:
        text = kernel.texts["amdgcn"]
        yield from found(_AMD, text)
        if not re.search(r"\.amdhsa_float_denorm_mode_32 3\b", text):
            yield "flushes denormals: .amdhsa_float_denorm_mode_32 is not 3"
        # AMD has no instruction that divides. A float32 division that is correctly rounded takes five of these and one
        # v_div_fixup; a division of 64-bit integers takes two, by which it multiplies with 2^32 and -2^32.
        divisions = text.count("v_div_fixup_f32")
        fused = sum(len(_AMD_FUSED.findall(line)) for line in text.splitlines() if not _TWO_TO_32.search(line))
        if fused != 5 * divisions:
            yield f"fused: {fused - 5 * divisions} multiply-adds that no division accounts for"
        if divides and not re.search(r"v_div_fixup_f(32|64)", text):
            yield "approximate: no v_div_fixup"
