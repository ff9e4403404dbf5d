"""A host's functions beside ours (see :mod:`xmemk.compat.verify`), at the smallest seam.

A similarity carries the host's own along, and every product of values with an affinity is compared
with the host's. What uses the numbers of a similarity or affinity otherwise is counted as not
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..testing import Inputs
from .lazy import LazyAffinity, LazySimilarity
from .report import PatchReport
from .verify import TOLERANCE, Judge


class VerifiedFunctions:
    """The four functions: ``ours``, a module, compared with the host's by name, for ``report``."""

    def __init__(self, host: Mapping[str, Callable[..., Any]], ours: Any, report: PatchReport, where: str) -> None:
        self._host, self._ours, self._report, self._where = host, ours, report, where
        self._reads = 0

    def get_similarity(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the host's."""
        similarity: Tensor = self._ours.get_similarity(*args, **kwargs)
        if isinstance(similarity, LazySimilarity):
            with torch.no_grad():
                similarity.twin = self._host["get_similarity"](*args, **kwargs)
            Judge(f"get_similarity of {self._where}", self._report).same(
                "shape", similarity.shape, similarity.twin.shape
            )
        return similarity

    def do_softmax(
        self, similarity: Tensor, top_k: int | None = None, inplace: bool = False, return_usage: bool = False
    ) -> Any:
        """As the host's."""
        usable = isinstance(similarity, LazySimilarity) and similarity.twin is not None and not similarity.computed
        result = self._ours.do_softmax(similarity, top_k, inplace, return_usage)
        if not usable:
            self._report.not_compared += 1
            return result
        assert isinstance(similarity, LazySimilarity) and similarity.twin is not None
        affinity = result[0] if return_usage else result
        judge = Judge(f"do_softmax {self._reads + 1} of {self._where}", self._report)
        try:
            with judge.watch.host():
                theirs, usage = self._host["do_softmax"](similarity.twin.clone(), top_k=top_k, return_usage=True)
        except RuntimeError as error:  # fewer than top_k tokens
            self._report.host_stopped.append(f"{judge.what}: {str(error).splitlines()[0]}")
            return result
        self._check(affinity, similarity, theirs, top_k)
        if return_usage:
            difference = (affinity.compute() - theirs).abs().nan_to_num(0.0).amax(1)
            judge.not_finite = int((~theirs.isfinite()).any(1).sum())
            judge.open_queries = int((difference > TOLERANCE).sum())  # the product judges them
            judge.usage("usage", result[1], usage)
        return result

    def get_affinity(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the host's."""
        affinity: Tensor = self.do_softmax(self.get_similarity(*args, **kwargs))
        return affinity

    def readout(self, affinity: Tensor, mv: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the host's."""
        readout: Tensor = self._ours.readout(affinity, mv, *args, **kwargs)
        return readout

    def _check(self, affinity: LazyAffinity, similarity: LazySimilarity, theirs: Tensor, top_k: int | None) -> None:
        mk, ms, qk, qe = similarity.inputs
        shrinkage = mk.new_ones(mk.shape[0], 1, mk.shape[2]) if ms is None else ms

        def compare(values: Tensor, ours: Tensor) -> None:
            self._reads += 1
            judge = Judge(f"read {self._reads} of {self._where}", self._report)
            with judge.watch.host():
                host = (values.flatten(1, 2) @ theirs).unflatten(1, values.shape[1:3])

            def inputs(queries: Tensor) -> Inputs:
                assert qe is not None
                return Inputs(
                    mk, shrinkage, values.to(mk.dtype), qk[..., queries], qe[..., queries], mk, shrinkage[:, 0]
                )

            judge.read("values @ affinity", ours, host.to(ours.dtype), inputs, top_k)
            judge.report_to(self._report, "read")

        affinity.check = compare
