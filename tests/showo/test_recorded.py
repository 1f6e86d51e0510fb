"""A run of a small model, recorded from the official formulas, that later versions have to give again.

`python -m tests.showo.test_recorded` records it anew. Weights and noise are made of integers, so they are the same
everywhere; what is recorded is what the eager, padded twin in fp64 makes of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from showo.config import ShowoConfig
from showo.engine.generate import generate_codes
from showo.engine.understand import answer
from showo.model.transformer import Showo
from showo.prompting import Prompting
from tests.showo import official_twin
from tests.showo.conftest import EOT, small_config

RECORDED = Path(__file__).parent / "recorded_run.json"
TEXTS, QUESTION = ([1, 2, 3], [5, 9, 30, 4]), [7, 8]
STEPS, GUIDANCE, TOKENS = 6, 1.75, 8


def hashed(count: int, seed: int) -> Tensor:
    """Numbers in (0, 1), exact in fp32: 32-bit integers, multiplied and shifted, and 23 bits of what that gives."""
    x = (torch.arange(count) + seed * 7919 + 1) * 2654435761 % 2**32
    x = (x ^ (x >> 15)) * 2246822519 % 2**32
    x = (x ^ (x >> 13)) * 3266489917 % 2**32
    return (((x ^ (x >> 16)) >> 9).float() + 0.5) / 2**23


def weights(config: ShowoConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Showo(config).state_dict().items()}
    state = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        spread = hashed(shape.numel(), seed).view(shape) * 2 - 1
        around = 1.0 if name.endswith("norm.weight") else 0.0
        state[name] = around + spread * (0.3 if len(shape) == 2 else 0.1)
    return state


def noise(row: int, config: ShowoConfig) -> official_twin.Noise:
    places, codes = config.num_vq_tokens, config.codebook_size

    def draw(step: int) -> tuple[Tensor, Tensor]:
        seed = 1000 + row * 100 + step
        return hashed(places * codes, seed).view(places, codes), hashed(places, seed + 50)

    return draw


def run_of_the_twin() -> dict[str, Any]:
    config = small_config()
    state = weights(config)
    pictures = [
        official_twin.generate(state, config, text, eot=EOT, steps=STEPS, guidance=GUIDANCE, noise=noise(row, config))
        for row, text in enumerate(TEXTS)
    ]
    ids = torch.arange(0, config.vocab_size, 5)
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    logits = official_twin.forward(state, config, ids, causal, torch.arange(len(ids)))
    return {
        "logits": [[float(f"{value:.9g}") for value in row] for row in logits[-3:].tolist()],
        "codes": [picture.tolist() for picture in pictures],
        "answer": official_twin.describe(state, config, pictures[0], QUESTION, eot=EOT, tokens=TOKENS).tolist(),
    }


def test_the_run_is_still_the_recorded_one() -> None:
    config = small_config()
    model = Showo(config).eval()
    model.load_state_dict(weights(config))
    recorded = json.loads(RECORDED.read_text())

    logits = model(torch.arange(0, config.vocab_size, 5)[None])[0, -3:]
    expected = torch.tensor(recorded["logits"])
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()

    prompting = Prompting.for_model(config, eot=EOT)
    draws = [noise(row, config) for row in range(len(TEXTS))]

    def both(step: int) -> tuple[Tensor, Tensor]:
        pairs = [draw(step) for draw in draws]
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])

    for official in (False, True):
        codes = generate_codes(model, prompting, TEXTS, steps=STEPS, guidance=GUIDANCE, noise=both, official=official)
        assert codes.tolist() == recorded["codes"]
    images = codes[:1] + config.vocabulary.image_offset
    assert answer(model, prompting, images, [QUESTION], max_new_tokens=TOKENS) == [recorded["answer"]]


def test_the_twin_gives_the_recorded_run() -> None:
    found, recorded = run_of_the_twin(), json.loads(RECORDED.read_text())
    torch.testing.assert_close(
        torch.tensor(found.pop("logits")), torch.tensor(recorded.pop("logits")), rtol=1e-7, atol=1e-7
    )
    assert found == recorded


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(run_of_the_twin()) + "\n")
