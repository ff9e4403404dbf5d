"""The paper's two claims: what is counted, and how it is extended."""

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("rich")

from xmemk.benchmarks.peers.clip import ClipFeatures
from xmemk.benchmarks.studies import claims

from xmemk import MemoryConfig
from xmemk.measure.peak import resident_bytes

CONFIG = MemoryConfig(
    hidden_dim=0,
    top_k=10,
    max_mid_term_frames=4,
    min_mid_term_frames=2,
    num_prototypes=8,
    max_long_term_elements=100,
)


@pytest.fixture(scope="module")
def features():
    return ClipFeatures(4, 8, 10)


def test_compression_counts_candidates_and_prototypes(features):
    tokens, of_bytes = claims.compression(features, CONFIG)
    assert tokens.measured == round(100 * 2 * 32 / 8)
    assert tokens.holds is False  # 800 %: these frames are small
    # A key, a selection, a value, shrinkage, use and life; a prototype has no selection.
    working, long_term = 4 * (64 + 64 + 512 + 3), 4 * (64 + 512 + 3)
    assert of_bytes.measured == round(800 * working / long_term)


def test_compression_at_480p_is_what_the_paper_says():
    tokens = claims.compression(ClipFeatures(30, 54, 3), MemoryConfig(hidden_dim=0, top_k=1))[0]
    assert tokens.measured == round(100 * 5 * 1620 / 128) == 6328
    assert tokens.holds is True


@pytest.mark.skipif(resident_bytes(torch.device("cpu")) is None, reason="resident memory is told on Linux alone")
def test_frames_within_a_budget_come_from_what_is_allocated(features):
    unbounded, kept, bounded = claims.our_budget(features, CONFIG, (1_000, 2_000))
    assert unbounded.measured > claims.CLAIMED_FRAMES and unbounded.holds is True
    # One consolidation every 2 * 5 frames, the first at frame 15, of 8 prototypes.
    a_consolidation = 8 * 4 * (64 + 512 + 3)
    assert unbounded.measured == pytest.approx(6e9 / a_consolidation * 10, rel=0.05)
    assert kept.how.startswith("34,000 frames: 27,192 prototypes")
    assert bounded.measured < kept.measured < 6
    assert bounded.holds is True


def test_the_released_formulation_is_budgeted_by_its_matrices(monkeypatch, features):
    monkeypatch.setattr(claims, "peak_of", lambda case, peer: 1_000_000 + 20_000 * case.inputs.mk.shape[2])
    claim = claims.released_budget(features, CONFIG, (1_000, 2_000))
    assert "20.0 kB per token" in claim.how
    token = 20_000 + 4 * (64 + 512 + 3)
    assert claim.measured == pytest.approx(6e9 / token / 8 * 10, rel=0.01)
    assert claim.holds is (claim.measured >= 34_000)
    monkeypatch.setattr(claims, "peak_of", lambda case, peer: None)
    assert claims.released_budget(features, CONFIG, (1_000,)).holds is None


def test_consolidations_of_so_many_frames():
    # With the defaults: at frames 45, 70, 95, ...
    assert [claims._consolidations_of(n, MemoryConfig()) for n in (45, 46, 70, 71, 1996)] == [0, 1, 1, 2, 79]


def test_all_claims_are_measured(monkeypatch):
    monkeypatch.setattr(claims, "read_peaks", lambda *_: [10**6, 2 * 10**6, 3 * 10**6])
    measured = claims.measure(height=4, width=8)
    assert [claim.claim.split(",")[0] for claim in measured[:3]] == ["compression"] * 2 + ["frames within 6 GB"]
    assert len(measured) == 6 and all(claim.holds is not None for claim in measured)
    monkeypatch.setattr(claims, "read_peaks", lambda *_: [None])
    assert all(
        c.holds is None and c.how == claims.UNMEASURED for c in claims.measure(quick=True, height=4, width=8)[2:]
    )
