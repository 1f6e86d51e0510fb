"""The plan of a mask: made once and shared, the same bits for every sharer; masks that are copied, moved, selected."""

import contextlib
import copy
import io
import pickle
from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, default_collate

from showo_ext import OmniMask, omni_attention, overwrite_mask, rope_qkv, rotary_tables
from showo_ext._kept import MAX_SELECTIONS
from showo_ext.ops._mask_plan import make_plan, plan_of
from showo_ext.testing import CountOperators, randint, randn, use_isa
from tests.ptx.emulated import backend, module_path

OPS = torch.ops.showo_ext
emulated = pytest.param(
    "emulated", marks=pytest.mark.skipif(module_path() is None, reason="`make emulator` builds the emulator")
)
backends = pytest.mark.parametrize("device", ["cpu", emulated])


@contextlib.contextmanager
def counted(device):
    """On a backend of tests.ptx.emulated; yields the Counter of operators."""
    with backend(device), CountOperators() as counter:
        yield counter.calls


def operands(mask, *, dim=32, seed=0, requires_grad=True):
    sizes = (mask.q_length, mask.kv_length, mask.kv_length)
    return [randn(mask.batch_size, 1, n, dim, seed=seed + i).requires_grad_(requires_grad) for i, n in enumerate(sizes)]


# ---- made once ------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("rows", [3, 20])  # the CUDA decode kernels, and those with tiles
def test_layers_and_backward_share_one_plan(device, rows):
    mask = OmniMask.causal(1, 20)
    with counted(device) as calls:
        for _ in range(2):
            selected = mask.rows(20 - rows, None)
            loss = sum(omni_attention(*operands(selected, seed=layer), selected).sum() for layer in range(3))
            loss.backward()
        assert calls["omni_attention_forward"] == calls["omni_attention_backward"] == 6
        assert calls["omni_block_table"] == 1
        assert len(selected._kept.plans) == 1


def test_decode_without_gradient_needs_no_table():
    mask = OmniMask.causal(1, 3, kv_length=70)
    with counted("cpu") as calls, backend("emulated") if module_path() else pytest.skip("no emulator"):
        omni_attention(*operands(mask, requires_grad=False), mask)
    assert calls["omni_attention_forward"] == 1
    assert calls["omni_block_table"] == 0


def test_kernels_that_walk_differently_have_their_own_plan(emulated):
    """Tiles of 64 and 128 rows share the block table; the CPU has its own, which depends on the instruction set."""
    mask = OmniMask.causal(1, 130)
    small, large = torch.empty(1, 1, 130, 32), torch.empty(1, 109, 130, 32, dtype=torch.bfloat16)
    plans = [plan_of(mask, q, trained=False) for q in (small, large)]
    assert [plan.tile_rows for plan in plans] == [64, 128]
    assert plans[0].states is plans[1].states
    assert plan_of(mask, large, trained=True) is plans[1]


def test_states_made_for_another_instruction_set_are_refused():
    mask = OmniMask.causal(1, 130)
    q, k, v = operands(mask, requires_grad=False)
    with use_isa("baseline"):
        plan = make_plan(mask, 0)
        expected = omni_attention(q, k, v, mask)
    assert plan.states.shape == (1, 3, 3)
    for states in (plan.states[:, :2], plan.states[:, :, :2]):
        with use_isa("baseline"), pytest.raises(ValueError, match="states has shape"):
            OPS.omni_attention_forward(q, k, v, *plan._replace(states=states), 0.2)
    with pytest.raises(ValueError, match="block table is missing"):
        OPS.omni_attention_forward(q, k, v, *plan._replace(states=None), 0.2)
    torch.testing.assert_close(omni_attention(q, k, v, mask), expected)  # the same mask, a plan for the one now in use


def test_a_transform_leaves_no_plan_behind():
    """Tensors made inside torch.func.grad are wrapped, and end with it."""
    mask = OmniMask.causal(1, 20)
    q, k, v = operands(mask, requires_grad=False)
    torch.func.grad(lambda q: omni_attention(q, k, v, mask).sum())(q)
    assert not mask._kept.plans


def test_a_traced_graph_has_one_table_for_all_layers():
    mask = OmniMask.causal(1, 20)
    q, k, v = operands(mask)
    counts = []

    def model(q, k, v, mask):
        mask = OmniMask(mask.intervals, mask.kv_length)
        for _ in range(3):
            q = omni_attention(q, k, v, mask)
        return q

    def count(graph, _):
        counts.append(Counter(str(node.target) for node in graph.graph.nodes)["showo_ext.omni_block_table.default"])
        return make_boxed_func(graph.forward)

    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=count, bw_compiler=count))
    compiled(q, k, v, mask).sum().backward()
    assert counts == [1, 0]  # forward, backward
    torch.compile(omni_attention, fullgraph=True, backend="aot_eager")(q, k, v, mask)
    assert not mask._kept.plans  # what a graph makes does not stay with its arguments
    compiled(*operands(mask, requires_grad=False), mask)
    assert counts == [1, 0, 1]


# ---- masks of rows --------------------------------------------------------------------------------------------------


def test_equal_selections_are_one_mask():
    mask = OmniMask.causal(2, 9)
    assert mask.rows(1, -1) is mask.rows(1, 8)
    assert mask.rows(1, -1) is not mask.rows(1, 7)
    index = torch.tensor([[0, 3], [8, 8]])
    taken = mask.take_rows(index)
    assert mask.take_rows(index) is taken
    index[0, 0] = 5
    assert torch.equal(mask.take_rows(index).to_dense()[0, 0], mask.to_dense()[0, 5])
    with torch.inference_mode():
        index = torch.tensor([0, 3])
        mask.take_rows(index)
        index[0] = 5
        assert torch.equal(mask.take_rows(index).to_dense()[0, 0], mask.to_dense()[0, 5])


def test_kept_selections_are_bounded():
    mask = OmniMask.causal(1, 50)
    first, second = mask.rows(0, 1), mask.rows(0, 2)
    for stop in range(3, 40):
        mask.rows(0, stop)
        mask.take_rows(torch.tensor([stop]))
        assert mask.rows(0, 1) is first  # in use all the time
    assert len(mask._kept.selections) == MAX_SELECTIONS
    assert mask.rows(0, 2) is not second


# ---- written into ---------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("rows", [5, 150])
def test_an_overwritten_mask_is_the_other_mask(device, rows, record_property):
    """Its plan and the rows that were taken of it too, in the memory in which they are."""
    seed = torch.randint(1 << 30, ()).item()
    record_property("seed", seed)
    bounds = randint(0, 301, (3, 2, rows, 2, 2), seed=seed).sort(-1).values.int()
    bounds[1, 0] = bounds[1, 0, :1]  # a batch entry whose rows are alike, so that blocks are empty and full
    with backend(device), torch.inference_mode():
        mask = OmniMask(bounds[0], 300)
        q, k, v = (randn(2, 1, n, 32, seed=seed + n) for n in (rows, 300, 300))
        results = [omni_attention(q, k, v, mask), omni_attention(q[:, :, 1:-1], k, v, mask.rows(1, -1))]
        held = [mask.intervals, *(x for plan in mask._kept.plans.values() for x in plan[:4] if x is not None)]
        addresses = [x.data_ptr() for x in held]
        for written in (bounds[1], bounds[2, :1]):  # all entries, and the first
            overwrite_mask(mask, written)
            expected = OmniMask(torch.cat((written, bounds[1, len(written) :])), 300)
            got = [omni_attention(q, k, v, mask), omni_attention(q[:, :, 1:-1], k, v, mask.rows(1, -1))]
            assert not torch.equal(got[0], results[0])
            assert torch.equal(got[0], omni_attention(q, k, v, expected)), seed
            assert torch.equal(got[1], omni_attention(q[:, :, 1:-1], k, v, expected.rows(1, -1))), seed
        assert [x.data_ptr() for x in held] == addresses
        for x, new in zip(held[1:], (x for plan in mask._kept.plans.values() for x in plan[:4] if x is not None)):
            assert x is new


def test_masks_that_cannot_be_overwritten():
    mask = OmniMask.causal(2, 4)
    with pytest.raises(ValueError, match=r"intervals has shape \[3, 4, 1, 2\], expected up to 2 entries of"):
        overwrite_mask(mask, mask.intervals.new_zeros(3, 4, 1, 2))
    with pytest.raises(ValueError, match=r"intervals has shape \[2, 4, 2, 2\]"):
        overwrite_mask(mask, mask.intervals.new_zeros(2, 4, 2, 2))
    with pytest.raises(TypeError, match="intervals has dtype"):
        overwrite_mask(mask, mask.intervals.long())
    index = torch.tensor([1, 2])
    mask.take_rows(index)
    with pytest.raises(ValueError, match="rows that were taken by an index"):
        overwrite_mask(mask, mask.intervals)


# ---- copies and containers ------------------------------------------------------------------------------------------


def used_mask():
    mask = OmniMask.t2i_padded([2, 5], text_length=8, image_length=6)
    omni_attention(*operands(mask), mask)
    mask.rows(1, 3)
    return mask


def test_copies_leave_the_plan_behind():
    mask = used_mask()
    size = len(pickle.dumps(OmniMask(mask.intervals, mask.kv_length)))
    assert len(pickle.dumps(mask)) == size
    for twin in (pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask), copy.copy(mask)):
        assert torch.equal(twin.intervals, mask.intervals)
        assert twin.kv_length == mask.kv_length
        assert not twin._kept.plans
        assert not twin._kept.selections
    assert mask.to("cpu") is mask
    assert not mask.to("meta")._kept.plans


def test_saved_masks_load_as_weights_do():
    mask, file = used_mask(), io.BytesIO()
    torch.save({"mask": mask}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["mask"].to_dense(), mask.to_dense())


@pytest.mark.parametrize("workers", [0, 1])
def test_default_collate_joins_masks(workers):
    masks = [OmniMask.t2i_padded([n], text_length=8, image_length=6) for n in range(4)]
    data = [{"mask": mask, "number": n} for n, mask in enumerate(masks)]
    batches = list(DataLoader(data, batch_size=2, num_workers=workers))  # type: ignore[arg-type]
    joined = torch.cat([batch["mask"].to_dense() for batch in batches])
    assert torch.equal(joined, OmniMask.cat(masks).to_dense())
    with pytest.raises(ValueError, match="expected the same of all"):
        default_collate([OmniMask.causal(1, 4), OmniMask.causal(1, 5)])


def test_a_mask_is_a_tree():
    mask = used_mask()
    leaves, tree = tree_flatten({"mask": mask})
    assert leaves == [mask.intervals, mask.kv_length]
    assert torch.equal(tree_unflatten(leaves, tree)["mask"].to_dense(), mask.to_dense())


class Attend(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return omni_attention(q, k, v, mask)


@pytest.mark.skipif(
    not hasattr(torch.export.dynamic_shapes, "_IntWrapper"),
    reason="to torch.export of this torch, as of 2.6, an int (kv_length) is a constant",
)
@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_a_mask_of_any_length(strict):
    auto = torch.export.Dim.AUTO
    lengths = {0: auto, 2: auto}
    shapes = {"q": lengths, "k": lengths, "v": lengths, "mask": [{0: auto, 1: auto}, torch.export.Dim.DYNAMIC]}
    mask = OmniMask.causal(2, 20, kv_length=30)
    exported = torch.export.export(
        Attend(), (*operands(mask, requires_grad=False), mask), dynamic_shapes=shapes, strict=strict
    )
    for other in (mask, OmniMask.causal(3, 21, kv_length=33)):
        inputs = operands(other, requires_grad=False, seed=3)
        assert torch.equal(exported.module()(*inputs, other), omni_attention(*inputs, other))


# ---- constants made under torch.inference_mode -----------------------------------------------------------------------


def loss(x, tables, mask):
    """A small model: heads from one projection, attention."""
    q, k, v = rope_qkv(x, tables, num_heads=1)
    return omni_attention(q, k, v, mask).square().sum()


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_constants_made_in_inference_mode_serve_training(compiled):
    def make():
        mask = OmniMask.from_dense(OmniMask.causal(1, 20).to_dense())
        omni_attention(*operands(mask, requires_grad=False), mask)  # keeps a plan
        return rotary_tables(torch.arange(20), 32), mask.take_rows(torch.arange(20))

    with torch.inference_mode():
        tables, mask = make()
    function = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    x = randn(1, 20, 96).requires_grad_()
    assert torch.equal(gradient(function(x, tables, mask), x), gradient(loss(x, *make()), x))


def test_operators_take_inference_tensors_of_any_origin():
    """The operators save nothing but what has a gradient, so tables and plans from anywhere will do."""
    x = randn(1, 20, 96).requires_grad_()
    tables, mask = rotary_tables(torch.arange(20), 32), OmniMask.causal(1, 20)
    expected = gradient(loss(x, tables, mask), x)
    with torch.inference_mode():
        tables = tuple(table.clone() for table in tables)
        plan = make_plan(mask, 0)
        plan = plan._replace(intervals=plan.intervals.clone(), states=plan.states.clone())
    q, k, v = rope_qkv(x, tables, num_heads=1)
    out = OPS.omni_attention_forward(q, k, v, *plan, 32**-0.5)[0]
    assert torch.equal(gradient(out.square().sum(), x), expected)
