"""Pictures from pictures: which codes stay, masks at code level, pixels that are blended, windows, seams, seeds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from showo.engine.pipeline import ShowoPipeline
from showo.engine.samplers import SAMPLERS
from showo.engine.tasks.extend import Extension, draw_in_turn
from showo.engine.tasks.inpaint import as_mask, blended, masked_places
from showo.engine.tasks.vary import seams, some_places, some_region
from showo.errors import SampleError, UserError
from showo.model.transformer import Showo
from showo.pictures import fit_mask, to_grey

MASK = -1


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> ShowoPipeline:
    return ShowoPipeline.from_pretrained(checkpoint)


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def codes_of(pipe: ShowoPipeline, picture: Image.Image, grid: tuple[int, int] = (4, 4)) -> Tensor:
    return (pipe.encode([picture], grid) - pipe.model.config.vocabulary.image_offset).view(grid)


# ---- inpaint ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [name.partition("[")[0] for name in SAMPLERS.replace(" or", ",").split(", ")])
def test_codes_outside_the_mask_stay(pipe: ShowoPipeline, sampler: str) -> None:
    pictures = [noise(1), noise(2)]
    mask = Image.new("L", (16, 16))
    mask.putpixel((4, 9), 1)  # the faintest brush, on the first pixel of code (2, 1)
    mask.paste(255, (8, 0, 16, 5))  # one pixel into the second row of codes
    codes = pipe.inpaint(pictures, "a", mask, steps=3, sampler=sampler, num_images_per_prompt=3, output_type="codes")
    assert codes.shape == (6, 4, 4)
    drawn = torch.zeros(4, 4, dtype=torch.bool)
    drawn[2, 1] = drawn[:2, 2:] = True
    for number, found in enumerate(codes):
        old = codes_of(pipe, pictures[number // 3])
        assert torch.equal(found[~drawn], old[~drawn])
    assert all(len(set(found)) > 1 for found in codes[:3, drawn].T.tolist())  # every marked place, in one of three
    assert len({tuple(found.flatten().tolist()) for found in codes}) == 6


def test_a_box_is_a_mask(pipe: ShowoPipeline) -> None:
    mask = Image.new("1", (16, 16))
    mask.paste(1, (4, 5, 12, 8))
    options: dict[str, Any] = {"steps": 2, "seed": 3}
    ((boxed,), (masked,)) = (pipe.inpaint(noise(1), "a", area, **options) for area in ((4, 5, 12, 8), mask))
    assert boxed.tobytes() == masked.tobytes()
    places = masked_places(as_mask((4, 5, 12, 8), (16, 16)), (4, 4)).view(4, 4)
    assert places.nonzero().tolist() == [[1, 1], [1, 2]]


def test_a_mask_is_cropped_and_resized_with_its_picture() -> None:
    """No marked pixel gets lost, however much smaller the picture becomes, unless it is cropped away."""
    generator = torch.Generator().manual_seed(0)
    for width, height, x, y in torch.randint(20, 90, (50, 4), generator=generator).tolist():
        mask = Image.new("L", (width, height))
        mask.putpixel((x % width, y % height), 255)
        scale = 16 / min(width, height)
        column, row = (  # of the middle of the marked pixel in the fitted mask
            (at % side + 0.5 - (side - min(width, height)) / 2) * scale for at, side in ((x, width), (y, height))
        )
        fitted = np.array(fit_mask(mask, (16, 16)))
        rows, columns = fitted.nonzero()
        if 1 < column < 15 and 1 < row < 15:
            assert len(rows) > 0
        assert (np.abs(rows + 0.5 - row) < 2).all()
        assert (np.abs(columns + 0.5 - column) < 2).all()


@pytest.mark.parametrize("blend", [0, 3])
def test_pixels_beyond_the_blend_are_the_pictures(pipe: ShowoPipeline, blend: int) -> None:
    picture = noise(4)
    options: dict[str, Any] = {"steps": 2, "mask_image": (5, 5, 7, 7)}
    ((plain,), (found,)) = (
        pipe.inpaint(picture, "a", **options),
        pipe.inpaint(picture, "a", **options, blend=blend),
    )
    x, y = np.meshgrid(np.arange(16), np.arange(16))
    far = np.maximum(np.maximum(5 - x, x - 6), np.maximum(5 - y, y - 6))
    old, new, mixed = (np.array(image).astype(float) for image in (picture, plain, found))
    share = np.clip(1 - far / (blend + 1), 0, 1)[..., None]
    assert (mixed[far > blend] == old[far > blend]).all()
    assert (mixed[far <= 0] == new[far <= 0]).all()
    assert np.abs(mixed - (share * new + (1 - share) * old)).max() <= 1.5
    assert (new[far > blend] != old[far > blend]).any()


def test_a_brush_blends_by_its_grey() -> None:
    black, white, brush = (Image.new(mode, (4, 4), level) for mode, level in (("RGB", 0), ("RGB", "white"), ("L", 0)))
    brush.putpixel((1, 1), 100)
    assert blended(black, white, brush, 0).getpixel((1, 1)) == (100, 100, 100)


def test_masks_are_read_as_grey() -> None:
    with pytest.raises(SampleError, match="mask: has transparent pixels; save it without, white where it marks"):
        to_grey(Image.new("RGBA", (4, 4)))
    assert to_grey(Image.new("RGB", (4, 4), "white")).getextrema() == (255, 255)


# ---- extend ----------------------------------------------------------------------------------------------------------


def test_windows_draw_every_place_once_with_neighbours_in_view() -> None:
    steps = Extension((6, 5), (4, 4), ["right", "down", "left", "up", "up"], by=3)
    ids = torch.arange(30).view(6, 5)
    seen: list[int] = []

    def draw(number: int, window: Tensor) -> Tensor:
        assert window.shape == (4, 4)
        masked = window == MASK
        assert masked.any()
        assert not masked.all()
        seen.append(number)
        return torch.where(masked, 1000 + number, window)

    grown = draw_in_turn(steps.draw(ids, MASK), draw)
    assert grown.shape == steps.grids()[-1] == (6 + 9, 5 + 6)
    assert steps.corner() == (6, 3)
    assert torch.equal(grown[6:12, 3:8], ids)
    assert seen == list(range(sum(steps.windows())))
    assert set(grown.flatten().tolist()) == {*range(30), *(1000 + number for number in seen)}
    assert Extension((4, 4), (4, 4), ["left"]).grids()[-1] == (4, 6)
    for side in range(4, 12):  # windows along a band overlap by half, but for what the last one has more
        starts = Extension((side, 4), (4, 4), ["left"])._starts(0)
        assert starts == sorted({*range(0, side - 4, 2), side - 4})


def test_an_extended_picture(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, directions = noise(5), ["right", "down", "left"]
    prompts: list[list[list[int]]] = []
    import showo.engine.drawing as drawing

    original = drawing.generate_codes

    def record(model: Showo, prompting: object, texts: list[list[int]], **options: Any) -> Tensor:
        prompts.append(texts)
        return original(model, prompting, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "generate_codes", record)
    codes = pipe.extend(picture, ["a", "b", "c"], directions, steps=2, output_type="codes")
    assert codes.shape == (1, 6, 8)
    assert torch.equal(codes[0, :4, 2:6], codes_of(pipe, picture))
    assert prompts == [[ids] for ids in pipe.text_ids(["a", "b", "b", "c", "c"])]
    (drawn,) = pipe.extend(picture, ["a", "b", "c"], directions, steps=2)
    assert drawn.size == (32, 24)
    assert drawn.tobytes() == pipe.decode(codes.flatten(1), (6, 8))[0].tobytes()
    (blend,) = pipe.extend(picture, ["a", "b", "c"], directions, steps=2, blend=2)
    assert blend.crop((10, 0, 22, 14)).tobytes() == picture.crop((2, 0, 14, 14)).tobytes()
    assert blend.crop((0, 16, 32, 24)).tobytes() == drawn.crop((0, 16, 32, 24)).tobytes()
    assert pipe.extend(picture, "a", "up", by=1, steps=1)[0].size == (16, 20)
    assert pipe.extend(noise(6, (24, 16)), "a", "up", by=1, size=(24, 16), steps=1)[0].size == (24, 20)
    seeds = [pipe.extend(picture, "a", "up", steps=2, seed=seed, output_type="codes") for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


# ---- vary ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "drawn"), [(0.01, 1), (0.5, 8), (1.0, 16)])
def test_variations_keep_the_other_codes(pipe: ShowoPipeline, share: float, drawn: int) -> None:
    codes = pipe.vary(noise(7), "a", share=share, steps=2, num_images_per_prompt=3, seed=9, output_type="codes")
    old = codes_of(pipe, noise(7))
    for number, found in enumerate(codes):
        places = some_places(16, share, 9 + number).view(4, 4)
        assert int(places.sum()) == drawn
        assert torch.equal(found[~places], old[~places])
    again = pipe.vary(noise(7), "a", share=share, steps=2, seed=10, output_type="codes")
    assert torch.equal(again[0], codes[1])
    assert len({tuple(found.flatten().tolist()) for found in codes}) == 3


def test_between_two_pictures(pipe: ShowoPipeline) -> None:
    codes = pipe.vary(noise(7), "a", other=noise(8), share=0.4, steps=2, seed=2, output_type="codes")[0]
    region = some_region((4, 4), 0.4, 2)
    drawn, region = seams(region, (4, 4)).view(4, 4), region.view(4, 4)
    assert torch.equal(codes[region & ~drawn], codes_of(pipe, noise(8))[region & ~drawn])
    assert torch.equal(codes[~region & ~drawn], codes_of(pipe, noise(7))[~region & ~drawn])


def test_regions_and_their_seams() -> None:
    for seed in range(5):
        region = some_region((12, 9), 0.3, seed).view(12, 9)
        assert int(region.sum()) == 33  # ceil(0.3 * 108)
        border = seams(region.flatten(), (12, 9)).view(12, 9)
        for row in range(12):
            for column in range(9):
                around = region[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                assert bool(border[row, column]) == (len(around.unique()) == 2)
        assert int(border.sum()) < 80  # of 108: scattered places would make nearly all of them seams
    assert not seams(torch.ones(4, dtype=torch.bool), (2, 2)).any()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("inpaint", {"mask_image": Image.new("L", (16, 15), 255)}, "the mask has 16x15 pixels, its picture 16x16"),
        ("inpaint", {"mask_image": Image.new("L", (16, 16))}, "the mask is black: nothing is to be drawn"),
        (
            "inpaint",
            {"mask_image": (0, 0, 17, 4)},
            "box 0,0,17,4: expected 0 <= left < right <= 16 and 0 <= top < bottom <= 16",
        ),
        ("inpaint", {"mask_image": (4, 4, 4, 8)}, "box 4,4,4,8: expected"),
        ("inpaint", {"mask_image": (0, 0, 4, 4), "blend": -1}, "blend must be 0 or more pixels, got -1"),
        (
            "inpaint",
            {"mask_image": (0, 0, 4, 4), "blend": 1, "output_type": "codes"},
            "blend: codes have no pixels to blend",
        ),
        ("inpaint", {"mask_image": (0, 0, 4, 4), "prompt": []}, "1 pictures for 0 prompts"),
        ("extend", {"directions": "north"}, "direction must be one of left, right, up, down, got 'north'"),
        (
            "extend",
            {"directions": "up", "by": 4},
            "by must be 1 to 3 codes, so that some of the picture is seen, got 4",
        ),
        ("extend", {"directions": "up", "by": 0}, "by must be 1 to 3 codes"),
        (
            "extend",
            {"directions": "up", "size": (8, 16)},
            "a picture of 4x2 codes is smaller than the 4x4 the model sees",
        ),
        ("extend", {"directions": ["up", "up"], "prompt": ["a"]}, "prompt must be one text or 2, got 1"),
        ("extend", {"directions": "up", "size": (16384, 4096)}, "a picture of 16384x4104 pixels, more than"),
        ("extend", {"directions": []}, "directions: none is given; expected left, right, up, down, one for each step"),
        ("vary", {"share": 0.0}, "share must be more than 0 and at most 1, got 0.0"),
        ("vary", {"share": float("nan")}, "share must be more than 0 and at most 1, got nan"),
        ("vary", {"prompt": ["a", "b"], "image": [noise(0)] * 3}, "3 pictures for 2 prompts"),
        ("vary", {"size": (64, 64)}, "a picture of 256 codes needs 279 positions; this model has 128"),
    ],
)
def test_refused_before_any_work(
    pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, task: str, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Showo, "forward", None)
    monkeypatch.setattr(pipe, "encode", None)
    picture = {"image": noise(0), "prompt": "a"}
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        getattr(pipe, task)(**{**picture, **arguments})


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("generate", {"prompt": None}, "prompt must be a text, or a list of texts, got None"),
        ("generate", {"prompt": ["a", 2]}, "prompt must be a text, or a list of texts, got ['a', 2]"),
        ("inpaint", {"image": "a.png", "mask_image": (0, 0, 4, 4)}, "image must be a picture (PIL.Image), or a list"),
        ("inpaint", {"mask_image": [noise(0)]}, "mask_image must be one picture (PIL.Image) for all, or a box"),
        ("inpaint", {"mask_image": (0.5, 0, 8.2, 8)}, "mask_image must be one picture (PIL.Image) for all, or a box"),
        ("extend", {"image": [noise(0)], "directions": "up"}, "image must be one picture (PIL.Image), got ["),
        ("extend", {"directions": "up", "by": 2.5}, "by must be a whole number of codes, got 2.5"),
        ("vary", {"share": "x"}, "share must be a number, got 'x'"),
        ("vary", {"other": "x"}, "other must be one picture (PIL.Image), got 'x'"),
        ("vary", {"num_images_per_prompt": 1.5}, "num_images_per_prompt must be a whole number, got 1.5"),
    ],
)
def test_other_kinds_are_refused_by_name(
    pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, task: str, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Showo, "forward", None)
    monkeypatch.setattr(pipe, "encode", None)
    picture = {"prompt": "a"} if task == "generate" else {"image": noise(0), "prompt": "a"}
    with pytest.raises(TypeError, match=re.escape(message)):
        getattr(pipe, task)(**{**picture, **arguments})


def test_one_or_many(pipe: ShowoPipeline) -> None:
    """What takes many takes one too."""
    picture = noise(3)
    assert pipe.describe(picture, max_new_tokens=3) == pipe.describe([picture], max_new_tokens=3)
    assert pipe.chat(picture).ask("a", max_new_tokens=3) == pipe.chat([picture]).ask("a", max_new_tokens=3)
    (alone,), (listed,) = (
        pipe.vary(shown, **options, steps=2) for shown, options in ((picture, {}), ([picture], {"prompt": [""]}))
    )
    assert alone.tobytes() == listed.tobytes()
