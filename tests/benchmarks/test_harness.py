"""What the benchmarks count and record, and that the peers compute what ours does."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import all as all_benchmarks
from benchmarks import bench_codebook, bench_omni_attention, bench_resample, bench_rope_qkv, harness, peers
from benchmarks.roofline import A100_80GB, UNKNOWN, Work, peaks_of
from showo_ext import OmniMask, omni_attention
from showo_ext.testing import randn

CPU = torch.device("cpu")


def case(**candidates) -> harness.Case:
    inputs = lambda i: (torch.full((4,), float(i)),)  # noqa: E731
    return harness.Case("op", "small", candidates, inputs, Work(8.0, 32.0, torch.float32))


def test_candidates_take_turns_and_a_missing_one_is_named(capsys) -> None:
    calls: list[str] = []
    ours, peer = (lambda x, n=n: calls.append(n) for n in ("ours", "peer"))
    rows = harness.measure(case(showo_ext=ours, peer=peer, other="not installed"), rounds=4, warmup=1)
    assert [row.candidate for row in rows] == ["showo_ext", "peer"]
    assert calls == ["ours", "peer"] + 2 * (2 * ["ours"] + 2 * ["peer"] + 2 * ["peer"] + 2 * ["ours"])
    assert rows[0].ratio == rows[0].min_ratio == 1.0
    assert math.isnan(rows[0].roofline)  # nobody has listed this processor's peaks
    assert "no other: not installed" in capsys.readouterr().out


def test_csv_keeps_its_columns(tmp_path) -> None:
    path = tmp_path / "op.csv"
    rows = harness.measure(case(showo_ext=torch.exp), rounds=1)
    harness.write_csv(rows, path)
    harness.write_csv(rows, path)
    assert len(path.read_text().splitlines()) == 3
    path.write_text("op,case\n")
    with pytest.raises(ValueError, match=r"op\.csv: has the columns \['op', 'case'\], expected"):
        harness.write_csv(rows, path)


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_recorded_results_can_be_appended_to(path, tmp_path) -> None:
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    harness.write_csv(harness.measure(case(showo_ext=torch.exp), rounds=1), copy)


def test_floor_is_the_slower_of_products_and_memory() -> None:
    assert peaks_of("NVIDIA A100-SXM4-80GB") == A100_80GB
    assert peaks_of("NVIDIA A100-SXM4-40GB").memory < A100_80GB.memory
    assert peaks_of("A toaster") == UNKNOWN
    assert Work(312e9, 2e9, torch.bfloat16).floor(A100_80GB) == pytest.approx(1e-3)
    assert Work(312e9, 8e9, torch.bfloat16).floor(A100_80GB) == pytest.approx(4e-3)
    assert Work(312e9, 2e9, torch.float32).floor(A100_80GB) == pytest.approx(16e-3)


def test_one_command_times_records_and_draws(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(all_benchmarks.FAMILIES, "codebook", lambda *_: iter([case(showo_ext=torch.exp)]))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    all_benchmarks.main(["--device", "cpu", "--rounds", "2", "--csv", "--only", "codebook", "--out", str(tmp_path)])
    assert (tmp_path / "codebook.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "op.csv").exists()
    assert "small" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(all_benchmarks.FAMILIES))
def test_the_command_knows_every_benchmark(name) -> None:
    first = next(all_benchmarks.FAMILIES[name](CPU, False))
    assert next(iter(first.candidates)) == harness.OURS
    assert first.op


def test_the_command_goes_on_without_a_library(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "benchmarks.bench_hf", raising=False)
    monkeypatch.setitem(all_benchmarks.FAMILIES, "codebook", lambda *_: iter([case(showo_ext=torch.exp)]))
    all_benchmarks.main(["--device", "cpu", "--rounds", "1", "--only", "hf", "codebook", "--out", str(tmp_path)])
    assert "no hf: transformers is not installed" in capsys.readouterr().out
    assert (tmp_path / "codebook.png").exists()


# ---- peers


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)


BENCHES = (bench_omni_attention, bench_rope_qkv, bench_codebook)


@pytest.mark.slow
@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.__name__.rpartition("_")[2])
def test_candidates_agree(bench) -> None:
    for one in bench.cases(CPU, False):
        arguments = one.inputs(1)
        if any(isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 for a in arguments) or "mask" in one.name:
            continue  # fp32 says it all
        results = {n: f(*arguments) for n, f in one.candidates.items() if not isinstance(f, str) and "gemm" not in n}
        for result in results.values():
            close(result, results[harness.OURS])


def test_resample_candidates_do_the_same_work() -> None:
    """They draw differently, so what can be compared is how many places they mask, and that the others hold codes."""
    for one in bench_resample.cases(CPU, False):
        arguments = one.inputs(1)
        results = [f(*arguments) for f in one.candidates.values()]
        canvases = [result if isinstance(result, torch.Tensor) else result[0] for result in results]
        masked = [canvas == bench_resample.MASK_ID for canvas in canvases]
        for canvas, places in zip(canvases, masked, strict=True):
            assert torch.equal(places.sum(1), masked[0].sum(1)), one.name
            assert 0 < int(places.sum()) < places.numel(), one.name
            assert bool(((canvas[~places] >= 0) & (canvas[~places] < 8192)).all()), one.name


def test_flex_attention_sees_our_mask() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    t2i = OmniMask.t2i_padded([5], text_length=20, image_length=30)
    mask = OmniMask.cat([t2i, OmniMask.mmu_vit(1, 50, image_tokens=20)])
    q, k, v = (randn(2, 2, 50, 32, seed=i) for i in range(3))
    block_mask = create_block_mask(peers._mask_mod(mask), 2, None, 50, 50, device="cpu")
    close(flex_attention(q, k, v, block_mask=block_mask), omni_attention(q, k, v, mask))


def varlen(q, k, v, q_ends, k_ends, most_q, most_k, causal=False):
    """flash_attn_varlen_func as documented: sequences of [rows, H, D] end to end."""
    out = torch.full_like(q, torch.nan)
    for i in range(len(q_ends) - 1):
        rows, columns = slice(q_ends[i], q_ends[i + 1]), slice(k_ends[i], k_ends[i + 1])
        assert rows.stop - rows.start <= most_q
        assert columns.stop - columns.start <= most_k
        one = (x.transpose(0, 1) for x in (q[rows], k[columns], v[columns]))
        out[rows] = scaled_dot_product_attention(*one, is_causal=causal).transpose(0, 1)
    return out


def test_two_calls_of_flash_attn_are_one_of_ours(monkeypatch) -> None:
    module = types.SimpleNamespace(
        flash_attn_varlen_func=varlen,
        flash_attn_func=lambda q, k, v: scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(
            1, 2
        ),
    )
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    paddings = [5, 12]
    mask = OmniMask.t2i_padded(paddings, text_length=20, image_length=30)
    q, k, v = (randn(2, 2, 50, 32, seed=i) for i in range(3))
    expected = omni_attention(q, k, v, mask)
    for i, pad in enumerate(paddings):
        expected[i, :, :pad] = 0  # no call computes the rows of padding
    close(peers.flash_attn_two_calls(mask, paddings, 30)(q, k, v), expected)
    close(peers.flash_attn_dense()(q, k, v), omni_attention(q, k, v, OmniMask.full(2, 50)))
