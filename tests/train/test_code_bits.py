"""Code rows with a shared part per bit: the formula, its gradient, and that nothing of it stays in what is saved."""

import pytest
import torch
from torch.nn.utils import parametrize

from showo.config import tiny
from showo.errors import ConfigError
from showo.model.code_bits import add_code_bits
from showo.model.transformer import Showo

SMALL = tiny(300, hidden_size=64, num_heads=2, num_layers=1, intermediate_size=64, codebook_size=32, num_vq_tokens=4)


@pytest.fixture
def model() -> Showo:
    model = Showo(SMALL)
    add_code_bits(model)
    return model


def tables(model: Showo):
    return model.showo.model.embed_tokens, model.showo.lm_head


def test_a_code_s_row_is_its_own_plus_or_minus_the_rows_of_its_bits(model):
    first, codes = SMALL.vocabulary.image_offset, SMALL.codebook_size
    for module in tables(model):
        plain = module.parametrizations.weight.original
        shared = module.parametrizations.weight[0].weight
        assert shared.shape == (5, SMALL.hidden_size)
        for code in range(codes):
            expected = plain[first + code].clone()
            for place, bit in enumerate(f"{code:05b}"):  # the most significant bit first
                expected += shared[place] if bit == "1" else -shared[place]
            torch.testing.assert_close(module.weight[first + code], expected)
        torch.testing.assert_close(module.weight[:first], plain[:first], rtol=0, atol=0)
        torch.testing.assert_close(module.weight[first + codes :], plain[first + codes :], rtol=0, atol=0)


def test_what_one_code_learns_reaches_every_code_with_its_bits(model):
    embed, _ = tables(model)
    first = SMALL.vocabulary.image_offset
    model.embed(torch.tensor([[first + 0b10110]])).sum().backward()
    shared = embed.parametrizations.weight[0].weight.grad
    assert shared.mean(1).tolist() == [1, -1, 1, 1, -1]
    assert embed.parametrizations.weight.original.grad.nonzero()[:, 0].unique().tolist() == [first + 0b10110]


def test_the_two_tables_share_nothing(model):
    embed, head = tables(model)
    assert not torch.equal(embed.parametrizations.weight[0].weight, head.parametrizations.weight[0].weight)


def test_what_is_saved_is_a_plain_model_of_the_same_logits(model, tmp_path):
    model.eval().save_pretrained(tmp_path)
    plain = Showo.from_pretrained(tmp_path)
    assert list(plain.state_dict()) == list(Showo(SMALL).state_dict())
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    ids = torch.randint(SMALL.vocab_size, (2, 9))
    torch.testing.assert_close(plain(ids), model(ids), rtol=0, atol=0)


def test_a_codebook_that_is_no_power_of_two_is_refused():
    with pytest.raises(ConfigError, match="power of two, got 24"):
        add_code_bits(Showo(tiny(300, codebook_size=24)))
