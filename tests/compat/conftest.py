"""What the tests of the drop-in share."""

import gc

import pytest
from hosts.deva_like import memory_manager as deva_like
from hosts.matanyone_like import memory_utils as matanyone_functions
from hosts.xmem_like import memory_manager as xmem_like
from hosts.xmem_like import memory_util as xmem_functions

from xmemk.compat.recognition import bodies, known


@pytest.fixture(autouse=True, scope="module")
def _few_tracked_objects():
    """Hides older objects from the garbage collector, which every patch runs and searches."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _known_stand_ins():
    """The stand-ins count as known versions."""
    with pytest.MonkeyPatch.context() as patch:
        for family, module in (("XMem", xmem_like), ("DEVA", deva_like)):
            table = bodies.bodies_of_manager(module.MemoryManager)
            patch.setitem(known.BODIES, family, (*known.BODIES[family], table))
        for name in bodies.FOUR:
            digits = {bodies.body_hash(getattr(module, name)) for module in (xmem_functions, matanyone_functions)}
            patch.setitem(known.FUNCTIONS, name, known.FUNCTIONS[name] | digits)
        yield
