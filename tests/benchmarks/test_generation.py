"""What the benchmark of generation compares is the same computation."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks import bench_generation
from showo.config import official
from showo.model.transformer import Showo
from showo.prompting import Prompting


def test_both_steps_see_the_same_logits() -> None:
    torch.manual_seed(1)
    config = replace(official(), hidden_size=64, num_heads=2, intermediate_size=128, num_layers=2)
    model = Showo(config)
    eager = Showo(config)
    eager.load_state_dict(model.state_dict())
    prompting = Prompting.for_model(config, eot=bench_generation.EOT)
    vocab = config.vocabulary
    canvas = torch.randint(vocab.image_offset, vocab.mask_id, (1, 256))
    canvas[:, ::2] = vocab.mask_id
    ours = bench_generation.our_logits(model, prompting, canvas)()
    theirs = bench_generation.official_logits(eager, prompting, canvas)()[:, -257:-1, vocab.image_offset : -1]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    wanted = torch.tensor([[3, 200, 17]])
    some = bench_generation.our_logits(model, prompting, canvas, wanted)()
    torch.testing.assert_close(some[:, wanted[0]], ours[:, wanted[0]], rtol=1e-4, atol=1e-5)
