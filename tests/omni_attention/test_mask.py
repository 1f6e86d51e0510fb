"""OmniMask: every format against a dense mask written from the rules, place by place; conversions, slices, errors."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask
from showo_ext.mask_formats import FORMATS
from showo_ext.testing import randint

PAD, SOI, EOI, TASK = 95, 96, 97, 98
IDS = {"pad_id": PAD, "soi_id": SOI, "eoi_id": EOI}


# ---- the rules, one (row, column) pair at a time -------------------------------------------------------------------


def image_numbers(ids):
    """For each place the number of the image it belongs to (soi..eoi inclusive), or None."""
    numbers, current, count = [], None, 0
    last = max((i for i, t in enumerate(ids) if t != PAD), default=-1)
    for i, token in enumerate(ids):
        if token == SOI:
            current, count = count, count + 1
        numbers.append(current if i <= last else None)
        if token == EOI:
            current = None
    return numbers


def sees(name, ids, image, content, i, j):
    """May row i look at column j? image: image_numbers(ids); content: the places that are no pads."""
    if name in ("causal", "lm"):
        return j <= i
    if name == "full":
        return True
    if name == "mmu":  # causal, all rows see the first image, later images see themselves
        first_image_end = ids.index(EOI) if EOI in ids else -1
        closed = image[i] is not None and EOI in ids[i:]
        return j <= i or j <= first_image_end or (closed and image[i] == image[j])
    if name == "mmu_vit":  # causal, all rows see the first image's codes
        return j <= i or (image[j] == 0 and ids[j] not in (SOI, EOI))
    if ids[i] == PAD:  # causal among the pads on the same side of the content
        return j <= i and ids[j] == PAD and not any(j < n < i for n in content)
    if ids[j] == PAD:
        return False
    if image[i] is not None:
        return name == "t2i" or j <= i or image[i] == image[j]
    if name == "lvg_v2":  # text sees text and the first place only
        return j <= i and (image[j] is None or j == content[0])
    return j <= i


def dense(name, rows):
    blocks = []
    for ids in rows:
        size, facts = range(len(ids)), (image_numbers(ids), [n for n, token in enumerate(ids) if token != PAD])
        blocks.append([[sees(name, ids, *facts, i, j) for j in size] for i in size])
    return torch.tensor(blocks)


@st.composite
def sequences(draw, formats=FORMATS, max_images=3):
    """One row of token ids: left pads, a task token, runs of text and images, right pads; an image may lack its eoi."""
    ids = [PAD] * draw(st.integers(0, 3))
    if draw(st.booleans()):
        ids.append(TASK)
    for _ in range(draw(st.integers(0, max_images))):
        ids += [1] * draw(st.integers(0, 3))
        ids += [SOI] + [2] * draw(st.integers(0, 4)) + [EOI]
    ids += [1] * draw(st.integers(0, 3))
    if EOI in ids and draw(st.integers(0, 5)) == 0:
        last = len(ids) - 1 - ids[::-1].index(EOI)
        del ids[last:]
    return ids + [PAD] * draw(st.integers(0, 3))


def build(name, ids):
    if name in ("causal", "full"):
        return getattr(OmniMask, name)(ids.size(0), ids.size(1))
    if name == "lm":
        return OmniMask.lm(ids)
    if name == "mmu":
        return OmniMask.mmu(ids, soi_id=SOI, eoi_id=EOI)
    return getattr(OmniMask, name)(ids, **IDS)


@settings(deadline=None, max_examples=120)
@given(row=sequences(), other=sequences(), name=st.sampled_from([n for n in FORMATS if n != "mmu_vit"]))
def test_formats_follow_the_rules(row, other, name):
    size = max(len(row), len(other))
    rows = [r + [PAD] * (size - len(r)) for r in (row, other)]
    if name == "mmu":  # pads mean nothing to this format: keep images closed
        rows = [r for r in rows if r.count(SOI) == r.count(EOI)] or [[TASK, SOI, EOI, 1]]
    mask = build(name, torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1))
    assert torch.equal(mask.to_dense(), dense(name, rows).reshape(mask.shape))


@settings(deadline=None, max_examples=100)
@given(
    samples=st.lists(st.tuples(sequences(), st.sampled_from(FORMATS)).filter(lambda s: s[0]), max_size=4),
    gap=st.integers(0, 2),
    tail=st.integers(0, 3),
)
def test_packed_rows_keep_samples_apart(samples, gap, tail):
    ids, owner, blocks = [], [], []
    for n, (row, name) in enumerate(samples):
        blocks.append((len(ids), dense(name, [row])[0]))
        ids += row + [PAD] * gap
        owner += [n] * len(row) + [-1] * gap
    ids, owner = ids + [7] * tail, owner + [-1] * tail
    expected = torch.zeros(1, len(ids), len(ids), dtype=torch.bool)
    for at, block in blocks:
        expected[0, at : at + len(block), at : at + len(block)] = block
    mask = OmniMask.packed(
        torch.tensor([ids], dtype=torch.int64).reshape(1, -1),
        torch.tensor([owner], dtype=torch.int64).reshape(1, -1),
        [[name for _, name in samples]],
        **IDS,
    )
    assert torch.equal(mask.to_dense(), expected)


def test_official_t2i_row():
    """129 text places with 90 pads, 258 image places: the counts that the layout implies."""
    row = [PAD] * 90 + [TASK] + [1] * 38 + [SOI] + [2] * 256 + [EOI]
    mask = OmniMask.t2i(torch.tensor([row]), **IDS)
    columns = mask.columns_per_row()[0].tolist()
    assert columns == [*range(1, 91), *range(1, 40), *[297] * 258]
    assert mask.num_intervals == 1
    assert torch.equal(mask.intervals, OmniMask.t2i_padded([90]).intervals)


@pytest.mark.parametrize("start", [30, torch.tensor([30, 5, 100])])
def test_mmu_vit_from_lengths(start):
    length, tokens = 140, 40
    mask = OmniMask.mmu_vit(3, length, image_start=start, image_tokens=tokens)
    starts = [start] * 3 if isinstance(start, int) else start.tolist()
    expected = torch.tensor(
        [[[j <= i or s <= j < s + tokens for j in range(length)] for i in range(length)] for s in starts]
    )
    assert torch.equal(mask.to_dense(), expected)
    assert mask.num_intervals == 2


def test_prefix_and_causal_with_cache():
    assert torch.equal(
        OmniMask.prefix(torch.tensor([0, 3, 9]), 6).to_dense(),
        torch.tensor([[[j <= i or j < p for j in range(6)] for i in range(6)] for p in (0, 3, 9)]),
    )
    assert torch.equal(OmniMask.causal(1, 2, kv_length=7).to_dense(), OmniMask.causal(1, 7).rows(5).to_dense())


def test_lvg_v2_says_when_a_row_has_too_many_runs_of_text():
    ids = torch.tensor([[TASK] + [SOI, EOI, 1] * 8])
    with pytest.raises(ValueError, match="9 runs of text"):
        OmniMask.lvg_v2(ids, **IDS)
    assert OmniMask.lvg_v2(ids[:, :-1], **IDS).num_intervals == 8


# ---- conversions -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 9), columns=st.integers(0, 15), batch=st.integers(0, 2), seed=st.integers(0, 999))
def test_dense_round_trip(rows, columns, batch, seed):
    bits = randint(0, 2, (batch, rows, columns), seed=seed).bool()
    mask = OmniMask.from_dense(bits)
    assert torch.equal(mask.to_dense(), bits)
    assert torch.equal(OmniMask.from_dense(bits[:, None]).intervals, mask.intervals)
    assert mask.density == pytest.approx(bits.float().mean().item() if bits.numel() else 0.0)
    again = OmniMask.from_intervals(mask.intervals, columns)
    assert torch.equal(again.intervals, mask.intervals)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 8), seed=st.integers(0, 999))
def test_from_intervals_sorts_and_merges(count, seed):
    raw = randint(0, 21, (2, 7, count, 2), seed=seed).sort(-1).values.int()
    mask = OmniMask.from_intervals(raw, 20)
    assert torch.equal(mask.to_dense(), OmniMask(raw, 20).to_dense())
    start, stop = mask.intervals.unbind(-1)
    used = stop > start
    assert bool((used[..., 1:] <= used[..., :-1]).all())  # empty slots come last
    assert bool((start[..., 1:] > stop[..., :-1])[used[..., 1:]].all())  # sorted, apart
    assert torch.equal(mask.columns_per_row(), mask.to_dense().sum(-1))


def test_slices_and_joins():
    mask = OmniMask.t2i(torch.tensor([[PAD, TASK, 1, SOI, 2, EOI], [TASK, 1, 1, SOI, 2, EOI]]), **IDS)
    full = mask.to_dense()
    assert torch.equal(mask.rows(3, 5).to_dense(), full[:, 3:5])
    assert torch.equal(mask.rows(-1).to_dense(), full[:, -1:])
    assert torch.equal(mask.columns(1, 4).to_dense(), full[:, :, 1:4])
    assert torch.equal(mask.samples(1).to_dense(), full[1:])
    assert torch.equal(mask.take_rows(torch.tensor([4, 0])).to_dense(), full[:, [4, 0]])
    own = torch.tensor([[4, 0], [1, 5]])
    assert torch.equal(mask.take_rows(own).to_dense(), torch.stack([full[0, own[0]], full[1, own[1]]]))
    causal = OmniMask.causal(1, 6)
    two = OmniMask.from_intervals(torch.tensor([[0, 1], [3, 5]], dtype=torch.int32).expand(1, 6, 2, 2), 6)
    assert torch.equal(
        OmniMask.cat([mask, causal, two]).to_dense(), torch.cat([full, causal.to_dense(), two.to_dense()])
    )
    assert torch.equal(causal.expand(3).to_dense(), causal.to_dense().expand(3, -1, -1))
    packed = OmniMask.block_diagonal([[mask.samples(0, 1), causal], [two]], length=13)
    expected = torch.zeros(2, 13, 13, dtype=torch.bool)
    expected[0, :6, :6], expected[0, 6:12, 6:12], expected[1, :6, :6] = full[0], causal.to_dense()[0], two.to_dense()[0]
    assert torch.equal(packed.to_dense(), expected)
    assert mask.to("meta").device.type == "meta"
    assert "density=?" in repr(mask.to("meta"))


def test_looks():
    mask = OmniMask.causal(1, 4)
    assert mask.draw() == "#...\n##..\n###.\n####"
    assert mask.draw(width=2) == "+.\n#+"
    assert repr(mask) == "OmniMask(batch=1, rows=4, columns=4, intervals=1, density=0.625, device=cpu)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        mask.kv_length = 5


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: OmniMask(torch.zeros(1, 2, 1, 2), 3), TypeError, "intervals has dtype float32, expected int32"),
        (lambda: OmniMask([[0, 1]], 3), TypeError, "intervals has type list, expected a torch.Tensor"),
        (lambda: OmniMask(torch.zeros(1, 2, 2, dtype=torch.int32), 3), ValueError, "intervals has shape"),
        (lambda: OmniMask(torch.zeros(1, 2, 9, 2, dtype=torch.int32), 3), ValueError, "is 9, expected an int from"),
        (lambda: OmniMask(torch.zeros(1, 2, 1, 2, dtype=torch.int32), -1), ValueError, "kv_length"),
        (lambda: OmniMask(torch.zeros(1, 2, 1, 2, dtype=torch.int32), 2.0), TypeError, "kv_length"),
        (
            lambda: OmniMask.from_intervals(torch.tensor([[[[0, 4]]]], dtype=torch.int32), 3),
            ValueError,
            r"intervals\[0, 0, 0\] is \[0, 4\], expected",
        ),
        (
            lambda: OmniMask.from_intervals(torch.tensor([[[[2, 1]]]], dtype=torch.int32), 3),
            ValueError,
            r"intervals\[0, 0, 0\]",
        ),
        (lambda: OmniMask.from_dense(torch.zeros(1, 2, 3)), TypeError, "dense has dtype float32, expected bool"),
        (lambda: OmniMask.from_dense(torch.zeros(2, 3, dtype=torch.bool)), ValueError, "dense has shape"),
        (
            lambda: OmniMask.from_dense((torch.arange(18) % 2 == 0).expand(1, 2, 18)),
            ValueError,
            r"dense\[0, 0\] has 9 intervals, expected at most 8",
        ),
        (lambda: OmniMask.causal(1, 4, kv_length=3), ValueError, "kv_length is 3, expected an int of at least 4"),
        (lambda: OmniMask.causal(-1, 4), ValueError, "batch"),
        (lambda: OmniMask.t2i(torch.zeros(2, 3), **IDS), TypeError, "ids"),
        (lambda: OmniMask.t2i(torch.zeros(3, dtype=torch.int64), **IDS), ValueError, "ids has shape"),
        (lambda: OmniMask.t2i_padded([130]), ValueError, "padding is .*, expected 0 to"),
        (lambda: OmniMask.mmu_vit(1, 100, image_start=30, image_tokens=80), ValueError, "image_start is 30, expected"),
        (lambda: OmniMask.causal(1, 4).columns(2, 5), ValueError, "columns"),
        (lambda: OmniMask.causal(2, 4).expand(3), ValueError, "batch is 3, expected 2"),
        (lambda: OmniMask.cat([]), ValueError, "at least one"),
        (lambda: OmniMask.cat([OmniMask.causal(1, 4), OmniMask.causal(1, 5)]), ValueError, "expected the same"),
        (lambda: OmniMask.block_diagonal([[OmniMask.causal(2, 4)]]), ValueError, "shape"),
        (lambda: OmniMask.block_diagonal([[OmniMask.causal(1, 4)]], length=3), ValueError, "length is 3, expected"),
        (lambda: OmniMask.causal(1, 4).take_rows(torch.tensor([0.0])), TypeError, "index"),
    ],
)
def test_errors_name_the_argument(make, error, match):
    with pytest.raises(error, match=match):
        make()


def packed(ids, samples, formats):
    return OmniMask.packed(torch.tensor(ids), torch.tensor(samples), formats, **IDS)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([[1, 2]], [[0, 1, 1]], [["lm"]]), "samples has shape"),
        (([[1, 2]], [[0, 0]], []), "formats has 0 entries, expected 1"),
        (([[1, 2]], [[0, 0]], [["t2x"]]), "unknown names"),
        (([[1, 2]], [[0, 1]], [["lm"]]), "samples has numbers from 0 to 1, expected"),
        (([[1, 2, 3]], [[0, 1, 0]], [["lm", "lm"]]), "contiguous"),
    ],
)
def test_packed_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        packed(*arguments)
