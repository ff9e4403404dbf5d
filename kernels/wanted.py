"""Which gradients a backward pass computes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Wanted(NamedTuple):
    """Whose gradients are computed: keys, shrinkage, values, queries, selection."""

    mk: bool = True
    ms: bool = True
    mv: bool = True
    qk: bool = True
    qe: bool = True

    def given(self, ms: list[Tensor] | None, qe: Tensor | None) -> Wanted:
        """Less shrinkage and selection where there is none."""
        return self._replace(ms=self.ms and ms is not None, qe=self.qe and qe is not None)

    @property
    def of_tokens(self) -> bool:
        """Of what a token's score is made of."""
        return self.mk or self.ms

    @property
    def of_queries(self) -> bool:
        """Of what a query brings to scores."""
        return self.qk or self.qe

    @property
    def of_scores(self) -> bool:
        """Of anything that scores are made of."""
        return self.of_tokens or self.of_queries


ALL = Wanted()
