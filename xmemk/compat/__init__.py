"""Drop-ins for code that carries XMem's memory: :func:`patch`, and modules for import lines."""

from .patching import Patch, patch
from .recognition.signatures import UnknownHost
from .report import PatchReport
from .verify import VerificationError

Report = PatchReport  # the name of version 0.1

__all__ = ["Patch", "PatchReport", "Report", "UnknownHost", "VerificationError", "patch"]
