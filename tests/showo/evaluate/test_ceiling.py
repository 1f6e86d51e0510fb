"""The tokenizer's ceiling: what goes through the codes is what the judge sees."""

from __future__ import annotations

import pytest
import torch

from showo.data.world.objects import Object
from showo.data.world.scene import Scene
from showo.evaluate.world.ceiling import share_right
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig


class Keeper(ImageTokenizer):
    """Its codes are the numbers of the pictures it has seen; what it draws again has `lost` one picture in turn."""

    def __init__(self, lost: int) -> None:
        levels = (1, 1, 1, 1)
        super().__init__(
            ImageTokenizerConfig(
                channels=8,
                norm_groups=4,
                encoder_multipliers=levels,
                decoder_multipliers=levels,
                encoder_blocks=levels,
                decoder_blocks=levels,
            )
        )
        self.lost, self.seen = lost, torch.empty(0)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return torch.arange(len(images))[:, None]

    def decode(self, codes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        assert (height, width) == (8, 8)
        kept = torch.arange(len(codes)) % self.lost != 0
        return torch.where(kept[:, None, None, None], self.seen, 1.0)


@pytest.mark.parametrize(("lost", "share"), [(2, 0.5), (5, 0.8)])
def test_the_share_counts_scenes_that_came_back(lost: int, share: float) -> None:
    scenes = [Scene((Object("star", "red", 12, 12 + 4 * i),)) for i in range(10)]
    assert share_right(Keeper(lost), scenes) == share
