"""The Triton kernels of dense reads and consolidation, interpreted, against the float64 oracle."""

from unittest import mock

import pytest
import torch
from interpreter import interpreted

import xmemk
from xmemk.testing import compare_consolidate, compare_read, make_inputs


def read(x, **more):
    return xmemk.memory_read(*x.read, return_usage=True, backend="triton", **more)


def parts(x, sizes):
    return list(x.split(sizes, dim=-1))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_agree_with_the_oracle_in_every_dtype(dtype):
    x = make_inputs(200, 5, objects=2, value_channels=33, dtype=dtype)
    readout, usage = read(x)
    assert readout.dtype == dtype
    assert readout.stride(2) == 1
    compare_read(x, readout, usage).check()


@interpreted
@pytest.mark.parametrize(
    ("n", "q", "more"),
    [
        (1, 1, {}),
        (129, 2, {"shrinkage": False, "selection": False, "key_channels": 17}),
        (150, 9, {"batch": 2, "key_channels": 16}),
        (40, 3, {"token_major": False, "batch": 2, "objects": 3}),
        (200, 5, {"key_channels": 100, "dtype": torch.float16}),
    ],
)
def test_shapes_and_strides(n, q, more):
    x = make_inputs(n, q, value_channels=5, seed=n, **more)
    compare_read(x, *read(x)).check()


@interpreted
def test_top_k_beyond_the_memory_means_all():
    x = make_inputs(9, 2, key_channels=4, value_channels=3)
    assert all(torch.equal(a, b) for a, b in zip(read(x), read(x, top_k=30)))


@interpreted
def test_values_may_have_another_dtype_than_keys():
    x = make_inputs(60, 3, key_channels=8, value_channels=3)
    x.mk, x.qk, x.qe = (t.half() for t in (x.mk, x.qk, x.qe))
    compare_read(x, *read(x)).check()


@interpreted
@pytest.mark.parametrize("sizes", [(0, 200, 0, 1), (100, 1, 100), (1, 1, 1, 1, 197)])
def test_segments_are_one_memory(sizes):
    x = make_inputs(201, 3, objects=2, key_channels=16, value_channels=5)
    mk, ms, mv = (parts(t, sizes) for t in (x.mk, x.ms, x.mv))
    readout, usage = xmemk.memory_read(mk, ms, mv, x.qk, x.qe, return_usage=True, backend="triton")
    compare_read(x, readout, usage).check()


@interpreted
def test_splits_of_the_memory_and_the_same_bits_every_time():
    x = make_inputs(1100, 3, key_channels=8, value_channels=3, dtype=torch.float16)
    first, again = read(x), read(x)
    compare_read(x, *first).check()
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@interpreted
def test_blocks_of_queries():
    from xmemk.kernels.ops import memory_read

    x = make_inputs(60, 130, key_channels=8, value_channels=3)
    with mock.patch.object(memory_read, "WEIGHT_BYTES", 1):
        compare_read(x, *read(x)).check()


@interpreted
def test_what_is_not_finite_is_never_read():
    x = make_inputs(200, 5, key_channels=8, value_channels=3)
    x.mk[0, 3, 77], x.mk[0, :, 100], x.mk[0, 0, 3] = 1e30, float("nan"), float("inf")
    x.ms[0, 0, 50], x.ms[0, 0, 51] = float("inf"), float("nan")
    x.qk[0, 5, 4] = float("nan")
    readout, usage = read(x)
    wanted, wanted_usage = xmemk.memory_read(*x.read, return_usage=True, backend="torch")
    assert readout[..., 4].isnan().all()
    torch.testing.assert_close(readout, wanted, atol=1e-5, rtol=1e-5, equal_nan=True)
    torch.testing.assert_close(usage, wanted_usage, atol=1e-5, rtol=1e-5)
    assert usage[0, [77, 100, 3, 50, 51]].sum() == 0


@interpreted
def test_a_memory_that_cannot_be_read_gives_nan():
    x = make_inputs(20, 2, key_channels=8, value_channels=3)
    x.mk[:] = float("nan")
    readout, usage = read(x)
    assert readout.isnan().all()
    assert (usage == 0).all()


@interpreted
@pytest.mark.parametrize("uncertified", [3, 130])
def test_one_block_of_queries_by_the_direct_form(uncertified):
    x = make_inputs(60, 140, key_channels=8, value_channels=3)
    x.qe[0, 1, uncertified] = -0.01
    compare_read(x, *read(x)).check()


@interpreted
def test_far_keys_by_the_direct_form():
    x = make_inputs(60, 4, key_channels=8, value_channels=3)
    x.mk[0, 1, 3] = 1e5
    compare_read(x, *read(x)).check()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("more", [{}, {"batch": 2, "shrinkage": False, "token_major": False}])
def test_consolidation_agrees_with_the_oracle(dtype, more):
    x = make_inputs(210, 1, objects=2, key_channels=16, value_channels=5, dtype=dtype, **more)
    for count in (7, 0):
        got = xmemk.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, count, backend="triton")
        compare_consolidate(x, count, *got).check()


@interpreted
def test_consolidation_by_the_direct_form():
    x = make_inputs(60, 1, key_channels=8, value_channels=5)
    x.mk[0, 1, 3] = 1e5
    compare_consolidate(x, 5, *xmemk.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, 5, backend="triton")).check()


@interpreted
def test_nothing_to_read_with():
    x = make_inputs(20, 0, key_channels=8, value_channels=3)
    for top_k in (None, 5):
        readout, usage = read(x, top_k=top_k)
        assert readout.shape == (1, 1, 3, 0)
        assert (usage == 0).all()


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
def test_strides_beyond_32_bits(top_k):
    """Offsets must be computed in 64 bits. Of the storage, only the few touched pages exist."""
    step = 1 << 26

    def apart(t):
        b, c, n = t.shape
        try:
            room = torch.empty(step * (c - 1) + n, dtype=torch.float16)
        except RuntimeError:
            pytest.skip("no room for such a storage, not even on paper")
        far = room.as_strided((b, c, n), (0, step, 1))
        far.copy_(t)
        return far

    x = make_inputs(60, 2, key_channels=36, value_channels=3, dtype=torch.float16)
    wanted = read(x, top_k=top_k)
    x.mk, x.qk, x.qe = apart(x.mk), apart(x.qk), apart(x.qe)
    assert x.mk.stride(1) * 35 > 2**31
    for a, b in zip(read(x, top_k=top_k), wanted):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    x.qe[0, 0, 0] = -0.01  # by the direct form
    compare_read(x, *read(x, top_k=top_k), top_k=top_k).check()


@interpreted
def test_more_batches_than_a_grid_has():
    mk, mv = torch.zeros(65_536, 4, 2), torch.zeros(65_536, 1, 1, 2)
    for top_k in (None, 1):
        with pytest.raises(ValueError, match="mk: wanted B <= 65535 for the Triton kernels, got B = 65536"):
            xmemk.memory_read(mk, None, mv, mk, None, top_k=top_k, backend="triton")
    weight, index = torch.ones(65_536, 1, 1), torch.zeros(65_536, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="mv: wanted B <= 65535 for the Triton kernels, got B = 65536"):
        xmemk.readout_topk(mv, weight, index, backend="triton")
