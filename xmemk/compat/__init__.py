"""Drop-ins for code that carries XMem's memory: :func:`patch`, and modules for import lines."""

from . import hosts, replacements
from .patching import Patch, patch
from .recognition.signatures import UnknownHost
from .report import PatchReport
from .verify import VerificationError

Report = PatchReport  # the name of version 0.1
vars(hosts)["_xmem_manager"] = replacements._xmem_manager  # where pickles of version 0.1 look for it

__all__ = ["Patch", "PatchReport", "Report", "UnknownHost", "VerificationError", "patch"]
