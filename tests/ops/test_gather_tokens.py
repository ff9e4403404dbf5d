"""gather_tokens in C++ against torch.gather: every layout bit for bit, and no index trusted."""

import math

import pytest
import torch

import xmemk  # noqa: F401  defines the operators

_C = pytest.importorskip("xmemk._C", reason="the C++ extension xmemk._C is not built", exc_type=ImportError)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 64, 50), (2, 1, 7), (3, 17, 1), (1, 1, 512, 33), (2, 3, 33, 20), (2, 5, 1, 9)]


def gather(x, index):
    return torch.ops.xmemk.gather_tokens(x, index)


def expected(x, index):
    between = x.dim() - 2
    return x.gather(-1, index.view(x.shape[0], *[1] * between, index.shape[1]).expand(*x.shape[:-1], -1))


def check(x, index):
    result = gather(x, index)
    assert result.is_contiguous()
    assert result.dtype == x.dtype
    assert torch.equal(result, expected(x, index))


def token_major(x):
    """Channel stride 1, then objects where there are any, then tokens."""
    inner = list(range(1, x.dim() - 1))
    order = [0, x.dim() - 1, *inner]
    return x.permute(order).contiguous().permute(0, *[d + 1 for d in inner], 1)


def any_index(b, n, p):
    return torch.randint(n, (b, p), generator=torch.Generator().manual_seed(p))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 64, 50), (2, 1, 7), (3, 17, 1), (1, 1, 512, 33), (2, 3, 33, 20), (2, 5, 1, 9)], ids=str
)
def test_matches_torch_gather(shape, dtype):
    x = torch.randn(shape).to(dtype)
    for layout in (x, token_major(x), x.transpose(-1, -2).contiguous().transpose(-1, -2)):
        for p in (1, 2, 31, 100):
            check(layout, any_index(shape[0], shape[-1], p))


def test_slices_and_expanded_views():
    x = torch.randn(3, 4, 40, 60)
    index = any_index(3, 20, 13)
    check(x[:, 1:3, ::2, 10:50:2], index)
    check(x[:, 0, 5:, 40:], index)
    check(x[:1, :, :, :20].expand(3, -1, -1, -1), index)
    check(x[:, :1, :, :20].expand(-1, 6, -1, -1), index)
    check(x[:, :, :1, :20].expand(-1, -1, 70, -1), index)
    check(x[..., :1].expand(-1, -1, -1, 20), index)
    check(x[..., :20], index[:, ::3])
    check(x[..., :20], index[:1].expand(3, -1))


def test_empty():
    for shape in ((0, 8, 5), (2, 0, 5), (2, 3, 0, 5), (2, 0, 3, 5), (2, 8, 0), (2, 3, 8, 5)):
        check(torch.randn(shape), torch.empty(shape[0], 0, dtype=torch.int64))
    check(torch.randn(2, 0, 5), any_index(2, 5, 3))


def test_bits_are_kept():
    x = torch.tensor([[[math.nan, -0.0, math.inf, 1e-45]]])
    payload = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)
    x[0, 0, 0] = payload[0]
    index = torch.tensor([[3, 0, 1, 2]])
    assert torch.equal(gather(x, index).view(torch.int32), expected(x.view(torch.int32), index))


@pytest.mark.parametrize("major", ["channel", "token"])
def test_threads_agree(major, threads):
    x = torch.randn(2, 3, 100, 2000)
    x = token_major(x) if major == "token" else x
    index = any_index(2, 2000, 1500)
    for n in (1, 2, 3):
        threads(n)
        check(x, index)


@pytest.mark.parametrize("value", [5, -1, -(2**63), 2**63 - 1, 2**32])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_an_index_out_of_range_is_named(value, place):
    index = torch.zeros(2, 3, dtype=torch.int64)
    index[place] = value
    with pytest.raises(IndexError, match=rf"index\[{place[0]}, {place[1]}\]: wanted 0 to N - 1 = 4, got {value}\b"):
        gather(torch.randn(2, 8, 5), index)


def test_an_index_is_checked_where_no_value_is_read():
    with pytest.raises(IndexError, match="got 0"):
        gather(torch.randn(1, 8, 0), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(IndexError, match="got 9"):
        gather(torch.randn(1, 0, 5), torch.full((1, 1), 9))


@pytest.mark.parametrize(
    ("x", "index", "error", "match"),
    [
        (torch.randn(2, 5), torch.zeros(2, 1, dtype=torch.int64), ValueError, r"x: wanted \[B, C, N\].*got \[2, 5\]"),
        (torch.ones(2, 8, 5, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int64), TypeError, r"x: wanted float32"),
        (torch.randn(2, 8, 5), torch.zeros(2, 1, dtype=torch.int32), TypeError, r"index: wanted int64, got Int"),
        (torch.randn(2, 8, 5), torch.zeros(2, dtype=torch.int64), ValueError, r"index: wanted \[B = 2, P\].*got \[2\]"),
        (torch.randn(2, 8, 5), torch.zeros(1, 3, dtype=torch.int64), ValueError, r"index: wanted \[B = 2, P\]"),
    ],
)
def test_errors(x, index, error, match):
    with pytest.raises(error, match=match):
        gather(x, index)


def test_operator():
    torch.library.opcheck(torch.ops.xmemk.gather_tokens.default, (torch.randn(2, 3, 8, 50), any_index(2, 50, 7)))


def test_build_info_lists_the_registered_kernels():
    info = _C.build_info()
    assert set(info) == {"torch", "compiler", "cxx_standard", "cuda", "cpu_ops", "cuda_ops"}
    assert info["cpu_ops"] == sorted(info["cpu_ops"])
    for op in info["cpu_ops"]:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"xmemk::{op}", "CPU")
