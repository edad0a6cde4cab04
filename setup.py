"""Builds fastsample/_cpu.abi3.so; everything else about the package is in pyproject.toml.

FASTSAMPLE_BUILD chooses what is compiled:
    auto    (default) the CPU object; where that fails, a loud warning and a package that works in plain PyTorch
    cpu     the CPU object, or an error
    cuda    an error: this version has no CUDA kernels
    python  nothing
The object uses torch's stable ABI, so one build serves every Python >= 3.10 and torch >= 2.10. CXX, CXXFLAGS, LDFLAGS
and MAX_JOBS are honoured.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))  # setuptools' build backend does not put the project's folder on the path

from native_build import Build, BuildError, cpu_sources, find_compiler  # noqa: E402

MODES = ("auto", "cpu", "cuda", "python")
MODE = os.environ.get("FASTSAMPLE_BUILD", "auto")
OLDEST_TORCH = (2, 10)
TORCH_TARGET_VERSION = "0x020a000000000000ULL"  # OLDEST_TORCH, as torch's headers spell it
BINDING = "csrc/ops.cpp"


def torch_headers() -> Path:
    """The include folder of the installed torch, found without importing it.

    pip's build isolation hides the environment's packages from `import`, but sysconfig still names their folder. torch
    is no build requirement, since isolation would then download its CUDA packages for a few headers.
    """
    found = importlib.util.find_spec("torch")
    roots = [Path(found.origin).parent] if found and found.origin else []
    roots += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    for root in roots:
        if (root / "include/torch/csrc/stable/library.h").exists():
            match = re.search(r"__version__ = '(\d+)\.(\d+)", (root / "version.py").read_text())
            if match and (int(match[1]), int(match[2])) >= OLDEST_TORCH:
                return root / "include"
    wanted = ".".join(map(str, OLDEST_TORCH))
    raise BuildError(
        f"the headers of torch >= {wanted} were not found (looked in {', '.join(map(str, dict.fromkeys(roots)))}).\n"
        f"Install torch >= {wanted} into this environment first, then build with `pip install --no-build-isolation`."
    )


def object_flags() -> list[str]:
    """Compiler flags of the package's object. The instruction sets are chosen per function, so there is no -march."""
    flags = ["-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    # -isystem: warnings in torch's headers are not ours.
    return [*flags, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-isystem", str(torch_headers())]


def build_cpu_object(output: Path, folder: Path) -> None:
    """Compiles csrc/ into `output`; intermediate files stay in `folder` for the next build."""
    compiler = find_compiler()
    build = Build(folder, compiler)
    flags = object_flags()
    sources = [ROOT / BINDING, *cpu_sources(ROOT / "csrc/cpu", compiler)]
    objects = [build.compile(source, flags) for source in sources]
    if sys.platform == "darwin":
        build.link(output, objects, ["-bundle", "-undefined", "dynamic_lookup"])
    else:
        # Only the names of torch's libraries are needed (DT_NEEDED), so that the loader binds to whichever torch is in
        # the process; empty stand-ins give them without tying the object to the torch it was built with.
        stand_ins = [
            build.link(folder / f"lib{name}.so", [], ["-shared", f"-Wl,-soname,lib{name}.so", "-x", "c++", os.devnull])
            for name in ("torch", "torch_cpu")
        ]
        link_flags = ["-shared", f"-L{folder}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
        build.link(output, objects, link_flags, after=stand_ins)
    build.run()


class BuildNative(build_ext):
    """Replaces setuptools' compilation by ninja's."""

    def get_ext_filename(self, fullname: str) -> str:
        # torch loads the object, not Python's import system, so the name never depends on the Python that built it.
        return str(Path(*fullname.split(".")).with_suffix(".abi3.so"))

    def build_extension(self, ext: Extension) -> None:
        # Not self.build_temp, which is a new folder for each editable install: there, nothing would be incremental.
        folder = ROOT / "build" / f"native-{sysconfig.get_platform()}"
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            build_cpu_object(folder / output.name, folder)
        except BuildError as error:
            if MODE == "cpu":
                raise SystemExit(f"FASTSAMPLE_BUILD=cpu: {error}") from error
            (ROOT / self.get_ext_filename(ext.name)).unlink(missing_ok=True)  # an older one would not match the sources
            line = "*" * 100
            print(
                f"{line}\nWARNING: fastsample is being installed WITHOUT its compiled CPU kernels and will be slow:\n"
                f"{error}\n`fastsample doctor` shows what an installation has.\n{line}",
                file=sys.stderr,
                flush=True,
            )
        else:
            self.copy_file(str(folder / output.name), str(output))


if MODE not in MODES:
    sys.exit(f"FASTSAMPLE_BUILD={MODE}: expected one of {', '.join(MODES)}")
if MODE == "cuda":
    sys.exit("FASTSAMPLE_BUILD=cuda: this version of fastsample has no CUDA kernels; use auto, cpu or python")

setup(
    ext_modules=[]
    if MODE == "python"
    else [Extension("fastsample._cpu", [BINDING], py_limited_api=True, optional=MODE == "auto")],
    cmdclass={"build_ext": BuildNative},
    # A free-threaded Python has no limited API, and setuptools refuses the tag there.
    options={} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
