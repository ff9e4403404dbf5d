"""MatAnyone's four functions, for its own manager, which goes on to use them.

    from xmemk.compat.matanyone import get_similarity, do_softmax, get_affinity, readout

MatAnyone blends every readout with the last frame's value by a network. That stays the host's own:
its read multiplies values by the affinity that these functions return, and the product is read
directly from the memory. Written from the interface and formulas alone.
"""

from __future__ import annotations

from torch import Tensor

from . import cutie
from .functions import do_softmax
from .functions import readout as _readout

__all__ = ["do_softmax", "get_affinity", "get_similarity", "readout"]


def get_similarity(
    mk: Tensor,
    ms: Tensor | None,
    qk: Tensor,
    qe: Tensor | None,
    add_batch_dim: bool = False,
    uncert_mask: Tensor | None = None,
) -> Tensor:
    """:func:`xmemk.compat.cutie.get_similarity` of masked queries.

    uncert_mask [B, 1, H, W] or None for 1: multiplies qk and qe.
    """
    if uncert_mask is not None:
        # [1, 1, Q], or [1, Q] where the arguments come without the batch dimension.
        mask = uncert_mask.flatten(1) if add_batch_dim else uncert_mask.flatten(2)
        first = 1 if add_batch_dim else 2
        qk = qk.flatten(first) * mask
        qe = None if qe is None else qe.flatten(first) * mask
    return cutie.get_similarity(mk, ms, qk, qe, add_batch_dim)


def get_affinity(
    mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None, uncert_mask: Tensor | None = None
) -> Tensor:
    """W [B, N, Q], the softmax of :func:`get_similarity` over all N."""
    return do_softmax(get_similarity(mk, ms, qk, qe, uncert_mask=uncert_mask))


def readout(affinity: Tensor, mv: Tensor, uncert_mask: Tensor | None = None) -> Tensor:
    """Eq. 1: [B, CV, H, W] from values mv [B, CV, T, H, W] and W [B, T H W, H W].

    uncert_mask [B, 1, H, W] or None for 1: multiplies the readout.
    """
    visual = _readout(affinity, mv)
    return visual if uncert_mask is None else visual * uncert_mask.reshape(-1, 1, *visual.shape[-2:])
