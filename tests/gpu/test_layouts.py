"""Whatever hypothesis thinks of, in every layout; and every alignment, stride and storage offset by itself."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from strategies import Call, calls, calls_without_indices

from .target import REHEARSAL, Target, placed

EXAMPLES = settings(
    max_examples=20 if REHEARSAL else 200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WIDE = (1, 33, 255, 1025, 4099, 33003, 66001)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@EXAMPLES
@given(call=calls(vocabularies=WIDE))
def test_tokens_from_logits(target: Target, call: Call) -> None:
    for replacement in (True, False):
        target.check_call(call, replacement)


@EXAMPLES
@given(call=calls(probabilities=True, vocabularies=WIDE))
def test_tokens_from_probabilities(target: Target, call: Call) -> None:
    for replacement in (True, False):
        target.check_call(call, replacement, probabilities=True)


@EXAMPLES
@given(call=calls_without_indices(vocabularies=WIDE))
def test_transforms_of_any_layout(target: Target, call: Call) -> None:
    logits = call.logits if len(call.logits) else torch.zeros(1, 3)
    target.check_transforms(placed(logits, target.device), 0.8, 30, 0.9, 0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [7, 64, 1000, 20011])
def test_every_alignment(target: Target, vocab: int, dtype: torch.dtype) -> None:
    """Rows that begin at each of the 16 places that a 16-byte load distinguishes, with poison on both sides."""
    if target.backend == "triton" and vocab not in (1000, 20011):
        pytest.skip("the Triton kernels are compiled anew for each of these, and read them as they read the others")
    values = torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab)).mul_(3).to(dtype)
    for offset in range(17):
        for gap in (0, 1, 5):
            width = vocab + gap
            buffer = torch.full((offset + 3 * width + 9,), torch.nan, dtype=dtype, device=target.device)
            view = buffer[offset : offset + 3 * width].view(3, width)[:, :vocab]
            view.copy_(values)
            target.check_sample(view, 0.9, 20, 0.95, seed=offset)
            target.check_sample(view, top_p=0.8, seed=offset)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(target: Target, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(8, 9000, generator=generator).mul_(2).to(dtype).to(target.device)
    for view in (base[:, ::2], base[::2, 1::3], base.t().contiguous().t(), base[:1].expand(5, 9000), base[:, 3:4]):
        target.check_sample(view, 0.7, 40, 0.9, seed=1, num_samples=2)
        target.check_transforms(view, 0.7, 40, 0.9)
    target.check_sample(base[3], 0.7, 40, seed=1)


def test_indices(target: Target) -> None:
    logits = torch.randn(50, 5003, generator=torch.Generator().manual_seed(8)).mul_(3).to(target.device)
    indices = torch.randint(-3, 53, (400,), generator=torch.Generator().manual_seed(9))
    parameters = {"temperature": torch.rand(400), "top_p": torch.rand(400), "seed": torch.arange(400)}
    tokens = target.check_sample(logits, indices=indices, **parameters)
    assert ((tokens == -1) == ((indices < 0) | (indices >= 50))).all()
    target.check_sample(logits, top_k=9, seed=1, indices=indices[::2])
    target.check_sample(logits, top_k=9, seed=1, indices=indices.to(torch.int32))
