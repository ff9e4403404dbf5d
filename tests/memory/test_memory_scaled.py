"""Values of 8 and 16 bits: the scaled readout against the oracle, and memories that store them."""

import dataclasses

import pytest
import torch
from memory_videos import frame, numbers, query, run, same, small

import xmemk
from xmemk import Memory, reference
from xmemk.memory.bank import Bank
from xmemk.memory.scaled import ScaledValues
from xmemk.memory.spec import LARGEST_CODE, Spec
from xmemk.memory.table import Run

EIGHT_BITS = pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "torch"])
JOINS = {1: 0, 2: 0, 3: 4, 5: 9, 8: 13}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def codes(dtype, *shape):
    bits = torch.randint(0, 256, shape, dtype=torch.int64).to(torch.uint8)
    if dtype == torch.float8_e4m3fn:
        bits[(bits & 127) == 127] = 0  # its NaN
    return bits.view(dtype)


def widened(code, scale):
    """In float64, one scale for each group of ceil(CV / G) channels."""
    cv, g = code.shape[2], scale.shape[2]
    return code.double() * scale.double().repeat_interleave(-(-cv // g), dim=2)[:, :, :cv]


@EIGHT_BITS
@BACKENDS
@pytest.mark.parametrize(("batch", "objects", "channels", "groups"), [(1, 1, 300, 3), (2, 3, 7, 2), (1, 2, 64, 1)])
def test_scaled_readout_is_that_of_widened_values(dtype, backend, batch, objects, channels, groups):
    torch.manual_seed(0)
    sizes = [9, 0, 21]
    # Token-major, as the banks are, and as slices of something longer.
    mv = [codes(dtype, batch, n + 2, objects, channels)[:, 1 : n + 1].movedim(1, -1) for n in sizes]
    scale = [torch.rand(batch, n + 2, objects, groups)[:, 1 : n + 1].movedim(1, -1) for n in sizes]
    weight, index = torch.rand(batch, 17, 5).softmax(2), torch.randint(0, 30, (batch, 17, 5))
    readout = xmemk.readout_topk(mv, weight, index, scale=scale, backend=backend)
    exact = torch.cat([widened(v, s) for v, s in zip(mv, scale)], 3)
    expected = reference.readout_topk(exact, weight.double(), index)
    assert readout.dtype == torch.float32 and readout.stride(2) == 1
    torch.testing.assert_close(readout.double(), expected, rtol=0, atol=1e-6 * exact.abs().max().item())
    channel_major = [v.contiguous() for v in mv]
    again = xmemk.readout_topk(channel_major, weight, index, scale=scale, backend=backend)
    torch.testing.assert_close(again, readout)


@EIGHT_BITS
def test_scaled_readout_is_the_same_for_any_number_of_threads(dtype, threads):
    mv, scale = codes(dtype, 1, 2, 40, 50), torch.rand(1, 2, 4, 50)
    weight, index = torch.rand(1, 70, 6), torch.randint(0, 50, (1, 70, 6))
    results = []
    for n in (1, 2, 5):
        threads(n)
        results.append(xmemk.readout_topk(mv, weight, index, scale=scale, backend="cpu"))
    assert all(torch.equal(results[0], other) for other in results[1:])


@EIGHT_BITS
def test_scaled_operator_passes_opcheck(dtype):
    mv, scale = codes(dtype, 2, 2, 5, 12), torch.rand(2, 2, 2, 12)
    weight, index = torch.rand(2, 3, 4), torch.randint(0, 12, (2, 3, 4))
    arguments = ([mv[..., :5], mv[..., 5:]], [scale[..., :5], scale[..., 5:]], weight, index)
    # Not the check that a kernel leaves its input alone: it compares clones, which torch cannot do
    # in float8.
    tests = ("test_faketensor",) if dtype == torch.float8_e4m3fn else ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.xmemk.readout_topk_scaled, arguments, test_utils=tests)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mv": torch.zeros(1, 1, 4, 9)}, TypeError, "mv: wanted int8 or float8_e4m3fn, got torch.float32"),
        ({"scale": torch.ones(1, 1, 2, 8)}, ValueError, r"scale: wanted \[B, O, G, N\] = \[1, 1, 2, 9\]"),
        ({"scale": torch.ones(1, 1, 0, 9)}, ValueError, "scale: wanted"),
        ({"scale": torch.ones(1, 1, 2, 9).double()}, TypeError, "scale: wanted float32, got torch.float64"),
        ({"scale": [torch.ones(1, 1, 2, 9)] * 2}, ValueError, "scale: wanted 1 segments as in mv, got 2"),
        ({"index": torch.full((1, 2, 3), 9)}, IndexError, "wanted 0 to 8.*got 9"),
    ],
)
@BACKENDS
def test_scaled_readout_refuses(changes, error, message, backend):
    arguments = {
        "mv": torch.zeros(1, 1, 4, 9, dtype=torch.int8),
        "weight": torch.rand(1, 2, 3),
        "index": torch.zeros(1, 2, 3, dtype=torch.int64),
        "scale": torch.ones(1, 1, 2, 9),
    }
    with pytest.raises(error, match=message):
        xmemk.readout_topk(**(arguments | changes), backend=backend)


def test_explain_knows_of_scales():
    mv, scale = torch.zeros(1, 1, 4, 9, dtype=torch.int8), torch.ones(1, 1, 2, 9)
    weight, index = torch.rand(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.int64)
    explanation = xmemk.explain(xmemk.readout_topk, mv, weight, index, scale=scale)
    assert explanation.chosen == "cpu"
    assert "has no kernel for readout_topk_scaled" in explanation.refusals["triton"]
    assert xmemk.explain(xmemk.readout_topk, mv.float(), weight, index).op == "readout_topk"


# Storing


@EIGHT_BITS
@pytest.mark.parametrize("channels", [1, 127, 128, 300])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_what_is_stored_is_off_by_half_a_step_at_most(dtype, channels, size):
    torch.manual_seed(0)
    f32 = torch.float32
    values = ScaledValues(Spec(1, 6, 4, channels, 2, f32, f32, torch.device("cpu"), 1, stored_value_dtype=dtype), xmemk)
    assert (values.groups, values.group) == {1: (1, 1), 127: (1, 127), 128: (1, 128), 300: (3, 100)}[channels]
    for bank in values.banks:
        bank.blocks = [bank.empty(0), bank.empty(6)]
    value = size * torch.randn(1, 2, channels, 6)
    value[..., 0] = 0
    value[0, 0, 0, 1] *= 100
    everything = Run(1, 0, 6)
    values.write(everything, value)
    (back,) = next(values._widened([everything]))
    largest = torch.nn.functional.pad(value.abs(), (0, 0, 0, values.groups * values.group - channels))
    largest = largest.unflatten(2, (values.groups, values.group)).amax(3).repeat_interleave(values.group, 2)
    # int8: half a step of largest / 127. float8: half a unit of 3 bits, or of the smallest
    # subnormal, 2^-9.
    allowed = largest[:, :, :channels] / 127 / 2
    if dtype == torch.float8_e4m3fn:
        allowed = torch.maximum(value.abs() / 16, largest[:, :, :channels] / LARGEST_CODE[dtype] * 2**-10)
    assert ((back - value).abs() <= allowed * 1.001).all()
    assert (back[..., 0] == 0).all()


LOSS = {"float16": 2e-3, "bfloat16": 1.6e-2, "int8": 1.2e-2, "float8_e4m3fn": 0.13}


@pytest.mark.parametrize("top_k", [4, None])
@pytest.mark.parametrize("groups", ["exact", "xmem"])
@pytest.mark.parametrize("stored", LOSS)
def test_a_memory_that_stores_less_reads_nearly_the_same(stored, groups, top_k):
    """Objects that come, consolidation and eviction.

    And what is chosen is the same, since keys are not rounded.
    """
    config = small(groups, top_k=top_k)
    whole, rounded = Memory(config), Memory(dataclasses.replace(config, value_dtype=stored))
    pairs = list(zip(run(whole, 0, 30, JOINS), run(rounded, 0, 30, JOINS), strict=True))
    assert rounded.evictions > 1
    for a, b in pairs:
        assert b.dtype == a.dtype
        assert ((a - b).abs().max() / 5) < LOSS[stored]  # values are below 5
    assert repr(whole) == repr(rounded)
    arenas = [m.groups.buckets[0].arena if groups == "exact" else m.groups.arena for m in (whole, rounded)]
    runs = arenas[0].table.runs()
    assert runs == arenas[1].table.runs()
    for name in ("key", "use", "birth"):
        for r in runs:
            assert torch.equal(arenas[0].banks[name].rows(r), arenas[1].banks[name].rows(r))


@pytest.mark.parametrize("stored", LOSS)
@pytest.mark.parametrize("groups", ["exact", "xmem"])
def test_rounded_values_are_saved_and_removed_as_they_lie(stored, groups, tmp_path):
    memory = Memory(small(groups, value_dtype=stored))
    run(memory, 0, 17, JOINS)
    memory.save(tmp_path / "m")
    loaded = Memory.load(tmp_path / "m")
    assert same(numbers(loaded), numbers(memory))
    before = memory.read(**query(0))
    assert torch.equal(loaded.read(**query(0)), before)
    if groups == "exact":
        loaded.remove([1, 3])
        assert torch.equal(loaded.read(**query(0)), before[:, [memory.objects.index(o) for o in (2, 5, 8)]])


def test_dense_reads_widen_a_part_at_a_time(monkeypatch):
    config = small(top_k=None, value_dtype="int8")
    memory = Memory(config)
    wide = {"value": torch.randn(1, 2, 300, 2, 3, generator=torch.Generator().manual_seed(0))}
    for t in range(7):
        memory.add(**frame(t) | wide)
    at_once = memory.read(**query(0))
    monkeypatch.setattr("xmemk.memory.scaled._WIDENED_BYTES", 1)
    in_parts = memory.read(**query(0))
    torch.testing.assert_close(in_parts, at_once)
    assert len(list(memory.groups.buckets[0].arena.values._widened([Run(1, 0, 6)]))) == 3


def test_bytes_of_a_bank():
    assert Bank(1, (2, 512), torch.int8, torch.device("cpu")).row_bytes == 1024
    nbytes = {}
    for stored in (None, "float16", "int8", "float8_e4m3fn"):
        memory = Memory(small(value_dtype=stored))
        wide = torch.randn(1, 2, 512, 2, 3)
        memory.add(**frame(0) | {"value": wide})
        nbytes[stored] = memory.nbytes
    values = (5 * 6 + 10) * 2 * 512 * 4
    assert nbytes[None] - nbytes["float16"] == values // 2
    assert nbytes[None] - nbytes["int8"] == values * 3 // 4 - (5 * 6 + 10) * 2 * 4 * 4
    assert nbytes["int8"] == nbytes["float8_e4m3fn"]
