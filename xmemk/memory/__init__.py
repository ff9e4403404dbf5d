"""The memory that never grows: XMem's three stores on the public functions, in storage that is allocated once."""

from .arena import Arena, Prototypes
from .batch import read_batch
from .memory import Memory
from .rules import bytes_needed
from .sensory import Sensory
from .spec import Spec

__all__ = ["Arena", "Memory", "Prototypes", "Sensory", "Spec", "bytes_needed", "read_batch"]
