"""select_prototypes, evict_lfu, gather_tokens and consolidate on an NVIDIA GPU: `pytest -m gpu`."""

import pytest
import torch
from gpu import BACKENDS_OF, DEVICE, captured, gpu, needs_cuda_kernels, no_waiting
from usage_rows import DTYPES, KINDS, row

import xmemk
from xmemk import operators as ops
from xmemk import reference
from xmemk.testing import compare_consolidate, make_inputs

pytestmark = gpu
OPS = ["select_prototypes", "evict_lfu"]


def run(op, usage, count, backend="cuda"):
    return getattr(xmemk, op)(usage, count, backend=backend)


def oracle(op, usage, count):
    return getattr(reference, op)(usage.cpu(), count)


def check(op, usage, count):
    got = run(op, usage, count)
    assert got.device.type == DEVICE
    assert got.dtype == torch.int64
    assert torch.equal(got.cpu(), oracle(op, usage, count)), (op, usage.shape, usage.stride(), count)


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_oracle(op, kind, dtype):
    for n in (1, 2, 31, 33, 1023, 1024, 1025, 4097, 10_007):
        usage = row(kind, n).to(DEVICE, dtype)[None]
        for count in {0, 1, min(n, 128), n // 2, n - 1, n}:
            check(op, usage, count)


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_for_one_block_and_for_several(op, kind):
    for n in (65_535, 65_536, 65_537, 500_000):
        usage = row(kind, n).to(DEVICE)[None]
        for count in (1, 128, 1025, n - 128):
            check(op, usage, count)


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
def test_batches_and_strides(op):
    u = torch.stack([row(kind, 3001) for kind in KINDS]).to(DEVICE)
    for usage in (u, u[:, ::3], u[::2, 5:], u.t().contiguous().t(), u[:1].expand(4, -1), u[:, 7:8].expand(-1, 300)):
        for count in (0, 1, 100, usage.shape[1]):
            check(op, usage, count)
    for b, n in ((0, 7), (1, 0), (3, 0), (300, 1000), (2, 200_000)):
        usage = torch.rand(b, n, generator=torch.Generator().manual_seed(b)).mul(50).floor().to(DEVICE)
        check(op, usage, n // 3)


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
def test_results_do_not_change_from_run_to_run(op):
    for n in (10_000, 300_000):
        usage = row("few values", n).to(DEVICE)[None]
        first = run(op, usage, n // 2)
        assert all(torch.equal(run(op, usage, n // 2), first) for _ in range(20))


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
def test_nothing_waits_for_the_device(op):
    usage = row("random", 100_000).to(DEVICE)[None]
    size = torch.tensor(70_000, device=DEVICE)
    with no_waiting():
        run(op, usage, 128)
        run(op, usage[:, :10_000], 5_000)
        getattr(ops, op)(usage, 128, size)


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("n", [10_000, 200_000])
def test_a_graph_follows_usage_and_size(op, n):
    usage = row("random", n).to(DEVICE)[None].clone()
    size = torch.tensor([n], device=DEVICE)
    graph, got = captured(lambda: getattr(ops, op)(usage, 500, size))
    for kind, tokens in (("few values", n), ("wide", n // 2), ("special", 501), ("some NaN", n - 1)):
        usage.copy_(row(kind, n)[None])
        size.fill_(tokens)
        graph.replay()
        assert torch.equal(got.cpu(), oracle(op, usage[:, :tokens], 500))


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_a_size_on_the_device(op, dtype):
    capacity = 5000
    usage = torch.stack([row(kind, capacity) for kind in ("random", "few values", "special", "zeros")]).to(DEVICE)
    sizes = torch.tensor([5000, 77, 0, 9999], dtype=dtype, device=DEVICE)
    got = getattr(ops, op)(usage, 300, sizes).cpu()
    for b, n in enumerate((5000, 77, 0, 5000)):
        assert torch.equal(got[b : b + 1, : min(n, 300)], oracle(op, usage[b : b + 1, :n], min(n, 300)))
        assert (got[b, min(n, 300) :] == -1).all()
    with pytest.raises(TypeError, match="size: wanted int64 or int32"):
        getattr(ops, op)(usage, 3, sizes.float())
    with pytest.raises(ValueError, match=r"size: wanted one number, or \[B = 4\]"):
        getattr(ops, op)(usage, 3, sizes[:3])


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
def test_errors_change_nothing(op):
    with pytest.raises(ValueError, match="wanted 0 to N = 5"):
        run(op, torch.rand(2, 5, device=DEVICE), 6)
    with pytest.raises(ValueError, match="needs cuda tensors"):
        run(op, torch.rand(2, 5), 3, backend="cuda")


@needs_cuda_kernels
def test_operators_pass_opcheck():
    usage, size = torch.rand(2, 300, device=DEVICE), torch.tensor([300, 20], device=DEVICE)
    for op in OPS:
        torch.library.opcheck(getattr(torch.ops.xmemk, op).default, (usage, 15))
        torch.library.opcheck(getattr(torch.ops.xmemk, f"{op}_sized").default, (usage, 15, size))
    x = torch.rand(2, 3, 40, 50, device=DEVICE)
    index = torch.randint(50, (2, 7), device=DEVICE)
    torch.library.opcheck(torch.ops.xmemk.gather_tokens.default, (x, index))


@needs_cuda_kernels
@pytest.mark.parametrize("op", OPS)
def test_under_torch_compile(op):
    compiled = torch.compile(lambda u: run(op, u, 7), fullgraph=True)
    for n in (100, 160, 230):
        usage = row("few values", n).to(DEVICE)[None]
        assert torch.equal(compiled(usage).cpu(), oracle(op, usage, 7))


@needs_cuda_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_tokens(dtype):
    for b, o, c, n, p in ((1, 1, 1, 1, 1), (2, 3, 33, 40, 31), (1, 5, 512, 3000, 128), (2, 1, 64, 500, 600)):
        index = torch.randint(n, (b, p), device=DEVICE)
        for x in (
            torch.randn(b, o, c, n, device=DEVICE).to(dtype),
            torch.randn(b, n, o, c, device=DEVICE).to(dtype).permute(0, 2, 3, 1),
            torch.randn(b, o, 2 * c, 3 * n, device=DEVICE).to(dtype)[:, :, ::2, ::3],
        ):
            wanted = x.gather(3, index[:, None, None].expand(b, o, c, p))
            assert torch.equal(ops.gather_tokens(x, index), wanted)
            assert torch.equal(ops.gather_tokens(x[:, 0], index), wanted[:, 0])


@pytest.mark.parametrize("backend", BACKENDS_OF["consolidate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_consolidate(backend, dtype):
    x = make_inputs(2000, 1, objects=2, value_channels=64, dtype=dtype, device=DEVICE)
    arguments = (x.mk, x.ms, x.me, x.mv, x.usage, 128)
    if backend not in ("auto", "torch") and xmemk.explain("consolidate", *arguments, backend=backend).chosen is None:
        pytest.skip(f"{backend} does not serve this")
    compared = compare_consolidate(x, 128, *xmemk.consolidate(*arguments, backend=backend))
    assert compared.passed, str(compared)
    with no_waiting():
        xmemk.consolidate(*arguments, backend=backend)
