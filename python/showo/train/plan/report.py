"""What `showo plan` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from showo.tables import aligned
from showo.train.config.showo import RECOMPUTE
from showo.train.dry_run_report import flops_table, rows_table
from showo.train.plan.flops import count_parameters
from showo.train.plan.network import NETWORK_SHARE, NVLINK_SHARE
from showo.train.plan.running import Failures, reading
from showo.train.plan.whole import Plan

_GIB = 2**30


def report(plans: Sequence[Plan]) -> Iterator[str]:
    """The plans of one training, which is shared in several ways, a paragraph at a time."""
    plan = plans[0]
    run = plan.run
    yield _cluster(plan)
    if run.missing:
        yield "not here:\n" + "\n".join(run.missing)
    yield rows_table(run)
    everything, learned = count_parameters(run.model)
    yield f"parameters: {everything:,}, of which {learned:,} learn"
    yield flops_table(run)
    yield _memory(plans)
    yield _time(plans)
    yield _data(plan)
    yield _checkpoints(plans)


def _cluster(plan: Plan) -> str:
    cluster = plan.cluster
    links = (
        f"{cluster.links.nvlink / 1e9:,.0f} GB/s from each GPU to the others of its node, of which {NVLINK_SHARE:.0%}"
    )
    if cluster.nodes > 1:
        links += f", {cluster.links.network / 1e9:,.0f} GB/s from each node to others, of which {NETWORK_SHARE:.0%}"
    nodes = f" in {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    return f"{cluster.gpus} x {cluster.name}{nodes}; {links} are reached"


def _table(title: str, plans: Sequence[Plan], lines: Sequence[Sequence[str]]) -> list[str]:
    """A line for each figure, a column for each plan."""
    return aligned([[title, *(plan.sharing.kind for plan in plans)], *lines], right=range(1, 1 + len(plans)))


def _memory(plans: Sequence[Plan]) -> str:
    """Of the kinds that any of the plans has."""
    kinds = dict.fromkeys(kind for plan in plans for kind in plan.memory)
    lines = [[kind, *(_gib(plan.memory.get(kind, 0.0)) for plan in plans)] for kind in kinds]
    lines += [[f"activations, recompute={how}", *(_gib(plan.activations[how]) for plan in plans)] for how in RECOMPUTE]
    lines += [[f"together, recompute={how}", *(_fitting(plan, how) for plan in plans)] for how in RECOMPUTE]
    capacity = plans[0].cluster.gpu.capacity / _GIB
    note = f"! is more than the {capacity:,.0f} GiB of one {plans[0].cluster.name}; this training has recompute="
    return "\n".join([*_table("GiB on each GPU", plans, lines), note + plans[0].run.config.recompute])


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"


def _fitting(plan: Plan, recompute: str) -> str:
    size = plan.together(recompute)
    return ("! " if size > plan.cluster.gpu.capacity else "") + _gib(size)


def _time(plans: Sequence[Plan]) -> str:
    parts = dict.fromkeys(name for plan in plans for name in plan.time.parts)
    travel = dict.fromkeys(name for plan in plans for name in plan.time.travel)
    lines = [
        *([part, *(_ms(plan.time.parts.get(part, 0.0)) for plan in plans)] for part in parts),
        *([f"{name}: not hidden, of all", *(_traffic(plan, name) for plan in plans)] for name in travel),
        ["beside the device: Python", *(_ms(plan.time.host) for plan in plans)],
        ["beside the device: what ranks tell each other", *(_ms(plan.time.talk) for plan in plans)],
        ["step", *(_ms(plan.time.seconds) for plan in plans)],
        ["tokens a second", *(f"{plan.tokens_a_second:,.0f}" for plan in plans)],
        ["MFU", *(f"{plan.mfu:.1%}" for plan in plans)],
        [f"days for {plans[0].run.config.steps:,} steps", *(f"{plan.days:.2f}" for plan in plans)],
    ]
    notes = ["a step is what the device takes, or what is beside it, whichever is longer"]
    if compiler := plans[0].run.config.compile:
        notes.append(f"compile={compiler} is not in these times: it fuses much of what lies between products")
    return "\n".join([*_table("ms a step", plans, lines), *notes])


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def _traffic(plan: Plan, name: str) -> str:
    traffic = plan.time.travel.get(name)
    return "-" if traffic is None else f"{_ms(traffic.exposed)} of {_ms(traffic.seconds)}"


def _data(plan: Plan) -> str:
    """Of the first plan; the others take as long, as a rule."""
    side, nodes = plan.run.config.resolution, plan.cluster.nodes
    rate = plan.pictures_a_second
    lines = [[f"{rate:,.0f} pictures a second, {rate / nodes:,.0f} on each node", "cores of a node", "MB/s of a node"]]
    for name, coded in ((f"decoded, {side} x {side}", False), ("ready codes", True)):
        found = reading(rate / nodes, side, coded=coded)
        lines.append([name, f"{found.cores:.1f}", f"{found.bandwidth / 1e6:,.1f}"])
    return "\n".join(aligned(lines, right=(1, 2)))


def _checkpoints(plans: Sequence[Plan]) -> str:
    every, failures = plans[0].run.config.checkpoint_every, [plan.failures for plan in plans]
    seconds = [plan.time.seconds for plan in plans]
    best = [each.best_interval() for each in failures]
    lines = [
        ["GB", *(f"{plan.checkpoint / 1e9:.1f}" for plan in plans)],
        ["s to write it, beside the steps", *(f"{each.writing:.1f}" for each in failures)],
        ["s that steps stand still", *(f"{each.saving:.2f}" for each in failures)],
        ["hours between failures", *(f"{each.between / 3600:,.0f}" for each in failures)],
        [f"lost, every {every:,} steps", *_shares(failures, [every * step for step in seconds])],
        ["best every so many steps", *(f"{time / step:,.0f}" for time, step in zip(best, seconds, strict=True))],
        ["lost then", *_shares(failures, best)],
    ]
    return "\n".join(_table("a checkpoint", plans, lines))


def _shares(failures: Sequence[Failures], intervals: Sequence[float]) -> list[str]:
    return [f"{each.lost(interval):.2%}" for each, interval in zip(failures, intervals, strict=True)]


def stages(plans: Sequence[tuple[str, Plan]]) -> str:
    """A line for every training of a chain. plans: with their names."""
    lines = [
        ["training", "steps", "ms a step", "tokens/s", "MFU", "GiB", "GB a checkpoint", "days", "with what is lost"]
    ]
    total = lost = 0.0
    for name, plan in plans:
        interval = min(plan.run.config.checkpoint_every, plan.run.config.steps) * plan.time.seconds
        days = plan.days / (1 - min(0.99, plan.failures.lost(interval)))
        total, lost = total + plan.days, lost + days
        lines.append(
            [
                name,
                f"{plan.run.config.steps:,}",
                _ms(plan.time.seconds),
                f"{plan.tokens_a_second:,.0f}",
                f"{plan.mfu:.1%}",
                _fitting(plan, plan.run.config.recompute),
                f"{plan.checkpoint / 1e9:.1f}",
                f"{plan.days:.2f}",
                f"{days:.2f}",
            ]
        )
    lines.append(["together", *[""] * 6, f"{total:.2f}", f"{lost:.2f}"])
    return "\n".join(aligned(lines, right=range(1, 9)))
