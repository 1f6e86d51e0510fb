"""One step: gradients as they reach the optimizer, learning rate, clipping, precision, random draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from showo.data.faults import Drawn
from showo.data.tally import Tally
from showo.train.clock import StepClock
from showo.train.config import LoopConfig, OptimizerConfig
from showo.train.facts import Facts
from showo.train.figures import StepFigures
from showo.train.optimizer import learning_rate, make_optimizer
from showo.train.parallel import Parallel
from showo.train.ranks import Ranks
from showo.train.step import LossFunction, accumulate_gradients, train_step

CLOCK = StepClock(torch.device("cpu"))
INPUTS = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Rows:
    """A micro-batch of inputs."""

    inputs: Tensor
    tally: Tally = field(default_factory=Tally)

    drawn: Mapping[str, list[Drawn[None]]] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, float]:
        return {"rows": len(self.inputs)}


def micro_batches(*sizes: int) -> list[Rows]:
    return [Rows(inputs) for inputs in INPUTS[: sum(sizes)].split(list(sizes))]


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def squares(model: nn.Module, scale: float = 1.0) -> LossFunction[Rows]:
    def loss(
        rows: Rows, counts: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        value = scale * model(rows.inputs).square().mean() * (len(rows.inputs) / counts["rows"])
        return value, {"scaled": 10 * value}

    return loss


def gradients_of_step(
    model: nn.Module,
    loss: LossFunction[Rows],
    rows: list[Rows],
    step: int,
    settings: LoopConfig,
    ranks: Ranks | None = None,
) -> dict[str, Tensor]:
    return accumulate_gradients(Parallel(model, ranks), loss, rows, Facts.of(rows).counts, step, settings, CLOCK)


def one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: LossFunction[Rows],
    rows: list[Rows],
    step: int,
    settings: LoopConfig,
) -> dict[str, Tensor]:
    return train_step(Parallel(model), optimizer, loss, rows, Facts.of(rows).counts, step, settings, CLOCK)


class Recorder(torch.optim.SGD):
    """Keeps the learning rates of its groups, one for each parameter, and the gradients of every step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([{"params": [parameter]} for parameter in model.parameters()], lr=1.0, fused=True)
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


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), (3, 9, 1), (24,)])
def test_accumulated_gradients_are_those_of_the_mean_over_all_rows(sizes: tuple[int, ...]) -> None:
    model = linear()
    figures = gradients_of_step(model, squares(model), micro_batches(*sizes), 0, config())
    accumulated = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    loss = model(INPUTS[: sum(sizes)]).square().mean()
    loss.backward()
    for gradient, parameter in zip(accumulated, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert not any(figure.requires_grad for figure in figures.values())
    torch.testing.assert_close(figures, {"loss": loss.detach(), "scaled": 10 * loss.detach()})


def test_a_step_gives_mean_gradients_and_the_rate_of_the_schedule_to_the_optimizer() -> None:
    model = linear()
    recorder, settings = Recorder(model), config(accumulate=2, warmup_steps=4)
    expected = []
    for step in range(9):
        before = linear()
        before.load_state_dict(model.state_dict())
        before(INPUTS[:12]).square().mean().backward()
        expected.append(torch.cat([p.grad.flatten() for p in before.parameters() if p.grad is not None]))
        figures = one_step(model, recorder, squares(model), micro_batches(6, 6), step, settings)
        assert figures["grad_norm"] == pytest.approx(float(expected[-1].norm()))
    assert recorder.rates == [learning_rate(settings.optimizer, step, 9) for step in range(9) for _ in range(2)]
    for found, wanted in zip(recorder.gradients, expected, strict=True):  # none is left over from the step before
        torch.testing.assert_close(found, wanted)


def test_clipping_bounds_the_norm_of_all_gradients_together() -> None:
    free, norm = gradient_of(squares_scale=1.0, limit=0.0)
    assert norm == pytest.approx(float(free.norm()))
    clipped, norm_before = gradient_of(squares_scale=1.0, limit=norm / 4)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=0)
    assert norm_before == norm
    kept, _ = gradient_of(squares_scale=1.0, limit=norm * 1.01)
    assert torch.equal(kept, free)
    large, _ = gradient_of(squares_scale=1e6, limit=0.0)
    torch.testing.assert_close(large, free * 1e6)


def gradient_of(squares_scale: float, limit: float) -> tuple[Tensor, float]:
    """What a step gives to the optimizer, and the norm that the step reports."""
    model = linear()
    recorder = Recorder(model)
    settings = config(max_grad_norm=limit)
    figures = one_step(model, recorder, squares(model, squares_scale), micro_batches(6), 1, settings)
    return recorder.gradients[0], float(figures["grad_norm"])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_that_of_matrix_products(precision: str, dtype: torch.dtype) -> None:
    model = linear()
    seen: list[torch.dtype] = []

    def loss(
        rows: Rows, counts: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        out = model(rows.inputs)
        seen.append(out.dtype)
        return out.float().square().mean(), {}

    gradients_of_step(model, loss, micro_batches(6, 6), 0, config(precision=precision))
    assert seen == [dtype, dtype]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_every_micro_batch_of_every_step_seed_and_rank_draws_anew_and_the_same_again() -> None:
    def draws(seed: int, rank: int = 0) -> list[int]:
        found: list[int] = []
        model = linear()

        def loss(
            rows: Rows, counts: Mapping[str, float], generator: torch.Generator
        ) -> tuple[Tensor, Mapping[str, Tensor]]:
            found.append(int(torch.randint(2**62, (), generator=generator)))
            return squares(model)(rows, counts, generator)

        settings = config()
        settings.seed = seed
        for step in range(8):
            gradients_of_step(linear(), loss, micro_batches(6, 6, 6, 6), step, settings, Ranks(rank, 3))
        return found

    first, others = draws(seed=7), [draws(seed=8), draws(seed=7, rank=1), draws(seed=7, rank=2)]
    assert draws(seed=7) == first
    assert len({*first, *itertools.chain(*others)}) == 4 * 32


def spoiled(model: nn.Module, spoil: Callable[[Tensor], Tensor]) -> LossFunction[Rows]:
    def loss(
        rows: Rows, counts: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return spoil(model(rows.inputs).square().mean()), {}

    return loss


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a step may change."""
    moments = {f"{i}.{name}": value for i, p in enumerate(optimizer.state.values()) for name, value in p.items()}
    return {name: value.clone() for name, value in {**model.state_dict(), **moments}.items()}


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value * float("nan"),
        lambda value: value + float("inf"),  # with a finite gradient
        lambda value: (value * 0).sqrt(),  # a gradient of 0 times infinity
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(spoil: Callable[[Tensor], Tensor], limit: float) -> None:
    model = linear()
    settings = config(weight_decay=0.5, max_grad_norm=limit)
    optimizer = make_optimizer(model, settings.optimizer)
    first = one_step(model, optimizer, squares(model), micro_batches(6), 3, settings)
    before = state_of(model, optimizer)
    skipped = one_step(model, optimizer, spoiled(model, spoil), micro_batches(6), 4, settings)
    assert (bool(first["finite"]), bool(skipped["finite"])) == (True, False)
    after = state_of(model, optimizer)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in model.parameters())
    one_step(model, optimizer, squares(model), micro_batches(6), 5, settings)
    assert not torch.equal(model.weight, before["weight"])


class Waits(TorchDispatchMode):
    """Notes the operators that make a program wait for its device: they need a number from there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device() -> None:
    model = linear()
    settings = config(max_grad_norm=0.1)
    optimizer, figures = make_optimizer(model, settings.optimizer), StepFigures(limit=0)
    with Waits() as waits:
        for step in range(3):
            figures.add(step, one_step(model, optimizer, squares(model), micro_batches(6, 6), step, settings))
    assert waits.seen == []
    with Waits() as waits:
        float(figures.take()[0]["loss"])
        bool(INPUTS[0, 0] > 0)
    assert waits.seen == ["_local_scalar_dense"]  # it does see what waits


def test_the_parts_of_a_step_are_called_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("showo.train.clock.time.monotonic", lambda: now[0])

    def later(seconds: float) -> None:
        now[0] += seconds

    model, clock = linear(), StepClock(torch.device("cpu"))
    plain = squares(model)

    def loss(*arguments: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        later(3)
        value, figures = plain(*arguments)
        value.register_hook(lambda _: later(5))
        return value, figures

    optimizer = make_optimizer(model, OptimizerConfig())
    optimizer.register_step_pre_hook(lambda *_: later(7))
    rows = micro_batches(2, 4)
    for step in (0, 1):
        train_step(Parallel(model), optimizer, loss, rows, Facts.of(rows).counts, step, LoopConfig(steps=2), clock)
    assert clock.take() == {"forward": 12.0, "backward": 20.0, "optimizer": 14.0, "communication": 0.0}
    assert clock.take() == {}


def test_the_parts_of_a_step_on_a_gpu_are_measured_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that nobody waits for before the parts are taken."""
    now, waited = [0.0], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "the stream of cuda:1"
            self.milliseconds = now[0]

        def synchronize(self) -> None:
            waited.append(self.milliseconds)

        def elapsed_time(self, end: Event) -> float:
            return end.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    clock = StepClock(torch.device("cuda:1"))
    for milliseconds in (30, 50):
        with clock.part("forward"):
            now[0] += milliseconds
        now[0] += 1000
    assert waited == []
    assert clock.take() == {"forward": pytest.approx(0.08)}
    assert waited == [30, 1080]
