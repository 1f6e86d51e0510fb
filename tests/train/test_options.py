"""Options of `showo train`: recomputed activations, compiled blocks, averaged and frozen weights, stages on stages."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from showo.errors import CheckpointError, ConfigError
from showo.model.export import export
from showo.model.transformer import Showo
from showo.seeds import seeded_generator
from showo.train.checkpoint import checkpoints
from showo.train.ema import WeightAverage
from showo.train.loop import TrainLoop
from showo.train.showo import showo_loop, train_showo
from tests.train.conftest import small_training, train

Folders = dict[str, Path]
PLAIN = ["precision=fp32", "validation_prompts=[]"]


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def gradients(folders: Folders, run: Path, *overrides: str) -> tuple[Tensor, dict[str, Tensor], Counter[str]]:
    """Loss and gradients of the first step, and what ran in the backward pass."""
    loop = showo_loop(small_training(folders, *PLAIN, *overrides), run, Console(quiet=True))
    rows = next(loop.data.between(0, 1))
    loss, _ = loop.loss(rows, rows.counts, seeded_generator(0))
    with Operators() as operators:
        loss.backward()
    found = {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}
    return loss.detach(), found, operators.seen


@pytest.mark.parametrize("backend", ["''", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("how", "products", "attention"), [("full", True, True), ("selective", False, False)])
def test_activations_are_computed_again_in_the_backward_pass(
    folders: Folders, tmp_path: Path, how: str, products: bool, attention: bool, backend: str
) -> None:
    """Norms and activation functions in both cases, matrix products and attention only in full; with equal results,
    compiled or not.
    """
    torch._dynamo.reset()
    loss, expected, kept = gradients(folders, tmp_path)
    again, found, ran = gradients(folders, tmp_path, f"recompute={how}", f"compile={backend}")
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    more = ran - kept
    assert more["gelu"] == more["native_layer_norm"] == 2  # layers
    assert (more["addmm"] > 0, more["omni_attention_forward"] > 0) == (products, attention)
    with pytest.raises(ConfigError, match="recompute must be one of none, selective, full, got 'some'"):
        small_training(folders, "recompute=some")


@pytest.mark.slow
def test_compiled_blocks_train_as_plain_ones(folders: Folders, tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = train(small_training(folders, *PLAIN, "steps=3"), tmp_path / "a")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    compiled = train(small_training(folders, *PLAIN, "steps=3", "compile=aot_eager"), tmp_path / "b")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(torch.tensor(compiled.history), torch.tensor(plain.history))
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    with pytest.raises(ConfigError, match=r"compile must be one of .*inductor.*, got 'gcc'"):
        train(small_training(folders, "compile=gcc"), tmp_path / "c")


def test_the_average_follows_its_formula_and_leaves_skipped_steps_out() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.75)
    assert average.tensors.keys() == {"weight"}  # what is frozen needs none
    expected = model.weight.detach().double()
    for step in range(5):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        finite = step != 2
        average.update(torch.tensor(finite))
        if finite:
            expected = 0.75 * expected + 0.25 * model.weight.detach().double()
    weights = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(model.weight, weights)
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert torch.equal(model.weight, weights)


def averages(loop: TrainLoop[Any]) -> dict[str, Tensor]:
    assert loop.average is not None
    with loop.average.in_place():
        return {name: value.clone() for name, value in loop.model.state_dict().items()}


@torch.no_grad()
def validated(loop: TrainLoop[Any]) -> Mapping[str, float]:
    figures, _ = loop.validate(loop.model, loop.step)
    return figures


def test_averaged_weights_are_saved_validated_and_resumed(folders: Folders, tmp_path: Path) -> None:
    common = ["ema_decay=0.9", "code_bits=true", "keep_checkpoints=3", "optimizer.lr=1e-2", *PLAIN]
    config = small_training(folders, *common)
    whole = train(config, tmp_path / "a")
    expected = averages(whole)
    saved = Showo.from_pretrained(export(checkpoints(tmp_path / "a")[-1], tmp_path / "average", average=True))
    with whole.average.in_place():  # type: ignore[union-attr]
        head = whole.model.showo.lm_head
        torch.testing.assert_close(saved.showo.lm_head.weight, head.weight, rtol=0, atol=0)
        torch.testing.assert_close(saved.showo.lm_head.bias, head.bias, rtol=0, atol=0)
        by_average = validated(whole)
    by_weights = validated(whole)
    assert by_average != by_weights
    assert (tmp_path / "average" / "pipeline.json").is_file()  # a checkpoint to generate with

    train(config, tmp_path / "b")
    newest = checkpoints(tmp_path / "b")[-1]
    newest.rename(newest.with_name("gone"))
    again = train(config, tmp_path / "b", resume=True)
    assert again.history == whole.history[3:]
    assert all(torch.equal(value, expected[name]) for name, value in averages(again).items())

    for ema, figures in (("true", by_average), ("false", by_weights)):
        out = io.StringIO()
        config = small_training(folders, *common, f"validate_ema={ema}")
        train_showo(config, tmp_path / ema, console=Console(file=out, width=200))
        assert f"validation  t2i {figures['t2i']:.4g}" in out.getvalue()


def test_frozen_parameters_stay_as_they_were(folders: Folders, tmp_path: Path) -> None:
    overrides = [*PLAIN, "optimizer.lr=1e-2", "frozen=[showo.model.layers.0.*, showo.lm_head.weight]"]
    config = small_training(folders, *overrides)
    before = {n: p.clone() for n, p in showo_loop(config, tmp_path, Console(quiet=True)).model.state_dict().items()}
    after = train(config, tmp_path / "run").model.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    layer = {name for name in before if name.startswith("showo.model.layers.0.")}
    assert same == {*layer, "showo.lm_head.weight"}
    with pytest.raises(ConfigError, match=r"frozen: no parameter's name matches 'model\.layers'; one is 'showo\."):
        train(small_training(folders, "frozen=[model.layers]"), tmp_path / "a")
    with pytest.raises(ConfigError, match="frozen: no parameter is left to learn"):
        train(small_training(folders, "frozen=['*']"), tmp_path / "b")


def test_a_stage_takes_the_weights_of_the_one_before_with_other_lengths(folders: Folders, tmp_path: Path) -> None:
    first = train(small_training(folders, *PLAIN), tmp_path / "a")
    start = checkpoints(tmp_path / "a")[-1]
    out = io.StringIO()
    larger = ["resolution=64", "model.num_vq_tokens=64", "model.max_text_len=30", "model.w_clip_vit=true"]
    overrides = [*PLAIN, f"init_from={start}", *larger, "model.clip_width=8", "optimizer.lr=0", "steps=1"]
    second = train_showo(small_training(folders, *overrides), tmp_path / "b", console=Console(file=out, width=300))
    weights = second.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.model.state_dict().items())
    for line in ("num_vq_tokens 16 -> 64: pictures of another size", "max_text_len 20 -> 30", "mm_projector.0.weight"):
        assert f"init_from: {line}" in out.getvalue()
    assert not any(parameter.requires_grad for parameter in second.model.mm_projector.parameters())  # no row uses it
    assert second.optimizer.state_dict()["state"][0]["step"] == 1  # of this stage

    out = io.StringIO()
    back = [*PLAIN, f"init_from={checkpoints(tmp_path / 'b')[-1]}", "optimizer.lr=0", "steps=1"]
    third = train_showo(small_training(folders, *back), tmp_path / "c", console=Console(file=out, width=300))
    assert all(torch.equal(value, weights[name]) for name, value in third.model.state_dict().items())
    assert "mm_projector.2.bias of" in out.getvalue()
    assert "are not used" in out.getvalue()
    for wrong in ("model.hidden_size=64", "model.rope_theta=5000"):
        with pytest.raises(CheckpointError, match=r"another model configuration: \w+ is [\d.]+, not "):
            train(small_training(folders, f"init_from={start}", wrong), tmp_path / "d")
