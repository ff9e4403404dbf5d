"""The C++ extension: whether it is there, and which backends serve CPU tensors with it."""

import pytest

from xmemk import operators

_why = operators.native_error()

needs_extension = pytest.mark.skipif(_why is not None, reason=f"xmemk._C: {_why}")

CPU_BACKENDS = ["torch", "cpu"] if _why is None else ["torch"]
