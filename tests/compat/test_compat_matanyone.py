"""MatAnyone by its interface: its own manager goes on to use functions that never build N x Q."""

from __future__ import annotations

import pytest
import torch
from hosts.matanyone_like import memory_manager, memory_utils

import xmemk
from xmemk.compat import UnknownHost, VerificationError, matanyone
from xmemk.compat.lazy import Lazy, SparseAffinity

HOST = "hosts.matanyone_like"
CONFIG = {"top_k": 30, "use_long_term": False, "max_mem_frames": 5}
CK, CV, H, W = 64, 6, 6, 8


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


class Network:
    """What a read calls, without weights."""

    def pred_uncertainty(self, last_pix_feat, cur_pix_feat, last_mask, mem_val_diff):
        prob = (mem_val_diff.mean(1, keepdim=True) + cur_pix_feat.mean(1, keepdim=True)).sigmoid()
        return {"logits": prob.logit(), "prob": prob, "mask": (prob > 0.5).float()}

    def pixel_fusion(self, pix_feat, pixel, sensory, last_mask, *, chunk_size=-1):
        return pixel + pix_feat.mean(1, keepdim=True)[:, None]

    def readout_query(self, pixel_readout, obj_memory, *, selector=None, need_weights=False, seg_pass=False):
        return pixel_readout * obj_memory.mean(), None


def follow(config=CONFIG, n=40, *, patched=lambda t: None, uncertain=False, flip=False, noise=0.3, dtype=None):
    """What leaves the memory in every frame; ``patched(t)`` is called before frame t."""
    g = torch.Generator().manual_seed(5)
    manager, network, out, batch = memory_manager.MemoryManager(config, None), Network(), [], 1 + flip
    scene, last = torch.randn(1, CK, H, W, generator=g), None
    with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        for t in range(n):
            patched(t)
            key = (scene.roll(t, 3) + noise * torch.randn(1, CK, H, W, generator=g)).expand(batch, -1, -1, -1).clone()
            if flip:
                key[1] = key[1].flip(-1)
            shrinkage, selection = 1 + torch.rand(batch, 1, H, W, generator=g), torch.rand(batch, CK, H, W, generator=g)
            value = torch.randn(batch, 1, CV, H, W, generator=g)
            pix, mask = torch.rand(batch, CV, H, W, generator=g), torch.rand(batch, 1, 16 * H, 16 * W, generator=g)
            uncert = {"mask": (torch.rand(batch, 1, H, W, generator=g) > 0.3).float()} if uncertain else None
            if dtype is not None:
                key, selection, value = key.to(dtype), selection.to(dtype), value.to(dtype)
            manager.initialize_sensory_if_needed(key, [1])
            if t == 1:
                out.append(manager.read_first_frame(last[0], pix, mask, network)[1])
            elif t:
                out.append(manager.read(pix, key, selection, mask, network, uncert, last[0], t, last[1], mask)[1])
            if t < 3 or t % 3 == 0:
                manager.add_memory(key, shrinkage, value, torch.rand(batch, 1, 16, 5, generator=g), [1], selection)
            last = value, pix
    return out


def largest(a, b):
    assert len(a) == len(b)
    return max(float((x.float() - y.float()).abs().max() / y.float().abs().max()) for x, y in zip(a, b))


@pytest.mark.parametrize("uncertain", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("long_term", [False, True])
def test_results_are_the_hosts(uncertain, flip, long_term):
    config = CONFIG | {"use_long_term": long_term}
    before = dict(vars(memory_manager))
    theirs = follow(config, uncertain=uncertain, flip=flip)
    with xmemk.patch(HOST) as handle:
        assert handle.report.families == ["MatAnyone"]
        assert handle.report.levels == {f"{HOST}.memory_utils": "functions only"}
        assert "its network blends" in str(handle)
        assert memory_manager.MemoryManager is before["MemoryManager"]
        ours = follow(config, uncertain=uncertain, flip=flip)
    assert largest(ours, theirs) < 1e-5
    assert dict(vars(memory_manager)) == before


def test_applied_and_undone_in_mid_video():
    """Managers that hold objects are no hindrance, since the functions have no state."""
    handles = []

    def switch(t):
        if t in (5, 25):
            handles.append(xmemk.patch(HOST))
        elif t in (18, 33):
            handles[-1].undo()

    for config in (CONFIG, CONFIG | {"use_long_term": True}):
        assert largest(follow(config, patched=switch), follow(config)) < 1e-5
    assert memory_utils.get_similarity.__module__ == f"{HOST}.memory_utils"


def test_no_matrix_is_built(monkeypatch):
    made = []
    monkeypatch.setattr(Lazy, "dense", lambda lazy: made.append(lazy))
    with xmemk.patch(HOST):
        follow(uncertain=True)
    assert made == []


def test_scores_so_low_that_the_hosts_weights_vanish():
    """The host divides 0 by 0 there; the softmax with the maximum subtracted is right."""
    theirs = follow(noise=4.0)
    with xmemk.patch(HOST):
        ours = follow(noise=4.0)
    spoilt = [~x.isfinite() for x in theirs]
    assert any(x.any() for x in spoilt)
    assert all(x.isfinite().all() for x in ours)
    with xmemk.patch(HOST, verify=True) as handle:
        follow(noise=4.0)
    assert handle.report.steps["read"].settled > 0


def test_fewer_tokens_than_top_k():
    config = CONFIG | {"top_k": 100}
    with pytest.raises(RuntimeError, match="out of range"):
        follow(config, 4)
    with xmemk.patch(HOST):
        assert len(follow(config, 4)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_no_further_from_float32_than_the_hosts(dtype):
    exact, theirs = follow(), follow(dtype=dtype)
    with xmemk.patch(HOST):
        ours = follow(dtype=dtype)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    assert largest(ours, exact) <= largest(theirs, exact) + 4 * torch.finfo(dtype).eps
    with xmemk.patch(HOST, verify=True) as handle:
        follow(dtype=dtype)
    assert handle.report.reads == 38


def test_verified_read_by_read():
    with xmemk.patch(HOST, verify=True) as handle:
        follow()
    assert handle.report.reads == 38  # one read a frame, none of them on the first two
    assert handle.report.not_compared == 0
    assert 0 < handle.report.largest < 1e-5
    assert handle.report.trust == []  # its functions are known


@pytest.mark.parametrize("part", ["get_similarity", "do_softmax"])
def test_verification_rejects_functions_that_compute_something_else(monkeypatch, part):
    right = getattr(memory_utils, part)
    wrong = {
        "get_similarity": lambda mk, ms, qk, qe, add_batch_dim=False, uncert_mask=None: 0.5 * right(mk, ms, qk, qe),
        "do_softmax": lambda similarity, top_k=None, inplace=False, return_usage=False: right(
            similarity * 0.5, top_k, inplace, return_usage
        ),
    }[part]
    wrong.__module__ = memory_utils.__name__
    monkeypatch.setattr(memory_utils, part, wrong)
    monkeypatch.setattr(memory_manager, part, wrong)
    with pytest.raises(UnknownHost, match=rf"memory_utils.{part}: its code code[0-9a-f]{{12}} is not that of a known"):
        xmemk.patch(HOST)
    with xmemk.patch(HOST, verify=True) as handle, pytest.raises(VerificationError, match=r"of hosts.mata.*_utils, "):
        follow()
    assert handle.report.failed
    assert handle.report.trust == []


def test_unknown_functions_are_trusted_after_a_clean_run(monkeypatch, capsys):
    def do_softmax(similarity, top_k=None, inplace=False, return_usage=False):
        best, where = similarity.topk(top_k, dim=1)
        affinity = torch.zeros_like(similarity).scatter(1, where, best.softmax(1))
        return (affinity, affinity.sum(2)) if return_usage else affinity

    do_softmax.__module__ = memory_utils.__name__
    monkeypatch.setattr(memory_utils, "do_softmax", do_softmax)
    monkeypatch.setattr(memory_manager, "do_softmax", do_softmax)
    with xmemk.patch(HOST, verify=True) as handle:
        follow()
    (fingerprint,) = handle.report.trust
    assert f"trust={fingerprint!r}" in str(handle)
    assert fingerprint in capsys.readouterr().out
    with xmemk.patch(HOST, trust=fingerprint) as handle:
        assert largest(follow(), follow()) == 0
    with pytest.raises(UnknownHost, match=r"memory_utils.do_softmax: its code"):
        xmemk.patch(HOST, trust="0" * 16)
    with pytest.raises(ValueError, match="trust: wanted fingerprints of 16 hexadecimal digits"):
        xmemk.patch(HOST, trust="all")


@pytest.mark.parametrize("inside", [0.0, 0.4, 1.0])
def test_the_mask_of_the_functions(inside):
    g = torch.Generator().manual_seed(0)
    mk, qk = torch.randn(2, CK, 3, H, W, generator=g), torch.randn(2, CK, H, W, generator=g)
    ms, qe = 1 + torch.rand(2, 1, 3, H, W, generator=g), torch.rand(2, CK, H, W, generator=g)
    mv = torch.randn(2, CV, 3, H, W, generator=g)
    mask = (torch.rand(2, 1, H, W, generator=g) < inside).float()
    expected = memory_utils.readout(memory_utils.get_affinity(mk, ms, qk, qe, uncert_mask=mask), mv, mask)
    ours = matanyone.readout(matanyone.get_affinity(mk, ms, qk, qe, uncert_mask=mask), mv, mask)
    assert torch.allclose(ours, expected, atol=1e-5)
    similarity = matanyone.get_similarity(mk, ms, qk, qe, uncert_mask=mask)
    assert isinstance(matanyone.do_softmax(similarity, top_k=30), SparseAffinity)
    assert torch.allclose(similarity + 0, memory_utils.get_similarity(mk, ms, qk, qe, uncert_mask=mask), atol=1e-4)
    alone = [x[0].flatten(1) for x in (mk, ms, qk, qe)]
    single = matanyone.get_similarity(*alone, add_batch_dim=True, uncert_mask=mask[0].flatten(1))
    assert torch.allclose(single + 0, (similarity + 0)[:1], atol=1e-4)


def test_only_functions_are_known():
    with pytest.raises(UnknownHost, match="that of MatAnyone, which xmemk does not replace"):
        xmemk.patch(HOST, functions=False)


def test_a_patch_that_may_be_made_twice():
    first, second = xmemk.patch(HOST, exist_ok=True), xmemk.patch(HOST, exist_ok=True)
    for options in ({}, {"functions": "only"}, {"verify": True}, {"functions": "only", "exist_ok": True}):
        with pytest.raises(RuntimeError, match="patched already"):
            xmemk.patch(HOST, **options)
    first.undo()
    assert memory_manager.get_similarity.__module__ == "xmemk.compat.matanyone"
    second.undo()
    assert memory_manager.get_similarity.__module__ == f"{HOST}.memory_utils"
