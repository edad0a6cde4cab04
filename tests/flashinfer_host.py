"""Run by test_flashinfer.py in a process of its own, with the real flashinfer package: `install` before and after it.

Prints the parameters of every public function of `flashinfer.sampling`, as JSON.
"""

import importlib
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


def check_that_all_is_ours() -> None:
    import flashinfer
    import flashinfer.sampling
    import flashinfer.sampling as named
    from flashinfer import top_p_sampling_from_probs
    from flashinfer.sampling import softmax

    assert named is flashinfer.sampling is sys.modules["flashinfer.sampling"]
    assert importlib.import_module("flashinfer.sampling") is named
    assert softmax is flashinfer.softmax is ours.softmax
    assert top_p_sampling_from_probs is ours.top_p_sampling_from_probs
    assert flashinfer.sampling.top_k_renorm_prob is ours.top_k_renorm_probs
    assert flashinfer.sampling.chain_speculative_sampling is fastsample.chain_speculative_sampling
    assert ours.is_installed()
    assert integration_statuses()["flashinfer"].on


def held_by_flashinfer() -> dict[str, dict[str, object]]:
    """Every name that is in the package, and in its module of sampling, with what it stands for."""
    return {name: dict(vars(sys.modules[name])) for name in ("flashinfer", "flashinfer.sampling")}


def check_that_nothing_is_ours() -> None:
    assert not ours.is_installed()
    assert not integration_statuses()["flashinfer"].on
    of_ours = {id(value) for value in vars(ours).values() if getattr(value, "__module__", None) == ours.__name__}
    assert id(ours.softmax) in of_ours
    for module, names in held_by_flashinfer().items():
        assert [name for name, value in names.items() if id(value) in of_ours] == [], module


assert "flashinfer" not in sys.modules
assert not ours.is_installed()
ours.install()  # FlashInfer was never imported
check_that_all_is_ours()
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
check_that_nothing_is_ours()
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
theirs = held_by_flashinfer()
ours.install()
check_that_all_is_ours()
assert held_module.softmax is ours.softmax is not held
assert held_module.top_k_sampling_from_probs(PROBS, 1).tolist() == [2, 0]
assert held_module.get_sampling_module is theirs["flashinfer.sampling"]["get_sampling_module"]
ours.uninstall()
check_that_nothing_is_ours()
assert held_by_flashinfer() == theirs

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
