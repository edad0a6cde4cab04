"""The peers that are packed on a machine without a GPU: what is put in place on one, and what is left alone."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from fastsample.benchmarks.gpu import pack_peers, packed_peers, vllm_triton

HERE = f"cp{sys.version_info.major}{sys.version_info.minor}"
CONTENTS = {"interpreter": HERE, "capability": "9.0", "flashinfer": "0.7.2", "vllm": "0.32.0"}
KERNEL = f"{packed_peers.VLLM}/{packed_peers.VLLM_KERNEL}"

# As in vLLM: the kernel's file imports two more of vLLM's own, and these import helpers that have stand-ins.
VLLM_FILES = {
    "vllm/v1/sample/ops/topk_topp_triton.py": (
        "from vllm.model_executor.warmup.jit_warmup import WarmupChoices\n"
        "from vllm.model_executor.warmup.jit_warmup_triton_helper import dispatcher\n"
        "from vllm.platforms import current_platform\n"
        "apply_top_k_top_p_triton = dispatcher(WarmupChoices)\n"
    ),
    "vllm/model_executor/warmup/jit_warmup.py": "class WarmupChoices: pass\n",
    "vllm/model_executor/warmup/jit_warmup_triton_helper.py": (
        "from vllm import envs\n"
        "from vllm.model_executor.warmup.jit_warmup import WarmupChoices\n"
        "from vllm.platforms import current_platform\n"
        "from vllm.triton_utils import HAS_TRITON, triton\n"
        "def dispatcher(choices):\n"
        "    assert choices is WarmupChoices and HAS_TRITON and current_platform.device_type == 'cuda'\n"
        "    return lambda logits, k, p: logits\n"
    ),
}


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file as `make gpu-peers` writes it, on a machine that it is for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(vllm_triton.FILE_VARIABLE, raising=False)
    path = tmp_path / "gpu-peers.zip"
    write(path, CONTENTS)
    return path


def write(path: Path, contents: object) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(packed_peers.CONTENTS, json.dumps(contents))
        archive.writestr(f"{packed_peers.PYTHON_PATH}/packed_module_of_a_peer.py", "here = True\n")
        for name, text in VLLM_FILES.items():
            archive.writestr(f"{packed_peers.VLLM}/{name}", text)


def test_peers_are_put_in_place(packed: Path) -> None:
    said = packed_peers.put_in_place(packed)
    assert said == "peers as packed: FlashInfer 0.7.2, the Triton kernel of vLLM 0.32.0"
    assert importlib.import_module("packed_module_of_a_peer").here
    assert Path(os.environ[vllm_triton.FILE_VARIABLE]) == packed.with_suffix("") / KERNEL
    logits = torch.randn(2, 3)
    assert vllm_triton.load_kernel()(logits, None, None) is logits
    assert not [name for name in sys.modules if name.partition(".")[0] == "vllm"], "nothing of vLLM's part is left"
    assert packed_peers.put_in_place(packed) == said, "a second process of the same run does the same"
    del sys.modules["packed_module_of_a_peer"]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({**CONTENTS, "interpreter": "cp27"}, f"left alone: it is for cp27, and this is {HERE}"),
        ({**CONTENTS, "capability": "8.0"}, "left alone: it is for compute capability 8.0, and this GPU has 9.0"),
        ({"capability": "9.0"}, "is damaged, make it again with make gpu-peers"),
        ([1], "is damaged, make it again with make gpu-peers"),
    ],
)
def test_what_is_for_another_machine_is_left_alone(packed: Path, contents: object, said: str) -> None:
    write(packed, contents)
    path = list(sys.path)
    assert said in packed_peers.put_in_place(packed)
    assert sys.path == path
    assert vllm_triton.FILE_VARIABLE not in os.environ
    assert not packed.with_suffix("").exists()


def test_a_file_that_is_none_and_one_that_is_cut_off(packed: Path) -> None:
    assert "no peers were packed" in packed_peers.put_in_place(packed.with_name("other.zip"))
    packed.write_bytes(packed.read_bytes()[:100])
    assert "is damaged, make it again with make gpu-peers: BadZipFile" in packed_peers.put_in_place(packed)


def test_without_a_gpu_nothing_is_unpacked(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert packed_peers.put_in_place(packed).endswith("was left alone: there is no GPU")


def test_a_wheel_without_the_headers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "curand.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("elsewhere/curand.h", "")
    monkeypatch.setattr(pack_peers, "_downloaded", lambda *_: wheel)
    with pytest.raises(FileNotFoundError, match=r"nvidia-curand==.* has no include/curand\*\.h"):
        pack_peers._for_compiling(tmp_path, "9.0")


def test_what_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of packing, but for the compiler and the downloads."""
    library = tmp_path / "compiled.so"
    library.write_text("a library")
    wheel = tmp_path / "any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tvm_ffi/__init__.py", "")
        for name, text in VLLM_FILES.items():
            archive.writestr(name, text)
    monkeypatch.setattr(pack_peers, "_for_compiling", lambda work, capability: {"PACKED_FOR": capability})
    monkeypatch.setattr(pack_peers, "_downloaded", lambda requirement, work, *options: wheel)
    monkeypatch.setattr(pack_peers, "_compiled", lambda module, environment: (f"{module}_digest", library))
    out = tmp_path / "gpu-peers.zip"
    assert pack_peers.main(["--python", "3.12", "--out", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        names = set(archive.namelist())
        contents = json.loads(archive.read(packed_peers.CONTENTS))
    assert contents == {
        "interpreter": "cp312",
        "capability": "9.0",
        "flashinfer": importlib.metadata.version("flashinfer-python"),
        "vllm": "0.32.0",
    }
    for module in ("sampling", "topk", "cake_sampling"):
        assert f"python/flashinfer/data/aot/{module}_digest/{module}_digest.so" in names
    assert {
        "python/flashinfer/sampling.py",
        "python/flashinfer/cake_sampling.py",
        "python/tvm_ffi/__init__.py",
    } <= names
    # Its name is a digest of its sources, and looked for under that name.
    assert "python/flashinfer/data/csrc/cake_sampling/generated/manifest.json" in names
    assert {name for name in names if name.startswith("vllm-part/")} == {f"vllm-part/{name}" for name in VLLM_FILES}
