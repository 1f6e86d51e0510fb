"""The published Show-o model on our operators, before and after.

    git clone https://github.com/showlab/Show-o
    python examples/official.py Show-o

Builds a tiny model of the published class `Showo` from the sources in that folder (they need `diffusers`), and compares
its logits and gradients before and after `official.patch`. With the released weights the same is

    model = Showo.from_pretrained("showlab/show-o-256")
    official.patch(model)
"""

from __future__ import annotations

import sys
import tempfile

import torch
from torch import Tensor, nn
from transformers import PhiConfig

from showo_ext import OmniMask
from showo_ext.integrations import official

TEXT, CODES, VOCAB = 12, 16, 200


def build(sources: str) -> nn.Module:
    sys.path.insert(0, sources)
    from models import Showo

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    with tempfile.TemporaryDirectory() as folder:
        PhiConfig(vocab_size=VOCAB, **sizes).save_pretrained(folder)
        return Showo(w_clip_vit=False, vocab_size=VOCAB, llm_vocab_size=100, llm_model_path=folder)


def additive_mask() -> Tensor:
    """[2, 1, S, S] as the published code makes it for drawing: 5 and 0 places of padding, text, then a picture."""
    mask = OmniMask.t2i_padded([5, 0], text_length=TEXT, image_length=CODES)
    return torch.zeros(mask.shape).masked_fill(~mask.to_dense(), torch.iinfo(torch.int64).min).unsqueeze(1)


def logits_and_gradients(model: nn.Module, ids: Tensor, mask: Tensor) -> list[Tensor]:
    model.zero_grad()
    logits = model(ids, attention_mask=mask)
    nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    return [logits.detach(), *(weight.grad for weight in model.parameters())]


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("expected one argument, the folder of the published sources")
    torch.manual_seed(0)
    model = build(sys.argv[1]).eval()
    ids, mask = torch.randint(VOCAB, (2, TEXT + CODES)), additive_mask()
    before = logits_and_gradients(model, ids, mask)
    layers = official.patch(model)
    after = logits_and_gradients(model, ids, mask)
    difference = max(float((a - b).abs().max()) for a, b in zip(after, before))
    print(f"{layers} layers: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
