"""The arithmetic of a plan against a model that computes: FLOPs, parameters, optimizer and activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from showo.batch import Batch
from showo.config import ShowoConfig, official
from showo.model.code_bits import add_code_bits
from showo.model.lora import TARGETS, add_lora
from showo.model.losses import multimodal_loss
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo.train.blocks import recompute_activations
from showo.train.config import OptimizerConfig, ShowoTraining
from showo.train.initial import freeze
from showo.train.optimizer import make_optimizer
from showo.train.plan.flops import Rows, count_parameters, step_flops
from showo.train.plan.memory import ON_CPU, activation_memory, activations_of_place, logits_memory, state_memory
from showo.train.plan.sharing import Sharing
from showo_ext import reference

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 96,
    "text_vocab_size": 40,
    "codebook_size": 64,
    "num_vq_tokens": 16,
    "max_text_len": 8,
    "max_positions": 128,
    "w_clip_vit": True,
    "clip_width": 24,
}


def rows_of(config: ShowoConfig, count: int) -> Batch:
    """Padded rows of t2i, lm, mmu and mmu_vit, `count` of each, packed."""
    prompting, ids = Prompting.for_model(config, eot=3), config.vocabulary
    codes = torch.randint(*ids.image_range, (count, config.num_vq_tokens))
    hidden = torch.rand(codes.shape) < 0.5
    texts = [[1, 2, 4][: 1 + row % 3] for row in range(count)]
    batches = [
        prompting.t2i(texts, codes.masked_fill(hidden, ids.mask_id), codes.masked_fill(~hidden, -100)),
        prompting.lm(texts, 12),
        prompting.mmu(codes, texts),
        prompting.mmu_vit(texts, [5], torch.randn(count, 9, config.clip_width), image_tokens=9),
    ]
    return Batch.pack(batches, ids.pad)


def everything(model: Showo) -> None:
    pass


def the_projector_alone(model: Showo) -> None:
    freeze(model, ["showo.*"])


def all_but_the_beginning(model: Showo) -> None:
    freeze(model, ["showo.model.embed_tokens.*", "mm_projector.*", "showo.model.layers.0.*"])


def one_layer_alone(model: Showo) -> None:
    freeze(model, ["mm_projector.*", "showo.[!m]*", "*embed*", "*norm*", "*.1.*", "*attn*", "*fc2*"])


def adapters(model: Showo) -> None:
    if find_spec("peft") is None:
        pytest.skip("peft is not installed")
    add_lora(model, rank=4, alpha=8.0, dropout=0.0, targets=TARGETS, base="", seed=0)


@pytest.mark.parametrize("learned", [everything, the_projector_alone, all_but_the_beginning, one_layer_alone, adapters])
def test_flops_are_those_that_torch_counts(learned: Callable[[Showo], None]) -> None:
    """With attention in plain torch, which computes pairs that the mask does not allow as well."""
    model = Showo(ShowoConfig(**SIZES))
    model.attend = reference.omni_attention
    learned(model)
    batch = rows_of(model.config, 3)
    with FlopCounterMode(display=False) as counter:
        loss = multimodal_loss(model, batch).total
        forward = counter.get_total_flops()
        loss.backward()
    rows, places = Rows.of(batch, model.config.vocabulary), batch.input_ids.numel()
    dense = replace(rows, pairs=places**2, target_pairs=places * len(batch.labelled))
    planned = step_flops(model, dense).values()
    assert sum(each.forward for each in planned) == forward
    assert sum(each.total for each in planned) == counter.get_total_flops()


def test_rows_are_counted_as_they_are() -> None:
    config = ShowoConfig(**SIZES)
    prompting, ids = Prompting.for_model(config, eot=3), config.vocabulary
    codes = torch.full((2, 16), ids.image_offset)
    batch = prompting.t2i([[1], [1, 2, 4]], codes, codes)
    rows = Rows.of(batch, ids, encoded=2)
    assert (rows.text, rows.image, rows.padding) == (2 * 5 + 1 + 3, 32, 2 * (9 + 18) - 46)
    assert rows.targets == 2 * 18  # all codes, soi, eoi
    dense = batch.mask.to_dense() & (batch.input_ids != ids.pad)[:, :, None]
    assert rows.pairs == dense.sum()
    assert rows.target_pairs == dense[batch.targets != -100].sum()
    assert (rows.encoded, rows.seen, rows.features) == (2, 0, 0)
    more = Rows.of(prompting.mmu_vit([[1]], [], torch.zeros(1, 9, 24), image_tokens=9), ids, seen=1)
    assert (rows.times(0.5) + more).image == 16 + 9
    assert (more.features, more.seen) == (9, 1)


def test_parameters_are_those_of_the_model() -> None:
    with torch.device("meta"):
        assert count_parameters(Showo(official())) == (1_448_176_770, 1_448_176_770)
        clip = Showo(official(w_clip_vit=True))
    assert count_parameters(clip) == (1_454_472_322, 1_454_472_322)
    freeze(clip, ["showo.*"])
    assert count_parameters(clip) == (1_454_472_322, 1_454_472_322 - 1_448_176_770)


def test_the_optimizer_has_what_is_planned() -> None:
    model = Showo(ShowoConfig(**SIZES))
    add_code_bits(model)
    freeze(model, ["mm_projector.*", "*fc1*"])
    optimizer = make_optimizer(model, OptimizerConfig())
    multimodal_loss(model, rows_of(model.config, 1)).total.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.step()
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    found = state_memory(model, ShowoTraining(steps=1, ema_decay=0.9))
    assert found == {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": gradients,
        "optimizer": moments,
        "average of the weights": gradients,
    }


class Living(TorchDispatchMode):
    """Knows the memory that operators have made and that something still keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)):
            self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return found

    def bytes(self) -> int:
        return sum(size for storage, size in self.made.values() if not storage.expired())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16 alone"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_activations_are_what_autograd_keeps(recompute: str, precision: str) -> None:
    """By how much more is kept of more places by more layers: a block's share. "bf16 alone" is without autocast, as
    `parallel: fsdp` computes.
    """
    kept: dict[tuple[int, int], int] = {}
    batches = {count: rows_of(ShowoConfig(**SIZES), count) for count in (4, 8)}
    for layers in (2, 4):
        model = Showo(ShowoConfig(**{**SIZES, "num_layers": layers}))
        if precision == "bf16 alone":
            model.bfloat16()
        recompute_activations(model, recompute)
        for count, batch in batches.items():
            with Living() as living, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = multimodal_loss(model, batch).total
                torch.clear_autocast_cache()
                kept[layers, count] = living.bytes()
            del loss
    places = batches[8].input_ids.numel() - batches[4].input_ids.numel()
    found = (kept[4, 8] - kept[2, 8] - kept[4, 4] + kept[2, 4]) / 2 / places
    planned = activations_of_place(model, precision.split()[0], autocast=precision != "bf16 alone")
    assert found == pytest.approx(planned[recompute], rel=0.01)


def test_memory_of_a_step() -> None:
    """By hand: a place of a block is 100 bytes, say; one block is there as a whole where it is computed again."""
    model = Showo(ShowoConfig(**SIZES))
    place = activations_of_place(model, "fp32")
    found = activation_memory(model, "fp32", 100)
    assert found["none"] == 100 * 2 * place["none"]
    assert found["full"] == 100 * (2 * place["full"] + place["none"])
    assert found["full"] < found["selective"]
    rows = [Rows(text=30, image=10, targets=5), Rows(text=60, targets=7)]
    assert logits_memory(model, rows) == 12 * 12 * model.config.vocab_size


def test_gpus_that_share_a_model_have_their_part_and_what_is_whole_for_a_while() -> None:
    model = Showo(ShowoConfig(**SIZES))
    config = ShowoTraining(steps=1, precision="bf16", ema_decay=0.9)
    (everything, _), one = count_parameters(model), count_parameters(model.showo.model.layers[0])[0]
    alone, shared = state_memory(model, config), state_memory(model, config, Sharing("fsdp", 8, 2))
    for kind in ("weights", "optimizer", "average of the weights"):
        assert shared[kind] == alone[kind] / 8
    assert (shared["gradients"], shared["whole gradients"]) == (4 * everything / 8, 4 * one)
    assert shared["whole weights"] == 2 * everything  # of two layers, both are there
    config.accumulate = 2
    assert state_memory(model, config, Sharing("fsdp", 8, 2))["whole gradients"] == 4 * everything
    assert state_memory(model, config, Sharing("hybrid", 8, 2))["weights"] == alone["weights"] / 4
    assert state_memory(model, config, Sharing("ddp", 8, 2)) == alone


@pytest.mark.parametrize("gpus", [1, 8])
def test_what_waits_in_the_memory_of_the_cpu_is_not_on_the_device(gpus: int) -> None:
    """The same sizes in the other place; what is whole for a while stays on the device, of one GPU too."""
    model = Showo(ShowoConfig(**SIZES))
    config = ShowoTraining(steps=1, precision="bf16", ema_decay=0.9)
    there, waiting = (state_memory(model, config, Sharing("fsdp", gpus, 1, offload)) for offload in (False, True))
    everything = count_parameters(model)[0]
    for kind in ("weights", "gradients", "optimizer", "average of the weights"):
        assert kind not in waiting
        assert waiting[kind + ON_CPU] == there[kind]
    assert waiting["whole weights"] == 2 * everything  # of two layers, both are there
