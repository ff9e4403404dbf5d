"""The four functions, with an uncertainty mask of the queries."""

import torch


def get_similarity(mk, ms, qk, qe, add_batch_dim=False, uncert_mask=None):
    if add_batch_dim:
        mk, ms, qk, qe = (None if x is None else x[None] for x in (mk, ms, qk, qe))
    mk, qk = mk.flatten(2), qk.flatten(2)
    qe = None if qe is None else qe.flatten(2)
    if uncert_mask is not None:
        qk, qe = uncert_mask.flatten(2) * qk, uncert_mask.flatten(2) * qe
    if qe is None:
        score = 2 * (mk.transpose(1, 2) @ qk) - (mk**2).sum(1)[..., None]
    else:
        far = (mk**2).transpose(1, 2) @ qe
        score = 2 * (mk.transpose(1, 2) @ (qk * qe)) - far - (qe * qk**2).sum(1, keepdim=True)
    score = score if ms is None else score * ms.flatten(1)[..., None]
    return score / mk.shape[1] ** 0.5


def do_softmax(similarity, top_k=None, inplace=False, return_usage=False):
    if top_k is None:
        affinity = similarity.softmax(1)
    else:
        best, where = similarity.topk(top_k, dim=1)  # stops where there are fewer
        weight = best.exp() / best.exp().sum(1, keepdim=True)  # 0 / 0 where every score is low
        affinity = torch.zeros_like(similarity).scatter(1, where, weight.to(similarity.dtype))
    return (affinity, affinity.sum(2)) if return_usage else affinity


def get_affinity(mk, ms, qk, qe, uncert_mask=None):
    return do_softmax(get_similarity(mk, ms, qk, qe, uncert_mask=uncert_mask))


def readout(affinity, mv, uncert_mask=None):
    visual = (mv.flatten(2) @ affinity).unflatten(2, mv.shape[-2:])
    return visual if uncert_mask is None else visual * uncert_mask
