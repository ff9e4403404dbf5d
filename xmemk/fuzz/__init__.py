"""Random adversarial calls of the public functions against the float64 oracle.

``xmemk validate --fuzz N`` runs them. A :class:`Case` is drawn from a number, so a call that fails
can be made again from that number alone.
"""

from .cases import Case, arguments, draw
from .judge import OPS, differences
from .run import Report, refused, run

__all__ = ["OPS", "Case", "Report", "arguments", "differences", "draw", "refused", "run"]
