"""What goes into a wheel."""

import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="tomllib is in Python 3.11 and newer")

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed() -> None:
    """A folder missing from the list works in an editable install and is missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"fastsample": ROOT / "fastsample"}
    folders |= {name: ROOT / folder for name, folder in settings["package-dir"].items()}
    found = {
        ".".join((name, *init.relative_to(folder).parts[:-1]))
        for name, folder in folders.items()
        for init in folder.rglob("__init__.py")
    }
    assert set(settings["packages"]) == found


def test_integrations_are_reached_from_the_package_alone() -> None:
    """In a process of its own: any test that imported the submodule would hide that the attribute is missing."""
    code = (
        "import fastsample, sys; assert 'transformers' not in sys.modules; fastsample.integrations.transformers.enable"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
