"""The memory that never grows: XMem's three stores on the public functions, in storage that is allocated once."""

from .arena import Arena, Prototypes
from .memory import Memory
from .sensory import Sensory
from .spec import Spec

__all__ = ["Arena", "Memory", "Prototypes", "Sensory", "Spec"]
