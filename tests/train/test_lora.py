"""Adapters: their formula, that they alone learn, resume and recompute, and the two layouts they are saved in."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from showo.errors import CheckpointError, ConfigError
from showo.model.export import export
from showo.model.lora import TARGETS, adapted_layers
from showo.model.transformer import Showo
from showo.model.weight_files import open_tensors
from showo.seeds import seeded_generator
from showo.train import loop as loops
from showo.train.checkpoint import checkpoints
from showo.train.config import ShowoTraining
from showo.train.loop import TrainLoop
from showo.train.showo import showo_loop
from tests.train.conftest import same_tensors, saved_tensors, small_training, train

peft = pytest.importorskip("peft")

Folders = dict[str, Path]
PLAIN = ["precision=fp32", "validation_prompts=[]"]
LORA = ["lora.rank=3", "lora.alpha=12", "optimizer.lr=1e-2", "optimizer.warmup_steps=0"]


@pytest.fixture(scope="module")
def base(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to begin from."""
    run = tmp_path_factory.mktemp("base")
    train(small_training(folders, *PLAIN, "steps=1", "validate_every=9"), run)
    return run


def adapting(folders: Folders, base: Path, *overrides: str) -> ShowoTraining:
    return small_training(folders, *PLAIN, *LORA, f"init_from={base}", "validate_every=9", *overrides)


@pytest.fixture(scope="module")
def adapted(folders: Folders, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainLoop[Any], Path]:
    """A training with adapters that has ended, and its run."""
    run = tmp_path_factory.mktemp("adapted")
    return train(adapting(folders, base, "ema_decay=0.5", "lora.dropout=0.3"), run), run


def plain(folder: Path) -> dict[str, Tensor]:
    return {name: read() for name, (_, read) in open_tensors(folder).items()}


@pytest.fixture(scope="module")
def exported(adapted: tuple[TrainLoop[Any], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The weights, and their averages (True), as safetensors."""
    out = tmp_path_factory.mktemp("exported")
    folder = checkpoints(adapted[1])[-1]
    return {average: export(folder, out / str(average), average=average) for average in (False, True)}


def test_adapters_alone_learn(adapted: tuple[TrainLoop[Any], Path], base: Path) -> None:
    loop, _ = adapted
    before = plain(checkpoints(base)[-1])
    after = loop.model.state_dict()
    learned = {name for name, parameter in loop.model.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in learned)
    assert len(learned) == 2 * 2 * len(TARGETS)  # layers, A and B
    assert all(after[name].any() for name in learned)  # B was zero
    for name, value in after.items():
        assert name in learned or torch.equal(value, before[name.replace(".base_layer", "")])
    state = loop.optimizer.state_dict()
    assert len(state["state"]) == len(learned)


def test_a_checkpoint_is_a_plain_model_of_the_sums(adapted: tuple[TrainLoop[Any], Path], base: Path) -> None:
    loop, run = adapted
    folder = checkpoints(run)[-1]
    before, after = plain(checkpoints(base)[-1]), plain(folder)
    assert after.keys() == before.keys()
    layers = dict(adapted_layers(loop.model))
    for name, value in before.items():
        if (layer := layers.get(name.removesuffix(".weight"))) is not None:
            a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
            torch.testing.assert_close(after[name].double(), value.double() + 12 / 3 * b @ a, rtol=1e-6, atol=1e-7)
            assert not torch.equal(after[name], value)
        else:
            assert torch.equal(after[name], value), name
    ids = torch.randint(loop.model.config.vocab_size, (2, 9))
    with torch.no_grad():
        expected = loop.model.eval()(ids)
        torch.testing.assert_close(Showo.from_pretrained(folder)(ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("average", [False, True])
def test_peft_loads_the_adapters_and_merges_them(
    exported: dict[bool, Path], base: Path, tmp_path: Path, average: bool
) -> None:
    """Those beside the average of the weights are averages too."""
    folder, start = exported[average], checkpoints(base)[-1]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 12, str(base))
    assert set(config["target_modules"]) == set(TARGETS)
    theirs = peft.PeftModel.from_pretrained(Showo.from_pretrained(start), str(folder))
    theirs.merge_and_unload().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    expected, found = plain(folder), plain(tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)


def test_the_average_has_adapters_of_its_own(exported: dict[bool, Path]) -> None:
    weights, averages = (load_file(exported[average] / "adapter_model.safetensors") for average in (False, True))
    assert weights.keys() == averages.keys()
    assert not any(torch.equal(value, averages[name]) for name, value in weights.items())


def test_a_run_with_dropout_goes_on_bit_for_bit(
    folders: Folders, base: Path, adapted: tuple[TrainLoop[Any], Path], tmp_path: Path
) -> None:
    """Whatever the state of torch's own generator."""
    config = adapting(folders, base, "ema_decay=0.5", "lora.dropout=0.3")
    train(config, tmp_path)
    newest = checkpoints(tmp_path)[-1]
    newest.rename(newest.with_name("gone"))
    torch.manual_seed(torch.seed())
    again = train(config, tmp_path, resume=True)
    assert again.history == adapted[0].history[3:]
    found, expected = (saved_tensors(checkpoints(run)[-1]) for run in (tmp_path, adapted[1]))
    assert same_tensors(found, expected)


def test_adapters_begin_as_the_seed_says(folders: Folders, base: Path, tmp_path: Path) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.seed())
        loop = showo_loop(adapting(folders, base, f"seed={seed}"), tmp_path, Console(quiet=True))
        return {name: value for name, value in loop.model.state_dict().items() if ".lora_A." in name}

    first, again, other = weights(3), weights(3), weights(4)
    assert same_tensors(first, again)
    assert not any(torch.equal(value, other[name]) for name, value in first.items())


def test_the_first_step_drops_out_already(folders: Folders, base: Path, tmp_path: Path) -> None:
    """A checkpoint that is loaded is in evaluation mode."""
    modes: list[bool] = []

    def build() -> TrainLoop[Any]:
        config = adapting(folders, base, "lora.dropout=0.3", "steps=1")
        loop = showo_loop(config, tmp_path, Console(quiet=True))
        loss = loop.loss

        def watched(*arguments: Any) -> Any:
            modes.append(loop.model.training)
            return loss(*arguments)

        loop.loss = watched
        return loop

    loops.train(build, tmp_path)
    assert modes == [True]


def gradients(config: ShowoTraining, run: Path, *, training: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    loop = showo_loop(config, run, Console(quiet=True))
    loop.model.train(training)
    rows = next(loop.data.between(0, 1))
    loss, _ = loop.loss(rows, rows.counts, seeded_generator(0))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("how", "backend"),
    [("full", "''"), ("selective", "''"), pytest.param("selective", "aot_eager", marks=pytest.mark.slow)],
)
def test_dropped_out_blocks_are_computed_again_alike(
    folders: Folders, base: Path, tmp_path: Path, how: str, backend: str
) -> None:
    torch._dynamo.reset()
    loss, expected = gradients(adapting(folders, base, "lora.dropout=0.5"), tmp_path)
    twice = adapting(folders, base, "lora.dropout=0.5", f"recompute={how}", f"compile={backend}")
    again, found = gradients(twice, tmp_path)
    assert torch.equal(loss, again)
    assert same_tensors(found, expected)
    _, without = gradients(adapting(folders, base), tmp_path)
    assert any(not torch.equal(value, without[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init_from=''"], "init_from must be a checkpoint or a run where lora.rank is not 0, got ''"),
        (["code_bits=true"], "code_bits must be false where lora.rank is not 0: only adapters learn"),
        (["lora.targets=[fc1, lm_head]"], r"lora\.targets must be some of q_proj, .*, fc2, got \['lm_head'\]"),
        (["lora.targets=[]"], r"lora\.targets must be some of .*, got \[\]"),
        (["lora.rank=-1"], r"lora\.rank must be at least 0 and finite, got -1"),
        (["lora.alpha=0"], r"lora\.alpha must be above 0 and finite, got 0"),
        (["lora.dropout=1"], r"lora\.dropout must be at least 0 and below 1, got 1"),
    ],
)
def test_options_that_make_no_sense(folders: Folders, base: Path, overrides: list[str], message: str) -> None:
    given = {override.partition("=")[0] for override in overrides}
    defaults = [each for each in (*LORA, f"init_from={base}") if each.partition("=")[0] not in given]
    with pytest.raises(ConfigError, match=message):
        small_training(folders, *defaults, *overrides)


def test_without_peft(folders: Folders, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("showo.train.config.lora.find_spec", lambda name: None if name == "peft" else find(name))
    small_training(folders, "lora.alpha=2")  # which needs none
    with pytest.raises(ConfigError, match=r"lora\.rank needs peft: pip install 'showo_ext\[lora\]', or leave"):
        adapting(folders, base)


def test_a_new_projector_would_not_be_learned(folders: Folders, base: Path, tmp_path: Path) -> None:
    config = adapting(folders, base, "model.w_clip_vit=true", "model.clip_width=8")
    with pytest.raises(CheckpointError, match=r"lacks mm_projector\.0\.weight, .*, which adapters do not learn; train"):
        train(config, tmp_path)
