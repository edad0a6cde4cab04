"""Runs the GPU command in a checkout that need not be installed: `python benchmarks/gpu/from_source.py ...`.

Where nothing can be downloaded nothing may be installable either. So what an installation would do is done here: the
package's metadata is written, which its version is read from, and its import path is extended by the folder that holds
`benchmarks`.
"""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
# In place of this script's folder: modules called `plot` or `report` there must not be found under those names.
sys.path[0] = str(_ROOT)
try:
    metadata.version("fastsample")
except metadata.PackageNotFoundError:
    write_metadata = [sys.executable, "setup.py", "--quiet", "egg_info"]
    subprocess.run(write_metadata, cwd=_ROOT, env={**os.environ, "FASTSAMPLE_BUILD": "python"}, check=True)

import fastsample  # noqa: E402

fastsample.__path__.append(str(_ROOT))

from fastsample.benchmarks.gpu.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
