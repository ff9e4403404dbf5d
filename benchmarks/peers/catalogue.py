"""Who is timed beside whom: for each op the ways to do it.

A peer is prepared for a case and is then a call without arguments. One that cannot serve raises
Unavailable with the reason, which becomes its row in the table. verdicts.py judges the results.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from xmemk.benchmarks.peers import formulations as f
from xmemk.benchmarks.peers.workloads import GRADIENTS, READS, UPKEEP, OpCase

import xmemk
from xmemk.testing import Inputs

Call = Callable[[], Any]
CHECKED_QUERIES = 40  # every peer is compared with float64 on that many queries
PRODUCT_ALONE = "similarity product alone"


class Unavailable(Exception):
    """The reason why a peer cannot serve a case."""


class Peer(NamedTuple):
    """compiled: its first call takes long and is no part of its time. package: what must be
    installed for it, as pip calls it. rounded: it multiplies in 16 bits whatever it is given, so
    that its result may be off by as much.
    """

    name: str
    prepare: Callable[[Any], Call]
    compiled: bool = False
    ours: bool = False
    package: str = ""
    rounded: bool = False

    @property
    def risky(self) -> bool:
        """Other people's native code or a compiler: tried in a process of its own first."""
        return bool(self.package) or self.compiled


# Where they are not what pip calls them.
IMPORT_NAMES = {"faiss-cpu": "faiss", "flash-attn": "flash_attn"}


def missing(peer: Peer) -> str | None:
    """Why a peer cannot be tried at all: its package is not there."""
    if not peer.package or importlib.util.find_spec(IMPORT_NAMES.get(peer.package, peer.package)) is not None:
        return None
    return f"not installed (pip install {peer.package})"


def backends_of_ours(op: str, device: str) -> list[str]:
    """The backends that have kernels for an op on that device, and "torch"."""
    if torch.device(device).type != "cuda":
        return ["cpu", "torch"]
    kernels = {"consolidate": ("triton", "cuda"), **dict.fromkeys(UPKEEP, ("cuda",))}
    return [*kernels.get(op, ("triton",)), "torch"]


def peers_of(op: str, backends: list[str]) -> list[Peer]:
    """Ours first, one row per backend, then the others; those that are compiled last."""
    makers = {"consolidate": _consolidators, **dict.fromkeys(UPKEEP, _choosers), **dict.fromkeys(READS, _readers)}
    others = sorted(makers.get(op, _trainers)(op), key=lambda p: (p.compiled, bool(p.package)))
    return [*(Peer(f"xmemk {name}", partial(_ours, name), ours=True) for name in backends), *others]


def _ours(backend: str, case: OpCase) -> Call:
    op, arguments, options = call_of_ours(case)
    explained = xmemk.explain(op, *arguments, backend=backend)
    if explained.chosen is None:
        raise Unavailable(explained.refusals[backend])
    function = partial(getattr(xmemk, op), backend=backend, **options)
    return _training(case, lambda y: function(*y.read)) if case.op in GRADIENTS else lambda: function(*arguments)


def call_of_ours(case: OpCase) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The public function, its arguments and options."""
    x, prototypes = case.inputs, case.workload.prototypes
    if case.op == "consolidate":
        return case.op, (x.mk, x.ms, x.me, x.mv, x.usage, prototypes), {}
    if case.op in UPKEEP:
        return case.op, (case.usage, prototypes if case.op == "select_prototypes" else _kept(case)), {}
    if case.op in READS:
        return "memory_read", x.read, {"top_k": case.top_k, "return_usage": True}
    return "memory_read", _leaves(x).read, {"top_k": case.top_k}


def _reader(name: str, read: f.Read, *, widened: bool = False, compiled: bool = False, **of_peer: Any) -> Peer:
    """A formulation of a read; ``widened``: it is given its inputs in float32."""

    def prepare(case: OpCase) -> Call:
        x = f.widened(case.inputs) if widened else case.inputs
        function = torch.compile(read, dynamic=False) if compiled else read
        return lambda: function(x, case.top_k)

    return Peer(name, prepare, compiled, **of_peer)


def _readers(op: str) -> list[Peer]:
    keops = _reader("KeOps", f.keops, package="pykeops")
    peers = [
        _reader("tidy PyTorch", f.tidy_read),
        _reader("original", f.original_read, widened=True),
        _reader("original, autocast", f.original_autocast, rounded=True),
        Peer(PRODUCT_ALONE, _product),
        _reader("tidy PyTorch, torch.compile", f.tidy_read, compiled=True),
        _reader("original, torch.compile", f.original_read, widened=True, compiled=True),
        _reader("original, autocast, torch.compile", f.original_autocast, compiled=True, rounded=True),
    ]
    if op == "memory_read":
        return [*peers, keops, _reader("faiss, embedding_bag", f.faiss_topk, package="faiss-cpu")]
    attentions = [_reader(name, read, package=package) for name, read, package in _attentions()]
    return [*peers, *attentions, keops, Peer("FlexAttention (no usage)", _flex, compiled=True)]


def _attentions() -> list[tuple[str, f.Read, str]]:
    """Ready-made attention on augmented keys: name, read, package."""
    backends = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}
    backends["math"] = "MATH"
    return [
        *((f"SDPA {name} (no usage)", f.sdpa(getattr(SDPBackend, b)), "") for name, b in backends.items()),
        ("FlashAttention (no usage)", f.flash_attention, "flash-attn"),
        ("xformers (no usage)", f.xformers, "xformers"),
    ]


def _trainers(op: str) -> list[Peer]:
    def peer(name: str, read: f.Read, package: str = "") -> Peer:
        return Peer(name, lambda c: _training(c, lambda y: read(y, c.top_k)[0]), package=package)

    tidy = peer("tidy PyTorch", f.tidy_read)
    if "dense" not in op:
        why = "its top-k softmax works in place and has no gradient: the original trains without top-k"
        return [tidy, Peer("original", partial(_refuse, why))]
    why = "its backward is not there on the CPU, and left out at 512 value channels: see the forward's row"
    flex = Peer("FlexAttention (no usage)", partial(_refuse, why))
    return [tidy, peer("original", f.original_read), *(peer(*one) for one in _attentions()), flex]


def _consolidators(op: str) -> list[Peer]:
    return [
        Peer("tidy PyTorch", lambda c: lambda: f.tidy_consolidate(c.inputs, c.workload.prototypes)),
        Peer("original", lambda c: lambda: f.original_consolidate(c.inputs, c.workload.prototypes)),
    ]


def _kept(case: OpCase) -> int:
    return case.usage.shape[1] - case.workload.prototypes


def _choosers(op: str) -> list[Peer]:
    def threshold(case: OpCase) -> Tensor:
        bar = case.usage.topk(case.workload.prototypes, dim=1, largest=False).values[:, -1:]
        return (case.usage > bar)[0].nonzero().T

    if op == "select_prototypes":
        return [Peer("torch.topk", lambda c: lambda: c.usage.topk(c.workload.prototypes, dim=1).indices)]
    return [
        Peer("topk and sort", lambda c: lambda: c.usage.topk(_kept(c), dim=1, sorted=False).indices.sort(1).values),
        Peer("original (threshold)", lambda c: partial(threshold, c)),
    ]


def _product(case: OpCase) -> Call:
    memory, query = f.augmented(case.inputs)
    scores = torch.empty(query.shape[0], memory.shape[0], dtype=query.dtype, device=query.device)

    def call() -> None:
        torch.mm(query, memory.T, out=scores)

    return call


def _flex(case: OpCase) -> Call:
    """FlexAttention, objects as heads; the rank-one term of Eq. 2 is its score_mod, in float32."""
    from torch.nn.attention.flex_attention import flex_attention

    attention: Any = torch.compile(flex_attention, dynamic=False)
    x = case.inputs
    # On a GPU its own choice of tiles does not fit values of 512 channels.
    options = {"BLOCK_M": 64, "BLOCK_N": 32, "num_stages": 1} if x.mk.is_cuda else None

    def call() -> tuple[Tensor, None]:
        memory, query, s, b = f.operands(x)
        s, b = s[:, 0], b[:, 0]
        values = f.heads(x, 1)

        def rank_one(score: Tensor, _b: Tensor, _h: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
            return score - s[ki] * b[qi]

        query, memory = (t.to(values.dtype).expand(1, values.shape[1], -1, -1) for t in (query, memory))
        read = attention(query, memory, values, score_mod=rank_one, scale=1.0, kernel_options=options)
        return f.from_heads(read, x, 1), None

    return call


def _refuse(why: str, _: OpCase) -> Call:
    raise Unavailable(why)


def _leaves(x: Inputs) -> Inputs:
    """The same numbers, with gradients wanted for everything that a network computes."""
    leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in x.read]
    mk, ms, mv, qk, qe = leaves
    return Inputs(mk, ms, mv, qk, qe, x.me, x.usage)


def _training(case: OpCase, read: Callable[[Inputs], Tensor]) -> Call:
    """Returns the gradients of mk, ms, mv, qk, qe; a backward op runs its forward pass here."""
    x = _leaves(case.inputs)
    leaves = [t for t in x.read if t is not None]
    d_readout = readout_gradient(case.inputs)
    if case.op.endswith("backward"):
        readout = read(x)
        return lambda: torch.autograd.grad(readout, leaves, d_readout, retain_graph=True)
    return lambda: torch.autograd.grad(read(x), leaves, d_readout)


def readout_gradient(x: Inputs) -> Tensor:
    """A gradient of the readout for all queries, the same for every peer."""
    generator = torch.Generator().manual_seed(1)
    shape = (x.mv.shape[0], x.qk.shape[2], *x.mv.shape[1:3])
    return torch.randn(shape, generator=generator).to(x.mv.device, x.mv.dtype).permute(0, 2, 3, 1)
