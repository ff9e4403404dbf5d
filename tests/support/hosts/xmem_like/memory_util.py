"""The four functions."""

import torch


def get_similarity(mk, ms, qk, qe):
    mk, qk = mk.flatten(2), qk.flatten(2)
    if qe is None:
        score = 2 * torch.einsum("bcn,bcq->bnq", mk, qk) - (mk**2).sum(1)[..., None]
    else:
        score = -torch.einsum("bcnq,bcq->bnq", (mk[..., None] - qk[:, :, None]) ** 2, qe.flatten(2))
    score = score if ms is None else score * ms.flatten(1)[..., None]
    return score / mk.shape[1] ** 0.5


def do_softmax(similarity, top_k=None, inplace=False, return_usage=False):
    if top_k is None:
        affinity = similarity.softmax(1)
    else:
        best, where = similarity.topk(top_k, dim=1)  # stops where there are fewer
        weight = best.exp() / best.exp().sum(1, keepdim=True)
        affinity = torch.zeros_like(similarity).scatter(1, where, weight)
    return (affinity, affinity.sum(2)) if return_usage else affinity


def get_affinity(mk, ms, qk, qe):
    return do_softmax(get_similarity(mk, ms, qk, qe))


def readout(affinity, mv):
    return (mv.flatten(2) @ affinity).unflatten(2, mv.shape[-2:])
