"""The CUDA kernels of the sampling operators: on a GPU if there is one, else, where it is built, on the PTX emulator.

The oracle is the CPU backend, which the other files of this folder test: on equal logits both choose the same tokens.
Here it is what is particular to these kernels: row lengths around the chunks of a warp and of a block, addresses that
forbid wide accesses, rows beyond shared memory, device tensors as arguments, values that cannot be refused, traffic.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import pytest
import torch

from showo_ext import corrupt_tokens, reference, remask, resample, sample_tokens
from showo_ext._native import use_emulated
from showo_ext.reference import philox
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_within_budget,
    available_isas,
    inside_larger,
    randint,
    randn,
    uniforms,
    use_isa,
)

INF, NAN = math.inf, math.nan
MASK_ID = 9000
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
needs_fma = pytest.mark.skipif(available_isas() == ("baseline",), reason="without fma, other weights in the last bit")
FILTERS = [{"top_k": 1}, {"top_k": 40}, {"top_p": 0.6}, {"top_k": 300, "top_p": 0.95}]


def on_cpu(operator, *tensors, **arguments):
    """The CPU backend's answer."""
    moved = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with use_emulated(None):
        return operator(*(t.cpu() for t in tensors), **moved)


def assert_samples_as_cpu(cond, uncond=None, **arguments):
    tensors = [cond] if uncond is None else [cond, uncond]
    ids, logprob = sample_tokens(*tensors, **arguments)
    expected = on_cpu(sample_tokens, *tensors, **arguments)
    assert torch.equal(ids.cpu(), expected[0])
    torch.testing.assert_close(logprob.cpu(), expected[1], rtol=1e-6, atol=1e-6)
    return ids, logprob


def assert_equal_on_cpu(operator, *tensors, **arguments):
    got = operator(*tensors, **arguments)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, on_cpu(operator, *tensors, **arguments), strict=True))
    return got


# ---------------------------------------------------------------- sample_tokens


@dtypes
@pytest.mark.parametrize("vocab", [1, 3, 127, 128, 129, 511, 513, 4095, 4097, 8192, 9001])
def test_rows_of_any_length(device, dtype, vocab):
    cond, uncond = (randn(2, 2, vocab, dtype=dtype, seed=s, scale=3.0, device=device) for s in range(2))
    assert_samples_as_cpu(cond, uncond, guidance=1.75, seed=vocab, step=5)
    assert_samples_as_cpu(cond, temperature=0.3, seed=vocab)
    assert_samples_as_cpu(cond, temperature=0.0, seed=0)


@needs_fma
@dtypes
@pytest.mark.parametrize("vocab", [5, 130, 1500, 8193])
@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_filtered_rows_of_any_length(device, dtype, vocab, how):
    cond, uncond = (randn(2, 2, vocab, dtype=dtype, seed=s, scale=2.0, device=device) for s in range(2))
    assert_samples_as_cpu(cond, uncond, guidance=1.75, temperature=0.8, seed=vocab, **how)


@dtypes
@pytest.mark.parametrize("how", [{}, {"top_k": 60, "top_p": 0.9}], ids=str)
def test_misaligned_and_strided_rows(device, dtype, how):
    cond, uncond = (randn(2, 3, 1400, dtype=dtype, seed=s, scale=2.0, device=device) for s in range(2))
    expected = assert_samples_as_cpu(cond, uncond, guidance=1.0, seed=2, **how)
    for offset in (0, 1, 2, 4):
        views = (inside_larger(t, pad=4, offset=offset) for t in (cond, uncond))
        got = sample_tokens(*views, guidance=1.0, seed=2, **how)
        assert torch.equal(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=1e-6)
    assert_samples_as_cpu(cond[:, :1].expand(-1, 3, -1), seed=3, **how)


@needs_fma
@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_rows_longer_than_shared_memory(device, how):
    logits = randn(2, 41_001, scale=2.0, device=device)
    assert_samples_as_cpu(logits, seed=4, **how)


@needs_fma
def test_ties_at_the_end_of_what_is_kept(device):
    logits = (randn(6, 1200, scale=2.0, device=device)).round()  # a handful of values: the cut falls among equals
    for how in ({"top_k": 500}, {"top_p": 0.9}, {"top_k": 300, "top_p": 0.8}, {"top_k": 1150, "top_p": 0.9999}):
        assert_samples_as_cpu(logits, seed=1, **how)
        noise = torch.full((1200,), 0.5, device=device).expand(6, -1).clone()
        noise[:, 600:] = 0.9  # the later ones would win if they were kept
        assert_samples_as_cpu(logits, seed=0, noise=noise, **how)


@pytest.mark.parametrize("how", [{}, {"top_k": 4000}], ids=str)
def test_equal_scores_go_to_the_lower_index(device, how):
    logits = torch.zeros(2, 5000, device=device)
    logits[1, :4321] = -1.0
    noise = torch.full((2, 5000), 0.25, device=device)
    assert sample_tokens(logits, seed=0, noise=noise, **how)[0].tolist() == [0, 4321]
    assert sample_tokens(logits, seed=0, temperature=0.0, **how)[0].tolist() == [0, 4321]


@pytest.mark.parametrize("slope", [-30.0, -3.0, 3.0, 30.0, 300.0])
def test_a_maximum_that_moves_from_chunk_to_chunk(device, slope):
    """A warp rescales its sum and its bound on who may win; the block does so with the sums of the warps."""
    logits = torch.linspace(0, slope, 12_000, device=device) + randn(2, 12_000, device=device)
    assert_samples_as_cpu(logits, seed=8)


def test_tokens_equal_the_cpu_on_many_rows(device):
    """Flat rows, where every token may win, to peaked ones, on the Philox noise of many steps and positions."""
    logits = randn(4, 40, 1300, device=device) * torch.logspace(-2, 1.5, 40, device=device)[:, None]
    for step in range(3):
        assert_samples_as_cpu(logits, seed=77, step=step)


@dtypes
def test_logprob_within_error_budget(device, dtype):
    logits = randn(16, 8192, seed=5, scale=4.0, dtype=dtype, device=device)
    ids, logprob = sample_tokens(logits, seed=1)
    oracle = logits.double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    same = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert_within_budget(logprob, oracle, same, what="logprob")


@pytest.mark.parametrize("offset", [0, 1], ids=["packed", "single"])
def test_noise_is_philox(device, offset):
    logits = inside_larger(torch.zeros(3, 5, 700, device=device), pad=4, offset=offset)
    for seed in (-9, torch.tensor([1, -2, 2**62], device=device)):
        noise = philox.uniforms(seed, 1, 7, 3, 5, 700, logits.device)
        drawn = sample_tokens(logits, seed=seed, step=7)
        assert torch.equal(drawn[0], noise.argmax(-1))  # all scores share the logit, so the greatest uniform wins


def test_frequencies(device):
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.05, 0.25], dtype=torch.float64)
    logits = probabilities.log().float().to(device).expand(2, 1500, -1)
    for how in ({}, {"top_k": 4}):
        ids, _ = sample_tokens(logits, seed=2024, **how)
        observed = torch.bincount(ids.flatten().cpu(), minlength=5).double() / ids.numel()
        deviation = (observed - probabilities).abs() / (probabilities * (1 - probabilities) / ids.numel()).sqrt()
        assert bool((deviation[probabilities > 0] < 5).all())
        assert observed[1] == 0


@pytest.mark.parametrize("how", [{}, {"top_k": 5}, {"temperature": 0.0}, {"top_k": 7, "top_p": 0.5}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "place"), [*product([torch.float32], [0, 600, 1100]), (torch.bfloat16, 1100), (torch.float16, 600)]
)
def test_values_that_cannot_be_refused(device, dtype, how, place):
    """A row that the CPU refuses gives index 0 and NaN; the rows beside it are not touched by that."""
    base = randn(5, 1101, dtype=dtype, device=device)
    cond, uncond = base.clone(), base.clone()
    cond[1, place], uncond[2, place], cond[3, place], uncond[4] = NAN, INF, INF, -INF
    ids, logprob = sample_tokens(cond, uncond, guidance=1.0, seed=0, **how)
    assert ids[1:].tolist() == [0, 0, 0, 0]
    assert bool(logprob[1:].isnan().all())
    clean = sample_tokens(base[:1], base[:1], guidance=1.0, seed=0, **how)
    assert (ids[0], logprob[0]) == (clean[0][0], clean[1][0])


def test_guidance_that_overflows_and_noise_out_of_range(device):
    cond = torch.zeros(3, 700, device=device)
    uncond, noise = cond.clone(), torch.full((3, 700), 0.5, device=device)
    cond[0, 650], uncond[0, 650] = 3e38, -3e38
    noise[1, 650] = 1.0
    ids, logprob = sample_tokens(cond, uncond, guidance=5.0, seed=0, noise=noise)
    assert logprob.isnan().tolist() == [True, True, False]
    assert ids.tolist() == [0, 0, 0]
    assert bool(sample_tokens(cond[1:2], seed=0, noise=noise[1:2] * 0)[1].isnan().all())


def test_minus_infinity_in_either_input_forbids(device):
    cond, uncond = torch.zeros(1, 900, device=device), torch.zeros(1, 900, device=device)
    cond[0, :600] = -INF
    uncond[0, 500:899] = -INF
    for how in ({}, {"top_k": 30}, {"top_p": 0.5}):
        assert [t.item() for t in sample_tokens(cond, uncond, guidance=2.0, seed=0, **how)] == [899, 0.0]


def test_extreme_logits_and_temperatures(device):
    logits = torch.tensor([[3e38, -3e38, 0.0], [-3e38, -3e38, -3e38], [1e-38, 0.0, -1e-38], [-INF, -INF, -5.0]])
    noise = torch.full((4, 3), 0.5, device=device)
    ids, logprob = sample_tokens(logits.to(device), seed=0, noise=noise)
    assert ids.tolist() == [0, 0, 0, 2]
    torch.testing.assert_close(logprob.cpu(), torch.tensor([0.0, -math.log(3), -math.log(3), 0.0]))
    for temperature in (1e-30, 1e30):
        for how in ({}, {"top_k": 2}, {"top_p": 0.4}):
            assert_samples_as_cpu(logits.to(device), temperature=temperature, seed=0, **how)


# ---------------------------------------------------------------- remask, corrupt_tokens


@pytest.mark.parametrize("length", [1, 31, 256, 1000, 4096, 4097])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_remask_rows_of_any_length(device, length, temperature):
    ids, known = randint(0, 8192, (3, length), device=device), uniforms(3, length, device=device) < 0.3
    for logprob in (-randn(3, length, device=device).abs(), randn(3, length, device=device).round()):  # distinct, tied
        for mask_len in (1, length // 2, torch.tensor([0, length // 3, length], device=device)):
            assert_equal_on_cpu(
                remask, ids, logprob, known, mask_len=mask_len, temperature=temperature, mask_id=MASK_ID, seed=5, step=3
            )


def test_remask_of_values_that_cannot_be_refused(device):
    ids, known = torch.arange(40, device=device)[None], torch.zeros(1, 40, dtype=torch.bool, device=device)
    known[0, 3] = True
    logprob = -torch.rand(1, 40).to(device) - 1
    logprob[0, [3, 20, 30]] = NAN
    logprob[0, 7] = -INF
    for count, expected in ((1, [20]), (2, [20, 30]), (3, [7, 20, 30])):
        masked = remask(ids, logprob, known, count, 0.0, MASK_ID, seed=0)[1]
        assert masked[0].nonzero()[:, 0].tolist() == expected
    negative = torch.tensor([-5], device=device)
    assert not remask(ids, logprob, known, negative, 0.0, MASK_ID, seed=0)[1].any()


@pytest.mark.parametrize("length", [1, 31, 256, 1000, 4096, 4097])
def test_corrupt_rows_of_any_length(device, length):
    ids, ratios = randint(0, 8192, (3, length), device=device), torch.tensor([0.0, 0.37, 1.0], device=device)
    for ratio in (ratios, 0.5):
        assert_equal_on_cpu(corrupt_tokens, ids, mask_ratio=ratio, mask_id=MASK_ID, seed=-5)
    tied = (uniforms(3, length, device=device) * 4).floor() / 8 + 0.25
    assert_equal_on_cpu(corrupt_tokens, ids, mask_ratio=ratios, mask_id=MASK_ID, seed=0, noise=tied)


def test_corrupt_ratios_that_cannot_be_refused(device):
    ids = randint(0, 8192, (4, 50), device=device)
    ratios = torch.tensor([-1.0, 2.0, NAN, INF], device=device)
    assert corrupt_tokens(ids, ratios, MASK_ID, seed=0)[2].sum(1).tolist() == [1, 50, 1, 50]


# ---------------------------------------------------------------- resample


@needs_fma
@pytest.mark.parametrize("how", [{}, {"top_k": 20}, {"top_p": 0.8}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("flags", [False, True])
def test_resample_equals_the_cpu(device, how, flags):
    cond, uncond = (randn(2, 24, 600, seed=s, scale=2.0, device=device) for s in range(2))
    known = uniforms(2, 24, device=device) < 0.4
    ids = randint(100, 150, (2, 24), device=device).masked_fill(~known, MASK_ID)
    cond = cond.masked_fill(known[..., None], NAN)  # not looked at
    arguments = {"uncond": uncond, "guidance": 1.5, "offset": 100, "seed": 3, "known": known if flags else None, **how}
    step, counts = torch.tensor(6, device=device), torch.tensor([3, 9], device=device)
    got = resample(cond, ids, counts, MASK_ID, step=step, **arguments)
    as_numbers = resample(cond, ids, counts, MASK_ID, step=6, **arguments)
    assert all(map(torch.equal, got, as_numbers))
    expected = on_cpu(resample, cond, ids, mask_len=counts, mask_id=MASK_ID, step=6, **arguments)
    for name in ("ids", "masked", "sampled"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name))
    torch.testing.assert_close(got.logprob.cpu(), expected.logprob, rtol=1e-6, atol=1e-6)


def test_resample_masks_a_faulty_row_of_logits_first(device):
    logits = randn(1, 12, 300, device=device)
    logits[0, 5, 7] = NAN
    out = resample(logits, torch.full((1, 12), MASK_ID, device=device), 1, MASK_ID, offset=40, seed=0)
    assert out.masked[0].nonzero()[:, 0].tolist() == [5]
    assert out.sampled[0, 5] == 40


def test_step_and_mask_len_on_the_device_choose_the_noise_of_the_numbers(device):
    logits, ids = torch.zeros(2, 3, 400, device=device), torch.zeros(2, 9, dtype=torch.int64, device=device)
    known = torch.zeros(2, 9, dtype=torch.bool, device=device)
    for step in (0, 11, 2**32 - 1):
        tensor = torch.tensor(step, device=device)
        pairs = [sample_tokens(logits, seed=1, step=s) for s in (step, tensor)]
        assert all(map(torch.equal, *pairs))
        remasked = [
            remask(ids, torch.zeros(2, 9, device=device), known, m, 1.0, MASK_ID, seed=1, step=s)
            for m, s in ((4, step), (torch.tensor(4, device=device), tensor))
        ]
        assert all(map(torch.equal, *remasked))


@pytest.mark.gpu
def test_a_generation_in_one_cuda_graph():
    """Two captured kernels, replayed with another step, mask length and canvas in the same tensors."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    logits = randn(2, 64, 1024, device="cuda")
    canvas = torch.full((2, 64), MASK_ID, device="cuda")
    step, mask_len = torch.zeros((), dtype=torch.int64, device="cuda"), torch.full((2,), 60, device="cuda")
    run = partial(resample, logits, canvas, mask_len, MASK_ID, seed=5, step=step)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
        canvas.copy_(out.ids)
    canvas.fill_(MASK_ID)
    expected = torch.full((2, 64), MASK_ID)
    for index, count in enumerate((40, 20, 7, 0)):
        step.fill_(index)
        mask_len.fill_(count)
        graph.replay()
        expected = reference.resample(logits.cpu(), expected, count, MASK_ID, seed=5, step=index).ids
        assert torch.equal(canvas.cpu(), expected)


# ---------------------------------------------------------------- what the emulator counts


def assert_lean(record, compulsory_bytes):
    """Within 2% of the bytes that must move, each in a full sector; no bank conflicts, no local memory."""
    assert compulsory_bytes / 32 <= record.global_sectors[0] <= 1.02 * compulsory_bytes / 32
    assert record.bank_conflicts == 0
    assert record.warps("local") == 0
    assert record.registers <= 128  # two blocks of 256 threads to a multiprocessor


@pytest.mark.parametrize("how", [{}, {"top_k": 100}, {"top_p": 0.9}], ids=str)
@dtypes
def test_traffic_of_sampling(emulated, dtype, how):
    cond, uncond = (randn(1, 4, 8192, dtype=dtype, seed=s, scale=2.0) for s in range(2))
    sample_tokens(cond, uncond, guidance=1.0, seed=0, **how)
    (record,) = emulated.records()
    assert_lean(record, 2 * cond.numel() * cond.element_size() + 4 * 12)


def test_traffic_of_remask_and_corruption(emulated):
    ids, logprob = randint(0, 8192, (3, 1024)), randn(3, 1024)
    known = torch.zeros(3, 1024, dtype=torch.bool)
    remask(ids, logprob, known, 300, 1.0, MASK_ID, seed=0)
    corrupt_tokens(ids, 0.4, MASK_ID, seed=0)
    masking, corruption = emulated.records()
    for record, per_place in ((masking, 8 + 4 + 1 + 8 + 1), (corruption, 8 + 8 + 8 + 1)):
        assert record.global_sectors[0] <= 1.02 * ids.numel() * per_place / 32
        assert record.bank_conflicts == 0


def test_launches_and_traffic_of_a_step(emulated):
    """Two launches; the logits of known places are not read."""
    logits, known = randn(2, 16, 2048), torch.arange(16).expand(2, -1) < 12
    resample(logits, torch.zeros(2, 16, dtype=torch.int64), 3, MASK_ID, known=known.contiguous(), seed=0)
    sampling, masking = emulated.records()
    (read,) = (t["read"] for t in sampling.tensors if t["name"] == "float32[2, 16, 2048]")
    assert read == 2 * 4 * 2048 * 4
    assert masking.bank_conflicts == 0


def test_the_cpu_paths_choose_what_the_kernels_choose(emulated):
    logits = randn(2, 10, 2050, seed=1, scale=3.0)
    expected = sample_tokens(logits, seed=6)[0]
    for isa in available_isas():
        with use_isa(isa), use_emulated(None):
            assert torch.equal(sample_tokens(logits, seed=6)[0], expected)
