"""The memory read and the whole tracker as ONNX graphs, and the runner that needs neither torch nor
xmemk.
"""

from .read import MaskedRead, export_read, export_read_onnx
from .tracker import export_tracker

__all__ = ["MaskedRead", "export_read", "export_read_onnx", "export_tracker"]
