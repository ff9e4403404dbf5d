"""The first look of the C++ top-k read (csrc/cpu/first_look.h) changes time only.

Neither it nor a hint nor a packed bank changes a bit of a result. The float32 path, which other
instruction sets take, says what the results are.
"""

import contextlib
import math

import pytest
import torch
from vector_sets import vector_sets

from xmemk import operators
from xmemk.testing import compare_topk, make_inputs

pytestmark = pytest.mark.skipif(operators.native_error() is not None, reason=f"xmemk._C: {operators.native_error()}")

LOOKS = "avx512vnni"  # the set that has a first look
FLOAT32 = "avx512"  # the set with the same float32 arithmetic and none
needs_look = pytest.mark.skipif(LOOKS not in vector_sets(), reason=f"this processor has no {LOOKS}")

N = 2100  # the first look is for memories of 2048 tokens or more


def read(x, top_k=30, hint=None, packed=None, centre=None, segments=None):
    mk, ms = (
        [] if t is None else [t] if segments is None else list(t.split(segments, t.dim() - 1)) for t in (x.mk, x.ms)
    )
    return torch.ops.xmemk.affinity_topk(mk, ms, x.qk, x.qe, top_k, True, hint, packed, centre)


def pack(mk, ms, centre):
    packed = torch.ops.xmemk.empty_packed_keys(mk, mk.shape[2])
    torch.ops.xmemk.quantise_keys(mk, ms, centre, packed, 0)
    return packed


def hints(index, n):
    """By name: good, bad and odd ones for a result's index [B, Q, k]."""
    b, q, k = index.shape
    worst = torch.arange(k).expand(b, q, k)
    return {
        "none": None,
        "exact": index,
        "reversed": index.flip(2),
        "another query's": index.roll(1, 1),
        "stale": (index + 7) % n,
        "first tokens": worst,
        "one token": index[..., :1].expand(-1, -1, k),
        "fewer than k": index[..., : k // 2],
        "more than k": torch.cat([index, worst + n // 2], 2),
    }


@contextlib.contextmanager
def served():
    """That the first look serves every query tile in here."""
    import xmemk._C as extension

    before = extension._first_look_counts()
    yield
    after = extension._first_look_counts()
    assert after[0] > before[0]
    assert after[1] == before[1]


def same(results, wanted):
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(results, wanted))


@needs_look
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "top_k"), [(64, 30), (16, 1), (37, 8), (130, 60)])
@pytest.mark.parametrize("form", ["plain", "no shrinkage", "no selection", "segments", "channel-major"])
def test_the_same_bits_as_the_float32_path(pin, dtype, channels, top_k, form):
    x = make_inputs(
        N, 70, batch=2, key_channels=channels, value_channels=1, dtype=dtype,
        shrinkage=form != "no shrinkage", selection=form != "no selection",
    )  # fmt: skip
    segments = [0, 65, N - 66, 1] if form == "segments" else None
    if form == "channel-major":
        x.mk = x.mk.contiguous()
    pin(FLOAT32)
    wanted = read(x, top_k, segments=segments)
    pin(LOOKS)
    with served():
        for name, hint in hints(wanted[1], N).items():
            assert same(read(x, top_k, hint, segments=segments), wanted), name


def test_the_same_bits_for_any_number_of_threads_and_any_hint(threads):
    x = make_inputs(5000, 300, value_channels=1)
    threads(1)
    wanted = read(x)
    compare_topk(x, wanted[0], wanted[1], 30).check()
    for count in (1, 2, 3, 8):
        threads(count)
        for name, hint in hints(wanted[1], 5000).items():
            assert same(read(x, hint=hint), wanted), (count, name)


def adversarial(seed):
    """A small case of keys, shrinkage, queries and selection that strain the bound or its
    arithmetic.
    """
    g = torch.Generator().manual_seed(seed)

    def choose(*options):
        return options[int(torch.randint(len(options), (1,), generator=g))]

    channels, queries, top_k = choose(16, 17, 32), choose(1, 3, 6), choose(1, 5, 30)
    x = make_inputs(N, queries, key_channels=channels, value_channels=1, seed=seed)
    some = torch.rand(N, generator=g) < choose(0.001, 0.05, 0.5)
    scale = 10.0 ** choose(-30, -20, -10, -3, 0, 0, 3, 8, 15)
    kind = choose(
        "scaled", "offset", "outlier", "ties", "integers", "constant", "equal", "ascending", "one channel",
        "mixed scales", "queries are tokens", "shrinkage", "no selection", "selection", "bad keys",
        "bad queries", "subnormal",
    )  # fmt: skip
    if kind == "scaled":
        x.mk, x.qk = x.mk * scale, x.qk * scale
    elif kind == "offset":
        x.mk[..., some] += choose(1e2, 1e4)
        x.qk += choose(0, 1e2)
    elif kind == "outlier":
        x.mk[0, 3, 5] = choose(1e3, 1e9, 1e15, 1e19, 3e38)
    elif kind == "ties":
        x.mk = x.mk[..., torch.randint(50, (N,), generator=g)]
        x.ms[:] = 1
    elif kind == "integers":
        x.mk, x.qk = x.mk.round(), x.qk.round()
        x.ms, x.qe = x.ms.round(), x.qe.round()
    elif kind in ("constant", "equal"):
        x.mk[:] = 0.7
        x.ms = x.ms if kind == "constant" else torch.ones_like(x.ms)
    elif kind == "ascending":
        x.mk = x.mk[..., x.mk.square().sum(1).flatten().argsort(descending=True)]
        x.qk *= 0.01
    elif kind == "one channel":
        x.mk[:, 1:], x.qk[:, 1:] = 0, 0
    elif kind == "mixed scales":
        x.mk *= 10.0 ** torch.randint(-6, 6, (N,), generator=g)
    elif kind == "queries are tokens":
        x.qk = x.mk[..., torch.randint(N, (queries,), generator=g)]
    elif kind == "shrinkage":
        x.ms[..., some] = choose(0.0, -1.0, 1e-40, 1e30, math.inf, math.nan)
    elif kind == "no selection":
        x.qe = None
    elif kind == "selection":
        x.qe[:, ::2] = choose(0.0, -0.5, 1e-42, 1e20)
    elif kind == "bad keys":
        x.mk[:, 2, some] = choose(math.nan, math.inf, -math.inf)
    elif kind == "bad queries":
        x.qk[:, 1, 0] = choose(math.nan, math.inf, 1e30)
    else:
        x.mk, x.qk = x.mk * 1e-41, x.qk * choose(0, 1e-41)
    return kind, x, top_k


def check_adversarial(seeds, pin):
    for seed in seeds:
        kind, x, top_k = adversarial(seed)
        pin(FLOAT32)
        wanted = read(x, top_k)
        pin(LOOKS)
        hint = (wanted[1] + seed % 2) % N
        for given in (None, hint):
            assert same(read(x, top_k, given), wanted), (seed, kind, given is None)


@needs_look
def test_adversarial_inputs(pin, threads):
    threads(1)
    check_adversarial(range(300), pin)


@needs_look
@pytest.mark.parametrize("kind", ["noise", "ties", "integers"])
def test_no_token_is_lost_by_float64(kind):
    x = make_inputs(3000, 40, value_channels=1)
    if kind == "ties":
        x.mk = x.mk[..., torch.arange(3000) % 100]
        x.ms[:] = 2
    elif kind == "integers":
        x.mk, x.qk = x.mk.round(), x.qk.round()
    weight, index, _ = read(x)
    compare_topk(x, weight, index, 30).check()


@needs_look
def test_subnormal_numbers_flushed_or_not(threads):
    threads(1)  # the setting is the calling thread's
    x = make_inputs(N, 40, value_channels=1)
    wanted = read(x)
    try:
        torch.set_flush_denormal(True)
        flushed = read(x)
    finally:
        torch.set_flush_denormal(False)
    assert same(flushed, wanted)


@needs_look
def test_a_packed_bank_changes_nothing(pin):
    x = make_inputs(N, 70, batch=2, value_channels=1)
    centre = torch.ops.xmemk.key_centre([x.mk])
    pin(FLOAT32)
    wanted = read(x, centre=centre)
    assert same(wanted, read(x))
    pin(LOOKS)
    with served():
        assert same(read(x, packed=[pack(x.mk, x.ms, centre)], centre=centre), wanted)
    parts = [0, 130, N - 130]
    pairs = zip(x.mk.split(parts, 2), x.ms.split(parts, 2))
    packed = [pack(mk, ms, centre) for mk, ms in pairs]
    hint = wanted[1].roll(1, 1)
    assert same(
        read(x, hint=hint, packed=packed, centre=centre, segments=parts), read(x, segments=parts, centre=centre)
    )


@needs_look
def test_a_packed_bank_is_updated_by_ranges_of_tokens():
    x = make_inputs(N, 20, value_channels=1)
    centre = torch.ops.xmemk.key_centre([x.mk])
    whole = pack(x.mk, x.ms, centre)
    packed = torch.ops.xmemk.empty_packed_keys(x.mk, N)
    first = 0
    for count in (1, 62, 2, 64, 200, 0, N - 329):
        mk, ms = (t[..., first : first + count] for t in (x.mk, x.ms))
        torch.ops.xmemk.quantise_keys(mk, ms, centre, packed, first)
        first += count
    lanes = N % 64
    assert torch.equal(packed[:, :-1], whole[:, :-1])
    assert torch.equal(packed[:, -1, : 4 * lanes], whole[:, -1, : 4 * lanes])
    assert same(read(x, packed=[packed], centre=centre), read(x))
    # A memory that has become shorter: what is left behind its end does not count.
    x.mk, x.ms = x.mk[..., : N - 20], x.ms[..., : N - 20]
    assert same(read(x, packed=[packed], centre=centre), read(x, centre=centre))


@pytest.mark.parametrize("op", ["affinity_topk", "memory_read"])
def test_a_bad_hint_or_bank_is_refused(op):
    x = make_inputs(40, 3, value_channels=2)
    good = torch.zeros(1, 3, 5, dtype=torch.int64)

    def call(hint=None, packed=None, centre=None):
        values = ([x.mv],) if op == "memory_read" else ()
        getattr(torch.ops.xmemk, op)([x.mk], [x.ms], *values, x.qk, x.qe, 5, False, hint, packed, centre)

    call(good)
    for hint, error, sentence in (
        (good[0], ValueError, r"hint: wanted \[B = 1, Q = 3, k\]"),
        (good[:, :2], ValueError, r"hint: wanted \[B = 1, Q = 3, k\]"),
        (good.int(), TypeError, "hint: wanted int64"),
        (good + 40, IndexError, r"hint: wanted 0 to 39 \(N = 40 tokens\), got 40"),
        (good - 1, IndexError, "got -1"),
    ):
        with pytest.raises(error, match=sentence):
            call(hint)
    packed, centre = torch.ops.xmemk.empty_packed_keys(x.mk, 40), torch.zeros(1, 64)
    with pytest.raises(ValueError, match="packed: wanted one for each mk, and a centre"):
        call(packed=[packed])
    with pytest.raises(ValueError, match="centre: wanted float32"):
        call(packed=[packed], centre=centre[0])
    with pytest.raises(TypeError, match="packed: wanted uint8"):
        call(packed=[packed.int()], centre=centre)
    with pytest.raises(ValueError, match=r"packed: wanted .*blocks"):
        call(packed=[packed[:, :0]], centre=centre)
    with pytest.raises(ValueError, match="packed: wanted"):
        torch.ops.xmemk.quantise_keys(x.mk, x.ms, centre, packed, 30)


def test_the_operators_of_a_packed_bank_pass_opcheck():
    x = make_inputs(40, 7, batch=2, value_channels=1, key_channels=18)
    centre, packed = torch.zeros(2, 18), torch.ops.xmemk.empty_packed_keys(x.mk, 100)
    torch.library.opcheck(torch.ops.xmemk.key_centre, ([x.mk],))
    torch.library.opcheck(torch.ops.xmemk.empty_packed_keys, (x.mk, 100))
    torch.library.opcheck(torch.ops.xmemk.quantise_keys, (x.mk, x.ms, centre, packed.clone(), 3))
    torch.ops.xmemk.quantise_keys(x.mk, x.ms, centre, packed, 0)
    hint = torch.zeros(2, 7, 5, dtype=torch.int64)
    for given in ((), (hint,), (hint, [packed], centre)):
        torch.library.opcheck(torch.ops.xmemk.affinity_topk, ([x.mk], [x.ms], x.qk, x.qe, 5, True, *given))
