"""A kernel that has become slower is found: ratios to tidy PyTorch against ratio-floors.json.

benchmarks/ratios.py says how they are measured, so that other work does not show in them.
"""

import time

import pytest
from xmemk.benchmarks import ratios

from xmemk import operators as ops
from xmemk.measure.machine import describe

FLOORS = ratios.floors()
HERE = ratios.floors_here(FLOORS)
pytestmark = pytest.mark.skipif(ops.native_error() is not None, reason="the C++ extension is not built")
ELSEWHERE = f"no floors are known of {describe()['processor']}: python benchmarks/ratios.py --write"


def floor_of(check):
    """On another processor a read is no slower than the peer; nothing is known of the upkeep."""
    if HERE:
        return HERE[check.name]
    if check.op in ("memory_read", "memory_read_dense"):
        return 1.0
    pytest.skip(ELSEWHERE)


def named(check):
    return check.name.replace(" ", "-").replace(",", "")


@pytest.mark.parametrize("check", ratios.CHECKS, ids=named)
def test_no_ratio_is_below_its_floor(check):
    floor = floor_of(check)
    ratio = ratios.measured(check, floor)
    assert ratio >= floor, f"{check.name}: {check.peer} takes {ratio:.2f} times our time, {floor} are expected at least"


@pytest.mark.parametrize("check", ratios.CHECKS[:-1], ids=named)
def test_a_slowed_kernel_is_rejected(check):
    """One that works twice; by the clock, one that waits three times as long as it works."""
    if not HERE:
        pytest.skip(ELSEWHERE)

    def slowed(call):
        def twice():
            call()
            call()

        def waits():
            start = time.perf_counter()
            call()
            time.sleep(3 * (time.perf_counter() - start))

        return twice if check.threads == 1 else waits

    floor = HERE[check.name]
    assert ratios.measured(check, floor, blocks=2, wrap=slowed) < floor


def test_floors_follow_from_the_lowest_ratio_of_all_runs():
    quiet = {check.name: [3.0, 2.0] for check in ratios.CHECKS}
    busy = {check.name: [2.5, 1.8] for check in ratios.CHECKS}
    here = describe()["processor"]
    known = ratios.set_floors(ratios.set_floors({}, "quiet", quiet), "busy", busy)
    assert known["processors"][here]["runs"]["quiet"][ratios.CHECKS[0].name] == [2.0, 3.0, 2]
    assert {ratios.floors_here(known)[check.name] for check in ratios.CHECKS if check.threads == 1} == {1.26}
    # Runs on another processor are kept, and do not count here.
    moved = {**known, "processors": {"another": known["processors"][here]}}
    both = ratios.set_floors(moved, "quiet", quiet)["processors"]
    assert list(both[here]["runs"]) == ["quiet"] and list(both["another"]["runs"]) == ["quiet", "busy"]


def test_the_committed_floors_are_those_of_the_committed_runs():
    for processor in FLOORS["processors"].values():
        for check in ratios.CHECKS:
            lowest = min(run[check.name][0] for run in processor["runs"].values())
            assert processor["floors"][check.name] == round(ratios.SLACK[check.threads] * lowest, 2)
