"""Who is timed beside whom: for each op the ways to do it, and how each result is checked before it is timed.

A peer is prepared for a case and is then a call without arguments. One that cannot serve raises Unavailable with the
reason, which becomes its row in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from xmemk.benchmarks import formulations as f
from xmemk.benchmarks.workloads import Case

import xmemk
from xmemk import reference
from xmemk.testing import Comparison, Inputs, compare_consolidate, compare_read

Call = Callable[[], Any]
CHECKED_QUERIES = 40  # every peer is compared with float64 on that many queries


class Unavailable(Exception):
    """The reason why a peer cannot serve a case."""


class Peer(NamedTuple):
    """compiled: its first call takes long and is no part of its time."""

    name: str
    prepare: Callable[[Case], Call]
    compiled: bool = False
    ours: bool = False


def peers_of(op: str, backends: list[str]) -> list[Peer]:
    """Ours first, one row per backend, then the others."""
    make = {
        "read": _readers,
        "dense": _dense_readers,
        "train": _trainers,
        "backward": _trainers,
        "train-dense": _trainers,
        "backward-dense": _trainers,
        "consolidate": _consolidators,
        "select": _choosers,
        "evict": _choosers,
    }[op]
    return [Peer(f"xmemk {name}", _ours(name), ours=True) for name in backends] + make(op)


def _ours(backend: str) -> Callable[[Case], Call]:
    def prepare(case: Case) -> Call:
        op, arguments, options = _call_of_ours(case)
        refusal = xmemk.explain(op, *arguments, backend=backend)
        if refusal.chosen is None:
            raise Unavailable(refusal.refusals[backend])
        function = getattr(xmemk, op)
        if "train" in case.op or "backward" in case.op:
            return _training(case, lambda y: function(*y.read, backend=backend, **options))
        return lambda: function(*arguments, backend=backend, **options)

    return prepare


def _call_of_ours(case: Case) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The public function, its arguments and options."""
    x, prototypes = case.inputs, case.workload.prototypes
    if case.op == "consolidate":
        return "consolidate", (x.mk, x.ms, x.me, x.mv, x.usage, prototypes), {}
    if case.op == "select":
        return "select_prototypes", (case.usage, prototypes), {}
    if case.op == "evict":
        return "evict_lfu", (case.usage, case.usage.shape[1] - prototypes), {}
    if case.op in ("read", "dense"):
        return "memory_read", x.read, {"top_k": case.top_k, "return_usage": True}
    return "memory_read", _leaves(x).read, {"top_k": case.top_k}


def _readers(op: str) -> list[Peer]:
    def top_k(case: Case) -> int:
        assert case.top_k is not None
        return case.top_k

    def compiled(case: Case) -> Call:
        original = torch.compile(f.original_topk, dynamic=False)
        return lambda: original(case.inputs, top_k(case))

    return [
        Peer("tidy PyTorch", lambda c: lambda: f.tidy_topk(c.inputs, top_k(c))),
        Peer("original", lambda c: lambda: f.original_topk(c.inputs, top_k(c))),
        Peer("original, torch.compile", compiled, compiled=True),
        Peer("similarity product alone", _product),
    ]


def _dense_readers(op: str) -> list[Peer]:
    return [
        Peer("tidy PyTorch", lambda c: lambda: f.tidy_dense(c.inputs)),
        Peer("original", lambda c: lambda: f.original_dense(c.inputs)),
        Peer("SDPA (no usage)", lambda c: lambda: f.sdpa_dense(c.inputs)),
        Peer("FlexAttention (no usage)", _flex, compiled=True),
        Peer("similarity product alone", _product),
    ]


def _trainers(op: str) -> list[Peer]:
    def peer(name: str, read: Callable[..., tuple[Tensor, Any]]) -> Peer:
        def prepare(case: Case) -> Call:
            chosen = () if case.top_k is None else (case.top_k,)
            return _training(case, lambda y: read(y, *chosen)[0])

        return Peer(name, prepare)

    if not op.endswith("dense"):
        return [peer("tidy PyTorch", f.tidy_topk), Peer("original", _no_training)]
    return [
        peer("tidy PyTorch", f.tidy_dense),
        peer("original", f.original_dense),
        peer("SDPA (no usage)", f.sdpa_dense),
        Peer("FlexAttention (no usage)", _flex_training),
    ]


def _consolidators(op: str) -> list[Peer]:
    return [
        Peer("tidy PyTorch", lambda c: lambda: f.tidy_consolidate(c.inputs, c.workload.prototypes)),
        Peer("original", lambda c: lambda: f.original_consolidate(c.inputs, c.workload.prototypes)),
    ]


def _choosers(op: str) -> list[Peer]:
    if op == "select":
        return [Peer("torch.topk", lambda c: lambda: c.usage.topk(c.workload.prototypes, dim=1).indices)]

    def keep(case: Case) -> int:
        return case.usage.shape[1] - case.workload.prototypes

    def topk_and_sort(case: Case) -> Call:
        return lambda: case.usage.topk(keep(case), dim=1, sorted=False).indices.sort(1).values

    def threshold(case: Case) -> Call:
        def call() -> Tensor:
            usage = case.usage
            bar = usage.topk(case.workload.prototypes, dim=1, largest=False).values[:, -1:]
            return (usage > bar)[0].nonzero().T

        return call

    return [Peer("topk and sort", topk_and_sort), Peer("original (threshold)", threshold)]


def _product(case: Case) -> Call:
    memory, query = f.augmented(case.inputs)
    scores = torch.empty(query.shape[0], memory.shape[0], dtype=query.dtype, device=query.device)

    def call() -> None:
        torch.mm(query, memory.T, out=scores)

    return call


def _flex(case: Case) -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, dynamic=False)

    def call() -> tuple[Tensor, None]:
        memory, query = f.augmented(case.inputs)
        values = f.values_by_token(case.inputs)
        read = attention(query[None, None], memory[None, None], values[None, None], scale=1.0)
        return f.by_object(read[0, 0], case.inputs), None

    return call


def _no_training(case: Case) -> Call:
    raise Unavailable("its top-k softmax works in place and has no gradient: the original trains without top-k")


def _flex_training(case: Case) -> Call:
    if case.inputs.qk.device.type == "cpu":
        raise Unavailable("FlexAttention has no backward on the CPU")
    raise Unavailable("FlexAttention's backward at 512 value channels is left out: see the forward's row")


def _leaves(x: Inputs) -> Inputs:
    """The same numbers, with gradients wanted for everything that a network computes."""
    tensors = (None if t is None else t.detach().requires_grad_() for t in x.read)
    return Inputs(*tensors, x.me, x.usage)  # type: ignore[arg-type]


def _training(case: Case, read: Callable[[Inputs], Tensor]) -> Call:
    """A call that returns the gradients of mk, ms, mv, qk, qe; "backward" runs the forward pass once, here."""
    x = _leaves(case.inputs)
    leaves = [t for t in x.read if t is not None]
    d_readout = readout_gradient(case.inputs)
    if case.op.startswith("backward"):
        readout = read(x)
        return lambda: torch.autograd.grad(readout, leaves, d_readout, retain_graph=True)
    return lambda: torch.autograd.grad(read(x), leaves, d_readout)


def checked_queries(x: Inputs) -> Tensor:
    """Which queries are compared with float64."""
    return torch.linspace(0, x.qk.shape[2] - 1, min(CHECKED_QUERIES, x.qk.shape[2]), device=x.qk.device).long().unique()


def readout_gradient(x: Inputs) -> Tensor:
    """A gradient of the readout for all queries, the same for every peer."""
    generator = torch.Generator().manual_seed(1)
    shape = (x.mv.shape[0], x.qk.shape[2], *x.mv.shape[1:3])
    return torch.randn(shape, generator=generator).to(x.mv.device, x.mv.dtype).permute(0, 2, 3, 1)


def verdict(case: Case, result: Any) -> Comparison | None:
    """How far a peer's result is from float64; None for one that has no result of its own."""
    if result is None:
        return None
    x = case.inputs
    if case.op in ("read", "dense"):
        readout, usage = result
        compared = compare_read(_some(x), readout[..., checked_queries(x)], top_k=case.top_k)
        missing = 0.0 if usage is None else abs(float(usage.double().sum()) - x.qk.shape[2]) / x.qk.shape[2]
        return compared if missing <= 1e-5 else Comparison("sum of usage", missing, missing / 1e-5)
    if case.op == "consolidate":
        return compare_consolidate(x, case.workload.prototypes, *result)
    if case.op in ("select", "evict"):
        return _compare_choice(case, result)
    return _compare_gradients(case, result)


def _some(x: Inputs) -> Inputs:
    picked = checked_queries(x)
    return Inputs(x.mk, x.ms, x.mv, x.qk[..., picked], None if x.qe is None else x.qe[..., picked], x.me, x.usage)


def _compare_choice(case: Case, index: Tensor) -> Comparison:
    """The same usage was chosen; which of equals, other implementations leave open."""
    usage, p = case.usage.cpu(), case.workload.prototypes
    wanted = reference.select_prototypes(usage, p)
    if case.op == "evict":
        wanted = reference.evict_lfu(usage, usage.shape[1] - p)
    got = usage.gather(1, index.cpu()).sort(1).values
    same = torch.equal(got, usage.gather(1, wanted).sort(1).values)
    return Comparison("choice", 0.0 if same else 1.0, 0.0 if same else float("inf"))


def _compare_gradients(case: Case, gradients: tuple[Tensor, ...]) -> Comparison:
    """Query gradients against float64's on some queries: memory gradients add up all queries, and are left to the
    tests.

    Allowed is 1e-4 of the largest, which is ten times what the tidy formulation is off by.
    """
    some = _some(case.inputs)
    x = _leaves(some.double())
    picked = checked_queries(case.inputs)
    readout = reference.memory_read(*x.read, top_k=case.top_k)
    wanted = torch.autograd.grad(readout, [x.qk, x.qe], readout_gradient(case.inputs)[..., picked].double())
    compared = []
    for name, got, want in zip(("gradient of qk", "gradient of qe"), gradients[-2:], wanted):
        error = float((got[..., picked].double() - want).abs().amax())
        compared.append(Comparison(name, error, error / (1e-4 * float(want.abs().amax()))))
    return max(compared, key=lambda c: c.share)
