"""Linear layers of the transformer: which calls read the weights once, and quantised weights."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from showo import ShowoPipeline
from showo.errors import UserError
from showo.model import quantize as quantizing
from showo.model.linear import SKINNY_ROWS, Linear
from showo.model.quantize import Int8Linear, quantize
from showo_ext.testing import CountOperators, assert_within_budget, randn


def layer(width=70, outputs=45, dtype=torch.float32):
    linear = Linear(width, outputs, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(randn(outputs, width, seed=1))
        linear.bias.copy_(randn(outputs, seed=2))
    return linear


def calls_of(linear, x, **arguments):
    """The result, and how often `skinny_linear` was called."""
    with CountOperators() as operators:
        result = linear(x, **arguments)
    return result, operators.calls["skinny_linear"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_few_rows_read_the_weights_once(dtype):
    linear, x = layer(dtype=dtype), randn(2, 3, 70, dtype=dtype)
    with torch.no_grad():
        y, calls = calls_of(linear, x)
        assert calls == 1
        oracle = F.linear(x.double(), linear.weight.double(), linear.bias.double())
        assert_within_budget(y, oracle, F.linear(x, linear.weight, linear.bias), rms=True)


def test_other_calls_are_torchs():
    linear, x = layer(), randn(2, 70)
    assert calls_of(linear, x)[1] == 0  # with a gradient
    with torch.no_grad():
        assert calls_of(linear, randn(SKINNY_ROWS + 1, 70))[1] == 0
        assert calls_of(layer(dtype=torch.float64), x.double())[1] == 0
        with torch.autocast("cpu", torch.bfloat16):
            assert calls_of(linear, x)[1] == 0

        class Foreign(torch.nn.Parameter):
            pass

        linear.weight = Foreign(linear.weight)
        assert calls_of(linear, x)[1] == 0


@pytest.mark.parametrize("rows", [2, SKINNY_ROWS + 1])
@pytest.mark.parametrize("kind", [Linear, Int8Linear])
def test_wanted_outputs(kind, rows):
    linear, x = layer(), randn(rows, 70)
    linear = linear if kind is Linear else Int8Linear(linear)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, slice(3, 20)), linear(x)[:, 3:20])


# ---------------------------------------------------------------- int8


@pytest.mark.parametrize("rows", [2, SKINNY_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_weights_are_the_nearest(rows, dtype):
    linear, x = layer(dtype=dtype), randn(rows, 70, dtype=dtype)
    with torch.no_grad():
        linear.weight[4] = 0.0
        small = Int8Linear(linear)
        weight = linear.weight.double()
        assert small.weight.abs().amax(1).tolist() == [127 if row != 4 else 0 for row in range(45)]
        step = weight.abs().amax(1, keepdim=True) / 127
        near = small.weight.double() * small.scale.double()[:, None]
        assert ((near - weight).abs() <= step * 0.5001).all()
        y, calls = calls_of(small, x)
        assert calls == (rows <= SKINNY_ROWS)
        assert_within_budget(
            y,
            F.linear(x.double(), near, linear.bias.double()),
            F.linear(x, near.to(dtype), linear.bias),
            rms=True,
        )


def test_scales_stay_float32():
    small = Int8Linear(layer())
    scale = small.scale.clone()
    small.bfloat16()
    assert small.bias.dtype == torch.bfloat16
    assert small.weight.dtype == torch.int8
    assert small.scale.dtype == torch.float32
    assert torch.equal(small.scale, scale)
    assert small.to("meta").scale.device.type == "meta"


def test_a_quantized_model(model):
    """Every linear layer of blocks and head, and no other weight; answers stay near; nothing of it is saved."""
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids)
    before = dict(model.named_parameters())
    quantize(model, "int8")
    kinds = {name.rpartition(".")[2]: type(module) for name, module in model.named_modules() if hasattr(module, "bias")}
    assert {name for name, kind in kinds.items() if kind is Int8Linear} == {
        *("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "lm_head")
    }
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"
    with torch.no_grad():
        for length in (20, 7):  # many rows and few
            actual = model(ids[:, :length])
            error = (actual - expected[:, :length]).norm() / expected[:, :length].norm()
            assert 0 < error < 0.02
            wanted = model.logits(model.hidden_states(ids[:, :length]), (3, 9))
            torch.testing.assert_close(wanted, actual[..., 3:9])
    with pytest.raises(UserError, match="int8 weights are not saved"):
        model.state_dict()


def test_a_pipeline_with_int8_weights(tmp_path):
    whole, small = ShowoPipeline.from_pretrained(), ShowoPipeline.from_pretrained(quantization="int8")
    pictures = whole.generate(["rocket", "umbrella"], seed=0)
    assert small.describe(pictures) == whole.describe(pictures)
    assert [picture.size for picture in small.generate(["rocket"], steps=2)] == [pictures[0].size]
    with pytest.raises(UserError, match="int8 weights are not saved"):
        small.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_other_quantizations_are_refused(model):
    for refuse in (lambda: quantize(model, "int3"), lambda: ShowoPipeline.from_pretrained("none", quantization="int3")):
        with pytest.raises(UserError, match="quantization must be one of int8, got 'int3'"):
            refuse()


def test_a_gpu_needs_torchao(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="int8 weights on a GPU need torchao: pip install torchao"):
        quantize(model.to("meta"), "int8")


def test_torchaos_weights(model):
    """The path of GPUs, on the CPU: its layers keep their class and bring their own product."""
    pytest.importorskip("torchao")
    model.bfloat16()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids)
        quantizing._quantize_with_torchao(model)
        for length in (20, 7):
            error = (model(ids[:, :length]) - expected[:, :length]).norm() / expected[:, :length].norm()
            assert 0 < error < 0.02
