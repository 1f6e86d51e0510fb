"""Decay groups, AdamW and the learning rate, against the official rules and formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from showo.config import ShowoConfig
from showo.model.transformer import Showo
from showo.train.config import OptimizerConfig, ShowoTraining, load_config
from showo.train.optimizer import learning_rate, make_optimizer, parameter_groups

# The names that the official trainer looks for. Of Show-o's parameters only the biases have one of them.
OFFICIAL_NO_DECAY = ("bias", "layer_norm.weight", "mlm_ln.weight", "embeddings.weight")
DECAYED = """
    showo.model.embed_tokens.weight
    showo.model.layers.0.input_layernorm.weight
    showo.model.layers.0.self_attn.q_proj.weight
    showo.model.layers.0.self_attn.k_proj.weight
    showo.model.layers.0.self_attn.v_proj.weight
    showo.model.layers.0.self_attn.dense.weight
    showo.model.layers.0.self_attn.q_layernorm.weight
    showo.model.layers.0.self_attn.k_layernorm.weight
    showo.model.layers.0.mlp.fc1.weight
    showo.model.layers.0.mlp.fc2.weight
    showo.model.final_layernorm.weight
    showo.lm_head.weight
    mm_projector.0.weight
    mm_projector.2.weight
"""


def one_layer() -> Showo:
    torch.manual_seed(0)
    return Showo(
        ShowoConfig(
            hidden_size=32, num_layers=1, num_heads=1, intermediate_size=32, text_vocab_size=8, codebook_size=8,
            num_vq_tokens=4, max_text_len=8, max_positions=32, w_clip_vit=True, clip_width=16,
        )
    )  # fmt: skip


def test_weights_decay_and_biases_do_not_as_officially() -> None:
    model = one_layer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = parameter_groups(model.named_parameters(), 0.3)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {names[id(p)] for p in decayed["params"]} == set(DECAYED.split())
    assert {names[id(p)] for p in free["params"]} == {name for name in names.values() if name.endswith(".bias")}
    assert set(DECAYED.split()) == {name for name in names.values() if not any(n in name for n in OFFICIAL_NO_DECAY)}


def test_without_a_gradient_only_the_decay_moves_weights() -> None:
    model = one_layer()
    model.showo.lm_head.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.5, weight_decay=0.25))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("showo.lm_head") or name.endswith(".bias")
        torch.testing.assert_close(parameter.detach(), before[name] * (1.0 if frozen else 1 - 0.5 * 0.25), msg=name)


def adamw(weights: Tensor, gradients: list[Tensor], config: OptimizerConfig) -> Tensor:
    """Decoupled weight decay (Loshchilov & Hutter, algorithm 2) in fp64."""
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    beta1, beta2 = config.betas
    for t, g in enumerate(gradients, start=1):
        first = beta1 * first + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * g**2
        step = first / (1 - beta1**t) / ((second / (1 - beta2**t)).sqrt() + config.eps)
        weights = weights - config.lr * (step + config.weight_decay * weights)
    return weights


def test_steps_equal_the_formula_of_adamw() -> None:
    config = OptimizerConfig(lr=0.1, betas=(0.6, 0.8), eps=0.05, weight_decay=0.3)
    model = nn.Linear(7, 5, bias=False).double()
    weights = model.weight.detach().clone()
    gradients = [torch.randn_like(weights) * 0.1 for _ in range(4)]
    optimizer = make_optimizer(model, config)
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), adamw(weights, gradients, config))


@pytest.mark.parametrize(("warmup", "steps"), [(5, 40), (0, 40), (1, 2), (40, 40), (50, 40)])
@pytest.mark.parametrize("final", [0.0, 0.25])
def test_learning_rate_equals_the_official_schedule(warmup: int, steps: int, final: float) -> None:
    config = OptimizerConfig(lr=3e-4, warmup_steps=warmup, final_lr_ratio=final)
    for step in range(steps):
        if step < warmup:
            factor = step / max(1, warmup)
        else:
            progress = (step - warmup) / max(1, steps - warmup)
            factor = max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))  # half a cycle
            factor = final + (1 - final) * factor
        assert learning_rate(config, step, steps) == pytest.approx(3e-4 * factor, rel=1e-12, abs=1e-20)


def test_learning_rate_at_the_corners() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr_ratio=0.1)
    rates = [learning_rate(config, step, 110) for step in (0, 1, 9, 10, 60, 110, 200)]
    assert rates == pytest.approx([0, 0.1, 0.9, 1, 0.55, 0.1, 0.1])


def test_the_official_recipe_is_the_default() -> None:
    assert OptimizerConfig() == OptimizerConfig(
        lr=1e-4,
        final_lr_ratio=0.0,
        warmup_steps=5000,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.01,
        max_grad_norm=0.0,
    )
    config = ShowoTraining()
    assert (config.t2i.weight, config.lm.weight, config.mmu.weight) == (1.0, 0.1, 1.0)
    assert (config.condition_dropout, config.seed) == (0.1, 10086)
    tiny = load_config(ShowoTraining, "tiny")
    assert (tiny.t2i.weight, tiny.lm.weight, tiny.mmu.weight, tiny.condition_dropout) == (1.0, 0.1, 1.0, 0.1)
