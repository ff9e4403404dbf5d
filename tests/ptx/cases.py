"""The calls of the package whose kernels are run.

No other file here knows the package's host functions. A case makes its inputs, calls the host code,
and returns comparisons that must pass. To add a kernel to the checks, add a line to CASES.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import xmemk
from xmemk.inputs import MemoryInputs, QueryInputs
from xmemk.testing import Comparison, Inputs, compare_read, compare_usage, make_inputs

half, bfloat, single = torch.float16, torch.bfloat16, torch.float32

Call = Callable[[], list[Comparison]]


@dataclass(frozen=True)
class Case:
    name: str
    call: Call
    essential: bool = False  # of the set that `make test` runs, for sm_90


def read(
    top_k: int | None, n: int = 300, q: int = 40, cuts: tuple[int, ...] = (), uncertified: bool = False, **more: Any
) -> Call:
    """A read by top-k or of all tokens, in segments that end at ``cuts``.

    Where ``uncertified``, some queries take the fallback.
    """

    def call() -> list[Comparison]:
        from xmemk import kernels

        x = make_inputs(**{"n": n, "q": q, "objects": 2, "value_channels": 32, **more})
        if uncertified and x.qe is not None:
            x.qe = x.qe * torch.where(torch.arange(q) % 7 == 3, -1.0, 1.0).to(x.qe.dtype)
        ends = (0, *cuts, n)

        def segments(t: Tensor | None) -> Any:
            return None if t is None else [t[..., a:b] for a, b in itertools.pairwise(ends)]

        mk, ms, mv, qk, qe = x.read
        memory = MemoryInputs(segments(mk), segments(ms), segments(mv))
        readout, usage = kernels.memory_read(memory, QueryInputs(qk, qe), top_k, True)
        assert usage is not None
        return [compare_read(x, readout, top_k=top_k), compare_usage(x, usage, top_k)]

    return call


def sized(n: int = 300, q: int = 40, room: int = 500, top_k: int = 5, **more: Any) -> Call:
    """A read of a memory whose size lies on the device.

    Two runs of tokens lie in storage that holds NaN elsewhere.
    """

    def call() -> list[Comparison]:
        from xmemk.kernels import sized as module

        x = make_inputs(n=n, q=q, objects=2, value_channels=32, **more)
        assert x.ms is not None
        first = n // 3
        places = [(0, first, 10), (first, n, room // 2)]  # tokens [a, b) lie from there on

        def stored(t: Tensor) -> Tensor:
            rows = torch.full((t.shape[0], room, *t.shape[1:-1]), float("nan"), dtype=t.dtype)
            for a, b, at in places:
                rows[:, at : at + b - a] = t[..., a:b].movedim(-1, 1)
            return rows.movedim(1, -1)

        blocks = [[stored(t)] * 4 for t in (x.mk, x.ms, x.mv)]
        table = module.new_table(x.qk)
        held = [(b - a, at, at) for a, b, at in places]
        module.write(table, module.rows([*held, (0, 0, 0), (0, 0, 0)]))
        queries = QueryInputs(x.qk, x.qe)
        readout, usage = module.memory_read(MemoryInputs(*blocks), table, room, queries, top_k, True)
        assert usage is not None
        return [compare_read(x, readout, top_k=top_k), compare_usage(x, usage[:, :n], top_k)]

    return call


def potentiate(dtype: torch.dtype, n: int = 300, p: int = 20) -> Call:
    """Eq. 3: prototypes' values and shrinkage, each compared with a dense read."""

    def call() -> list[Comparison]:
        from xmemk import kernels

        x = make_inputs(n=n, q=p, objects=2, value_channels=32, dtype=dtype)
        assert x.ms is not None
        ps, pv = kernels.potentiate(MemoryInputs([x.mk], [x.ms], [x.mv]), QueryInputs(x.qk, x.qe))
        as_value = Inputs(x.mk, x.ms, x.ms[:, :, None], x.qk, x.qe, x.me, x.usage)
        return [compare_read(x, pv, top_k=None), compare_read(as_value, ps[:, :, None], top_k=None)]

    return call


def backward(top_k: int | None, dtype: torch.dtype, n: int = 200, q: int = 40, **more: Any) -> Call:
    """All gradients, beside those of plain PyTorch in float64.

    Allowed are four times the errors of plain PyTorch in float32.
    """

    def call() -> list[Comparison]:
        from xmemk import kernels

        x = make_inputs(**{"n": n, "q": q, "objects": 2, "value_channels": 32, "dtype": dtype, **more})
        g = torch.Generator().manual_seed(1)
        d_readout = torch.randn((*x.mv.shape[:3], q), generator=g).to(dtype)
        d_usage = torch.randn((x.mk.shape[0], n), generator=g)

        def gradients(as_dtype: torch.dtype) -> list[Tensor]:
            leaves = [None if t is None else t.detach().to(as_dtype).requires_grad_() for t in x.read]
            out, used = xmemk.memory_read(*leaves, top_k=top_k, return_usage=True, backend="torch")  # type: ignore[call-overload]
            loss = (out * d_readout.to(as_dtype)).sum() + (used * d_usage.to(as_dtype)).sum()
            return list(torch.autograd.grad(loss, [t for t in leaves if t is not None]))

        wanted, plain = gradients(torch.float64), gradients(torch.float32)
        mk, ms, mv, qk, qe = x.read
        inputs = MemoryInputs([mk], None if ms is None else [ms], [mv]), QueryInputs(qk, qe)
        _, _, weight, index = kernels.memory_read_saving(*inputs, top_k, True)
        made = kernels.memory_read_backward(*inputs, weight, index, d_readout, d_usage)
        got = [t[0] if isinstance(t, list) else t for t in made if t is not None]
        # A gradient is stored in the inputs' type: one rounding of the largest is allowed for it.
        unit = 0.0 if dtype == single else torch.finfo(dtype).eps
        return [
            _close(f"gradient {n}", a, b, 4 * (c - b).abs().max() + 2.0**-18 * b.abs().max() + unit * b.abs().max())
            for n, (a, b, c) in enumerate(zip(got, wanted, plain, strict=True))
        ]

    return call


def _close(name: str, got: Tensor, wanted: Tensor, allowed: Tensor) -> Comparison:
    error = (got.double() - wanted).abs().nan_to_num(float("inf")).max()
    return Comparison(name, float(error), float(error / allowed))


CASES = (
    Case("topk float16", read(5, dtype=half), essential=True),
    Case("topk float32", read(5, dtype=single)),
    Case("topk bfloat16, segments", read(5, cuts=(37, 38, 210), dtype=bfloat), essential=True),
    Case("topk float16, uncertified", read(5, uncertified=True, dtype=half), essential=True),
    Case("topk k=30, batch 2, channel-major", read(30, n=700, q=5, batch=2, token_major=False, dtype=half)),
    Case("topk small memory", read(30, n=37, q=19, dtype=half), essential=True),
    Case("topk CK=32", read(5, key_channels=32, dtype=half)),
    Case("topk CK=128", read(5, key_channels=128, dtype=half)),
    Case("topk float32, no shrinkage, no selection", read(5, shrinkage=False, selection=False, dtype=single)),
    Case("dense float16", read(None, dtype=half), essential=True),
    Case("dense float32", read(None, value_channels=70, dtype=single), essential=True),
    Case("dense bfloat16, segments", read(None, cuts=(37, 38, 210), dtype=bfloat)),
    Case("dense float16, uncertified", read(None, uncertified=True, dtype=half), essential=True),
    Case("dense CK=32", read(None, key_channels=32, dtype=half)),
    Case("dense CK=128", read(None, key_channels=128, dtype=half)),
    Case("dense float32, no shrinkage, no selection", read(None, q=20, shrinkage=False, selection=False, dtype=single)),
    Case("dense few queries, many values", read(None, n=900, q=3, value_channels=64, dtype=half)),
    Case("sized float16", sized(dtype=half), essential=True),
    Case("sized float32", sized(dtype=single)),
    Case("potentiate float16", potentiate(half), essential=True),
    Case("potentiate float32", potentiate(single)),
    Case("backward dense float32", backward(None, single), essential=True),
    Case("backward dense float16", backward(None, half)),
    Case("backward dense bfloat16", backward(None, bfloat)),
    Case("backward topk float32", backward(5, single)),
    Case("backward topk float16", backward(5, half), essential=True),
    Case("backward topk bfloat16, no shrinkage", backward(5, bfloat, shrinkage=False)),
    Case("dense several tiles", read(None, n=900, q=150, objects=1, value_channels=64, dtype=half)),
    Case("topk several tiles", read(30, n=1500, q=140, objects=1, value_channels=64, dtype=half)),
    Case("topk N=5000", read(30, n=5000, q=130, objects=1, value_channels=64, dtype=half)),
)


def assumed(architecture: int) -> Any:
    """Within this, the host code launches as on an architecture."""
    from xmemk.kernels import configs

    return configs.assumed(architecture)
