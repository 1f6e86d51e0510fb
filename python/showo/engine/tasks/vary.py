"""Pictures near others: a share of the codes drawn anew, or two pictures mixed and their seams drawn anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from showo.engine.drawing import Drawing, check_output, paired, repeated
from showo.engine.options import Asked
from showo.errors import UserError
from showo.pictures import fit, to_rgb
from showo.seeds import seeded_generator

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline


def vary(
    pipe: ShowoPipeline,
    asked: Asked,
    image: Image.Image | Sequence[Image.Image],
    prompt: str | Sequence[str],
    other: Image.Image | None,
    share: float,
    num_images_per_prompt: int,
    output_type: str,
) -> Any:
    """The output for pictures near the given ones; arguments and errors as of `Variation`."""
    check_output(output_type)
    task = Variation(pipe, asked, image, prompt, other, share, num_images_per_prompt)
    return task.drawing.output(task.drawing.draw_all(task.canvas()), output_type)


class Variation:
    """Without `other`: ceil(share * N) of a picture's N codes are drawn anew, the rest stays as it is.

    With it: as many codes are those of the other picture, in regions with smooth borders; the codes along the borders
    are drawn anew, the others stay as they are in the picture that they come from.

    Which codes that is follows from each picture's seed.
    """

    def __init__(
        self,
        pipe: ShowoPipeline,
        asked: Asked,
        image: Image.Image | Sequence[Image.Image],
        prompt: str | Sequence[str],
        other: Image.Image | None,
        share: float,
        num_images_per_prompt: int = 1,
    ) -> None:
        check_share(share)
        if other is not None and not isinstance(other, Image.Image):
            raise TypeError(f"other must be one picture (PIL.Image), got {other!r}")
        shown, texts = paired(image, prompt)
        self.drawing = Drawing(pipe, asked, repeated(texts, num_images_per_prompt), pipe.grid(asked.size))
        pixels = pipe.pixels(self.drawing.grid)  # a request that waits holds no more than these
        self._shown = [fit(picture, pixels) for picture in shown]
        self._other = None if other is None else fit(to_rgb(other), pixels)
        self._mask_id = pipe.config.vocabulary.mask_id
        self._share, self._times = share, num_images_per_prompt

    def canvas(self) -> Tensor:
        """Vocabulary ids [B, N] to draw on."""
        grid, seeds, share = self.drawing.grid, self.drawing.seeds, self._share
        ids = self.drawing.encode(self._shown).repeat_interleave(self._times, 0)
        if self._other is None:
            drawn = torch.stack([some_places(ids.shape[1], share, seed) for seed in seeds])
        else:
            regions = torch.stack([some_region(grid, share, seed) for seed in seeds])
            ids = torch.where(regions.to(ids.device), self.drawing.encode([self._other]), ids)
            drawn = torch.stack([seams(region, grid) for region in regions])
        return ids.masked_fill(drawn.to(ids.device), self._mask_id)


def check_share(share: float) -> None:
    """UserError for other than a share that is more than none and at most all, TypeError for what is no number."""
    if not isinstance(share, (int, float)):
        raise TypeError(f"share must be a number, got {share!r}")
    if not 0 < share <= 1:
        raise UserError(f"share must be more than 0 and at most 1, got {share}")


def some_places(count: int, share: float, seed: int) -> Tensor:
    """bool [count], ceil(share * count) of them true, by the seed."""
    order = torch.randperm(count, generator=seeded_generator(seed))
    return order < math.ceil(share * count)


def some_region(grid: tuple[int, int], share: float, seed: int) -> Tensor:
    """bool [h * w], ceil(share * h * w) of them true, by the seed: a few connected regions with smooth borders.

    They are where a smooth random field (noise of a quarter of the resolution, bicubic) is highest.
    """
    coarse = [math.ceil(side / 4) + 1 for side in grid]
    noise = torch.rand(1, 1, *coarse, generator=seeded_generator(seed))
    field = F.interpolate(noise, size=grid, mode="bicubic", align_corners=True).flatten()
    chosen = field.argsort(descending=True, stable=True)[: math.ceil(share * len(field))]
    return torch.zeros(len(field), dtype=torch.bool).index_fill(0, chosen, True)


def seams(region: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool [h * w]: the places that have one of the other side among their eight neighbours."""
    inside = region.view(1, 1, *grid).float()
    near, far = (F.max_pool2d(part, 3, stride=1, padding=1) for part in (inside, 1 - inside))
    return (near * far).flatten() > 0
