"""Where the CUDA object is missing, "auto" runs GPU tensors on Triton, and so does what takes no `backend`."""

import subprocess
import sys
from pathlib import Path

from .target import Target, needs_gpu

pytestmark = needs_gpu
ROOT = Path(__file__).resolve().parents[2]

# Before torch uses the GPU, which is when the package looks for the object.
PROGRAM = """
import sys
from pathlib import Path

import torch
import fastsample
from fastsample import native_objects, ops

fastsample.__path__.append(sys.argv[1])  # a checkout need not be installed
native_objects.CUDA_OBJECT = Path("/no such object")
launched = []
triton = ops._triton_kernels()
for name in ("sample", "filter_logits", "filtered_probs", "log_probs"):
    def noted(*arguments, name=name, kernels=getattr(triton, name)):
        launched.append(name)
        return kernels(*arguments)

    setattr(triton, name, noted)

logits = torch.randn(40, 9001, generator=torch.Generator().manual_seed(1)) * 2
there = logits.to("cuda")
assert not fastsample.backends()["cuda"].usable
assert ops.runs_gpu_tensors == "Triton", ops.runs_gpu_tensors

seed = torch.arange(40)
tokens = fastsample.sample(there, 0.8, 50, 0.9, seed=seed.to("cuda"))
assert torch.equal(tokens.cpu(), fastsample.sample(logits, 0.8, 50, 0.9, seed=seed))
assert torch.equal(
    fastsample.filtered_probs(there, 0.8, 50).cpu(), fastsample.filtered_probs(logits, 0.8, 50)
)
assert launched == ["sample", "filtered_probs"], launched

probabilities = there.softmax(-1)
torch.manual_seed(3)
words = torch.empty(2, dtype=torch.int64, device="cuda").random_().tolist()
torch.manual_seed(3)
found = fastsample.multinomial(probabilities, 6, True)
expected = torch.empty(40, 6, dtype=torch.int64)
ops.reference_only.sample(
    expected, probabilities.cpu(), None, 1.0, None, 0, None, 1.0, None, 0.0, None, 0,
    words[0], None, words[1], None, 0, None, True, True, True,
)
assert torch.equal(found.cpu(), expected)
assert launched[-1] == "sample" and len(launched) == 3, launched
torch.manual_seed(3)
with fastsample.patch_torch():
    assert torch.equal(torch.multinomial(probabilities, 6, True), found)
print("agrees")
"""


def test_auto_takes_triton(triton_target: Target) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.stdout == "agrees\n", ended.stdout + ended.stderr
