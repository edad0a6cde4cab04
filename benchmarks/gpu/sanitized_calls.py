"""What compute-sanitizer runs: every path of the CUDA kernels once, and the Triton kernels where they can run.

Exits with 1 if a result is not the CPU's.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402

import fastsample  # noqa: E402

fastsample.__path__.append(sys.path[0])

from fastsample.benchmarks.gpu.calls import mismatches, triton_mismatches  # noqa: E402
from fastsample.benchmarks.gpu.contestants import why_not  # noqa: E402

if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    rehearsal = device == "cpu"
    found = []
    if why_not("cuda", rehearsal) is None:
        found += mismatches(device, "auto" if rehearsal else "cuda")
    if why_not("triton", rehearsal) is None:
        found += triton_mismatches(device)
    if device == "cuda":
        torch.cuda.synchronize()
    print("\n".join(found) or "every call gave what the CPU gives")
    sys.exit(bool(found))
