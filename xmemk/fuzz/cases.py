"""What a call is drawn from, and the tensors it is made with."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..testing import Inputs

# Of keys and queries. "integers" have exact scores, so that ties are ties on every backend.
KEYS = ("video", "integers", "equal", "clusters", "offset", "tiny", "huge", "outlier", "sorted", "repeated")
SHRINKAGE = ("none", "video", "ones", "integers", "wide", "zeros")
SELECTION = ("none", "video", "integers", "zeros", "sparse")
VALUES = ("normal", "ones", "huge", "token number")
LAYOUTS = ("token-major", "channel-major", "view", "expanded")
NOT_FINITE = ("", "key", "shrinkage", "query", "selection", "value", "key and value")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
KEY_CHANNELS = (1, 2, 3, 4, 7, 16, 33, 64, 65)
LARGE = (1e15, 1e18, 2e19, 1e30)


@dataclass(frozen=True)
class Case:
    """A call: sizes, what its numbers are like, how its tensors lie. ``seed`` draws the numbers."""

    n: int = 20
    q: int = 5
    batch: int = 1
    objects: int = 1
    key_channels: int = 4
    value_channels: int = 3
    top_k: int | None = None
    segments: int = 1
    keys: str = "video"
    shrinkage: str = "video"
    selection: str = "video"
    values: str = "normal"
    layout: str = "token-major"
    not_finite: str = ""
    dtype: str = "float32"
    value_dtype: str = "float32"
    seed: int = 0

    def __str__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in changed)


def draw(number: int, dtypes: tuple[str, ...] = tuple(DTYPES)) -> Case:
    """The case of this number. Most are small, since what is small is read in full by the judge."""
    r = random.Random(number)
    n = r.choice((1, 2, r.randint(1, 40), r.randint(1, 40), r.randint(1, 300), r.randint(64, 1200)))
    q = r.choice((0, 1, r.randint(1, 20), r.randint(1, 20), r.randint(1, 90)))
    dtype = r.choice(dtypes)
    keys = r.choice(KEYS)
    if keys in ("huge", "tiny") and dtype == "float16":
        keys = "video"
    extreme = keys in ("huge", "outlier")
    shrinkage = r.choice(SHRINKAGE)
    if extreme and shrinkage == "zeros":  # a distance that overflows, times 0, is no number
        shrinkage = "ones"
    if shrinkage == "wide" and (keys in ("integers", "equal") or dtype in ("float16", "bfloat16")):
        shrinkage = "video"  # of such keys plain PyTorch is exact by luck, which is no measure
    value_dtype = r.choice((dtype, dtype, *[d for d in dtypes if d != "float64"]))
    return Case(
        n=n,
        q=q,
        batch=r.choice((1, 1, 1, 2, 3, 0)),
        objects=r.choice((1, 1, 2, 3, 0)),
        key_channels=r.choice(KEY_CHANNELS),
        value_channels=r.choice((1, 2, 3, 8, 17, 33, 0)),
        top_k=r.choice((None, 1, 2, r.randint(1, 30), r.randint(1, n + 2), n)),
        segments=r.choice((1, 1, 2, 3, 6)),
        keys=keys,
        shrinkage=shrinkage,
        selection=r.choice(SELECTION),
        values=r.choice(VALUES if value_dtype in ("float32", "float64") else VALUES[:2]),
        layout=r.choice(LAYOUTS),
        not_finite="" if extreme else r.choice((*[""] * 8, *NOT_FINITE)),
        dtype=dtype,
        value_dtype=value_dtype,
        seed=number,
    )


def arguments(case: Case) -> Inputs:
    """mk, mv, qk, qe and me in the dtypes of the case, ms and usage in float32 or more."""
    g = torch.Generator().manual_seed(case.seed)
    b, n, q, ck = case.batch, case.n, case.q, case.key_channels
    mk = _keys(case, g)
    source = torch.randint(n, (b, 1, q), generator=g).expand(-1, ck, -1)
    qk = mk.gather(2, source)
    if case.keys not in ("integers", "equal", "huge", "repeated"):
        spread = 1e-20 if case.keys == "tiny" else 0.3
        qk = qk + spread * torch.randn(b, ck, q, generator=g)
    dtype, value_dtype = DTYPES[case.dtype], DTYPES[case.value_dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ms, qe, me = _shrinkage(case, g), _selection(case, g, q), _selection(case, g, n)
    usage = (torch.randint(0, 5, (b, n), generator=g) / 4.0) ** 2
    x = Inputs(
        _placed(mk.to(dtype), case.layout),
        None if ms is None else _placed(ms.to(wide), case.layout),
        _placed(_values(case, g).to(value_dtype), case.layout),
        _placed(qk.to(dtype), case.layout),
        None if qe is None else _placed(qe.to(dtype), case.layout),
        (torch.ones(b, ck, n) if me is None else me).to(dtype),
        usage.to(wide),
    )
    _spoil(x, case, g)
    return x


def cut(x: Tensor, case: Case) -> list[Tensor]:
    """The memory as segments, some of them empty."""
    r = random.Random(case.seed)
    ends = sorted(r.randint(0, case.n) for _ in range(case.segments - 1))
    return [x[..., a:b] for a, b in zip((0, *ends), (*ends, case.n))]


def _keys(case: Case, g: torch.Generator) -> Tensor:
    b, n, ck = case.batch, case.n, case.key_channels
    mk = torch.randn(b, ck, n, generator=g)
    far = torch.arange(n) >= n // 3
    if case.keys == "integers":
        return torch.randint(-3, 4, (b, ck, n), generator=g).float()
    if case.keys == "equal":
        return torch.ones(b, ck, n) * 0.5
    if case.keys == "clusters":  # ten times farther apart than they are wide
        return mk + torch.where(far, -5.0, 5.0)
    if case.keys == "offset":
        return mk + 30
    if case.keys == "tiny":
        return mk * 1e-20
    if case.keys == "huge":  # two places, one of which most of the memory lies at
        large = LARGE[case.seed % len(LARGE)]
        return torch.where(far, -large, large) * torch.ones(b, ck, n)
    if case.keys == "outlier":
        return mk.where(torch.arange(n) != n // 2, LARGE[case.seed % len(LARGE)] if case.dtype != "float16" else 6e4)
    if case.keys == "sorted":
        return mk.sort(dim=2, descending=bool(case.seed % 2)).values
    if case.keys == "repeated":
        return mk[..., torch.randint(max(1, n // 4), (n,), generator=g)]
    return mk + 0.5 * torch.randn(1, ck, 1, generator=g)


def _shrinkage(case: Case, g: torch.Generator) -> Tensor | None:
    shape = (case.batch, 1, case.n)
    uniform = torch.rand(shape, generator=g)
    kinds = {
        "video": 1 + 9 * uniform**2,
        "ones": torch.ones(shape),
        "integers": 2.0 ** torch.randint(-1, 2, shape, generator=g),
        "wide": 10.0 ** (6 * uniform - 4),
        "zeros": uniform.where(uniform > 0.3, 0.0),
    }
    return kinds.get(case.shrinkage)


def _selection(case: Case, g: torch.Generator, count: int) -> Tensor | None:
    shape = (case.batch, case.key_channels, count)
    uniform = torch.rand(shape, generator=g)
    kinds = {
        "video": uniform,
        "integers": torch.randint(0, 3, shape, generator=g).float(),
        "zeros": torch.zeros(shape),
        "sparse": uniform.where(uniform > 0.7, 0.0),
    }
    return kinds.get(case.selection)


def _values(case: Case, g: torch.Generator) -> Tensor:
    shape = (case.batch, case.objects, case.value_channels, case.n)
    if case.values == "ones":
        return torch.ones(shape)
    if case.values == "token number":
        return torch.arange(case.n).float().expand(shape)
    return torch.randn(shape, generator=g) * (1e25 if case.values == "huge" else 1.0)


def _placed(x: Tensor, layout: str) -> Tensor:
    if layout == "token-major":
        return x.movedim(-1, 1).contiguous().movedim(1, -1)
    if layout == "view":  # every second of more numbers, behind others
        room = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), 77.0)
        room[..., 3::2] = x
        return room[..., 3::2]
    if layout == "expanded" and x.shape[0] > 1:
        return x[:1].expand(x.shape)
    return x.contiguous()


def _spoil(x: Inputs, case: Case, g: torch.Generator) -> None:
    """Puts NaN or infinity at one to three places of what the case names."""
    targets: dict[str, list[Tensor | None]] = {
        "key": [x.mk],
        "shrinkage": [x.ms],
        "query": [x.qk],
        "selection": [x.qe],
        "value": [x.mv],
        "key and value": [x.mk, x.mv],
    }
    for t in targets.get(case.not_finite, []):
        if t is None or t.numel() == 0:
            continue
        for _ in range(1 + case.seed % 3):
            place = tuple(int(torch.randint(s, (1,), generator=g)) for s in t.shape)
            bad = (float("nan"), float("inf"), -float("inf"))[int(torch.randint(3, (1,), generator=g))]
            t[0 if case.layout == "expanded" else place[0]][place[1:]] = bad
