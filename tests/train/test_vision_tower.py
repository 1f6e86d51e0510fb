"""A vision tower of one's own: transformers' CLIP in all but its loss, saved as Show-o loads it, and able to learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from showo.data.make_assets import encode_png
from showo.data.tar import write_tar
from showo.errors import ConfigError, UserError
from showo.model.clip import ClipTower
from showo.model.contrastive import ContrastiveTowers, TowersConfig, contrastive_loss
from showo.seeds import seeded_generator
from showo.tokens import TextTokenizer
from showo.train.checkpoint import checkpoints
from showo.train.config import VisionTowerTraining, load_config
from showo.train.loop import TrainLoop
from showo.train.vision_tower import pair_batches, retrieval, train_vision_tower, vision_tower_loop
from tests.train.conftest import webdataset

transformers = pytest.importorskip("transformers")

SIZES = TowersConfig(hidden_size=32, num_layers=3, num_heads=2, intermediate_size=64, text_layers=1, max_text_len=9)


def towers() -> ContrastiveTowers:
    return ContrastiveTowers(SIZES, 32, 50)


def some_pixels(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)


def test_similarities_are_those_of_transformers() -> None:
    """Which ends a text at the first id that is the end mark."""
    model, end = towers(), 49
    lengths = torch.tensor([9, 4, 1, 6])
    texts = torch.randint(end, (4, 9)).masked_fill(torch.arange(9) >= lengths[:, None] - 1, end)
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=model.vision_config.to_dict(),
            text_config={**model.text_model.config.to_dict(), "eos_token_id": end},
            projection_dim=32,
        )
    ).eval()
    theirs.load_state_dict(model.state_dict())
    pixels = some_pixels(3)
    with torch.no_grad():
        found = model(pixels, texts, lengths)
        expected = theirs(pixel_values=model.pixel_norm(pixels), input_ids=texts).logits_per_image
    assert found.shape == (3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_against_its_definition() -> None:
    """Mean of -log p over the pictures and over the texts, p of all that is right; two of the texts are equal."""
    logits = 3 * torch.randn(4, 4, dtype=torch.float64)
    texts = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 5]])
    right = {0: (0, 2), 1: (1,), 2: (0, 2), 3: (3,)}
    total = 0.0
    for scores in (logits, logits.T):
        for row, which in right.items():
            logs = scores[row] - scores[row].exp().sum().log()
            total -= float(sum(logs[i] for i in which)) / len(which) / 4
    assert contrastive_loss(logits, texts).item() == pytest.approx(total / 2, rel=1e-12)
    found = retrieval(torch.tensor([[0.0, 0, 2, 1], [5, 1, 0, 0], [0, 3, 0, 0], [0, 0, 0, 9]]), texts)
    assert found["caption_found"].tolist() == [1, 0, 0, 1]
    assert found["picture_found"].tolist() == [0, 0, 1, 1]


def test_what_is_saved_is_what_show_o_sees_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = towers()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    tower = ClipTower.from_pretrained(tmp_path)
    assert "UNEXPECTED" not in capfd.readouterr().err
    assert (tower.side, tower.width, tower.image_tokens) == (32, 32, 16)
    pixels = some_pixels(2)
    with torch.no_grad():
        states = model.vision_model(pixel_values=model.pixel_norm(pixels), output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(pixels), states[2][:, 1:], rtol=1e-5, atol=1e-5)


def small_training(pictures: Path, *overrides: str) -> VisionTowerTraining:
    data = [f"data={webdataset(pictures / 'train-*.tar')}", f"held_out={webdataset(pictures / 'val-*.tar')}"]
    sizes = [f"model.{name}={value}" for name, value in SIZES.__dict__.items()]
    common = ["resolution=32", "batch=16", "steps=6", "checkpoint_every=3", "validate_every=100", "precision=fp32"]
    return load_config(VisionTowerTraining, "tiny-vision-tower", [*data, *sizes, *common, *overrides])


def train(config: VisionTowerTraining, run: Path) -> TrainLoop:
    return train_vision_tower(config, run, console=Console(quiet=True))


def test_it_learns_which_caption_belongs_to_a_picture(pictures: Path, tmp_path: Path) -> None:
    """16 pictures of 8 colours and 2 shapes; four of them are the held-out ones, to be told from each other."""
    loop = train(small_training(pictures, "steps=120", "optimizer.lr=3e-3", "optimizer.warmup_steps=10"), tmp_path)
    assert loop.history[0] > 2.5  # log 16, as long as all are alike
    assert loop.history[-1] < 1
    with torch.no_grad():
        figures, _ = loop.validate(loop.model, 120)
    assert figures == {"caption_found": 1.0, "picture_found": 1.0}
    assert checkpoints(tmp_path)[-1].name == "step-000120"


def test_validation_is_the_mean_over_all_held_out_pictures(pictures: Path, tmp_path: Path) -> None:
    """Each is compared with those of its batch, of which the last one is smaller."""
    loop = vision_tower_loop(small_training(pictures, "batch=3"), tmp_path, Console(quiet=True))
    config: Any = loop.config
    held_out = pair_batches("held_out", config, config.held_out, TextTokenizer.from_file(config.text_tokenizer))
    with torch.no_grad():
        found, _ = loop.validate(loop.model, 0)
        batches = [held_out.of(numbers) for numbers in (range(3), range(3, 4))]
        each = [retrieval(loop.model(b.pixels, b.texts, b.lengths), b.texts) for b in batches]
    assert found == {name: float(torch.cat([some[name] for some in each]).mean()) for name in each[0]}
    assert each[1]["caption_found"].tolist() == [1]  # alone in its batch


def test_similarities_are_bounded() -> None:
    model = towers()
    model.logit_scale.data.fill_(9.0)
    with torch.no_grad():
        found = model(some_pixels(3), torch.randint(49, (3, 5)), torch.tensor([5, 5, 5]))
    assert found.abs().max() <= 100


def test_a_micro_batch_compares_its_own_pictures(pictures: Path, tmp_path: Path) -> None:
    config = small_training(pictures, "accumulate=2")
    loop = vision_tower_loop(config, tmp_path, Console(quiet=True))
    batches = list(loop.data.between(0, 2))
    counts = {"pictures": 16.0}
    losses = [loop.loss(batch, counts, seeded_generator(0))[0] for batch in batches]
    expected = [contrastive_loss(loop.model(b.pixels, b.texts, b.lengths), b.texts) / 2 for b in batches]
    assert losses == expected


def test_captions_become_rows_with_an_end(pictures: Path, tmp_path: Path) -> None:
    config = small_training(pictures)
    texts = TextTokenizer.from_file(config.text_tokenizer)
    (batch,) = vision_tower_loop(config, tmp_path, Console(quiet=True)).data.between(0, 1)
    seen = set()
    for row, length in zip(batch.texts.tolist(), batch.lengths.tolist(), strict=True):
        assert row[length - 1 :] == [texts.eos] * (len(row) - length + 1)
        seen.add(texts.decode(row[: length - 1]))
    assert len(seen) == 16
    assert "teal square" in seen
    assert batch.texts.shape[1] == batch.lengths.max()


def test_a_picture_has_any_of_its_captions(tmp_path: Path) -> None:
    """Another one in every epoch, as it happens."""
    picture = encode_png(Image.new("RGB", (32, 32)))
    for name in ("train-0.tar", "val-0.tar"):
        write_tar(tmp_path / name, [("a.png", picture), ("a.json", b'{"captions": ["red", "green", "blue"]}')])
    config = small_training(tmp_path)
    texts = TextTokenizer.from_file(config.text_tokenizer)
    (batch,) = vision_tower_loop(config, tmp_path, Console(quiet=True)).data.between(0, 1)
    assert {texts.decode(row) for row in batch.texts.tolist()} == {"red", "green", "blue"}


def test_a_caption_that_is_too_long_is_skipped(pictures: Path, tmp_path: Path) -> None:
    config = small_training(pictures, "model.max_text_len=3")
    (batch,) = vision_tower_loop(config, tmp_path, Console(quiet=True)).data.between(0, 1)
    assert batch.lengths.max() <= 3
    faults = [fault for each in batch.samples for fault in each.faults]
    assert {fault.reason for fault in faults} == {"long caption"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resolution=36", "resolution must be a multiple of model.patch_size 8, got 36"),
        ("model.num_layers=1", "num_layers must be at least 2, got 1"),
        ("model.num_heads=3", "hidden_size 32 is not a multiple of num_heads 3"),
        ("batch=1", "batch must be at least 2 for each of accumulate 1, got 1"),
        ("data=[{layout: codes, files: [x.parquet]}]", "layout must be one of pictures, got codes"),
    ],
)
def test_configurations_that_make_no_sense(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(VisionTowerTraining, "tiny-vision-tower", ["model.hidden_size=32", override])


def test_without_transformers(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"a vision tower needs transformers: pip install 'showo_ext\[clip\]'"):
        train(small_training(pictures), tmp_path)
