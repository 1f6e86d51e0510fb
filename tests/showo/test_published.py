"""Published checkpoints: one line loads all parts, from the hub's cache or folders, in every layout."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from showo.config import ShowoConfig, official
from showo.engine.loading import find_parts
from showo.engine.pipeline import ShowoPipeline
from showo.engine.published import published
from showo.engine.sampling import PRESETS, Sampling
from showo.errors import CheckpointError, OutputError
from showo.model.image_tokenizer import ImageTokenizer
from showo.model.transformer import Showo
from showo.tokens import TextTokenizer
from tests.showo.published_models import LAYOUTS, HubCache, make_small, small_showo, write_showo, write_tokenizers


@pytest.fixture
def words(checkpoint: Path) -> TextTokenizer:
    return TextTokenizer.from_file(checkpoint / "showo")


@pytest.fixture
def folders(tmp_path: Path, words: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tokenizers lie under the hub's names."""
    make_small(monkeypatch)
    write_tokenizers(tmp_path, words)
    return tmp_path


@pytest.fixture
def hub(folders: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    cache = HubCache(folders / "hub", monkeypatch)
    cache.add("showlab/magvitv2", folders / "magvitv2")
    cache.add("microsoft/phi-1_5", folders / "phi-1_5")
    return cache


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and x.dtype == y.dtype and torch.equal(x, y) for (m, x), (n, y) in pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_layout_and_dtype_in_one_line(folders: Path, layout: str, dtype: torch.dtype) -> None:
    model = small_showo()
    folder = write_showo(folders / "show-o-mine", model, layout, dtype)
    pipe = ShowoPipeline.from_pretrained(folder, dtype=None)
    assert same(pipe.model, small_showo().to(dtype))
    assert pipe.sampling == PRESETS["show-o"]
    if dtype == torch.float32:
        (picture,) = pipe.generate(["red"], steps=2, seed=3)
        assert picture.size == (16, 16)
        assert pipe.describe([picture], max_new_tokens=2)


def test_a_hub_id_brings_its_parts(hub: HubCache, folders: Path, tmp_path: Path) -> None:
    hub.add("someone/show-o-mine", write_showo(tmp_path / "there", small_showo()))
    pipe = ShowoPipeline.from_pretrained("someone/show-o-mine")
    assert same(pipe.model, small_showo())
    assert same(pipe.image_tokenizer, ImageTokenizer.from_pretrained(folders / "magvitv2"))
    other = small_showo()
    torch.nn.init.ones_(other.state_dict()["showo.lm_head.bias"])
    write_showo(tmp_path / "there", other)
    hub.add("someone/show-o-mine", tmp_path / "there", revision="v2")
    assert same(ShowoPipeline.from_pretrained("someone/show-o-mine", revision="v2").model, other)
    assert same(ShowoPipeline.from_pretrained("someone/show-o-mine").model, small_showo())
    with pytest.raises(CheckpointError, match="no folder 'someone/show-o-mine' here; as a hub id it is not in the cac"):
        ShowoPipeline.from_pretrained("someone/show-o-mine", revision="v3")
    with pytest.raises(CheckpointError, match=r"revision 'v2': .* is a folder here"):
        ShowoPipeline.from_pretrained(tmp_path / "there", revision="v2")


def test_a_whole_pipeline_on_the_hub(hub: HubCache, folders: Path, tmp_path: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(write_showo(folders / "mine", small_showo()))
    pipe.sampling = Sampling(steps=3)
    hub.add("someone/whole", pipe.save_pretrained(tmp_path / "whole"))
    for name in ("magvitv2", "phi-1_5"):
        shutil.rmtree(hub.folder / f"models--{'showlab' if name == 'magvitv2' else 'microsoft'}--{name}")
    loaded = ShowoPipeline.from_pretrained("someone/whole")
    assert same(loaded.model, pipe.model)
    assert same(loaded.image_tokenizer, pipe.image_tokenizer)
    assert loaded.sampling == pipe.sampling


def test_parts_are_found_by_default_and_can_be_named(hub: HubCache, folders: Path, tmp_path: Path) -> None:
    """Named by the caller, else in the folder, else beside it, else on the hub."""
    far = tmp_path / "far" / "away"
    folder = write_showo(far, small_showo(w_clip_vit=True), w_clip_vit=True)
    snapshot = hub.folder / "models--showlab--magvitv2" / "snapshots" / f"{1:040x}"
    found = find_parts(folder)
    assert found.image_tokenizer == snapshot
    assert found.vision_tower == "openai/clip-vit-large-patch14-336"
    for name in ("magvitv2", "phi-1_5"):
        shutil.copytree(folders / name, far.parent / name)
    (far.parent / "clip-vit-large-patch14-336").mkdir()
    found = find_parts(folder)
    assert found.image_tokenizer == far.parent / "magvitv2"
    assert found.vision_tower == str(far.parent / "clip-vit-large-patch14-336")
    shutil.copytree(folders / "magvitv2", tmp_path / "other")
    named = find_parts(
        folder, image_tokenizer=tmp_path / "other", text_tokenizer=folders / "phi-1_5", vision_tower="x/y"
    )
    assert (named.image_tokenizer, named.vision_tower) == (tmp_path / "other", "x/y")
    content = {"image_tokenizer": str(tmp_path / "other"), "sampling": {"steps": 3}}
    (folder / "pipeline.json").write_text(json.dumps(content))
    assert (find_parts(folder).image_tokenizer, find_parts(folder).sampling) == (tmp_path / "other", Sampling(steps=3))


def test_what_is_missing_is_named(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HubCache(tmp_path / "empty", monkeypatch)
    folder = write_showo(tmp_path / "far" / "away", small_showo(w_clip_vit=True), w_clip_vit=True)

    def message(**named: Any) -> str:
        with pytest.raises(CheckpointError) as error:
            _ = ShowoPipeline.from_pretrained(folder, **named).tower
        return str(error.value)

    absent = "no folder '{}' here; as a hub id it is not in the cache"
    assert message().startswith("image_tokenizer: " + absent.format("showlab/magvitv2"))
    assert message().endswith("name another (image_tokenizer)")
    parts = {"image_tokenizer": folders / "magvitv2"}
    assert message(**parts).startswith("text_tokenizer: " + absent.format("microsoft/phi-1_5"))
    parts["text_tokenizer"] = folders / "phi-1_5"
    tower = "openai/clip-vit-large-patch14-336"
    assert message(**parts).startswith("vision_tower: " + absent.format(tower))
    (folders / "magvitv2" / "pytorch_model.bin").unlink()
    assert f"{folders / 'magvitv2'} has no weights (looked for model.safetensors" in message(**parts)
    assert message(**{**parts, "image_tokenizer": folders / "phi-1_5"}).endswith("phi-1_5 has no config.json")
    write_tokenizers(folders, TextTokenizer.from_file(folders / "phi-1_5"))
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:-100])
    assert re.search(r"pytorch_model\.bin cannot be read as plain weights", message(**parts))


@pytest.mark.parametrize(
    "source", ["showlab/Show-o-512x512", "x/models--showlab--show-o-512x512/snapshots/0f", "a/show-o-512x512"]
)
def test_names_are_known_wherever_they_lie(source: str) -> None:
    found = published(source)
    assert found is not None
    assert (found.num_vq_tokens, found.sampling) == (1024, Sampling(50, 5.0))
    assert published("showlab/show-o-512x512-mine") is None
    assert published("") is None


def test_the_name_decides_the_size_of_pictures(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 512x512 model's config.json may name the codes of the model that it was trained from."""
    folder = write_showo(folders / "show-o-512x512", small_showo())
    with pytest.warns(UserWarning, match="says num_vq_tokens 16, .* by its name its pictures have 1024 codes"):
        found = find_parts(folder)
    assert found.config.num_vq_tokens == 1024
    assert found.sampling == PRESETS["show-o-512"]
    folder = write_showo(folders / "my-512", small_showo(), num_vq_tokens=1024)
    assert (find_parts(folder).config.num_vq_tokens, find_parts(folder).sampling) == (1024, PRESETS["show-o-512"])


@pytest.mark.parametrize(("codes", "sampling"), [(256, Sampling(4, 0.0, 200)), (512, Sampling(4, 0.0, 500))])
def test_show_o_turbo_draws_in_few_steps(hub: HubCache, tmp_path: Path, codes: int, sampling: Sampling) -> None:
    model = write_showo(
        tmp_path / "there", small_showo(), "pytorch_model.safetensors", num_vq_tokens=(codes // 16) ** 2
    )
    hub.add(f"SJTU-Deng-Lab/Show-o-Turbo-{codes}", model)
    pipe = ShowoPipeline.from_pretrained(f"SJTU-Deng-Lab/Show-o-Turbo-{codes}")
    assert pipe.sampling == sampling
    steps: list[int] = []
    pipe.generate(["red"], size=(16, 16), callback=lambda first, step: steps.append(step.step))
    assert steps == [0, 1, 2, 3]


def test_mask_grpo_is_a_state_dict_alone(hub: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its repository holds mycheckpoint.pth and no config.json."""
    released_size = replace(small_showo().config, num_vq_tokens=1024)
    monkeypatch.setattr("showo.engine.loading.official", lambda num_vq_tokens: released_size)
    (tmp_path / "there").mkdir()
    wrapped = {f"module.{name}": tensor for name, tensor in small_showo().state_dict().items()}
    torch.save(wrapped, tmp_path / "there" / "mycheckpoint.pth")
    hub.add("happyyifu/Mask-GRPO", tmp_path / "there")
    pipe = ShowoPipeline.from_pretrained("happyyifu/Mask-GRPO")
    assert same(pipe.model, small_showo())
    assert pipe.sampling == PRESETS["show-o-512"]


@pytest.mark.parametrize("clip", [False, True])
def test_real_shapes(tmp_path: Path, clip: bool) -> None:
    """The files of the released sizes, with tensors that hold no numbers."""
    with torch.device("meta"):
        state = Showo(official(w_clip_vit=clip)).half().state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = {"_class_name": "Showo", "llm_vocab_size": 50295, "vocab_size": 58498, "w_clip_vit": clip}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = Showo.from_pretrained(tmp_path, device="meta", dtype=None)
    assert model.config == ShowoConfig(w_clip_vit=clip)
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    assert list(found.items()) == [(name, (tensor.shape, tensor.dtype)) for name, tensor in state.items()]
    with pytest.raises(CheckpointError, match=r"4 (missing|unexpected): mm_projector\.0"):
        Showo.from_pretrained(tmp_path, device="meta", config=ShowoConfig(w_clip_vit=not clip))


def test_moving_and_saving(hub: HubCache, folders: Path, tmp_path: Path) -> None:
    folder = write_showo(folders / "mine", small_showo())
    pipe = ShowoPipeline.from_pretrained(folder)
    (before,) = pipe.generate(["red"], steps=2)
    pipe.sampling = Sampling(3, 0.5, 7)
    saved = pipe.save_pretrained(tmp_path / "saved")
    shutil.rmtree(hub.folder)
    for name in ("magvitv2", "phi-1_5", "mine"):
        shutil.rmtree(folders / name)
    loaded = ShowoPipeline.from_pretrained(saved.rename(tmp_path / "elsewhere"))
    assert loaded.sampling == Sampling(3, 0.5, 7)
    assert same(loaded.model, pipe.model)
    assert same(loaded.image_tokenizer, pipe.image_tokenizer)
    assert loaded.generate(["red"], steps=2, guidance=1.75, top_k=0)[0].tobytes() == before.tobytes()
    half = loaded.to(dtype=torch.bfloat16)
    assert half is loaded
    expected = ShowoPipeline.from_pretrained(tmp_path / "elsewhere", dtype=torch.bfloat16)
    assert same(half.model, expected.model)
    assert same(half.image_tokenizer, expected.image_tokenizer)
    with pytest.raises(OutputError, match="elsewhere"):
        pipe.save_pretrained(tmp_path / "elsewhere")


def test_the_tower_is_saved_with_the_rest(folders: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=7))
    vision.save_pretrained(folders / "clip-vit-large-patch14-336")
    folder = write_showo(folders / "show-o-mine", small_showo(w_clip_vit=True), w_clip_vit=True)
    pipe = ShowoPipeline.from_pretrained(folder)  # the tower lies beside the folder, under the hub's name
    picture = Image.effect_noise((40, 30), 80)
    answers = pipe.describe([picture], "what?", max_new_tokens=4)
    saved = pipe.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folders / "clip-vit-large-patch14-336")
    loaded = ShowoPipeline.from_pretrained(saved)
    assert loaded.vision_tower == str(saved / "vision_tower")
    assert torch.equal(loaded.see([picture]), pipe.see([picture]))
    assert loaded.describe([picture], "what?", max_new_tokens=4) == answers
    moved = loaded.to("cpu", torch.bfloat16)
    assert (moved.see([picture]).dtype, moved.tower.vision.dtype) == (torch.bfloat16, torch.float32)
    assert len(moved.describe([picture], "what?", max_new_tokens=4)) == 1
