"""The sampling law (docs/law.md) in Triton: every operator, for GPUs that the compiled CUDA kernels do not cover.

To follow one call, read `launch.py` (what is allocated and launched), `work.py` (what a kernel is given), `law.py`
(one number at a time, and Triton in a few sentences), then `kernels.py`, which puts the steps together: `load`,
`maximum`, `bound`, `gather`, `weigh`, `cut` and `draw`, in the order that `selection.py` finds cheapest; `crossing.py`
is the search that three of them need, and `write.py` has the operators that return rows. `policy.py` and `tuning.py`
say how the work is divided, which changes no result.
"""

from .launch import filter_logits, filtered_probs, log_probs, sample
from .tuning import tune

__all__ = ["filter_logits", "filtered_probs", "log_probs", "sample", "tune"]
