"""The operators of `schemas.py`, and what implements each of them.

There are three namespaces with the same schemas. In ``fastsample`` CPU and CUDA tensors go to the native objects where
those are loaded, GPU tensors to Triton where they are not, and everything else goes to the reference;
``fastsample_reference`` always runs the reference, and ``fastsample_triton`` always Triton. So to choose a backend is
to choose a namespace, and a test runs one body on several backends by swapping it.

All of them are opaque to torch.compile. `torch.library.triton_op` would let inductor recompile the Triton kernels, with
options of its own, and a contracted multiplication and addition changes 17 % of the weights (docs/law.md, section 1).

The kernels trust their arguments. Whoever calls an operator directly, and not through `fastsample.sample` or
`fastsample.transforms`, has to keep the conventions that `fastsample.arguments` guarantees.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample import autograd, native_objects, reference, reference_edits, reference_full, reference_speculative
from fastsample.schemas import OPERATORS

_CPU_INSTRUCTION_SET = "(int level) -> int"
_CUDA_SHAPE = "(Tensor logits, int rows) -> int[]"
_CUDA_FORCE_SHAPE = "(int blocks, int threads, bool cluster, bool resident, bool overlaps) -> ()"

OLDEST_TRITON = (3, 4)
OLDEST_TRITON_CAPABILITY = (8, 0)  # Triton's own limit; older GPUs stay with the reference

INSTRUCTION_SETS = ("scalar", "avx2", "avx512")
INSTRUCTION_SET_VARIABLE = "FASTSAMPLE_CPU_INSTRUCTION_SET"


class Ops(NamedTuple):
    """The operators of one namespace. Calling an overload directly saves the resolution of `torch.ops.name.op`."""

    sample: Callable[..., None]
    filter_logits: Callable[..., Tensor]
    filtered_probs: Callable[..., Tensor]
    log_probs: Callable[..., Tensor]
    find_edits: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    sample_full: Callable[..., None]
    kept_tokens: Callable[..., Tensor]
    kept_log_probs: Callable[..., Tensor]
    fixed_probs_at: Callable[..., Tensor]
    random_words: Callable[..., Tensor]
    sample_residual: Callable[..., None]
    draw_seed: Callable[[Tensor], None]


def _draw_seed(seed_and_offset: Tensor) -> None:
    seed_and_offset.random_()


def _triton_kernels() -> ModuleType:
    """The kernels, imported when the first call needs them: not everyone has Triton, nor needs it."""
    return importlib.import_module("fastsample.triton_kernels")


def _on_triton(name: str) -> Callable[..., Any]:
    """The Triton implementation of an operator."""

    if name not in _HAS_TRITON_KERNEL:
        return _REFERENCE[name]

    def run(*arguments: Any) -> Any:
        return getattr(_triton_kernels(), name)(*arguments)

    return run


def _define(library: torch.library.Library, implementation: Callable[[str], Callable[..., Any]]) -> Ops:
    """Define every operator in one namespace, with an implementation for whatever has no kernel of its own."""
    overloads = {}
    for name, operator in OPERATORS.items():
        # flexible_layout: the kernels take any strides, so a compiler must not copy an input into another layout for
        # them.
        tags = [torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout]
        if name == "draw_seed":
            tags.append(torch.Tag.nondeterministic_seeded)
        library.define(name + operator.schema, tags=tags)
        library.impl(name, implementation(name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{library.ns}::{name}", operator.fake, lib=library)
        overloads[name] = getattr(getattr(torch.ops, library.ns), name).default
    autograd.register(library, overloads["filtered_probs"])
    return Ops(**overloads)


_REFERENCE: dict[str, Callable[..., Any]] = {
    "sample": reference.sample,
    "filter_logits": reference.filter_logits,
    "filtered_probs": reference.filtered_probs,
    "log_probs": reference.log_probs,
    "find_edits": reference_edits.find_edits,
    "sample_full": reference_full.sample_full,
    "kept_tokens": reference_full.kept_tokens,
    "kept_log_probs": reference_full.kept_log_probs,
    "fixed_probs_at": reference_speculative.fixed_probs_at,
    "random_words": reference_speculative.random_words,
    "sample_residual": reference_speculative.sample_residual,
    "draw_seed": _draw_seed,
}
# Of the others, for which there is no Triton kernel, the reference runs on a GPU too.
_HAS_TRITON_KERNEL = (
    "sample",
    "filter_logits",
    "filtered_probs",
    "log_probs",
    "find_edits",
    "sample_full",
    "kept_tokens",
    "fixed_probs_at",
    "random_words",
    "sample_residual",
)


# The libraries live as long as the module: their registrations go when they are collected.
_library = torch.library.Library("fastsample", "DEF")
_reference_library = torch.library.Library("fastsample_reference", "DEF")
_triton_library = torch.library.Library("fastsample_triton", "DEF")
_library.define("cpu_instruction_set" + _CPU_INSTRUCTION_SET, tags=[torch.Tag.pt2_compliant_tag])
_library.define("cuda_shape" + _CUDA_SHAPE, tags=[torch.Tag.pt2_compliant_tag])
_library.define("cuda_force_shape" + _CUDA_FORCE_SHAPE, tags=[torch.Tag.pt2_compliant_tag])

compiled: Ops = _define(_library, _REFERENCE.__getitem__)
reference_only: Ops = _define(_reference_library, _REFERENCE.__getitem__)
triton_only: Ops = _define(_triton_library, _on_triton)

cpu_status: str = native_objects.load(native_objects.CPU_OBJECT)
# None until torch uses a CUDA device.
cuda_status: str | None = None
# What "auto" runs GPU tensors on where that is not the CUDA object.
runs_gpu_tensors = "the reference"


def _load_cuda_kernels() -> None:
    """Load the CUDA object if a GPU here runs it; else GPU tensors go to Triton if it does, or stay with the reference.

    Of several GPUs all have to be Triton's: an operator has one implementation for all of them.
    """
    global cuda_status, runs_gpu_tensors
    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    reason = None
    if torch.version.cuda is None:
        reason = f"this torch ({torch.__version__}) has no CUDA"
    elif (build := native_objects.cuda_build()) is not None:
        reason = native_objects.why_no_gpu_runs(build, capabilities, native_objects.cuda_of_driver())
    cuda_status = reason or native_objects.load(native_objects.CUDA_OBJECT)
    triton_runs_here = torch.version.cuda is None or min(capabilities) >= OLDEST_TRITON_CAPABILITY
    if cuda_status != "ok" and triton_runs_here and triton_status() == "ok":
        for name in _HAS_TRITON_KERNEL:
            _library.impl(name, _on_triton(name), "CUDA")
        runs_gpu_tensors = "Triton"


def load_cuda() -> str:
    """Why the CUDA kernels cannot be used, or "ok" when they are loaded. Initialises CUDA where there is a device."""
    if cuda_status is None:
        if not native_objects.CUDA_OBJECT.exists():
            return f"not built: {native_objects.CUDA_OBJECT.name} is not in the package"
        if torch.version.cuda is None:
            return f"this torch ({torch.__version__}) has no CUDA"
        if not torch.cuda.is_available():
            return "no CUDA device"
        try:
            torch.cuda.init()  # which calls _load_cuda_kernels
        except RuntimeError as error:  # in a forked child, or out of memory
            return f"failed: {error}"
    return cuda_status or "no CUDA device"


def triton_status() -> str:
    """Why Triton cannot be used here, or "ok". Does not import it. Initialises CUDA where there is a device."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec("fastsample.triton_kernels") is None:
        return "fastsample.triton_kernels is not there: this is a checkout that is not installed"
    version = triton_version()
    if version is not None and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"Triton {version} is older than {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]}"
    if triton_is_interpreted():
        library = sys.modules.get("triton.language.standard")  # importing torch imports it
        if library is not None and type(library.cdiv).__name__ == "JITFunction":
            return "TRITON_INTERPRET was set after Triton was imported; set it before Python starts"
        return "ok"
    if not torch.cuda.is_available():
        return "no GPU; with TRITON_INTERPRET=1 set before Python starts, its kernels run on the CPU, slowly"
    if torch.version.hip is None:
        newest = max(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
        if newest < OLDEST_TRITON_CAPABILITY:
            return f"compute capability {newest[0]}.{newest[1]} is older than Triton's 8.0"
    return "ok"


def triton_version() -> str | None:
    """Triton's version, without importing it; None where it is not installed as any distribution known here."""
    for distribution in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def triton_is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


if torch.version.cuda is not None or torch.version.hip is not None:
    # torch calls this when it first uses a CUDA device, or at once if it has: before there is a CUDA tensor, outside of
    # any graph capture or compilation, and never in a process that stays on the CPU. Asking for a device here would
    # initialise CUDA on import, after which a process can no longer fork.
    torch.cuda._lazy_call(_load_cuda_kernels)


def for_backend(backend: str) -> Ops:
    """The operators behind a backend name.

    Args:
        backend: "auto", "cpu" or "cuda" (the namespace with native kernels, whether or not they are there), "triton" or
            "reference".

    Raises:
        KeyError: the name is none of these; `fastsample.backends.select` is the one that checks a user's choice.
    """
    names = {"auto": compiled, "cpu": compiled, "cuda": compiled, "triton": triton_only, "reference": reference_only}
    return names[backend]


@contextmanager
def cuda_shape_forced(
    blocks: int, threads: int, cluster: bool, resident: bool, overlaps: bool = False
) -> Iterator[None]:
    """Have the CUDA kernels run in one shape, for this process, in place of the one that csrc/cuda/policy.h chooses.

    The results do not depend on it; tests and tuning do. A shape that the kernels cannot run in, or the device, makes
    each call raise.

    Args:
        blocks: blocks that share a row, 1 to 16.
        threads: threads of a block, a multiple of 32, 32 to 512.
        cluster: whether the blocks are a thread-block cluster (sm_90 and newer).
        resident: whether the row stays in their shared memory, where it must fit.
        overlaps: whether the kernel may start while the one ahead of it in the stream ends.

    Raises:
        RuntimeError: the CUDA kernels are not loaded; the message says why.
    """
    status = load_cuda()
    if status != "ok":
        raise RuntimeError(f"the CUDA kernels are not loaded ({status})")
    torch.ops.fastsample.cuda_force_shape.default(blocks, threads, cluster, resident, overlaps)
    try:
        yield
    finally:
        torch.ops.fastsample.cuda_force_shape.default(0, 0, False, False, False)


def cap_instruction_set(name: str) -> str:
    """Cap the instruction set of the native CPU kernels, for this process, and return the one now in force.

    The results do not depend on it; tests and benchmarks do. A cap above what the processor has leaves the processor's
    best.

    Args:
        name: one of `INSTRUCTION_SETS`, from the plainest to the newest.

    Raises:
        ValueError: `name` is none of them.
        RuntimeError: the native object is not loaded.
    """
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"instruction set: got {name!r}; accepted: {', '.join(INSTRUCTION_SETS)}")
    return _instruction_set(INSTRUCTION_SETS.index(name))


@contextmanager
def instruction_set_capped(name: str) -> Iterator[str]:
    """`cap_instruction_set` for the length of a context, which yields the instruction set in force."""
    before = instruction_set()
    try:
        yield cap_instruction_set(name)
    finally:
        cap_instruction_set(before)


def instruction_set() -> str:
    """The instruction set in force in the native CPU kernels. Raises RuntimeError when they are not loaded."""
    return _instruction_set(-1)


def _instruction_set(level: int) -> str:
    if cpu_status != "ok":
        raise RuntimeError(f"the native CPU kernels are not loaded ({cpu_status})")
    return INSTRUCTION_SETS[torch.ops.fastsample.cpu_instruction_set.default(level)]


def instruction_set_from_environment() -> str | None:
    """The cap that FASTSAMPLE_CPU_INSTRUCTION_SET asks for, or None. Raises ValueError when it names none."""
    name = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if name and name not in INSTRUCTION_SETS:
        raise ValueError(f"{INSTRUCTION_SET_VARIABLE}={name}: accepted: {', '.join(INSTRUCTION_SETS)}, or unset")
    return name or None


_cap = instruction_set_from_environment()
if _cap is not None and cpu_status == "ok":
    cap_instruction_set(_cap)
