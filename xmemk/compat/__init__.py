"""Drop-ins for code that carries XMem's memory: :func:`patch`, and one module per host family for import lines."""

from .patching import Patch, patch
from .report import Report
from .signatures import UnknownHost
from .verify import VerificationError

__all__ = ["Patch", "Report", "UnknownHost", "VerificationError", "patch"]
