"""The bundled configurations of the paper's stages hold the paper's numbers, and each stage goes on from another."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from showo.config import ShowoConfig, official
from showo.errors import ConfigError
from showo.files import package_path
from showo.model.contrastive import ContrastiveTowers
from showo.model.image_tokenizer import ImageTokenizerConfig
from showo.model.transformer import Showo
from showo.train.config import OptimizerConfig, ShowoTraining, TokenizerTraining, VisionTowerTraining, load_config
from showo.train.config.streams import Stream

GPUS = 48
CAPTIONED = "sa1b cc12m laion"
SCALED = f"{CAPTIONED} datacomp coyo"
HIGH = "laion journeydb"
# Stage: what it starts from, steps, learning rate, warm-up, rows of t2i, lm, mmu and mmu_vit on a GPU, side of the
# pictures, text places, data of t2i and of understanding. Table of the paper and configs/ of showlab/Show-o.
TABLE = {
    "stage1": ("microsoft/phi-1_5", 500_000, 1e-4, 5000, (15, 4, 10, 0), 256, 128, "imagenet", CAPTIONED),
    "stage2": ("stage1", 1_000_000, 1e-4, 5000, (10, 4, 10, 0), 256, 128, CAPTIONED, CAPTIONED),
    "stage2b": ("stage2", 500_000, 1e-4, 5000, (10, 4, 10, 0), 256, 128, SCALED, SCALED),
    "stage2b-512": ("stage2b", 500_000, 1e-4, 5000, (10, 4, 10, 0), 512, 128, SCALED, SCALED),
    "stage3": ("stage2", 50_000, 2e-5, 5000, (10, 4, 10, 0), 256, 128, HIGH, CAPTIONED),
    "stage3-512": ("stage2b-512", 50_000, 2e-5, 5000, (10, 4, 10, 0), 512, 128, HIGH, CAPTIONED),
    "tuning1": ("stage3", 10_000, 2e-5, 1000, (4, 2, 7, 0), 256, 381, HIGH, "llava-pretrain"),
    "tuning2": ("tuning1", 14_000, 5e-5, 1000, (4, 2, 6, 0), 256, 381, HIGH, "llava-v1.5-mix"),
    "tuning1-512": ("stage3-512", 14_000, 2e-5, 1000, (5, 2, 5, 0), 512, 381, HIGH, "llava-pretrain"),
    "tuning2-512": ("tuning1-512", 16_000, 5e-5, 1000, (5, 2, 5, 0), 512, 381, HIGH, "llava-v1.5-mix"),
    "tuning1-clip-vit": ("stage3", 10_000, 2e-3, 1000, (2, 2, 0, 10), 256, 512, HIGH, "llava-pretrain"),
    "tuning2-clip-vit": ("tuning1-clip-vit", 19_600, 1e-4, 1000, (3, 1, 0, 4), 256, 576, HIGH, "llava-v1.5-mix"),
    "tuning1-clip-vit-512": ("stage3-512", 7_000, 2e-3, 1000, (2, 2, 0, 10), 512, 512, HIGH, "llava-pretrain"),
    "tuning2-clip-vit-512": (
        "tuning1-clip-vit-512", 19_600, 1e-4, 1000, (3, 1, 0, 4), 512, 576, HIGH, "llava-v1.5-mix"
    ),
}  # fmt: skip
# Text places of rows that see features. Officially they are as long as rows of t2i, (max_seq_length + 1) + (codes + 2):
# training/train_w_clip_vit.py gives the loaders max_seq_length - (576 - codes), from which that of dialogues takes the
# 28 places of the system prompt. In rows of codes, texts have max_seq_length places.
SEEN_TEXT = {
    "tuning1-clip-vit": 192,
    "tuning2-clip-vit": 228,
    "tuning1-clip-vit-512": 960,
    "tuning2-clip-vit-512": 996,
}
FOLDERS = {"laion": "laion-aesthetics-12m", "coyo": "coyo-700m"}
TINY = ("tiny-stage1", "tiny-stage2", "tiny-stage3", "tiny-tuning1", "tiny-tuning2", "tiny-mixed", "tiny-clip-vit")


@functools.cache
def bundled(name: str) -> ShowoTraining:
    return load_config(ShowoTraining, name)


def folders(stream: Stream) -> set[str]:
    """Which data sets a stream reads, by the folder under `data_root`."""
    return {Path(file).relative_to("data").parts[0] for source in stream.data for file in source.files}


@pytest.mark.parametrize("name", TABLE)
def test_a_stage_has_the_numbers_of_the_paper(name: str) -> None:
    base, steps, lr, warmup, rows, side, text, drawn, described = TABLE[name]
    config = bundled(name)
    assert config.init_from == (f"runs/{base}" if base in TABLE else base)
    assert config.steps == steps
    assert config.optimizer == OptimizerConfig(lr, 0.0, warmup, (0.9, 0.999), 1e-8, 0.01, 0.0)
    streams = (config.t2i, config.lm, config.mmu, config.mmu_vit)
    assert tuple(stream.batch for stream in streams) == tuple(GPUS * each for each in rows)
    assert config.lvg.batch == 0
    assert tuple(stream.weight for stream in streams) == (1.0, 0.1, 1.0, 1.0)
    assert (config.seed, config.precision, config.condition_dropout) == (10086, "bf16", 0.1)
    assert (config.validate_every, config.checkpoint_every, config.code_bits) == (1000, 10_000, False)
    clip = "clip-vit" in name
    codes = (side // 16) ** 2
    assert config.resolution == side
    sizes = {**official(num_vq_tokens=codes, w_clip_vit=clip).to_dict(), "max_text_len": text}
    sizes["mmu_vit_text_len"] = SEEN_TEXT.get(name, 0)
    assert config.model == ShowoConfig.from_dict(sizes)
    assert config.vision_tower == ("openai/clip-vit-large-patch14-336" if clip else "")
    assert config.frozen == (["showo.*"] if name.startswith("tuning1-clip-vit") else [])  # only the projector learns
    understanding = config.mmu_vit if clip else config.mmu
    for stream, sets in ((config.t2i, drawn), (understanding, described), (config.lm, "refinedweb")):
        assert folders(stream) == {FOLDERS.get(each, each) for each in sets.split()}


def test_the_first_tuning_takes_conversations_as_captions_where_it_sees_features() -> None:
    layouts = {name: {source.layout for source in bundled(name).mmu_vit.data} for name in SEEN_TEXT}
    assert layouts == {name: {"llava_captions" if name.startswith("tuning1") else "llava"} for name in SEEN_TEXT}
    assert [source.layout for source in bundled("tuning1").mmu.data] == ["llava"]


@pytest.mark.parametrize("name", ["stage2", "stage3"])
def test_captions_are_cleaned_as_officially(name: str) -> None:
    """Of recaptioned sets, rows that draw lose stock prefixes or all but a sentence; those that describe do not."""
    config = bundled(name)
    recaptioned = [source for source in config.t2i.data if source.captions[0].endswith(".parquet")]
    assert {tuple(source.clean) for source in recaptioned} == {("persons", "prefixes", "first_sentence")}
    assert {tuple(source.clean) for source in config.mmu.data} == {("persons",)}
    assert config.question_share == 1.0


def test_all_of_a_set_moves_together() -> None:
    config = load_config(ShowoTraining, "stage2", ["sources.cc12m.files=[/disk/{0..9}.tar]", "data_root=/sets"])
    for stream in (config.t2i, config.mmu):
        assert [source.files for source in stream.data][1] == ["/disk/{0..9}.tar"]
        assert stream.data[0].files == ["/sets/sa1b/sa_{000000..000999}.tar"]


def test_the_image_tokenizer_of_the_paper() -> None:
    config = load_config(TokenizerTraining, "image-tokenizer")
    assert config.model == ImageTokenizerConfig()
    assert (config.resolution, config.quantizer_weight) == (256, 0.1)
    assert config.entropy_weight == pytest.approx(0.1 / 13, rel=1e-2)
    assert config.optimizer == OptimizerConfig(1e-4, 0.0, 5000, (0.9, 0.999), 1e-8, 0.01, 0.0)


def test_mixed_modality_adds_sequences_to_tuning() -> None:
    config, tuning = (bundled(name) for name in ("mixed", "tuning2"))
    assert (config.t2i, config.lm, config.mmu) == (tuning.t2i, tuning.lm, tuning.mmu)
    assert [source.layout for source in config.lvg.data] == ["sequences"]
    assert config.lvg.batch == GPUS * 4


def test_tiny_stages_have_the_streams_of_their_big_ones_and_one_model() -> None:
    configs = {name: bundled(name) for name in TINY}
    for name, config in configs.items():
        twin = {"tiny-clip-vit": "tuning2-clip-vit"}.get(name, name.removeprefix("tiny-"))
        assert config.streams.keys() == bundled(twin).streams.keys()
        assert all(stream.held_out for stream in config.streams.values())
        assert config.code_bits
    assert {config.model for name, config in configs.items() if name != "tiny-clip-vit"} == {configs[TINY[0]].model}
    with torch.device("meta"):
        model = Showo(configs[TINY[0]].model)
    assert sum(weight.numel() for weight in model.parameters()) < 15_000_000


def test_the_tiny_vision_tower_is_what_its_stage_sees_with() -> None:
    tower, stage = load_config(VisionTowerTraining, "tiny-vision-tower"), bundled("tiny-clip-vit")
    assert stage.vision_tower == "runs/vision-tower"  # the default of showo train-vision-tower
    assert (tower.model.hidden_size, tower.resolution) == (stage.model.clip_width, stage.resolution)
    model = ContrastiveTowers(tower.model, tower.resolution, text_vocab_size=1536)
    assert sum(weight.numel() for weight in model.vision_model.parameters()) < 1_000_000


def test_every_stage_starts_from_one_that_there_is() -> None:
    names = {path.stem for path in package_path("configs").glob("*.yaml")}
    for name in (*TABLE, *TINY, "mixed"):
        base = bundled(name).init_from
        assert base in ("", "microsoft/phi-1_5") or base.removeprefix("runs/") in names


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_file_may_stand_on_another_one(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "low.yaml", "base: stage2\nsteps: 3\nmmu: {data: '${t2i.data}'}\n")
    path = write(tmp_path / "own.yaml", "base: parts/low.yaml\nt2i: {data: ['${sources.coyo}']}\nseed: 5\n")
    config = load_config(ShowoTraining, path, ["sources.coyo.files=[x.tar]"])
    assert (config.steps, config.seed, config.lm.batch) == (3, 5, 192)
    assert [source.files for source in config.t2i.data] == [["x.tar"]]
    assert config.mmu.data == config.t2i.data
    assert load_config(ShowoTraining, path, ["mmu.data=[]", "mmu.batch=0"]).mmu.data == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("base: own.yaml\n", r"own\.yaml: it is its own base"),
        ("base: nowhere.yaml\n", r"'nowhere\.yaml' is neither a YAML file nor one of .*stage1, "),
        ("base: [stage1]\n", r"own\.yaml: base must be a YAML file or the name of a configuration, got \['stage1'\]"),
        ("base: stage1\nt2i: {data: ['${sources.none}']}\n", r"own\.yaml: t2i\.data\[0\]: .*sources\.none"),
        ("base: stage1\nstep: 1\n", r"own\.yaml: step: "),
    ],
)
def test_a_base_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as info:
        load_config(ShowoTraining, write(tmp_path / "own.yaml", text))
    assert re.search("\n", str(info.value)) is None


@pytest.mark.parametrize("name", SEEN_TEXT)
def test_rows_that_see_features_are_as_long_as_those_that_draw(name: str) -> None:
    model = bundled(name).model
    system = 28 if name.startswith("tuning2") else 0  # dialogues begin with it, captions do not
    assert 3 + system + 576 + model.mmu_vit_text_len == model.sequence_length
