"""XMem's network: encoders, decoder, checkpoints, and a copy tuned for inference."""

from .config import NetworkConfig
from .network import XMem, aggregate

__all__ = ["NetworkConfig", "XMem", "aggregate"]
