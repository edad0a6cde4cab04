"""The wheel: built from what is compiled, installed where there is no compiler, and used there."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from fastsample import native_objects
from missing import missing

ROOT = Path(__file__).parents[1]
LARGEST = 30 << 20


def run(command: list[str | Path], **environment: str) -> str:
    """What a command prints, in an environment with nothing but `environment`."""
    # The threads of xdist's workers would wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **environment}
    finished = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, with the objects that are built in it."""
    folder = tmp_path_factory.mktemp("wheel")
    if not native_objects.CPU_OBJECT.exists():
        missing("nothing is compiled here: run `make install`")
    environment = {**os.environ, "FASTSAMPLE_BUILD": "built"}
    # Not pip, which would leave its files in the tree that other tests look at.
    command = [sys.executable, "setup.py", "--quiet", "egg_info", f"--egg-base={folder}"]
    command += ["build", f"--build-base={folder}/build", "bdist_wheel", f"--dist-dir={folder}/dist"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (made,) = (folder / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it. It sees this one's torch, but not this one's fastsample."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    found = folder / "bin/python"
    install = [sys.executable, "-m", "pip", f"--python={found}", "install", "--quiet", "--no-index", "--no-deps"]
    run([*install, wheel], HOME=str(folder), PATH="")
    site = Path(run([found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # What stands in a .pth file is put on the path; the .pth files in there, an editable fastsample's, are not read.
    (site / "torch_of_the_tests.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return found


def test_tags_and_size(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")  # for free-threaded Pythons too, which abi3 is not
    assert wheel.stat().st_size <= LARGEST


@pytest.mark.parametrize("path", [native_objects.CPU_OBJECT, native_objects.CUDA_OBJECT], ids=["cpu", "cuda"])
def test_objects_need_nothing_of_pythons(path: Path) -> None:
    """Else the tag, for any Python, would be wrong."""
    if not path.exists():
        missing(f"{path.name} is not built: run `make install` where its compiler is")
    undefined = run(["nm", "-D", "--undefined-only", path], PATH=os.defpath)
    symbols = [line.split()[-1] for line in undefined.splitlines()]
    assert any("aoti_torch" in symbol for symbol in symbols)
    assert [symbol for symbol in symbols if re.match("_?Py", symbol)] == []


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "fastsample").rglob("*.py")}
    expected |= {
        f"fastsample/{path.relative_to(ROOT)}"
        for folder in ("benchmarks", "triton_kernels")
        for pattern in ("*.py", "*.cu")
        for path in (ROOT / folder).rglob(pattern)
    }
    objects = {native_objects.CPU_OBJECT, native_objects.CUDA_OBJECT}
    expected |= {f"fastsample/{path.name}" for path in objects if path.exists()} | {"fastsample/py.typed"}
    assert names == expected


def test_it_works_without_a_compiler(python: Path) -> None:
    """Nothing at all is on PATH there."""
    home = str(python.parents[1])
    where = run([python, "-c", "import fastsample; print(fastsample.__file__)"], HOME=home, PATH="").strip()
    assert Path(where).is_relative_to(python.parents[1])

    told = run([python.with_name("fastsample"), "doctor"], HOME=home, PATH="", COLUMNS="200")
    assert "DISAGREE" not in told
    assert "draws agree" in told
    build = native_objects.cuda_build()
    assert (build is None) == ("CUDA object" in told and "not built" in told)
    if build is not None:
        assert str(build) in told

    code = (
        "import torch, fastsample; logits = torch.arange(5000.0).sin().repeat(2, 1); "
        "print([fastsample.sample(logits, 0.8, 50, 0.9, seed=7, backend=b).tolist() for b in ('cpu', 'reference')])"
    )
    by_cpu, by_reference = json.loads(run([python, "-c", code], HOME=home, PATH=""))
    assert by_cpu == by_reference
