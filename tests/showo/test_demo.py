"""What `make demo` says of its pictures is true."""

from __future__ import annotations

import pytest
import torch

from showo import demo
from showo.data.sources import read_pictures
from showo.data.world.captions import mentions
from showo.data.world.scene import Demand, Scene
from showo.data.world.world import World
from showo.train.config import ShowoTraining, load_config

HOLDOUT = World(seed=0, scenes=1).holdout


@pytest.mark.parametrize(("texts", "seen"), [(demo.SEEN, True), (demo.HELD_OUT, False)])
def test_held_out_is_what_the_world_holds_out(texts: tuple[str, ...], seen: bool) -> None:
    for text in texts:
        wanted = tuple(mentions(text))
        assert wanted, text
        assert HOLDOUT.demand_is_seen(Demand("full", wanted, None)) == seen, text


def test_one_question_is_about_a_held_out_scene() -> None:
    scenes: list[Scene] = [scene for scene, _ in demo.QUESTIONS]
    assert [HOLDOUT.scene_is_seen(scene) for scene in scenes] == [True, False]


def test_emoji_are_named_as_their_captions() -> None:
    captions = {sample.caption for sample in read_pictures("bundled:emoji/train-*.tar")}
    assert captions.issuperset(demo.EMOJI)


@pytest.mark.parametrize(("capability", "precision"), [("AVX512", "bf16"), ("AVX2", "fp32"), ("DEFAULT", "fp32")])
def test_training_is_as_precise_as_the_processor_allows(
    monkeypatch: pytest.MonkeyPatch, capability: str, precision: str
) -> None:
    """A minute in bf16 is three steps where bf16 has to be imitated."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert load_config(ShowoTraining, "tiny", demo.training_options()).precision == precision
