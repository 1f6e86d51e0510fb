"""What a dry run found, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from showo.tables import aligned
from showo.train.dry_run import DryRun, PlannedStream
from showo.train.plan.flops import Flops, Rows, count_parameters, step_flops
from showo.train.plan.memory import activation_memory, logits_memory, state_memory


def report(run: DryRun) -> Iterator[str]:
    """What a training reads and computes, a paragraph at a time."""
    if run.missing:
        yield "not here:\n" + "\n".join(run.missing)
    yield _sources(run)
    yield rows_table(run)
    everything, learned = count_parameters(run.model)
    yield f"parameters: {everything:,}, of which {learned:,} learn"
    yield flops_table(run)
    yield _memory(run)
    yield from (stream.drawn for stream in run.streams if stream.drawn)


def _sources(run: DryRun) -> str:
    """A line for every source: what of it the whole training sees."""
    lines = [["stream", "source", "samples", "share", "samples seen", "epochs"]]
    for stream in run.streams:
        for source in stream.data:
            seen = stream.rows * run.config.steps * source.share
            epochs = f"{seen / source.samples:.2f}" if source.samples else "-"
            samples = f"{source.samples:,}" if source.samples else "not here"
            lines.append([stream.name, source.name, samples, f"{source.share:.1%}", f"{seen:,.0f}", epochs])
        for source in stream.held_out:
            samples = f"{source.samples:,}" if source.samples else "not here"
            lines.append([f"{stream.name} held out", source.name, samples, f"{source.share:.1%}", "", ""])
    missing = [
        f"{stream.name}: {source.missing}"
        for stream in run.streams
        for source in [*stream.data, *stream.held_out]
        if source.missing
    ]
    return "\n".join([f"{run.config.steps:,} steps", *aligned(lines, right=range(2, 6)), *missing])


def rows_table(run: DryRun) -> str:
    """What the rows of a step hold; padding, which is not computed, apart."""
    lines = [["a step", "rows", "text", "image", "targets", "padding", "from"]]
    for stream, rows in zip(run.streams, run.rows, strict=True):
        lines.append([stream.name, f"{stream.rows:,}", *_places(rows), _origin(stream)])
    total = sum(run.rows, Rows())
    lines.append(["together", f"{sum(stream.rows for stream in run.streams):,}", *_places(total), ""])
    note = f"{total.places:,.0f} tokens a step are computed; padding, which is not, would be {total.padding:,.0f} more"
    return "\n".join([*aligned(lines, right=range(1, 6)), note])


def _places(rows: Rows) -> list[str]:
    return [f"{count:,.0f}" for count in (rows.text, rows.image, rows.targets, rows.padding)]


def _origin(stream: PlannedStream) -> str:
    return f"its first {stream.looked_at} rows" if stream.looked_at else "rows full of text, as nothing is known"


def _flops(run: DryRun) -> dict[str, Flops]:
    """Of a step, by part; of the frozen encoders as far as they are known."""
    rows = sum(run.rows, Rows())
    encoding, seeing = run.picture_flops()
    found = step_flops(run.model, rows)
    for name, pictures, each in (("image tokenizer", rows.encoded, encoding), ("vision tower", rows.seen, seeing)):
        if pictures:
            known = f"{name}, {pictures:,.0f} pictures" + (", not counted" if each is None else "")
            found[known] = Flops(pictures * (each or 0))
    return found


def flops_table(run: DryRun) -> str:
    """Forward and backward, by part; what is computed again is not counted."""
    flops = _flops(run)
    total = sum(flops.values(), Flops())
    unit, size = _unit(total.total, ("", "k", "M", "G", "T", "P", "E"), 1000)
    lines = [[f"{unit}FLOP a step", "forward", "backward", "together"]]
    for name, each in [*flops.items(), ("together", total)]:
        lines.append([name, *(f"{count / size:.3f}" for count in (each.forward, each.backward, each.total))])
    return "\n".join(aligned(lines, right=range(1, 4)))


def _memory(run: DryRun) -> str:
    """Of a device that has the whole model; `showo plan` knows what several have each."""
    config = run.config
    rows = [rows.times(1 / config.accumulate) for rows in run.rows]
    activations = activation_memory(run.model, config.precision, sum(each.places for each in rows))
    sizes = {**state_memory(run.model, config), "logits, estimated": logits_memory(run.model, rows)}
    total = sum(sizes.values()) + activations[config.recompute]
    sizes |= {f"activations with recompute={how}, estimated": size for how, size in activations.items()}
    sizes[f"together with recompute={config.recompute}, which this training has"] = total
    unit, scale = _unit(total, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)
    lines = [["memory of a device that has the whole model", unit]]
    lines += [[kind, f"{size / scale:.2f}"] for kind, size in sizes.items()]
    return "\n".join(aligned(lines, right=[1]))


def _unit(value: float, names: Sequence[str], base: int) -> tuple[str, int]:
    """The largest unit of which a number has at least one, and how large that is."""
    power = 0
    while power + 1 < len(names) and value >= base ** (power + 1):
        power += 1
    return names[power], base**power
