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
    """S [B, N, Q] of Eq. 2."""

    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor | None]

    def __new__(cls, mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None) -> LazySimilarity:
        dtype = _result_type(mk, ms)
        lazy = super().__new__(cls, (mk.shape[0], mk.shape[2], qk.shape[2]), dtype, (mk, ms, qk, qe))
        lazy.inputs = (mk, ms, qk, qe)
        return lazy

    def compute(self) -> Tensor:
        return api.similarity(*self.inputs)


class LazyAffinity(Lazy):
    """W [B, N, Q] of Eq. 1."""

    def product(self, values: Tensor) -> Tensor | None:
        """``values @ W`` for values [B, CV, N] or, with B = 1, [O, CV, N] or [CV, N]; else None."""
        b, n = self.shape[:2]
        if isinstance(values, Lazy) or values.shape[-1:] != (n,):
            return None
        if values.dim() == 3 and values.shape[0] == b:
            return as_product(self.read(values[:, None])[:, 0].contiguous())
        if b == 1 and values.dim() in (2, 3):
            readout = self.read(values[None] if values.dim() == 3 else values[None, None])
            return as_product((readout[0] if values.dim() == 3 else readout[0, 0][None]).contiguous())
        return None

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
