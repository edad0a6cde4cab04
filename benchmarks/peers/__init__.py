"""The samplers that the benchmark compares with on the CPU, one file each; `PEERS` lists them."""

from .base import Peer
from .ctranslate2 import CTranslate2
from .hugging_face import HuggingFace
from .llama_cpp import LlamaCpp
from .onnxruntime_genai import OnnxRuntimeGenAI
from .torch_by_hand import TorchByHand
from .torch_compiled import TorchCompiled
from .vllm import Vllm

PEERS: dict[str, Peer] = {
    peer.key: peer
    for peer in (
        HuggingFace(),
        TorchByHand(),
        TorchCompiled(),
        Vllm(),
        OnnxRuntimeGenAI(),
        LlamaCpp(),
        CTranslate2(),
    )
}
