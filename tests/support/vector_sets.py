"""The instruction sets that the extension can run on this processor."""

from xmemk import operators as ops


def vector_sets() -> list[str]:
    """Best first; none without the extension."""
    if ops.native_error() is not None:
        return []
    import xmemk._C as extension

    return extension._vector_sets()
