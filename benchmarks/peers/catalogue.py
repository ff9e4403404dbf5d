"""Who is timed beside whom: for each op the ways to do it.

A peer is prepared for a case and is then a call without arguments. One that cannot serve raises
Unavailable with the reason, which becomes its row in the table. verdicts.py judges the results.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from xmemk.benchmarks.peers import formulations as f
from xmemk.benchmarks.peers import packages
from xmemk.benchmarks.peers.workloads import GRADIENTS, READS, UPKEEP, OpCase

import xmemk
from xmemk.testing import Inputs

Call = Callable[[], Any]
CHECKED_QUERIES = 40  # every peer is compared with float64 on that many queries
PRODUCT_ALONE = "similarity product alone"


class Unavailable(Exception):
    """The reason why a peer cannot serve a case."""


class Peer(NamedTuple):
    """compiled: its first call takes long and is no part of its time. package: what must be installed for
    it, as pip calls it. rounded: it multiplies in 16 bits whatever it is given, so that its result may be
    off by as much.
    """

    name: str
    prepare: Callable[[OpCase], Call]
    compiled: bool = False
    ours: bool = False
    package: str = ""
    rounded: bool = False

    @property
    def risky(self) -> bool:
        """Other people's native code or a compiler: tried in a process of its own first."""
        return bool(self.package) or self.compiled


# Import names by what pip calls them.
PACKAGES = {"pykeops": "pykeops", "faiss-cpu": "faiss", "flash-attn": "flash_attn", "xformers": "xformers"}


def missing(peer: Peer) -> str | None:
    """Why a peer cannot be tried at all: its package is not there."""
    if not peer.package or importlib.util.find_spec(PACKAGES[peer.package]) is not None:
        return None
    return f"not installed (pip install {peer.package})"


def backends_of_ours(op: str, device: str) -> list[str]:
    """The backends that have kernels for an op on that device, and "torch"."""
    if torch.device(device).type != "cuda":
        return ["cpu", "torch"]
    kernels = {**dict.fromkeys(UPKEEP, ["cuda"]), "consolidate": ["triton", "cuda"]}
    return [*kernels.get(op, ["triton"]), "torch"]


def peers_of(op: str, backends: list[str]) -> list[Peer]:
    """Ours first, one row per backend, then the others; those that are compiled last."""
    make = _readers if op in READS else _trainers
    others = {"consolidate": _consolidators, **dict.fromkeys(UPKEEP, _choosers)}.get(op, make)(op)
    return [Peer(f"xmemk {name}", _ours(name), ours=True) for name in backends] + sorted(
        others, key=lambda p: (p.compiled, bool(p.package))
    )


def _ours(backend: str) -> Callable[[OpCase], Call]:
    def prepare(case: OpCase) -> Call:
        op, arguments, options = call_of_ours(case)
        refusal = xmemk.explain(op, *arguments, backend=backend)
        if refusal.chosen is None:
            raise Unavailable(refusal.refusals[backend])
        function = getattr(xmemk, op)
        if case.op in GRADIENTS:
            return _training(case, lambda y: function(*y.read, backend=backend, **options))
        return lambda: function(*arguments, backend=backend, **options)

    return prepare


def call_of_ours(case: OpCase) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The public function, its arguments and options."""
    x, prototypes = case.inputs, case.workload.prototypes
    if case.op == "consolidate":
        return case.op, (x.mk, x.ms, x.me, x.mv, x.usage, prototypes), {}
    if case.op in UPKEEP:
        count = prototypes if case.op == "select_prototypes" else case.usage.shape[1] - prototypes
        return case.op, (case.usage, count), {}
    if case.op in READS:
        return "memory_read", x.read, {"top_k": case.top_k, "return_usage": True}
    return "memory_read", _leaves(x).read, {"top_k": case.top_k}


def _reader(name: str, read: f.Read, **of_peer: Any) -> Peer:
    return Peer(name, lambda case: lambda: read(case.inputs, case.top_k), **of_peer)


def _in_float32(read: f.Read, compiled: bool = False) -> Callable[[OpCase], Call]:
    """A formulation that is given its inputs in float32."""

    def prepare(case: OpCase) -> Call:
        x = f.widened(case.inputs)
        function = torch.compile(read, dynamic=False) if compiled else read
        return lambda: function(x, case.top_k)

    return prepare


def _compiled(read: f.Read) -> Callable[[OpCase], Call]:
    def prepare(case: OpCase) -> Call:
        function = torch.compile(read, dynamic=False)
        return lambda: function(case.inputs, case.top_k)

    return prepare


def _readers(op: str) -> list[Peer]:
    peers = [
        _reader("tidy PyTorch", f.tidy_read),
        Peer("original", _in_float32(f.original_read)),
        _reader("original, autocast", f.original_autocast, rounded=True),
        Peer(PRODUCT_ALONE, _product),
        Peer("tidy PyTorch, torch.compile", _compiled(f.tidy_read), compiled=True),
        Peer("original, torch.compile", _in_float32(f.original_read, compiled=True), compiled=True),
        Peer("original, autocast, torch.compile", _compiled(f.original_autocast), compiled=True, rounded=True),
    ]
    if op == "memory_read":
        peers.append(_reader("KeOps", packages.keops, package="pykeops"))
        return [*peers, _reader("faiss, embedding_bag", packages.faiss_topk, package="faiss-cpu")]
    peers += [_reader(name, read, package=package) for name, read, package in _attentions()]
    peers.append(_reader("KeOps", packages.keops, package="pykeops"))
    return [*peers, Peer("FlexAttention (no usage)", _flex, compiled=True)]


def _attentions() -> list[tuple[str, f.Read, str]]:
    """Ready-made attention on augmented keys: name, read, package."""
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    attentions = [(f"SDPA {name} (no usage)", f.sdpa(backend), "") for name, backend in backends.items()]
    attentions.append(("FlashAttention (no usage)", packages.flash_attention, "flash-attn"))
    return [*attentions, ("xformers (no usage)", packages.xformers, "xformers")]


def _trainers(op: str) -> list[Peer]:
    def peer(name: str, read: f.Read, package: str = "") -> Peer:
        return Peer(name, lambda c: _training(c, lambda y: read(y, c.top_k)[0]), package=package)

    tidy = peer("tidy PyTorch", f.tidy_read)
    if "dense" not in op:
        return [tidy, Peer("original", _no_training)]
    attentions = [peer(*one) for one in _attentions()]
    flex = Peer("FlexAttention (no usage)", _flex_training)
    return [tidy, peer("original", f.original_read), *attentions, flex]


def _consolidators(op: str) -> list[Peer]:
    return [
        Peer("tidy PyTorch", lambda c: lambda: f.tidy_consolidate(c.inputs, c.workload.prototypes)),
        Peer("original", lambda c: lambda: f.original_consolidate(c.inputs, c.workload.prototypes)),
    ]


def _choosers(op: str) -> list[Peer]:
    if op == "select_prototypes":
        return [Peer("torch.topk", lambda c: lambda: c.usage.topk(c.workload.prototypes, dim=1).indices)]

    def keep(case: OpCase) -> int:
        return case.usage.shape[1] - case.workload.prototypes

    def topk_and_sort(case: OpCase) -> Call:
        return lambda: case.usage.topk(keep(case), dim=1, sorted=False).indices.sort(1).values

    def threshold(case: OpCase) -> Call:
        def call() -> Tensor:
            usage = case.usage
            bar = usage.topk(case.workload.prototypes, dim=1, largest=False).values[:, -1:]
            return (usage > bar)[0].nonzero().T

        return call

    return [Peer("topk and sort", topk_and_sort), Peer("original (threshold)", threshold)]


def _product(case: OpCase) -> Call:
    memory, query = f.augmented(case.inputs)
    scores = torch.empty(query.shape[0], memory.shape[0], dtype=query.dtype, device=query.device)

    def call() -> None:
        torch.mm(query, memory.T, out=scores)

    return call


def _flex(case: OpCase) -> Call:
    """FlexAttention, objects as heads; the rank-one term of Eq. 2 is its score_mod, in float32."""
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, dynamic=False)
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


def _no_training(case: OpCase) -> Call:
    raise Unavailable("its top-k softmax works in place and has no gradient: the original trains without top-k")


def _flex_training(case: OpCase) -> Call:
    if case.inputs.qk.device.type == "cpu":
        raise Unavailable("FlexAttention has no backward on the CPU")
    raise Unavailable("FlexAttention's backward at 512 value channels is left out: see the forward's row")


def _leaves(x: Inputs) -> Inputs:
    """The same numbers, with gradients wanted for everything that a network computes."""
    tensors = (None if t is None else t.detach().requires_grad_() for t in x.read)
    return Inputs(*tensors, x.me, x.usage)  # type: ignore[arg-type]


def _training(case: OpCase, read: Callable[[Inputs], Tensor]) -> Call:
    """A call that returns the gradients of mk, ms, mv, qk, qe; of a backward op the forward pass runs once, here."""
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
