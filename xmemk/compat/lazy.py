"""Similarity and affinity as lazy tensors, whose numbers are computed only when they are used.

A host writes ``readout(do_softmax(get_similarity(...)))``: three calls with an N x Q matrix between
them. Here the first two return tensors of that shape that record their inputs. A product with
values is then read directly from the memory. Any other use of such a tensor computes the matrix,
once. Gradients never pass through a lazy tensor: :mod:`xmemk.compat.functions` computes at once
where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .. import api

_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
# What torch refuses for a tensor without storage, or does without calling an operator.
_LEAVING_TORCH = (
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.__deepcopy__,
    Tensor.__reduce_ex__,
    Tensor.data_ptr,
    Tensor.untyped_storage,
)


class Lazy(Tensor):
    """A tensor of known shape, dtype and device, which :meth:`compute` fills at its first use."""

    _dense: Tensor | None
    _sources: list[tuple[Tensor, int]]

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, sources: tuple[Tensor | None, ...]) -> Any:
        tensors = [x for x in sources if x is not None]
        lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=tensors[0].device)
        lazy._dense = None
        lazy._sources = [(x, _version(x)) for x in tensors]
        return lazy

    def compute(self) -> Tensor:
        """The numbers."""
        raise NotImplementedError

    @property
    def computed(self) -> bool:
        """Whether the numbers were used."""
        return self._dense is not None

    def dense(self) -> Tensor:
        """The numbers, computed once."""
        if self._dense is None:
            self.unchanged()
            with torch.no_grad():
                self._dense = self.compute().to(self.dtype)
        return self._dense

    def unchanged(self) -> None:
        """RuntimeError if a source tensor was written to since this tensor was made."""
        for x, version in self._sources:
            if _version(x) != version:
                raise RuntimeError(
                    f"a tensor of shape {list(x.shape)} was changed in place between get_similarity or do_softmax and "
                    "the use of their result, which is only computed there; use it before, or clone the tensor"
                )

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={list(self.shape)}, computed={self.computed})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and len(args) == 2 and isinstance(args[1], LazyAffinity) and not args[1].computed:
            product = args[1].product(args[0])
            if product is not None:
                return product
        if func is Tensor.__getitem__ and isinstance(args[0], LazySimilarity) and not args[0].computed:
            tokens = _tokens(args[1])
            if tokens is not None:
                return args[0].tokens(tokens)
        if func in (torch.cat, torch.concat) and _one_query(args, kwargs or {}):
            return LazySimilarity.joined(list(args[0]))
        if func in _LEAVING_TORCH:
            return func(args[0].dense(), *args[1:], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(lambda x: x.dense() if isinstance(x, Lazy) else x, (args, kwargs or {}))
        return func(*args, **kwargs)


class LazySimilarity(Lazy):
    """S [B, N, Q] of Eq. 2.

    Slices of tokens, and their concatenation, are lazy too: hosts cut and join S by stores.
    """

    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor | None]
    twin: Tensor | None  # the host's own S, where its functions are verified
    _slice_of: tuple[LazySimilarity, slice] | None = None

    def __new__(
        cls, mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None, twin: Tensor | None = None
    ) -> LazySimilarity:
        dtype = _result_type(mk, ms)
        lazy = super().__new__(cls, (mk.shape[0], mk.shape[2], qk.shape[2]), dtype, (mk, ms, qk, qe))
        lazy.inputs = (mk, ms, qk, qe)
        lazy.twin = twin
        return lazy

    @property
    def computed(self) -> bool:
        return self._dense is not None or (self._slice_of is not None and self._slice_of[0].computed)

    def compute(self) -> Tensor:
        if self._slice_of is not None:  # a view, in the host's eyes
            whole, tokens = self._slice_of
            return whole.dense()[:, tokens]
        return api.similarity(*self.inputs)

    def tokens(self, tokens: slice) -> LazySimilarity:
        """S [B, N', Q] of some of the tokens."""
        self.unchanged()
        mk, ms, qk, qe = self.inputs
        twin = None if self.twin is None else self.twin[:, tokens]
        part = LazySimilarity(mk[:, :, tokens], None if ms is None else ms[:, :, tokens], qk, qe, twin)
        part._slice_of = self, tokens
        return part

    @staticmethod
    def joined(parts: list[LazySimilarity]) -> LazySimilarity:
        """S of the tokens of several, which have one query and no shrinkage in only some."""
        for part in parts:
            part.unchanged()
        mk, ms, twin = (
            None if any(x is None for x in tensors) else torch.cat(tensors, dim)  # type: ignore[arg-type]
            for tensors, dim in (
                ([part.inputs[0] for part in parts], 2),
                ([part.inputs[1] for part in parts], 2),
                ([part.twin for part in parts], 1),
            )
        )
        assert mk is not None
        return LazySimilarity(mk, ms, *parts[0].inputs[2:], twin)


class LazyAffinity(Lazy):
    """W [B, N, Q] of Eq. 1.

    check: called with the values [B, O, CV, N] and the readout [B, O, CV, Q] of every product,
    where the host's functions are verified.
    """

    check: Callable[[Tensor, Tensor], None] | None = None

    def product(self, values: Tensor) -> Tensor | None:
        """``values @ W`` for values [B, CV, N] or, with B = 1, [O, CV, N] or [CV, N]; else None."""
        b, n = self.shape[:2]
        if isinstance(values, Lazy) or values.shape[-1:] != (n,):
            return None
        if values.dim() == 3 and values.shape[0] == b:
            return self._checked(values[:, None])[:, 0]
        if b == 1 and values.dim() in (2, 3):
            readout = self._checked(values[None] if values.dim() == 3 else values[None, None])
            return readout[0] if values.dim() == 3 else readout[0, 0][None]
        return None

    def _checked(self, values: Tensor) -> Tensor:
        readout = as_product(self.read(values).contiguous())
        if self.check is not None:
            self.check(values, readout)
        return readout

    def read(self, mv: Tensor) -> Tensor:
        """Eq. 1 for mv [B, O, CV, N]: [B, O, CV, Q]."""
        raise NotImplementedError


class SparseAffinity(LazyAffinity):
    """W of a top-k read, stored as weights and indices [B, Q, k]."""

    weight: Tensor
    tokens: Tensor

    def __new__(cls, weight: Tensor, index: Tensor, n: int, dtype: torch.dtype) -> SparseAffinity:
        lazy = super().__new__(cls, (weight.shape[0], n, weight.shape[1]), dtype, (weight, index))
        lazy.weight, lazy.tokens = weight, index
        return lazy

    def compute(self) -> Tensor:
        zeros = self.weight.new_zeros(self.shape)
        # A sum, because unused slots repeat a token with weight 0.
        return zeros.scatter_add_(1, self.tokens.transpose(1, 2), self.weight.transpose(1, 2))

    def read(self, mv: Tensor) -> Tensor:
        self.unchanged()
        return api.readout_topk(mv, self.weight, self.tokens)


class SoftAffinity(LazyAffinity):
    """W of a softmax over the whole memory."""

    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor | None]

    def __new__(cls, mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None) -> SoftAffinity:
        dtype = _result_type(mk, ms)
        lazy = super().__new__(cls, (mk.shape[0], mk.shape[2], qk.shape[2]), dtype, (mk, ms, qk, qe))
        lazy.inputs = (mk, ms, qk, qe)
        return lazy

    def compute(self) -> Tensor:
        return api.similarity(*self.inputs).softmax(1)

    def read(self, mv: Tensor) -> Tensor:
        self.unchanged()
        mk, ms, qk, qe = self.inputs
        return api.memory_read(mk, ms, mv, qk, qe)

    def usage(self) -> Tensor:
        """[B, N]: the mass each token receives."""
        self.unchanged()
        mk, ms, qk, qe = self.inputs
        ones = mk.new_ones(mk.shape[0], 1, 1, mk.shape[2])
        return api.memory_read(mk, ms, ones, qk, qe, return_usage=True)[1]


def _tokens(index: Any) -> slice | None:
    """The slice of tokens that an index of S takes whole; None for any other index."""
    whole = slice(None)
    if not isinstance(index, tuple) or len(index) not in (2, 3) or any(not isinstance(x, slice) for x in index):
        return None
    if index[0] != whole or index[2:] not in ((), (whole,)) or index[1].step not in (None, 1):
        return None
    return index[1]


def _one_query(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether these arguments of torch.cat join tokens of one query, none of them computed."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    parts = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    if not parts or dim not in (1, -2) or set(kwargs) - {"dim"}:
        return False
    if not all(isinstance(x, LazySimilarity) and not x.computed for x in parts):
        return False
    ms, qk, qe = parts[0].inputs[1:]
    return all((x.inputs[1] is None) == (ms is None) and x.inputs[2] is qk and x.inputs[3] is qe for x in parts)


def as_product(x: Tensor) -> Tensor:
    """x in the type of a matrix product: autocast's where it is on, except for float64."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def _result_type(mk: Tensor, ms: Tensor | None) -> torch.dtype:
    """The hosts' type of a similarity: that of products, or autocast's of squares, float32."""
    if torch.is_autocast_enabled(mk.device.type):
        return torch.promote_types(mk.dtype, torch.float32)
    return mk.dtype if ms is None else torch.promote_types(mk.dtype, ms.dtype)


def _version(x: Tensor) -> int:
    """How often x was written to; 0 for inference tensors, which do not count it."""
    return 0 if x.is_inference() else x._version
