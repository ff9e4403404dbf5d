"""Hypothesis strategies for calls of the public functions: cases of xmemk.fuzz, which shrink."""

from __future__ import annotations

from hypothesis import strategies as st

from xmemk.fuzz.cases import KEYS, LAYOUTS, NOT_FINITE, SELECTION, SHRINKAGE, VALUES, Case

EXTREME = ("huge", "outlier")


def _sensible(case: Case) -> bool:
    """What no comparator can judge is left out, as ``xmemk.fuzz.draw`` does."""
    narrow = case.dtype in ("float16", "bfloat16")
    if case.keys in EXTREME and (case.not_finite or case.shrinkage == "zeros" or case.dtype == "float16"):
        return False
    if case.keys == "tiny" and case.dtype == "float16":
        return False
    if case.shrinkage == "wide" and (narrow or case.keys in ("integers", "equal")):
        return False
    return case.value_dtype in ("float32", "float64") or case.values in VALUES[:2]


def cases(dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")) -> st.SearchStrategy[Case]:
    """Small calls; the first of each list is what a failing one shrinks to."""
    return st.builds(
        Case,
        n=st.integers(1, 40),
        q=st.integers(0, 12),
        batch=st.integers(0, 3),
        objects=st.integers(0, 3),
        key_channels=st.sampled_from((4, 1, 3, 16, 33)),
        value_channels=st.integers(0, 9),
        top_k=st.one_of(st.none(), st.integers(1, 42)),
        segments=st.integers(1, 5),
        keys=st.sampled_from(KEYS),
        shrinkage=st.sampled_from(SHRINKAGE),
        selection=st.sampled_from(SELECTION),
        values=st.sampled_from(VALUES),
        layout=st.sampled_from(LAYOUTS),
        not_finite=st.sampled_from(NOT_FINITE),
        dtype=st.sampled_from(dtypes),
        value_dtype=st.sampled_from(("float32", "float16", "bfloat16")),
        seed=st.integers(0, 2**31),
    ).filter(_sensible)
