"""XMem's network: encoders, decoder, checkpoints, and a copy tuned for inference.

`network` is the public face and imports the other modules; none of them imports it.
"""

from .config import NetworkConfig
from .network import XMem, aggregate

__all__ = ["NetworkConfig", "XMem", "aggregate"]
