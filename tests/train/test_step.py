"""One step: gradients as they reach the optimizer, learning rate, clipping, precision, random draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from showo.errors import NotFiniteError
from showo.train.config import LoopConfig, OptimizerConfig
from showo.train.optimizer import learning_rate
from showo.train.step import accumulate_gradients, train_step

INPUTS = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))  # 4 micro-batches of 6


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def squares(model: nn.Module, scale: float = 1.0):  # type: ignore[no-untyped-def]
    def loss(step: int, micro: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        value = scale * model(INPUTS[micro]).square().mean()
        return value, {"scaled": 10 * float(value.detach()), "micro": micro}

    return loss


class Recorder(torch.optim.SGD):
    """Keeps learning rate and gradients of every step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=1.0)
        self.rates: list[float] = []
        self.gradients: list[Tensor] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.rates += [group["lr"] for group in self.param_groups]
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.gradients.append(torch.cat([g.flatten() for g in grads if g is not None]))
        super().step()


def config(accumulate: int = 1, precision: str = "fp32", **optimizer: float) -> LoopConfig:
    return LoopConfig(
        steps=9,
        accumulate=accumulate,
        precision=precision,
        optimizer=OptimizerConfig(**{"warmup_steps": 0, **optimizer}),  # type: ignore[arg-type]
    )


def test_accumulated_gradients_are_those_of_the_mean_loss() -> None:
    model = linear()
    means = accumulate_gradients(squares(model), 0, config(accumulate=4))
    accumulated = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    loss = model(INPUTS.flatten(0, 1)).square().mean()
    loss.backward()
    for gradient, parameter in zip(accumulated, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    mean = float(loss.detach())
    assert means == pytest.approx({"loss": mean, "scaled": 10 * mean, "micro": 1.5})


def test_a_step_gives_mean_gradients_and_the_rate_of_the_schedule_to_the_optimizer() -> None:
    model = linear()
    recorder, settings = Recorder(model), config(accumulate=2, warmup_steps=4)
    expected = []
    for step in range(9):
        before = linear()
        before.load_state_dict(model.state_dict())
        before(INPUTS[:2].flatten(0, 1)).square().mean().backward()
        expected.append(torch.cat([p.grad.flatten() for p in before.parameters() if p.grad is not None]))
        figures = train_step(model, recorder, squares(model), step, settings)
        assert figures["lr"] == learning_rate(settings.optimizer, step, 9)
        assert figures["grad_norm"] == pytest.approx(float(expected[-1].norm()))
    assert recorder.rates == [learning_rate(settings.optimizer, step, 9) for step in range(9)]
    for found, wanted in zip(recorder.gradients, expected, strict=True):  # none is left over from the step before
        torch.testing.assert_close(found, wanted)


def test_clipping_bounds_the_norm_of_all_gradients_together() -> None:
    (free,) = gradients_of(squares_scale=1.0, limit=0.0)
    norm = float(free.norm())
    (clipped,) = gradients_of(squares_scale=1.0, limit=norm / 4)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=0)
    (kept,) = gradients_of(squares_scale=1.0, limit=norm * 1.01)
    assert torch.equal(kept, free)
    (large,) = gradients_of(squares_scale=1e6, limit=0.0)
    torch.testing.assert_close(large, free * 1e6)


def gradients_of(squares_scale: float, limit: float) -> list[Tensor]:
    model = linear()
    recorder = Recorder(model)
    train_step(model, recorder, squares(model, squares_scale), 1, config(max_grad_norm=limit))
    return recorder.gradients


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_that_of_matrix_products(precision: str, dtype: torch.dtype) -> None:
    model = linear()
    seen: list[torch.dtype] = []

    def loss(step: int, micro: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        out = model(INPUTS[micro])
        seen.append(out.dtype)
        return out.float().square().mean(), {}

    accumulate_gradients(loss, 0, config(accumulate=2, precision=precision))
    assert seen == [dtype, dtype]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_every_micro_batch_of_every_step_and_seed_draws_anew_and_the_same_again() -> None:
    def draws(seed: int) -> list[int]:
        found: list[int] = []
        model = linear()

        def loss(step: int, micro: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
            found.append(int(torch.randint(2**62, (), generator=generator)))
            return squares(model)(step, micro, generator)

        settings = config(accumulate=4)
        settings.seed = seed
        for step in range(8):
            accumulate_gradients(loss, step, settings)
        return found

    first, other = draws(seed=7), draws(seed=8)
    assert draws(seed=7) == first
    assert len({*first, *other}) == 64


@pytest.mark.parametrize(
    ("spoil", "loss"),
    [
        (lambda value: value * float("nan"), "nan"),
        (lambda value: value + float("inf"), "inf"),  # with a finite gradient
        (lambda value: (value * 0).sqrt(), "0.0"),  # a gradient of 0 times infinity
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(spoil: Callable[[Tensor], Tensor], loss: str) -> None:
    model = linear()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def spoiled(step: int, micro: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        return spoil(model(INPUTS[micro]).square().mean()), {}

    with pytest.raises(NotFiniteError, match=f"step 4: loss {loss}, gradient norm"):
        train_step(model, Recorder(model), spoiled, 3, config())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
