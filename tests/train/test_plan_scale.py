"""`showo plan`: time, traffic and failures by hand, against what others have published, and as it is printed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from showo.config import ShowoConfig, official
from showo.gpus import GPUS
from showo.model.transformer import Showo
from showo.train.config import ShowoTraining
from showo.train.plan.flops import Rows
from showo.train.plan.kernels import COUNTED, LAUNCH, MEMORY_SHARE, SHAPES, Counts, attention_seconds, counts_at
from showo.train.plan.network import HOST_COPY, NETWORK_HOP, NETWORK_SHARE, NVLINK_HOP, NVLINK_SHARE, Group, Links
from showo.train.plan.running import Failures, checkpoint_bytes
from showo.train.plan.sharing import Sharing
from showo.train.plan.step_time import StepTime, micro_batch_seconds, step_time
from showo_ext import OmniMask
from tests.showo.command import failure, run

A100 = GPUS["a100-80"]
PERFORMANCE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
LINKS = Links(nvlink=100e9, network=50e9)


def meta(config: ShowoConfig) -> Showo:
    with torch.device("meta"):
        return Showo(config)


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize(("shape", "name"), [(0, "t2i B16 S387"), (1, "t2i B4 S1155")])
def test_counts_are_those_of_the_page(shape: int, name: str) -> None:
    """docs/performance.md is written by the emulator."""
    section = PERFORMANCE.partition(f"{name} H32 D64 bfloat16 fwd+bwd:")[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    found = {cells[0].strip("`"): cells[1:] for cells in rows if cells[0].startswith("`")}
    assert found.keys() == COUNTED.keys()
    for kernel, cells in found.items():
        instructions, products, wavefronts, sectors = (int(re.sub(r"[,].*?|\(.*", "", cell)) for cell in cells[:4])
        counts = COUNTED[kernel][shape]
        assert (counts.instructions, counts.products, counts.wavefronts, counts.sectors) == (
            instructions,
            products,
            wavefronts,
            sectors,
        )
        assert counts.bytes == pytest.approx(float(cells[7]) * 1e-6 * A100.memory)  # the column of memory us


def test_shapes_are_those_of_the_counts() -> None:
    for (pairs, places), paddings, image in zip(SHAPES, ([90, 120] * 8, [100, 115, 60, 120]), (258, 1026), strict=True):
        mask = OmniMask.t2i_padded(paddings, text_length=129, image_length=image)
        assert (int(mask.columns_per_row().sum()), mask.batch_size * mask.q_length) == (pairs, places)


def test_counts_between_shapes_are_linear_and_right_for_another_one() -> None:
    for kernel, counted in COUNTED.items():
        for (pairs, places), counts in zip(SHAPES, counted, strict=True):
            found = counts_at(kernel, 2048, places, pairs)
            assert found.instructions == pytest.approx(counts.instructions, rel=0.05)
            assert found.products == pytest.approx(counts.products)
            twice = counts_at(kernel, 4096, places, pairs)
            assert twice.sectors == pytest.approx(2 * found.sectors)
    dense = counts_at("omni_forward_kernel", 2048, 4 * 1024, 4 * 1024**2)  # on the page as dense B4 S1024
    assert dense.instructions == pytest.approx(39_555_072, rel=0.15)
    assert dense.products == pytest.approx(8_388_608, rel=0.05)


@pytest.mark.parametrize(("shape", "forward", "both"), [(0, 107.5 - 3.3, 417.0), (1, 265.6 - 2.7, 924.9)])
def test_attention_takes_what_the_page_predicts(shape: int, forward: float, both: float) -> None:
    """Without the mask's block table, which all layers share; the page's launches fill the device unevenly."""
    pairs, places = SHAPES[shape]
    found = attention_seconds(A100, 2048, places, pairs)
    assert 1e6 * found[0] == pytest.approx(forward, rel=0.05)
    assert 1e6 * sum(found) == pytest.approx(both, rel=0.05)


def test_the_slowest_resource_of_a_kernel_decides() -> None:
    cycles = A100.multiprocessors * A100.clock
    assert Counts(0, 0, cycles, 0, 0).seconds(A100) == pytest.approx(1 + LAUNCH)
    assert Counts(0, 0, 0, 0, 0.85 * A100.memory).seconds(A100) == pytest.approx(1 + LAUNCH)
    assert Counts(4 * cycles, A100.bf16 / 4096, 0, 0, 0).seconds(A100) == pytest.approx(2 * 6.14 / 4.68 + LAUNCH)


# ---------------------------------------------------------------- the time of a step


def mpt(hidden: int, layers: int, heads: int) -> Showo:
    """The sizes of an MPT model: 50,368 ids, no QK-norm."""
    sizes = {"hidden_size": hidden, "num_layers": layers, "num_heads": heads, "intermediate_size": 4 * hidden}
    return meta(ShowoConfig(**sizes, text_vocab_size=50368 - 8192 - 11, codebook_size=8192, qk_layernorm=False))


# github.com/mosaicml/llm-foundry, scripts/train/benchmarking: tokens a second of each of eight GPUs, in bf16, fully
# sharded, without activation checkpointing. Rows of a micro-batch, micro-batches of a step.
PUBLISHED = [
    ("a100-80", "3b", 512, 40, 6, 12127, 0.01),  # with which `Gpu.products` is calibrated
    ("h100", "3b", 512, 40, 6, 27965, 0.01),
    ("a100-80", "1b", 512, 56, 4, 23148, 0.04),  # MFU 60.7%
    ("a100-80", "1b", 2048, 14, 4, 20513, 0.09),
    ("h100", "1b", 512, 56, 4, 52275, 0.04),
    ("h100", "1b", 2048, 14, 1, 45455, 0.09),
]


def published_plan(gpu: str, name: str, length: int, rows: int, accumulate: int) -> float:
    """Tokens a second of each GPU, as they are planned."""
    model = {"1b": mpt(2048, 24, 16), "3b": mpt(2560, 32, 20)}[name]
    config = ShowoTraining(steps=1, precision="bf16", accumulate=accumulate)
    tokens, pairs = rows * length, rows * length * (length + 1) / 2
    batch = Rows(text=tokens, targets=tokens, pairs=pairs, target_pairs=pairs)
    time = step_time(model, config, GPUS[gpu], batch, Sharing("fsdp", 8, 1), Links.of(GPUS[gpu]))
    return tokens * accumulate / time.seconds


@pytest.mark.parametrize("figures", PUBLISHED, ids=lambda figures: "-".join(map(str, figures[:3])))
def test_published_throughput(figures: tuple[str, str, int, int, int, int, float]) -> None:
    *training, published, within = figures
    assert published_plan(*training) == pytest.approx(published, rel=within)  # type: ignore[arg-type]


def test_what_is_computed_again_takes_its_time_again() -> None:
    model = meta(official())
    rows = Rows(text=3000, image=5000, targets=4000, pairs=2e6, target_pairs=1e6)
    none, selective, full = (
        micro_batch_seconds(model, ShowoTraining(steps=1, precision="bf16", recompute=how), A100, rows, autocast=True)
        for how in ("none", "selective", "full")
    )
    assert none["head and loss"] == full["head and loss"]
    for part in ("linear layers", "attention"):
        assert selective[part] == none[part]
        assert full[part].backward == pytest.approx(none[part].backward + none[part].forward)
    part = "norms, GELU, sums, casts"
    assert none[part].backward < selective[part].backward == full[part].backward
    linear = none["linear layers"]
    assert linear.backward == pytest.approx(2 * linear.forward)


def test_a_step_is_as_long_as_the_device_or_the_program_takes() -> None:
    assert StepTime({"a": 1.0, "b": 2.0}, host=1.0, talk=1.5).seconds == 3.0
    assert StepTime({"a": 1.0}, host=1.0, talk=1.5).seconds == 2.5


# ---------------------------------------------------------------- what travels


def test_collectives_by_hand() -> None:
    """Of 8 GB, within a machine of eight, between machines, and both."""
    size, inside, outside = 8e9, NVLINK_SHARE * 100e9, NETWORK_SHARE * 50e9
    node, line, cluster = Group(1, 8, LINKS), Group(4, 1, LINKS), Group(4, 8, LINKS)
    assert node.gather(size) == pytest.approx(7e9 / inside + 7 * NVLINK_HOP)
    assert line.gather(size) == pytest.approx(6e9 / outside + 3 * NETWORK_HOP, rel=1e-3)
    assert cluster.gather(size) == pytest.approx(7.75e9 / outside + 27 * NVLINK_HOP + 4 * NETWORK_HOP)
    assert cluster.ring(size) == pytest.approx(2 * cluster.gather(size))
    assert cluster.tree(size) == pytest.approx(2 * (8e9 / outside + 7 * 4e-6 + 2 * NETWORK_HOP))
    assert Group(1, 1, LINKS).gather(size) == Group(1, 1, LINKS).sum(size) == 0
    shared = Group(4, 1, LINKS, share=1 / 8)  # eight such groups use the network of a machine
    assert shared.gather(size / 8) == pytest.approx(line.gather(size), rel=1e-3)


def test_rings_are_best_for_few_and_trees_for_many_gpus() -> None:
    for nodes, best in ((2, "ring"), (500, "tree")):
        group = Group(nodes, 8, LINKS)
        assert group.sum(1e9) == getattr(group, best)(1e9)


def time_on(kind: str, nodes: int, accumulate: int = 1, share: float = 1.0) -> StepTime:
    """share: of 26 rows on each GPU."""
    rows = Rows(text=4000, image=6000, targets=5000, pairs=3e6, target_pairs=1.5e6).times(share)
    config = ShowoTraining(steps=1, precision="bf16", accumulate=accumulate)
    return step_time(meta(official()), config, A100, rows, Sharing(kind, 8 * nodes, nodes), Links.of(A100))


def test_what_travels_in_a_step_of_the_official_model() -> None:
    """1,448,176,770 weights, of which 50,354,432 are in each of 24 blocks."""
    whole, block = 1_448_176_770, 50_354_432
    rest, (inside, outside) = whole - 24 * block, (NVLINK_SHARE * 300e9, NETWORK_SHARE * 200e9)
    ddp = time_on("ddp", 1).travel["sum of gradients"]
    assert ddp.seconds == pytest.approx(2 * 7 / 8 * 4 * whole / inside, rel=0.01)
    assert ddp.exposed == pytest.approx(2 * 7 / 8 * 4 * 58498 * 2048 / inside, rel=0.02)  # the embeddings' own
    fsdp = time_on("fsdp", 1).travel
    hops = (2 * 24 + 1) * 7 * NVLINK_HOP
    assert fsdp["weights"].seconds == pytest.approx(7 / 8 * 2 * (2 * 24 * block + rest) / inside + hops)
    assert fsdp["shares of gradients"].seconds == pytest.approx(7 / 8 * 4 * whole / inside + 25 * 7 * NVLINK_HOP)
    hybrid = time_on("hybrid", 4).travel
    assert hybrid["weights"] == fsdp["weights"]
    assert hybrid["sum of gradients"].seconds == pytest.approx(2 * 3 / 4 * 4 * whole / outside, rel=0.08)
    twice = time_on("fsdp", 1, accumulate=2).travel
    assert twice["weights"].seconds == pytest.approx(2 * fsdp["weights"].seconds)
    assert twice["shares of gradients"] == fsdp["shares of gradients"]


def test_what_travels_is_hidden_until_it_takes_longer_than_the_blocks() -> None:
    """26 rows on each of 16 GPUs, or one on each of 1,000: then weights that all share are late."""
    few, many, hybrid = (
        time_on(kind, n, share=part)
        for kind, n, part in (("fsdp", 2, 1), ("fsdp", 125, 1 / 26), ("hybrid", 125, 1 / 26))
    )
    assert few.travel["weights"].exposed < 0.2 * few.travel["weights"].seconds
    assert many.travel["weights"].exposed > 0.5 * many.travel["weights"].seconds
    for time in (few, many, hybrid):
        assert all(0 <= exposed <= seconds * (1 + 1e-12) for seconds, exposed in time.travel.values())
    assert hybrid.travel["weights"].exposed < 0.5 * many.travel["weights"].exposed
    assert hybrid.device < many.device


def test_weights_that_wait_in_the_memory_of_the_cpu_travel_twice() -> None:
    """Through PCIe in fp32 before they are gathered, and their gradients back; the optimizer runs at the CPU's rate."""
    whole, block = 1_448_176_770, 50_354_432
    rest, copied = whole - 24 * block, 4 / HOST_COPY
    for gpus in (1, 8):
        sharing = Sharing("fsdp", gpus, 1)
        rows = Rows(text=4000, image=6000, targets=5000, pairs=3e6, target_pairs=1.5e6)
        config = ShowoTraining(steps=1, precision="bf16")
        here, waits = (
            step_time(meta(official()), config, A100, rows, replace(sharing, offload=offload), Links.of(A100))
            for offload in (False, True)
        )
        before = {name: here.travel[name].seconds if gpus > 1 else 0.0 for name in ("weights", "shares of gradients")}
        after = {name: waits.travel[name].seconds for name in before}
        assert after["weights"] - before["weights"] == pytest.approx(copied / gpus * (2 * 24 * block + rest))
        assert after["shares of gradients"] - before["shares of gradients"] == pytest.approx(copied / gpus * whole)
        assert waits.parts["optimizer"] == pytest.approx(32 * whole / gpus / (MEMORY_SHARE * 51.2e9))
        assert all(0 < exposed <= seconds for seconds, exposed in waits.travel.values())


# ---------------------------------------------------------------- checkpoints and failures


def test_the_best_interval_between_checkpoints() -> None:
    failures = Failures(saving=10, writing=100, between=36_000, restart=300)
    best = failures.best_interval()
    assert best == pytest.approx(math.sqrt(2 * 10 * 36_000), rel=0.02)  # Young's
    assert failures.lost(best) < min(failures.lost(best / 1.3), failures.lost(1.3 * best))
    assert failures.lost(1000) == pytest.approx(10 / 1000 + (500 + 100 + 300) / 36_000)
    assert Failures(saving=10, writing=0, between=4, restart=0).best_interval() == 4


def test_a_checkpoint_has_weights_moments_and_an_average() -> None:
    model = meta(official())
    assert checkpoint_bytes(model, ShowoTraining(steps=1)) == 12 * 1_448_176_770
    assert checkpoint_bytes(model, ShowoTraining(steps=1, ema_decay=0.9)) == 16 * 1_448_176_770


# ---------------------------------------------------------------- the command


def table(printed: str, name: str) -> dict[str, list[str]]:
    """The lines of the table whose head begins so, by their names."""
    (block,) = (block for block in printed.split("\n\n") if block.startswith(name))
    lines = [re.split(r" {2,}", line) for line in block.splitlines()]
    return {cells[0]: cells[1:] for cells in lines}


def test_what_is_printed_without_data_or_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--config", "stage1", "--gpus", "48") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("48 x a100-80 in 6 nodes; 300 GB/s from each GPU")
    assert "init_from: no folder 'microsoft/phi-1_5' here" in printed
    memory, time = table(printed, "GiB on each GPU"), table(printed, "ms a step")
    assert memory["GiB on each GPU"] == ["ddp", "fsdp", "hybrid"]
    assert memory["optimizer"][0] == f"{8 * 1_448_176_770 / 2**30:.2f}"
    # It is published to have trained on GPUs of 80 GB, 29 rows on each.
    assert not any("!" in cell for cells in memory.values() for cell in cells)
    kinds = [cells for name, cells in memory.items() if "recompute" not in name and name != "GiB on each GPU"]
    for column, together in enumerate(memory["together, recompute=none"]):
        parts = sum(float(cells[column]) for cells in [*kinds, memory["activations, recompute=none"]])
        assert parts == pytest.approx(float(together), abs=0.05)
    assert all(0.35 < float(mfu.rstrip("%")) / 100 < 0.6 for mfu in time["MFU"])
    days = next(cells for name, cells in time.items() if name == "days for 500,000 steps")
    steps = [float(cell.replace(",", "")) for cell in time["step"]]
    assert [float(cell) for cell in days] == [pytest.approx(500 * step / 86_400, abs=0.01) for step in steps]
    assert "pictures a second, " in printed
    assert table(printed, "a checkpoint")["GB"] == ["17.4"] * 3


def test_several_trainings_make_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "stage1", "--config", "stage3", "--gpus", "48", "--gpu", "h100", "--parallel", "fsdp"]
    assert run("plan", *arguments) == 0
    lines = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["training", "stage1", "stage3", "together"]
    assert float(lines[3][1]) == pytest.approx(float(lines[1][7]) + float(lines[2][7]), abs=0.01)


def test_offload_and_compile(capsys: pytest.CaptureFixture[str]) -> None:
    """One GPU that the model does not fit; and what is not planned is said."""
    options = ["parallel=fsdp", "fsdp.offload=true", "compile=inductor", "accumulate=24"]
    assert run("plan", "--config", "stage1", "--gpu", "a100-40", *options) == 0
    printed = capsys.readouterr().out
    memory = table(printed, "GiB on each GPU")
    assert memory["GiB on each GPU"] == ["fsdp"]
    assert memory["optimizer, CPU"] == [f"{8 * 1_448_176_770 / 2**30:.2f}"]
    on_gpu = [size for (name, (size,)) in list(memory.items())[1:-1] if "CPU" not in name and "recompute" not in name]
    (together,), (kept,) = memory["together, recompute=none"], memory["activations, recompute=none"]
    assert float(together.lstrip("! ")) == pytest.approx(sum(map(float, [*on_gpu, kept])), abs=0.05)
    assert "compile=inductor is not in these times" in printed
    assert "fsdp.offload: with ddp every GPU keeps" in failure(capsys, "plan", *options, "--parallel", "ddp")


def test_a_stated_mfu_takes_the_place_of_the_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--config", "stage1", "--gpus", "48", "--mfu", "0.5", "--parallel", "ddp") == 0
    time = table(capsys.readouterr().out, "ms a step")
    assert time["MFU"] == ["50.0%"]
    assert time["step"] == time["at the stated MFU"]


def test_more_gpus_and_rows_that_do_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    """The GPU that has most rows decides: of 1,392 rows, 2 on some of 1,000 GPUs and 1 on the others."""
    seconds = []
    for gpus in (348, 696, 1000, 1392):
        assert run("plan", "--config", "stage1", "--gpus", gpus, "--nodes", "1", "--parallel", "ddp") == 0
        seconds.append(float(table(capsys.readouterr().out, "ms a step")["linear layers"][0]))
    assert seconds[1] == pytest.approx(seconds[2], rel=0.01)
    assert all(after < before * 1.01 for before, after in pairwise(seconds))
    message = failure(capsys, "plan", "--config", "stage1", "--gpus", "1393", "--nodes", "1")
    assert "a micro-batch has 1392 rows for 1393 GPUs: more rows, or a smaller accumulate" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "tpu"], "--gpu must be one of a100-40, a100-80, "),
        (["--gpus", "9", "--nodes", "2"], "--gpus must be a multiple of --nodes, 2, got 9"),
        (["--parallel", "tensor"], "--parallel must be one of ddp, fsdp, hybrid, got 'tensor'"),
        (["--network", "0"], "--network must be above 0, got 0.0"),
        (["--storage", "nan"], "--storage must be above 0, got nan"),
        (["--mfu", "1.5"], "--mfu must be above 0 and at most 1, got 1.5"),
        (["--config", "stage9"], "config: 'stage9' is neither a YAML file nor one of"),
        (
            ["--config", "stage1", "--config", "stage2", "--parallel", "ddp", "--parallel", "fsdp"],
            "--parallel must be given once where there are several --config, got ddp fsdp",
        ),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in failure(capsys, "plan", *arguments)
