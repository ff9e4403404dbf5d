"""The CUDA kernels' own source, run on the CPU: the oracle's indices, with ties and NaN."""

import math
import subprocess
import sys
from pathlib import Path

import cuda_emulated as cuda
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from usage_rows import DTYPES, KINDS, SPECIAL, row

from xmemk import reference

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or cuda.compiler() is None, reason="needs Linux and g++ to build the emulation"
)
OPS = ["select_prototypes", "evict_lfu"]


def check(op, usage, count, **how):
    got = getattr(cuda, op)(usage, count, **how)
    assert torch.equal(got, getattr(reference, op)(usage, count)), (op, usage.shape, count, how)


def counts(n):
    return sorted({0, 1, n // 2, max(0, n - 1), n})


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_around_every_boundary(op, dtype):
    # A warp takes 32 tokens together, 128 a step; a block here has two warps.
    for n in (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 513):
        for kind in ("random", "few values", "special"):
            usage = row(kind, n).to(dtype)[None]
            for count in counts(n):
                check(op, usage, count)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_rows_with_full_blocks(op, kind):
    for n in (1000, 5003):
        usage = row(kind, n)[None]
        for count in {1, 128, n - 128, n}:
            check(op, usage, count, threads=1024, schedule=2)


@pytest.mark.parametrize("kind", KINDS)
def test_more_prototypes_than_are_ordered_in_shared_memory(kind):
    for n, count in ((1025, 1024), (1025, 1025), (2500, 1500), (3001, 3000)):
        for dtype in DTYPES:
            check("select_prototypes", row(kind, n).to(dtype)[None], count)
    check("select_prototypes", row(kind, 5000)[None], 4999, threads=1024, schedule=3)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 3])
def test_a_row_shared_by_blocks(op, kind, parts):
    for n in (1, 2, 3, 64, 700, 3001):
        for count in counts(n)[1:]:
            check(op, row(kind, n)[None], count, parts=parts)
    usage = torch.stack([row(kind, n) for n in (900, 900)])
    check(op, usage, 300, parts=parts, schedule=4)


@given(
    st.lists(st.sampled_from([*SPECIAL, 2.0, 3.0, 1e-40, -1e-40]), min_size=1, max_size=200),
    st.data(),
    st.sampled_from(DTYPES),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_many_ties(values, data, dtype, schedule):
    usage = torch.tensor([values]).to(dtype)
    count = data.draw(st.integers(0, len(values)))
    for op in OPS:
        check(op, usage, count, schedule=schedule)


@given(st.data(), st.sampled_from([16, 32, 64]))
@settings(deadline=None)
def test_any_bits(data, width):
    """Usage of any bit pattern, NaN of all kinds too, in every float type."""
    bits = data.draw(st.lists(st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1), min_size=1, max_size=80))
    raw = torch.tensor([bits], dtype={16: torch.int16, 32: torch.int32, 64: torch.int64}[width])
    for dtype in {16: (torch.float16, torch.bfloat16), 32: (torch.float32,), 64: (torch.float64,)}[width]:
        usage = raw.view(dtype)
        for op in OPS:
            check(op, usage, data.draw(st.integers(0, len(bits))))


@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_how_threads_run(op):
    usage = torch.stack([row(kind, 1200) for kind in ("few values", "special", "random")])
    for count in (100, 1100):
        runs = [
            getattr(cuda, op)(usage, count, schedule=schedule, parts=parts, threads=threads)
            for schedule in (0, 1, 7, 8)
            for parts, threads in ((1, 64), (1, 1024), (2, 64))
        ]
        assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("op", OPS)
def test_any_strides(op):
    u = torch.stack([row(kind, 301) for kind in KINDS])
    for usage in (
        u[:, ::3],
        u[::2, 5:],
        u.t().contiguous().t(),  # token stride is not 1
        u[:1].expand(4, -1),
        u[:, 7:8].expand(-1, 300),  # token stride 0: all equal
        u[:, 1:2],
    ):
        for count in counts(usage.shape[1])[1:]:
            check(op, usage, count)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_size_on_the_device(op, dtype, parts):
    """Tokens past the size are not looked at, places without a token are -1, no size goes past the
    capacity.
    """
    capacity = 150
    usage = torch.stack([row(kind, capacity) for kind in ("random", "few values", "special", "some NaN")])
    sizes = torch.tensor([150, 77, 0, 1000], dtype=dtype)
    for count in (1, 60, 77, 150):
        for one in (sizes, *sizes[:2].split(1), torch.tensor([-4], dtype=dtype)):
            got = getattr(cuda, op)(usage, count, one, parts=parts)
            for b in range(4):
                n = min(max(int(one[b if len(one) > 1 else 0]), 0), capacity)
                wanted = getattr(reference, op)(usage[b : b + 1, :n], min(count, n))
                assert torch.equal(got[b : b + 1, : min(count, n)], wanted)
                assert (got[b, min(count, n) :] == -1).all()


def test_order_of_denormals():
    usage = torch.randperm(700).to(torch.int32).view(torch.float32)[None]
    for op in OPS:
        got = getattr(cuda, op)(usage, 100)
        assert torch.equal(got, getattr(reference, op)(usage.view(torch.int32), 100))


def test_blocks_per_row():
    """One block up to 65,536 tokens; beyond, as many as are useful, never more than the device
    holds at once.
    """
    assert cuda.plan_parts(1, 65_536, 132) == 1
    assert cuda.plan_parts(1, 65_537, 132) == 3
    assert cuda.plan_parts(1, 10_000_000, 132) == 132
    assert cuda.plan_parts(4, 10_000_000, 132) == 33
    assert cuda.plan_parts(133, 10_000_000, 132) == 1
    for rows in (1, 2, 5, 131, 132):
        assert rows * cuda.plan_parts(rows, 1 << 40, 132) <= 132


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_tokens(dtype):
    g = torch.Generator().manual_seed(0)
    for b, o, c, n, p in (
        (1, 1, 1, 1, 1),
        (2, 3, 33, 40, 31),
        (1, 2, 64, 100, 65),
        (2, 1, 7, 5, 32),
        (1, 1, 100, 9, 3),
    ):
        index = torch.randint(n, (b, p), generator=g)
        for x in (
            torch.randn(b, o, c, n, generator=g).to(dtype),
            torch.randn(b, n, o, c, generator=g).to(dtype).permute(0, 2, 3, 1),
            torch.randn(b, o, 2 * c, 3 * n, generator=g).to(dtype)[:, :, ::2, ::3],
            torch.randn(b, 1, c, n, generator=g).to(dtype).expand(b, o, c, n),
        ):
            wanted = x.gather(3, index[:, None, None].expand(b, o, c, p))
            for schedule in (0, 1, 2):
                assert torch.equal(cuda.gather_tokens(x, index, schedule=schedule), wanted)
            assert torch.equal(cuda.gather_tokens(x[:, 0], index.flip(1)), wanted[:, 0].flip(2))


WRONG = [-1, 9, 1 << 40]


@pytest.fixture(scope="module")
def stopped():
    """{index outside: status and errors of a process that gathers it}, forks of one process."""
    code = (
        "import os, sys, torch, cuda_emulated as cuda\n"
        f"for wrong in {WRONG}:\n"
        "    x, index = torch.rand(1, 4, 9), torch.tensor([[0, wrong]])\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        cuda.gather_tokens(x, index)\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "    print('----', file=sys.stderr, flush=True)\n"
    )
    support = Path(__file__).parents[1] / "support"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=support, check=True)
    statuses, messages = map(int, done.stdout.split()), done.stderr.split("----")
    return dict(zip(WRONG, zip(statuses, messages)))


@pytest.mark.parametrize("wrong", WRONG)
def test_gather_tokens_stops_at_an_index_outside(stopped, wrong):
    status, message = stopped[wrong]
    assert status != 0
    assert "index: wanted 0 to N - 1" in message


def test_nan_is_below_every_number():
    usage = torch.tensor([[math.nan, -math.inf, 0.0, -math.nan, -0.0, 1.0]])
    assert cuda.select_prototypes(usage, 6).tolist() == [[5, 2, 4, 1, 0, 3]]
    assert cuda.evict_lfu(usage, 4).tolist() == [[1, 2, 4, 5]]
