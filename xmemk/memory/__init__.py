"""The memory that never grows: XMem's three stores in preallocated storage."""

from .arena import Arena, Prototypes
from .batch import read_batch
from .memory import Memory
from .rules import bytes_needed
from .sensory import SensoryMemory
from .spec import Spec

Sensory = SensoryMemory  # the name of version 0.1

__all__ = ["Arena", "Memory", "Prototypes", "Sensory", "SensoryMemory", "Spec", "bytes_needed", "read_batch"]
