"""The CLIP tower against transformers' own preprocessing and model, on random pictures and a small random tower."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from showo.errors import CheckpointError, UserError
from showo.model.clip import ClipTower, clip_fit, clip_pixels

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7
    )
    path = tmp_path_factory.mktemp("clip")
    transformers.CLIPVisionModel(config).save_pretrained(path)
    return path


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy())


@pytest.mark.parametrize(
    "size", [(28, 28), (61, 40), (40, 61), (29, 28), (31, 28), (28, 31), (200, 31), (7, 9), (500, 333)]
)
def test_pixels_and_features_are_those_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    tower = ClipTower.from_pretrained(folder)
    image = picture(*size)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": tower.side}, crop_size={"height": tower.side, "width": tower.side}
    )
    theirs = torch.from_numpy(np.stack(processor(image)["pixel_values"]))
    pixels = clip_pixels(image, tower.side)
    assert pixels.dtype == torch.uint8
    assert torch.equal(clip_pixels(clip_fit(image, tower.side), tower.side), pixels)
    torch.testing.assert_close(tower.pixel_norm(pixels), theirs[0], rtol=1e-5, atol=1e-5)

    features = tower(pixels[None])
    assert features.shape == (1, tower.image_tokens, tower.width) == (1, 16, 24)
    with torch.no_grad():
        states = tower.vision(theirs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(features, states[2][:, 1:], rtol=1e-4, atol=1e-4)  # of 0..3: before the last layer


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000)])
def test_a_thread_of_pixels_does_not_grow_to_a_giant(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    resized, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *a: resized.append(to) or resize(self, to, *a))
    assert clip_pixels(picture(*size), 28).shape == (3, 28, 28)
    assert sorted(resized[0]) == [28, 8 * 28]


def test_the_tower_is_frozen(folder: Path) -> None:
    tower = ClipTower.from_pretrained(folder).train()
    assert not tower.training
    assert not tower.vision.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower(torch.zeros(1, 3, 28, 28, dtype=torch.uint8)).requires_grad
    assert tower.to(torch.bfloat16)(torch.zeros(1, 3, 28, 28, dtype=torch.uint8)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"expected uint8 \[n, 3, 28, 28\], got torch.float32 \[1, 3, 28, 28\]"):
        tower(torch.zeros(1, 3, 28, 28))


def test_folders_without_a_tower_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        ClipTower.from_pretrained(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="holds no CLIP vision tower"):
        ClipTower.from_pretrained(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = min(weights)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds no CLIP vision tower: 1 weights are missing, such as"):
        ClipTower.from_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers: pip install 'showo_ext\[clip\]'"):
        ClipTower.from_pretrained(folder)
