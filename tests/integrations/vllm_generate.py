"""Generates with vLLM and the model of the demo, prints what it drew as JSON; test_vllm_model.py runs this twice."""

import json
import os
import sys
from typing import Any

# For a quiet machine and a small one: one thread, 1 GiB of keys and values, nothing from the network.
os.environ.update(OMP_NUM_THREADS="1", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

PROMPTS = ["The capital of France is", "Once upon a time", "In 1969, people", "My favourite colour is"]
TOKENS = 12


def seeded(**changes: Any) -> SamplingParams:
    """Sampled with a seed, by a bit of everything."""
    parameters = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 7}
    return SamplingParams(**{**parameters, "max_tokens": TOKENS, **changes})


def main(model: str) -> None:
    """Generate with the model in a folder."""
    engine = LLM(model, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=8)

    def tokens(prompts: list[str], parameters: Any) -> list[list[int]]:
        return [list(each.outputs[0].token_ids) for each in engine.generate(prompts, parameters, use_tqdm=False)]

    greedy = engine.generate(
        PROMPTS, SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=3, min_tokens=6), use_tqdm=False
    )
    colours = StructuredOutputsParams(choice=["red", "green", "blue"])
    choice = engine.generate(PROMPTS[3:], seeded(structured_outputs=colours), use_tqdm=False)
    result = {
        "greedy": [list(each.outputs[0].token_ids) for each in greedy],
        "logprobs": [
            [
                sorted((token, said.logprob, said.rank) for token, said in step.items())
                for step in each.outputs[0].logprobs
            ]
            for each in greedy
        ],
        "alone": tokens(PROMPTS[2:3], seeded()),
        "in a batch": tokens(PROMPTS, [SamplingParams(max_tokens=20), seeded(seed=8), seeded(), seeded(seed=9)])[2:3],
        "other seed": tokens(PROMPTS[2:3], seeded(seed=8)),
        "choice": choice[0].outputs[0].text,
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":  # vLLM starts processes that import this file
    main(sys.argv[1])
