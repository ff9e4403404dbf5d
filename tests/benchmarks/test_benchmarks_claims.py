"""The paper's two claims: what is counted, and how it is extended."""

import sys

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("rich")

from xmemk.benchmarks.harness import line_process, peaks
from xmemk.benchmarks.harness.line_process import LineProcess
from xmemk.benchmarks.peers.clip import ClipFeatures
from xmemk.benchmarks.report.schema import Claim
from xmemk.benchmarks.studies import claims, length

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
def test_frames_within_a_budget_come_from_what_was_measured(features):
    unbounded, kept, bounded = claims.our_budget(features, CONFIG, 20)
    assert unbounded.measured > claims.CLAIMED_FRAMES and unbounded.holds is True
    assert "20 consolidations made" in unbounded.how
    # One consolidation every 2 * 5 frames, the first at frame 15.
    assert kept.how.startswith("34,000 frames: 27,192 prototypes")
    assert bounded.measured < kept.measured < 6
    assert bounded.holds is True


def test_the_released_formulation_is_budgeted_by_its_matrices(monkeypatch, features):
    monkeypatch.setattr(claims, "peak_of", lambda case, peer: 1_000_000 + 20_000 * case.inputs.mk.shape[2])
    found = claims.released_budget(features, CONFIG, (1_000, 2_000))
    assert "20.0 kB per token" in found.how
    token = 20_000 + 4 * (64 + 512 + 3)
    assert found.measured == pytest.approx(6e9 / token / 8 * 10, rel=0.01)
    assert found.holds is (found.measured >= 34_000)
    monkeypatch.setattr(claims, "peak_of", lambda case, peer: None)
    assert claims.released_budget(features, CONFIG, (1_000,)).holds is None


def test_a_line_through_points():
    assert claims.line([1, 2, 3], [5.0, 7.0, 9.0]) == pytest.approx((3, 2))
    # With the defaults: at frames 45, 70, 95, ...
    assert [claims._consolidations_of(n, MemoryConfig()) for n in (45, 46, 70, 71, 1996)] == [0, 1, 1, 2, 79]


def test_all_claims_are_measured_and_a_process_that_ends_is_a_reason(monkeypatch):
    monkeypatch.setattr(claims, "released_budget", lambda *_: Claim("left out", ""))
    found = claims.measure(quick=True, height=4, width=8)
    assert [f.claim.split(",")[0] for f in found[:3]] == ["compression", "compression", "left out"]
    assert len(found) == 6 and all(f.holds is not None for f in found[3:])
    (failed,) = claims.our_budget_in_fresh_process(0, 8, 1, 60)
    assert failed.holds is None and "failed with 1" in failed.how


@pytest.mark.parametrize("said", ["", "no JSON", "3"])
def test_a_process_that_ends_without_a_result_is_a_reason(monkeypatch, said):
    def ended(*_):
        return LineProcess([sys.executable, "-c", f"print({said!r})"])

    monkeypatch.setattr(line_process, "LineProcess", ended)
    without = "its process ended without a result"
    assert claims.our_budget_in_fresh_process(4, 8, 1, 60)[0].how == without
    film = length.Film(3, 5, 40, window=4, seconds=5, distinct=2)
    assert length.in_fresh_process("STCN", film, length.MethodLimits()).reason == without
    assert peaks.in_fresh_process({}, 60) == (None, without)
