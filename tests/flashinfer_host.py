"""Run by test_flashinfer.py in a process of its own, with the real flashinfer package: `install` before and after it.

Prints the parameters of every public function of `flashinfer.sampling`, as JSON.
"""

import importlib.util
import json
import logging
import sys
from types import FunctionType

import torch

import fastsample
import fastsample.integrations.flashinfer as ours
from fastsample.integrations.stand_in import parameters_of
from fastsample.integrations.status import integration_statuses

lines: list[str] = []


class Collector(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines.append(record.getMessage())


logging.getLogger("fastsample").addHandler(Collector())
logging.getLogger("fastsample").setLevel(logging.INFO)
PROBS = torch.tensor([[0.1, 0.0, 0.9], [0.5, 0.5, 0.0]])


def is_ours() -> bool:
    import flashinfer
    import flashinfer.sampling
    import flashinfer.sampling as named
    from flashinfer import top_p_sampling_from_probs
    from flashinfer.sampling import softmax

    answers = {
        named is flashinfer.sampling is sys.modules["flashinfer.sampling"] is importlib.import_module(named.__name__),
        softmax is ours.softmax,
        flashinfer.softmax is ours.softmax,
        top_p_sampling_from_probs is ours.top_p_sampling_from_probs,
        flashinfer.sampling.top_k_renorm_prob is ours.top_k_renorm_probs,
        flashinfer.sampling.chain_speculative_sampling is fastsample.chain_speculative_sampling,
        ours.is_installed(),
        integration_statuses()["flashinfer"].on,
    }
    first, *others = answers
    if others:
        assert answers == {True, False}
        assert named is flashinfer.sampling
        return False
    return first


assert "flashinfer" not in sys.modules
assert not ours.is_installed()
ours.install()  # FlashInfer was never imported
assert is_ours()
version = fastsample.integrations.status.integration_statuses()["flashinfer"].version
assert lines == [f"fastsample stands in for flashinfer.sampling (of FlashInfer {version})"], lines
ours.install()
assert len(lines) == 1

import flashinfer  # noqa: E402

assert importlib.util.find_spec("flashinfer.sampling") is not None
assert flashinfer.sampling.top_k_sampling_from_probs(PROBS, 1).tolist() == [2, 0]
assert flashinfer.top_k_sampling_from_probs(PROBS, 1).tolist() == [2, 0]
# What is not ours is FlashInfer's: other names of the module, and other modules.
assert flashinfer.sampling.get_sampling_module.__module__ == "flashinfer.sampling"
assert callable(flashinfer.single_decode_with_kv_cache)
assert not hasattr(flashinfer.sampling, "no_such_function")

ours.uninstall()
assert not ours.is_installed()
real = sys.modules["flashinfer.sampling"]
assert flashinfer.sampling is real
assert real.softmax is flashinfer.softmax
assert real.softmax is not ours.softmax
assert len(lines) == 2
ours.uninstall()
assert len(lines) == 2

# FlashInfer is imported by now, and a user holds the module and a function of it: the module's functions become ours,
# the function that was taken out of it stays FlashInfer's.
held_module, held = flashinfer.sampling, flashinfer.sampling.softmax
theirs = dict(vars(held_module))
ours.install()
assert is_ours()
assert held_module.softmax is ours.softmax is not held
assert held_module.top_k_sampling_from_probs(PROBS, 1).tolist() == [2, 0]
assert held_module.get_sampling_module is theirs["get_sampling_module"]
ours.uninstall()
assert not is_ours()
assert vars(held_module) == theirs

# A FlashInfer of other parameters.
del lines[:]
real.softmax = lambda logits, temperature=None: logits
ours.install()
assert len(lines) == 2
assert lines[1].endswith("in: softmax"), lines
ours.uninstall()
real.softmax = held

functions = {
    name: value
    for name, value in vars(real).items()
    if isinstance(value, FunctionType) and value.__module__ == real.__name__ and not name.startswith("_")
}
print(
    json.dumps(
        {
            name: [[parameter, int(kind), repr(default)] for parameter, kind, default in parameters_of(value)]
            for name, value in functions.items()
        }
    )
)
