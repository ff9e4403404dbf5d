"""What the tests of the drop-in share."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def _few_tracked_objects():
    """Hides older objects from the garbage collector, which every patch runs and searches."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
