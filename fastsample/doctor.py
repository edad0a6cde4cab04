"""`fastsample doctor`: what is installed, what can run here and why not, and whether the backends agree here."""

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample import native_objects, ops
from fastsample.backends import BackendStatus, backends
from fastsample.integrations.status import IntegrationStatus, integration_statuses
from fastsample.sampling import sample

# What the native kernels choose between, as /proc/cpuinfo spells it.
_CPU_FEATURES = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
_CPU_INFORMATION = Path("/proc/cpuinfo")
_ROWS = 8
_VOCAB = 4001  # a prime: no multiple of any vector or chunk
_DRAWS_PER_ROW = 16


class Case(NamedTuple):
    """A batch of the self-check with the tokens that the reference draws from it."""

    name: str
    logits: Tensor
    parameters: dict[str, Any]
    expected: Tensor


class SelfCheck(NamedTuple):
    """The comparison of one backend with the reference.

    Attributes:
        backend: its name in `backend=`.
        place: the CPU instruction set or the GPU ("cuda:0") that it ran on; None for the reference.
        draws: how many tokens were compared.
        disagreements: how many of them differ; by the sampling law there is none.
        first: the first difference in words, or None.
    """

    backend: str
    place: str | None
    draws: int
    disagreements: int
    first: str | None


class Report(NamedTuple):
    """Everything `fastsample doctor` says."""

    versions: dict[str, str]
    cpu: dict[str, str]
    gpu: dict[str, str]
    backends: dict[str, BackendStatus]
    self_checks: list[SelfCheck]
    integrations: dict[str, IntegrationStatus]

    @property
    def healthy(self) -> bool:
        """Whether every backend that is usable agrees with the reference."""
        return all(check.disagreements == 0 for check in self.self_checks)


def examine() -> Report:
    """Look at the installation and run the self-check on every usable backend (about a second)."""
    status = backends()
    checks: list[SelfCheck] = []
    cases = expected_draws()
    for name, backend in status.items():
        if not backend.usable:
            continue
        if name == "triton" and ops.triton_is_interpreted():
            checks.append(self_check([few_draws(case) for case in cases], name, "its interpreter"))
            continue
        if name in ("cuda", "triton"):
            for index in range(torch.cuda.device_count()):
                checks.append(self_check(cases, name, f"cuda:{index}", torch.device("cuda", index)))
            continue
        if backend.instruction_set is None:
            checks.append(self_check(cases, name))
            continue
        # The results must not depend on the instruction set, so every one that this processor has is checked.
        for instruction_set in ops.INSTRUCTION_SETS[: ops.INSTRUCTION_SETS.index(backend.instruction_set) + 1]:
            with ops.instruction_set_capped(instruction_set):
                checks.append(self_check(cases, name, instruction_set))
    return Report(_versions(), _cpu(), _gpu(), status, checks, integration_statuses())


def expected_draws() -> list[Case]:
    """More than a thousand draws of the reference, over mixed parameters, dtypes and rows."""
    return [
        Case(name, logits, parameters, sample(logits, backend="reference", **parameters))
        for name, logits, parameters in _cases()
    ]


def few_draws(case: Case) -> Case:
    """The first draws of a case's first rows, for an interpreter, which is slow."""
    rows, draws = 2, 4
    of_rows = {key: value[:rows] if isinstance(value, Tensor) else value for key, value in case.parameters.items()}
    return Case(case.name, case.logits[:rows], {**of_rows, "num_samples": draws}, case.expected[:rows, :draws])


def self_check(
    cases: list[Case], backend: str, place: str | None = None, device: torch.device | None = None
) -> SelfCheck:
    """Compare a backend with the reference by `==`.

    Args:
        cases: what `expected_draws` returns.
        backend: a usable backend's name.
        place: only noted in the result.
        device: where the backend is to run; None is the CPU.
    """
    draws = disagreements = 0
    first = None
    for name, logits, parameters, expected in cases:
        moved: dict[str, Any] = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in parameters.items()
        }
        tokens = sample(logits.to(device), backend=backend, **moved).cpu()
        different = (tokens != expected).nonzero().tolist()
        if different and first is None:
            row, draw = different[0]
            first = (
                f"{name}, row {row}, draw {draw}: {int(tokens[row, draw])}, "
                f"where the reference draws {int(expected[row, draw])}"
            )
        draws += tokens.numel()
        disagreements += len(different)
    return SelfCheck(backend, place, draws, disagreements, first)


def render(report: Report) -> str:
    """The report as plain text, one fact a line."""
    lines = [f"{name}: {value}" for name, value in _facts(report).items()]
    for backend in report.backends.values():
        lines.append(f"backend {backend.name}: {'usable' if backend.usable else 'not usable'}: {backend.detail}")
    lines += [f"integration {host}: {integration.summary}" for host, integration in report.integrations.items()]
    lines += [f"self-check {_label(check)}: {_verdict(check)}" for check in report.self_checks]
    return "\n".join(lines)


def main() -> int:
    """Print the report, in tables if rich is installed. Returns the exit status: 1 if a usable backend disagrees."""
    report = examine()
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:  # rich comes with the extra fastsample[cli]; the facts do not depend on it
        print(render(report))
        return 0 if report.healthy else 1
    console = Console()
    facts = Table("", "", title="This installation", show_header=False)
    for name, value in _facts(report).items():
        facts.add_row(name, value)
    usable = Table("backend", "usable", "what or why not", title="Backends")
    for backend in report.backends.values():
        usable.add_row(backend.name, "[green]yes" if backend.usable else "[yellow]no", backend.detail)
    hosts = Table("host", "state", title="Integrations")
    for host, integration in report.integrations.items():
        hosts.add_row(host, integration.summary)
    checks = Table("backend", "result", title="Self-check against the reference, by ==")
    for check in report.self_checks:
        checks.add_row(_label(check), ("[green]" if check.disagreements == 0 else "[bold red]") + _verdict(check))
    for table in (facts, usable, hosts, checks):
        console.print(table)
    return 0 if report.healthy else 1


def _facts(report: Report) -> dict[str, str]:
    return {**report.versions, **report.cpu, **report.gpu}


def _label(check: SelfCheck) -> str:
    return check.backend if check.place is None else f"{check.backend}, {check.place}"


def _verdict(check: SelfCheck) -> str:
    if check.disagreements == 0:
        return f"{check.draws} draws agree"
    return f"{check.disagreements} of {check.draws} draws DISAGREE; {check.first}"


def _cases() -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Small batches of every dtype, with and without every filter, per-row parameters, ties and replacement."""
    generator = torch.Generator().manual_seed(20240607)
    logits = torch.randn(_ROWS, _VOCAB, generator=generator) * torch.tensor([1.0, 3.0]).repeat(_ROWS // 2).unsqueeze(1)
    row = torch.arange(_ROWS)
    mixed = {
        "temperature": torch.tensor([0.0, 0.3, 0.7, 1.0, 1.5, 4.0, 1.0, 0.8]),
        "top_k": torch.tensor([0, 1, 5, 50, 400, 0, 0, 4000]),
        "top_p": torch.tensor([1.0, 0.95, 0.5, 1.0, 0.9, 0.3, 0.9, 0.99]),
        "min_p": torch.tensor([0.0, 0.0, 0.01, 0.0, 0.0, 0.2, 0.0, 0.001]),
    }
    several = {"num_samples": _DRAWS_PER_ROW}
    yield "float32", logits, {"seed": 1, **several}
    yield "float32, top_k 50, top_p 0.9", logits, {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 2, **several}
    yield "float32, top_p 0.9", logits, {"top_p": 0.9, "seed": 3, "order": "joint", **several}
    yield "float32, mixed rows", logits, {**mixed, "seed": row * 7919, "offset": row, **several}
    yield "float32, greedy", logits, {"temperature": 0.0, "seed": 4, **several}
    yield "float16, mixed rows", logits.half(), {**mixed, "seed": 5, "order": "min_p_first", **several}
    yield "bfloat16, mixed rows", logits.bfloat16(), {**mixed, "seed": 6, **several}
    yield "float32, without replacement", logits, {**mixed, "seed": 7, "replacement": False, **several}


def _versions() -> dict[str, str]:
    try:
        version = metadata.version("fastsample")
    except metadata.PackageNotFoundError:
        version = "not installed: run from its sources"
    return {
        "fastsample": version,
        "torch": torch.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "native object": ops.cpu_status,
        "its compiler": _compiler() or "unknown",
    }


def _compiler() -> str | None:
    """What compiled the native object: compilers leave their name in it (the ELF section .comment)."""
    if not native_objects.CPU_OBJECT.exists():
        return None
    names = re.findall(rb"GCC: \([^\x00]*|[^\x00]*clang version [^\x00]*", native_objects.CPU_OBJECT.read_bytes())
    return ", ".join(sorted({name.decode(errors="replace") for name in names})) or None


def _cpu() -> dict[str, str]:
    model, flags = platform.processor() or platform.machine(), ""
    if _CPU_INFORMATION.exists():
        information = _CPU_INFORMATION.read_text()
        model_line = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
        flags_line = re.search(r"^flags\s*:\s*(.+)$", information, re.MULTILINE)
        model = model_line.group(1) if model_line else model
        flags = flags_line.group(1) if flags_line else ""
    features = [feature for feature in _CPU_FEATURES if feature in flags.split()]
    return {
        "CPU": model,
        "CPU features": " ".join(features) or f"unknown; torch uses {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def _gpu() -> dict[str, str]:
    build = native_objects.cuda_build()
    facts = {"CUDA object": str(build) if build else "not built"}
    if torch.version.cuda is None or not torch.cuda.is_available():
        return facts
    newest = ".".join(map(str, native_objects.cuda_of_driver()))
    facts["CUDA"] = f"{torch.version.cuda} of torch; the driver supports up to {newest}"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = (
            f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors, "
            f"{gpu.total_memory / 2**30:.0f} GiB"
        )
    return facts
