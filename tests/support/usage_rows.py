"""Rows of usage that try the selecting operators, shared by the tests of select_prototypes and
evict_lfu.
"""

import math

import torch

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPECIAL = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e-45]


def row(kind: str, n: int) -> torch.Tensor:
    """One usage row of a given kind, float32."""
    g = torch.Generator().manual_seed(n)
    u = torch.rand(n, generator=g)
    pick = torch.randint(len(SPECIAL), (n,), generator=g)
    return {
        "random": lambda: u,
        "wide": lambda: (40 * u - 20).exp(),
        "ascending": lambda: u.sort().values,
        "descending": lambda: u.sort(descending=True).values,
        "equal": lambda: torch.full((n,), 0.5),
        "zeros": lambda: u * (u > 0.9),
        "few values": lambda: (u * 4).floor(),
        "signed zeros": lambda: torch.where(u > 0.5, 0.0, -0.0),
        "some NaN": lambda: torch.where(u > 0.7, math.nan, u),
        "all NaN": lambda: torch.full((n,), math.nan),
        "mostly NaN": lambda: torch.where(u < 0.99, math.nan, u),
        "special": lambda: torch.tensor(SPECIAL)[pick],
    }[kind]()


KINDS = [
    "random",
    "wide",
    "ascending",
    "descending",
    "equal",
    "zeros",
    "few values",
    "signed zeros",
    "some NaN",
    "all NaN",
    "mostly NaN",
    "special",
]
