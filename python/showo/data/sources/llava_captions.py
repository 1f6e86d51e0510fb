"""LLaVA's conversations of one question about one picture, whose answer is taken as the picture's caption.

The released models with CLIP-ViT first see LLaVA-Pretrain-558K so ("plain"): its question, any phrasing of "describe
the picture", and the system prompt are left out (showlab/Show-o, llava/llava_pretrain_data.py).
"""

from __future__ import annotations

from pathlib import Path

from showo.data.captions import usable_captions
from showo.data.sample import CaptionedPicture
from showo.data.sources.config import SourceConfig
from showo.data.sources.llava import Llava
from showo.errors import SampleError


class LlavaCaptions:
    kind = CaptionedPicture

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name, self.clean = config.describe(), config.clean
        self.conversations = Llava(config, cache)

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> CaptionedPicture:
        said = self.conversations[index]
        origin = f"{self.name}: {said.key}"
        if len(said.pictures) != 1 or len(said.turns) != 1:
            found = f"{len(said.turns)} questions about {len(said.pictures)} pictures"
            raise SampleError(f"{origin}: expected one question about one picture, got {found}", "wrong conversation")
        return CaptionedPicture(said.key, *said.pictures, usable_captions(said.turns[0].answer, self.clean, origin))
