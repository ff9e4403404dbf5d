"""The memory that never grows: XMem's three stores on the public functions, in storage that is allocated once."""

from .arena import Arena, Prototypes, Spec

__all__ = ["Arena", "Prototypes", "Spec"]
