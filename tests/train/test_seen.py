"""A trained model with CLIP-ViT names its vision tower, and answers through it as it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from showo.dialogue import SYSTEM_PROMPT, Dialogue, question_text
from showo.engine.pipeline import ShowoPipeline
from showo.errors import CheckpointError, UserError
from showo.model.contrastive import ContrastiveTowers, TowersConfig
from showo.train.checkpoint import checkpoints
from tests.showo.command import failure, run
from tests.train.conftest import small_training, train

pytest.importorskip("transformers")
Folders = dict[str, Path]
SIZES = TowersConfig(hidden_size=32, num_layers=3, num_heads=2, intermediate_size=64, text_layers=1, max_text_len=9)
IMAGES = [Image.new("RGB", (40, 32), "red"), Image.effect_noise((32, 50), 90).convert("RGB")]


@pytest.fixture(scope="module")
def trained(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training that saw pictures through a tower. Its folder is named by a relative path."""
    root = tmp_path_factory.mktemp("seen")
    ContrastiveTowers(SIZES, 32, 50).save_pretrained(root / "tower")
    seeing = ["model.w_clip_vit=true", "model.clip_width=32", f"vision_tower={root / 'tower'}", "mmu.batch=0"]
    seeing += ["mmu_vit.batch=2", "mmu_vit.data=${t2i.data}", "steps=1", "validate_every=9", "validation_prompts=[]"]
    train(small_training(folders, *seeing, "model.max_positions=256"), root / "run")
    return checkpoints(root / "run")[-1]


@pytest.mark.parametrize("questions", [[None, None], ["what colour?", None], ["which?", "what is on this picture?"]])
def test_answers_are_what_training_rows_predict(trained: Path, questions: list[str | None]) -> None:
    pipe = ShowoPipeline.from_pretrained(trained)
    texts, config = pipe.text_tokenizer, pipe.model.config
    answers = pipe.describe(IMAGES, questions, max_new_tokens=3)
    system, features = texts.encode(SYSTEM_PROMPT), pipe.see(IMAGES)
    for number, (question, answer) in enumerate(zip(questions, answers)):
        ids: list[int] = []
        for _ in range(3):
            asked = texts.encode(question_text(question, "phi1.5"))
            row = ids if question is None else Dialogue([(asked, ids)])
            batch = pipe.prompting.mmu_vit([row], system, features[number : number + 1], image_tokens=16)
            hidden = pipe.model.hidden_states(batch.input_ids, features=batch.features, mask=batch.mask)
            head = 3 + 16 + (len(system) + len(asked) if question is not None else 0)
            logits = pipe.model.logits(hidden[0, head + len(ids) - 1], (0, config.text_vocab_size))
            ids.append(int(logits.argmax()))
            if ids[-1] == pipe.prompting.eot:
                ids.pop()
                break
        assert answer == texts.decode(ids).strip()


def test_the_commands_see_through_the_tower(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    IMAGES[0].save(tmp_path / "a.png")
    command = ("describe", tmp_path / "a.png", "--model", trained, "--max-tokens", 2, "--question", "what?")
    assert run(*command) == 0
    expected = ShowoPipeline.from_pretrained(trained).describe(IMAGES[:1], "what?", max_new_tokens=2)[0]
    assert capsys.readouterr().out.strip() == expected
    assert "size: this model sees all pictures" in failure(capsys, *command, "--size", "32x32")


def test_the_length_is_checked_before_pictures_are_seen(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ShowoPipeline.from_pretrained(trained)
    monkeypatch.setattr(pipe, "see", None)
    asked = len(pipe.text_tokenizer.encode(question_text("what? " * 90, "phi1.5")))
    places = 3 + 16 + len(pipe.text_tokenizer.encode(SYSTEM_PROMPT)) + asked
    with pytest.raises(UserError, match=f"picture and question take {places} positions; this model has 256"):
        pipe.describe(IMAGES, ["what?", "what? " * 90])
    pipe.model.config.__dict__["max_positions"] = 3 + 16  # a caption has no question, and no system prompt
    with pytest.raises(UserError, match="picture and question take 19 positions; this model has 19"):
        pipe.check_questions([None])


def test_what_is_missing_is_named(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    named = json.loads((folder / "pipeline.json").read_text())
    assert Path(named["vision_tower"]).is_absolute()
    for tower, message in (
        ("", r"does not name one; name it \(vision_tower\)"),
        (str(tmp_path / "gone"), r"vision_tower: no checkpoint folder at .*gone; name another"),
    ):
        (folder / "pipeline.json").write_text(json.dumps({**named, "vision_tower": tower}))
        pipe = ShowoPipeline.from_pretrained(folder)
        with pytest.raises(CheckpointError, match=message):
            pipe.describe(IMAGES)
        given = ShowoPipeline.from_pretrained(folder, vision_tower=named["vision_tower"])
        assert given.describe(IMAGES[:1], max_new_tokens=1) == ShowoPipeline.from_pretrained(trained).describe(
            IMAGES[:1], max_new_tokens=1
        )
    ContrastiveTowers(TowersConfig(**{**SIZES.__dict__, "hidden_size": 64}), 32, 50).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="gives features of 64 numbers, the model takes 32"):
        ShowoPipeline.from_pretrained(folder, vision_tower=tmp_path / "wide").describe(IMAGES)
    with pytest.raises(UserError, match="leave it out"):
        given.describe(IMAGES, size=(32, 32))
