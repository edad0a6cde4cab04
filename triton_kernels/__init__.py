"""The sampling law (docs/law.md) in Triton: every operator, for GPUs that the compiled CUDA kernels do not cover.

To follow one call, read `launch.py` (what is launched), `call.py` (what the launches of a call share), `work.py` (what
a kernel is given), `law.py` (one number at a time, and Triton in a few sentences), then `kernels.py`, which puts the
steps together: `load`, `maximum`, `bound`, `gather`, `weigh`, `cut` and `draw`, in the order that `selection.py` finds
cheapest; `crossing.py` is the search that three of them need, and `write.py` has the operators that return rows.
`policy.py` and `tuning.py` say how the work is divided, which changes no result.

What requests add has a file of kernels for each step, and its launches: `edits.py` (`launch_edits.py`) before a draw,
`details.py` and `kept.py` (`launch_full.py`) after it; `speculative.py` (`launch_speculative.py`) compares two rows.
"""

from .launch import filter_logits, filtered_probs, log_probs, sample
from .launch_edits import find_edits
from .launch_full import kept_tokens, sample_full
from .launch_speculative import fixed_probs_at, random_words, sample_residual
from .tuning import tune

__all__ = [
    "filter_logits",
    "filtered_probs",
    "find_edits",
    "fixed_probs_at",
    "kept_tokens",
    "log_probs",
    "random_words",
    "sample",
    "sample_full",
    "sample_residual",
    "tune",
]
