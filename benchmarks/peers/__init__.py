"""The samplers that the benchmark compares with, one file each; `PEERS` lists them."""

from .base import Peer
from .hugging_face import HuggingFace
from .llama_cpp import LlamaCpp
from .onnxruntime_genai import OnnxRuntimeGenAI
from .torch_by_hand import TorchByHand

PEERS: dict[str, Peer] = {peer.key: peer for peer in (HuggingFace(), TorchByHand(), OnnxRuntimeGenAI(), LlamaCpp())}
