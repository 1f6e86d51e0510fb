"""ImageTokenizer: official names and sizes, codes, losses, and a short training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

import showo.train.image_tokenizer as image_tokenizer_training
from showo.errors import ConfigError
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.pictures import from_pixels
from showo.seeds import seeded_generator
from showo.train.augment import seam
from showo.train.checkpoint import checkpoints
from showo.train.config import TokenizerTraining, load_config
from showo.train.image_tokenizer import picture_batches, picture_losses, tokenizer_loop, train_tokenizer
from showo.train.loop import TrainLoop
from showo.train.tokenizer_losses import colour_loss, locality_loss, loss_terms, psnr
from tests.official import SHAPES, shapes_of
from tests.train.conftest import webdataset

SMALL = ImageTokenizerConfig(
    bits=6,
    channels=8,
    encoder_multipliers=(1, 2),
    encoder_blocks=(1, 1),
    decoder_multipliers=(1, 2),
    decoder_blocks=(1, 1),
    norm_groups=4,
)


def test_published_size_has_the_official_names_and_counts() -> None:
    with torch.device("meta"):
        model = ImageTokenizer(ImageTokenizerConfig())
    assert sum(p.numel() for p in model.encoder.parameters()) == 55_439_171
    assert sum(p.numel() for p in model.decoder.parameters()) == 39_947_833
    assert shapes_of(model) == SHAPES["magvitv2"]
    assert len(model.state_dict()) == 382


def test_the_published_config_holds_no_sizes(tmp_path: Path) -> None:
    """It was written by diffusers' ConfigMixin, whose keys begin with "_"."""
    published = {"_class_name": "MAGVITv2", "_diffusers_version": "0.30.0.dev0"}
    assert ImageTokenizerConfig.from_dict(published) == ImageTokenizerConfig()
    folder = ImageTokenizer(SMALL).save_pretrained(tmp_path)
    sizes = {**SMALL.to_dict(), **published, "_name_or_path": "showlab/magvitv2"}
    (folder / "config.json").write_text(json.dumps(sizes))
    assert ImageTokenizer.from_pretrained(folder).config == SMALL


def test_quantizer_gives_signs_and_straight_through_gradient() -> None:
    model = ImageTokenizer(SMALL)
    z = torch.randn(2, 6, 3, 3) * 10 ** torch.randint(0, 9, (2, 6, 3, 3)).float()
    z[0, 0] = 0
    z.requires_grad_()
    q = model.quantize(z)
    assert torch.equal(q, torch.where(z > 0, 1.0, -1.0))
    cotangent = torch.randn_like(q)
    assert torch.equal(torch.autograd.grad(q, z, cotangent)[0], cotangent)


def test_encode_and_decode_agree_with_the_quantizer() -> None:
    torch.manual_seed(0)
    model = ImageTokenizer(SMALL).eval()
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        z = model.encoder(images)
        ids = model.encode(images)
        expected = model.decoder(model.quantize(z)).clamp(-1, 1)
        assert torch.equal(model.decode(ids, 8, 12), expected)
    bits = (z > 0).flatten(2).permute(0, 2, 1)  # channel 0 is the most significant bit
    assert torch.equal(ids, (bits * 2 ** torch.arange(5, -1, -1)).sum(-1))
    assert torch.equal(model.quantize.embedding[ids].movedim(-1, 1).reshape_as(z), model.quantize(z))


def test_bad_pictures_are_refused() -> None:
    model = ImageTokenizer(SMALL)
    with pytest.raises(TypeError, match="images"):
        model.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    for shape in ((3, 8, 8), (1, 1, 8, 8), (1, 3, 7, 8)):
        with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\]"):
            model.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 0},
        {"bits": 24},
        {"bits": "13"},
        {"channels": 6},
        {"channels": 0},
        {"norm_groups": 0},
        {"encoder_blocks": (1,)},
        {"encoder_blocks": 3},
        {"encoder_blocks": (1, 10**9)},
        {"decoder_blocks": (1, 0)},
        {"decoder_blocks": (1, 1.5)},
        {"decoder_multipliers": (0, 1)},
        {"chanels": 8},
        {"model_type": "showo"},
    ],
)
def test_bad_sizes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"expected|must be|did you mean"):
        ImageTokenizerConfig.from_dict({**SMALL.to_dict(), **wrong})


def test_infinity_does_not_pass_for_white() -> None:
    model = ImageTokenizer(SMALL).eval()
    with torch.no_grad():
        model.decoder.conv_out.bias[1] = torch.inf
        images = model.decode(torch.zeros(1, 4, dtype=torch.int64), 2, 2)
    assert images[:, 1].isnan().all()
    assert images[:, ::2].isfinite().all()


def test_save_and_load(tmp_path: Path) -> None:
    model = ImageTokenizer(SMALL).eval()
    model.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config == SMALL
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images)[0], model(images)[0])


def test_every_term_enters_the_loss_with_its_weight(pictures: Path, tmp_path: Path) -> None:
    weights = {"l1": 0.5, "gradient": 0.25, "quantizer": 0.125, "entropy": 0.7}
    weights |= {"locality": 30.0, "colour": 600.0}  # what they weigh is small in a model that has learned nothing
    config = small_training(pictures, "steps=1", *(f"{name}_weight={value}" for name, value in weights.items()))
    loop = train(config, tmp_path)
    (batch,) = loop.data.between(0, 1)
    total, terms = loop.loss(batch, batch.counts, seeded_generator(0))
    assert all(term.item() > 0 for name, term in terms.items() if name != "entropy")
    terms = {**terms, "quantizer": terms["commitment"]}
    torch.testing.assert_close(total, terms["mse"] + sum(weight * terms[name] for name, weight in weights.items()))


def test_pictures_made_of_the_batch_are_learned_with_it(pictures: Path) -> None:
    """A quarter more for locality, joined from two; a quarter more for colour, which differ in their colours alone."""
    seen: list[torch.Tensor] = []
    latents: list[torch.Tensor] = []

    class Spy(ImageTokenizer):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(images)
            reconstruction, z = super().forward(images)
            latents.append(z)
            return reconstruction, z

    config = small_training(pictures, "locality_weight=1", "colour_weight=1", "colour_bits=2")
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    terms = picture_losses(Spy(SMALL), images, config, seeded_generator(1))
    (everything,) = seen
    assert everything.shape == (12, 3, 32, 32)
    assert torch.equal(everything[:8], images)
    line = seam(images, 2, seeded_generator(1))
    assert torch.equal(everything[8:10], line.join(images))
    assert not torch.equal(everything[10:], images[:2])
    assert terms.keys() == {"mse", "l1", "gradient", "commitment", "entropy", "locality", "colour"}
    (z,) = latents
    assert torch.equal(terms["locality"], locality_loss(z[:8], z[8:10], line))
    assert torch.equal(terms["colour"], colour_loss(z[:2], z[10:], 2))


def test_patches_of_one_colour_are_left_out_of_the_entropy_where_so_wished(pictures: Path) -> None:
    model, images = ImageTokenizer(SMALL), torch.ones(4, 3, 32, 32)
    images[:, :, :16] = torch.rand(4, 3, 16, 32)
    terms = {
        flat: picture_losses(
            model, images, small_training(pictures, f"entropy_of_flat_patches={flat}"), seeded_generator(0)
        )
        for flat in ("true", "false")
    }
    reconstruction, z = model(images)
    for flat, found in terms.items():
        expected = loss_terms(reconstruction, z, images, flat_patches=flat == "true")["entropy"]
        torch.testing.assert_close(found["entropy"], expected)
    assert not torch.equal(terms["true"]["entropy"], terms["false"]["entropy"])


def test_pictures_are_varied_anew_in_every_step_and_alike_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[torch.Tensor] = []

    def losses(model: ImageTokenizer, images: torch.Tensor, *_: object) -> dict[str, torch.Tensor]:
        learned.append(images)
        return {"mse": images.square().mean()}

    monkeypatch.setattr(image_tokenizer_training, "picture_losses", losses)
    loop = tokenizer_loop(small_training(pictures, "augment=1"), tmp_path, Console(quiet=True))
    (batch,) = loop.data.between(0, 1)
    for step in (0, 1, 0):
        loop.loss(batch, batch.counts, seeded_generator(7, step))
    assert torch.equal(learned[0], learned[2])
    assert not torch.equal(learned[0], learned[1])
    assert not torch.equal(learned[0], from_pixels(batch.pixels))


def test_validation_is_of_all_held_out_pictures_alike(pictures: Path, tmp_path: Path) -> None:
    """Also where the last batch is smaller."""
    loop = tokenizer_loop(small_training(pictures, "batch=3"), tmp_path, Console(quiet=True))
    held_out = picture_batches("held_out", loop.config, loop.config.held_out)  # type: ignore[arg-type, attr-defined]
    images = from_pixels(held_out.of(range(4)).pixels)
    with torch.no_grad():
        found, sheets = loop.validate(loop.model, 0)
        codes = loop.model.encode(images)
        after = loop.model.decode(codes, 16, 16)
    assert found == {"psnr": pytest.approx(float(psnr(after, images).mean())), "codes_used": len(codes.unique())}
    assert sheets["reconstruction"].width > 8 * 32  # four pairs


def test_options_that_are_off_take_nothing(pictures: Path) -> None:
    terms = picture_losses(
        ImageTokenizer(SMALL), torch.rand(4, 3, 32, 32), small_training(pictures), seeded_generator(0)
    )
    assert terms.keys() == {"mse", "l1", "gradient", "commitment", "entropy"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["colour_weight=1", "colour_bits=6"], "colour_bits must be fewer than model.bits 6, got 6"),
        (["locality_weight=1", "resolution=6"], "locality_weight needs pictures of 4 patches a side, 8 pixels"),
    ],
)
def test_terms_that_pictures_or_codes_cannot_have_are_refused(
    pictures: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_training(pictures, *overrides)


def test_a_share_of_the_pictures_is_recoloured(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[torch.Tensor] = []

    def spy(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
        assert share == 0.5
        return torch.full_like(images, 0.25)

    def losses(model: ImageTokenizer, images: torch.Tensor, *_: object) -> dict[str, torch.Tensor]:
        learned.append(images)
        return {"mse": model(images)[0].square().mean()}

    monkeypatch.setattr(image_tokenizer_training, "recolour", spy)
    monkeypatch.setattr(image_tokenizer_training, "picture_losses", losses)
    train(small_training(pictures, "steps=1", "recolour=0.5"), tmp_path)
    assert [images.unique().tolist() for images in learned] == [[0.25]]


def test_an_epoch_sees_every_picture_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def spy(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
        assert share == 0.25
        seen.extend(images)
        return images

    monkeypatch.setattr(image_tokenizer_training, "augment", spy)
    train(small_training(pictures, "steps=2", "batch=8", "accumulate=2", "augment=0.25"), tmp_path)
    assert len(seen) == len({tuple(image.flatten().tolist()) for image in seen}) == 16


def small_training(pictures: Path, *overrides: str) -> TokenizerTraining:
    data = [f"data={webdataset(pictures / 'train-*.tar')}", f"held_out={webdataset(pictures / 'val-*.tar')}"]
    data += ["resolution=32"]
    model = [f"model.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in SMALL.__dict__.items()]
    common = [
        "batch=4",
        "optimizer.warmup_steps=2",
        "checkpoint_every=3",
        "validate_every=6",
        "steps=6",
        "precision=fp32",
    ]
    return load_config(
        TokenizerTraining, "tiny-image-tokenizer", [*data, *model, *common, "validate_every=6", *overrides]
    )


def train(config: TokenizerTraining, run: Path, resume: bool = False) -> TrainLoop:
    return train_tokenizer(config, run, resume=resume, console=Console(quiet=True))


def test_resumed_training_equals_an_uninterrupted_one(pictures: Path, tmp_path: Path) -> None:
    config = small_training(pictures)
    whole = train(config, tmp_path / "a")
    train(config, tmp_path / "b")
    for path in checkpoints(tmp_path / "b")[1:]:  # as if it had died after step 3
        shutil.rmtree(path)
    again = train(config, tmp_path / "b", resume=True)
    assert again.step == whole.step == 6
    assert again.history == whole.history[3:]
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), name


def test_accumulation_equals_the_large_batch(pictures: Path, tmp_path: Path) -> None:
    plain = ["augment=0", "entropy_weight=0", "steps=3"]  # the entropy of a batch is no mean over pictures
    one = train(small_training(pictures, *plain, "batch=4"), tmp_path / "a")
    two = train(small_training(pictures, *plain, "batch=4", "accumulate=2"), tmp_path / "b")
    for a, b in zip(one.history, two.history):
        assert abs(a - b) < 1e-5 * abs(a)


def test_another_configuration_is_not_resumed(pictures: Path, tmp_path: Path) -> None:
    train(small_training(pictures), tmp_path)
    with pytest.raises(ValueError, match="another configuration"):
        train(small_training(pictures, "optimizer.lr=0.5"), tmp_path, resume=True)
    longer = small_training(pictures, "log_every=1")  # does not change what is computed
    assert train(longer, tmp_path, resume=True).step == 6


def test_decoder_stage_keeps_the_codes(pictures: Path, tmp_path: Path) -> None:
    train(small_training(pictures), tmp_path / "a")
    start = checkpoints(tmp_path / "a")[-1]
    stage = train(small_training(pictures, f"init_from={start}", "train_encoder=false"), tmp_path / "b")
    before, after = ImageTokenizer.from_pretrained(start).state_dict(), stage.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def test_init_from_another_model_is_refused(pictures: Path, tmp_path: Path) -> None:
    train(small_training(pictures, "steps=1"), tmp_path / "a")
    start = checkpoints(tmp_path / "a")[-1]
    with pytest.raises(ValueError, match=r"init_from: .* another model configuration"):
        train(small_training(pictures, f"init_from={start}", "model.bits=7"), tmp_path / "b")


def test_training_learns(pictures: Path, tmp_path: Path) -> None:
    loop = train(small_training(pictures, "steps=40", "optimizer.lr=3e-3", "augment=0"), tmp_path)
    assert sum(loop.history[-5:]) < 0.6 * sum(loop.history[:5])
    assert (tmp_path / "pictures" / "reconstruction-000040.png").is_file()
    assert list((tmp_path / "logs").glob("events.*"))
