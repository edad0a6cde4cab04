"""How the CUDA kernels are compiled: the nvcc that is found, the architectures, and what each kernel takes of a GPU."""

import os
import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import cuda_resources
import nvcc as nvcc_module
from cuda_resources import Kernel
from fastsample import native_objects
from missing import missing
from native_build import Build, BuildError, find_compiler
from nvcc import Nvcc, chosen_architectures, compile_cuda, description, find_nvcc, nvcc_command, probe_nvcc, report_of

NVCC = Nvcc(Path("nvcc"), Path("/toolkit"), "13.0.88", (75, 80, 86, 89, 90, 100, 103, 120))

FAT_BINARY = struct.pack("<I", 0xBA55ED50)

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4oneE' for 'sm_90'
ptxas info    : Function properties for _ZN4oneE
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for _ZN6calledE
    32 bytes stack frame, 100 bytes spill stores, 200 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 48 bytes cumulative stack size, 27920 bytes smem, 752 bytes cmem[0]
ptxas info    : Compile time = 25963.676 ms
ptxas info    : Compiling entry function '_ZN4twoE' for 'sm_120'
ptxas info    : Function properties for _ZN4twoE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a shell script under a name."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


def device_code(path: Path) -> list[list[str]]:
    """The binaries and PTX in each of the "fat binaries" of a file, from their headers (as `cuobjdump --list-elf`)."""
    content = path.read_bytes()
    found = []
    start = content.find(FAT_BINARY)
    while start >= 0:
        header, size = struct.unpack_from("<6xHQ", content, start)
        entry, end = start + header, start + header + size
        names = []
        while entry < end:
            kind, header, size, architecture = struct.unpack_from("<H2xIQ12xI", content, entry)
            names.append(f"{'compute' if kind == 1 else 'sm'}_{architecture}")
            entry += header + size
        found.append(sorted(names))
        start = content.find(FAT_BINARY, end)
    return found


def pretend_nvcc(version: str, top: str) -> str:
    """A script that answers as an nvcc of this version in this folder does."""
    return f"""\
case "$1" in
  --version) echo "Cuda compilation tools, release {version.rpartition(".")[0]}, V{version}" ;;
  -dryrun) echo "#\\$ TOP={top}" >&2 ;;
  --list-gpu-code) echo sm_75; echo sm_90 ;;
esac"""


def test_the_toolkit_of_a_wrapper(script: Callable[[str, str], Path], tmp_path: Path) -> None:
    """The nvcc on PATH may be a script elsewhere: the toolkit is where the nvcc that it starts says."""
    (tmp_path / "toolkit/bin").mkdir(parents=True)
    wrapper = script("wrapper/nvcc", pretend_nvcc("12.9.41", f"{tmp_path}/toolkit/bin/.."))
    found = probe_nvcc(wrapper)
    assert found == Nvcc(wrapper, tmp_path / "toolkit", "12.9.41", (75, 90))
    with pytest.raises(BuildError, match="libcudart_static"):
        found.static_runtime()
    library = tmp_path / "toolkit/targets/x86_64-linux/lib/libcudart_static.a"
    library.parent.mkdir(parents=True)
    library.touch()
    assert found.static_runtime() == library


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (pretend_nvcc("12.7.99", "/toolkit"), r"nvcc 12\.7\.99\) is too old; .* 12\.8 or newer .*FASTSAMPLE_BUILD=cpu"),
        ("echo no licence >&2; exit 1", "does not run: no licence"),
        ("echo hello", "does not answer as nvcc does: hello"),
    ],
)
def test_an_nvcc_that_does_not_serve(text: str, told: str, script: Callable[[str, str], Path]) -> None:
    with pytest.raises(BuildError, match=told):
        probe_nvcc(script("nvcc", text))


def test_where_nvcc_is_looked_for(
    script: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    on_path = script("bin/nvcc", "")
    by_pip = script("site/nvidia/cu13/bin/nvcc", "")
    at_home = script("home/bin/nvcc", "")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(nvcc_module, "USUAL_HOME", str(tmp_path / "usual"))
    assert nvcc_command() == by_pip
    usual = script("usual/bin/nvcc", "")
    assert nvcc_command() == usual
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert nvcc_command() == on_path
    monkeypatch.setenv("CUDA_HOME", str(at_home.parents[1]))
    assert nvcc_command() == at_home


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc_module, "nvcc_command", lambda: None)
    with pytest.raises(BuildError, match=r"(?s)12\.8 or newer; there is none in CUDA_HOME.*apt-get.*FASTSAMPLE_BUILD"):
        find_nvcc()


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", (75, 80, 89, 90, 100, 103, 120)), ("90", (90,)), ("90 80,75;  80", (75, 80, 90)), (" 86 ", (86,))],
)
def test_architectures(value: str, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSAMPLE_CUDA_ARCHS", value)
    assert chosen_architectures(NVCC) == expected


def test_native_architectures(script: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSAMPLE_CUDA_ARCHS", "native")
    tool = script("nvidia-smi", "echo 9.0; echo 8.6; echo 9.0")
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    assert chosen_architectures(NVCC) == (86, 90)
    script("nvidia-smi", "exit 9")
    with pytest.raises(BuildError, match="native, but nvidia-smi finds no GPU"):
        chosen_architectures(NVCC)


@pytest.mark.parametrize(
    ("value", "told"),
    [("sm_90", 'accepted: "native" or numbers'), ("70 90", r"does not compile for sm_70; it knows 75, 80")],
)
def test_architectures_that_are_none(value: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSAMPLE_CUDA_ARCHS", value)
    with pytest.raises(BuildError, match=told):
        chosen_architectures(NVCC)


def test_a_kernel_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """By the real nvcc: binaries of every architecture and PTX in the object, and only what is out of date again."""
    if nvcc_command() is None:
        missing("no nvcc here")
    monkeypatch.delenv("NVCCFLAGS", raising=False)
    header = tmp_path / "factor.h"
    header.write_text("constexpr float factor = 2;\n")
    source = tmp_path / "scale.cu"
    source.write_text(
        '#include "factor.h"\n'
        "__global__ void scale(float* x) { int unused; x[threadIdx.x] *= factor; }\n"
        "void launch(float* x) { scale<<<1, 32>>>(x); }\n"
    )

    def build() -> tuple[Path, str]:
        nvcc = find_nvcc()
        made = Build(tmp_path / "build", find_compiler())
        (output,) = compile_cuda(made, nvcc, [source], [75, 90])
        made.run()
        return output, "".join(capfd.readouterr())

    output, said = build()
    assert device_code(output) == [["compute_90", "sm_75", "sm_90"]]
    assert "unused" in said  # a warning is shown, what ptxas says of each kernel is kept
    assert "ptxas" not in said
    kernels = cuda_resources.kernels(report_of(output).read_text())
    assert [(kernel.architecture, kernel.spill_stores, kernel.shared) for kernel in sorted(kernels)] == [
        (75, 0, 0),
        (90, 0, 0),
    ]

    made = output.stat().st_mtime_ns
    build()
    assert output.stat().st_mtime_ns == made
    header.write_text("constexpr float factor = three;\n")
    with pytest.raises(BuildError, match="see the messages above"):
        build()
    assert "three" in "".join(capfd.readouterr())


def test_description_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the build writes into the object is what the package reads from it."""
    made = tmp_path / "_cuda.abi3.so"
    monkeypatch.setattr(native_objects, "CUDA_OBJECT", made)
    assert native_objects.cuda_build() is None
    for content in (b"", b"no shared object"):
        made.write_bytes(content)
        assert native_objects.cuda_build() is None
    made.write_bytes(b"\0\0fastsample CUDA build: " + description(NVCC, [75, 90]).encode() + b"\0\0")
    assert native_objects.cuda_build() == native_objects.CudaBuild("13.0.88", (75, 90), 90)


def test_what_ptxas_says() -> None:
    assert cuda_resources.kernels(REPORT) == [
        Kernel("_ZN4oneE", 90, 64, 104, 208, 16, 27920),
        Kernel("_ZN4twoE", 120, 12, 0, 0, 0, 0),
    ]
    assert cuda_resources.kernels("ptxas info    : 0 bytes gmem\n") == []
    lines = REPORT.splitlines(keepends=True)
    mixed = "".join([*lines[:2], lines[8], *lines[2:8], *lines[9:]])
    with pytest.raises(ValueError, match="not what ptxas says of one kernel"):
        cuda_resources.kernels(mixed)


def test_names_of_kernels() -> None:
    parameters = "EEEvNS0_4WorkENS0_5ShapeENS0_9WorkspaceE"
    names = [f"_ZN10fastsample4cuda10row_kernelI{element}Lb1{parameters}" for element in ("f", "NS0_8BFloat16E")]
    assert cuda_resources.readable(names) == ["row_kernel<float, true>", "row_kernel<BFloat16, true>"]


@pytest.fixture(scope="module")
def built() -> list[Kernel]:
    """Every kernel of the last build."""
    found = cuda_resources.built_kernels()
    if not found:
        missing("no CUDA kernels in build/: run `make install` where nvcc is")
    return found


def test_no_kernel_spills(built: list[Kernel]) -> None:
    assert [kernel for kernel in built if kernel.spill_stores or kernel.spill_loads] == []


def test_every_kernel_can_be_launched(built: list[Kernel]) -> None:
    """Within what the launch table assumes: too many registers for its largest block would fail on the GPU only."""
    policy = (cuda_resources.ROOT / "csrc/cuda/policy.h").read_text()
    threads = re.search(r"kThreads = (\d+);", policy)
    shared = re.search(r"kStaticShared = (\d+) << (\d+);", policy)
    assert threads
    assert shared
    for kernel in built:
        assert kernel.registers * int(threads[1]) <= 65536, kernel
        assert kernel.shared <= int(shared[1]) << int(shared[2]), kernel


def test_every_kernel_is_built_for_every_architecture(built: list[Kernel]) -> None:
    build = native_objects.cuda_build()
    assert build is not None
    contents = device_code(native_objects.CUDA_OBJECT)
    expected = [f"compute_{build.ptx}", *(f"sm_{number}" for number in build.architectures)]
    assert contents
    assert all(content == sorted(expected) for content in contents)
    counts = Counter(kernel.name for kernel in built)
    assert set(counts.values()) == {len(build.architectures)}
    assert {kernel.architecture for kernel in built} == set(build.architectures)


def test_the_committed_table(built: list[Kernel]) -> None:
    """Another nvcc may well choose other registers; then only the rules above hold."""
    build = native_objects.cuda_build()
    assert build is not None
    committed = cuda_resources.PATH.read_text().splitlines()
    if f"nvcc {build.nvcc};" not in committed[2]:
        missing(f"{cuda_resources.PATH.name} is of another nvcc: {committed[2]}")
    named = {f"sm_{number}" for number in build.architectures}
    rows = [row for row in committed if row.startswith("| ") and row.split(" | ")[1] in named]
    assert [kernel.row() for kernel in built] == rows, "after a change of the kernels: python tests/cuda_resources.py"
