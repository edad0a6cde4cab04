"""The sampling law (docs/law.md) in Triton: every operator, for GPUs that the compiled CUDA kernels do not cover.

Read in this order: `law.py` (one number), `work.py` (what a kernel is given), the steps `load`, `maximum`, `bound`,
`gather`, `weigh`, `cut`, `draw`, then `selection.py` and `kernels.py`, which put them together, and `launch.py`.
`policy.py` and `tuning.py` say how the work is divided, which changes no result.
"""

from .launch import filter_logits, filtered_probs, log_probs, sample
from .tuning import tune

__all__ = ["filter_logits", "filtered_probs", "log_probs", "sample", "tune"]
